"""Synthetic images may weigh less, teach by a judge's confidence, and have batch statistics of their own."""

import runpy
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax.classification import recipes, run
from dermjax.classification.recipes import Recipe
from dermjax.data import records
from dermjax.data.augmentation import MIXTURES
from dermjax.data.pipelines import MixturePlan, training_batches
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.models.classifier import describe, fresh
from dermjax.training import writers

RUN = runpy.run_path(str(Path(__file__).parent / "test_run.py"))
LABELS = ("a", "b", "c")
MOBILE = {"classifier": "mobilenetv2", "recipe": "full"}


def record(label: str, manipulation: str, /, **scores: float) -> Record:
    return Record(image=f"{label}.png", sha256="0" * 64, label=label, split="train", source="made",
                  image_manipulation=manipulation, scores=scores)  # fmt: skip


def plan(**changes) -> MixturePlan:
    nothing = Manifest(labels=LABELS, root=Path(), records=())
    known = {"real": nothing, "synthetic": nothing, "synthetic_fraction": 0.75, "batch": 8, "rows": np.arange(8)}
    return MixturePlan(**(known | {"seed": 0, "mixing": "none"} | changes))


@pytest.mark.parametrize(("fraction", "weight"), [(0.75, 0.25), (0.5, 2.0), (0.3, 0.1)])
def test_weights_are_one_in_the_mean_of_the_mixture(fraction, weight):
    """So the learning rate means what it did, however little a synthetic image weighs."""
    mixed = plan(synthetic_fraction=fraction, synthetic_weight=weight)
    real, synthetic = (float(mixed.teaching(record("a", kind))["weight"]) for kind in ("none", "synthetic"))
    assert synthetic / real == pytest.approx(weight)
    assert (1 - fraction) * real + fraction * synthetic == pytest.approx(1)


def test_a_judge_shares_its_doubt_between_the_other_classes_and_never_doubts_a_photograph():
    judged = plan(synthetic_targets="judge")
    np.testing.assert_allclose(judged.teaching(record("b", "synthetic", label=0.7))["targets"], [0.15, 0.7, 0.15])
    np.testing.assert_array_equal(judged.teaching(record("b", "none", label=0.7))["targets"], [0, 1, 0])
    assert plan().teaching(record("b", "synthetic", label=0.7)).keys() == {"synthetic"}
    with pytest.raises(UserError, match=r"b\.png: config\.synthetic_targets = judge.*curate with config\.classifier"):
        judged.teaching(record("b", "synthetic"))


def test_the_real_images_of_a_batch_are_counted_or_it_is_refused():
    filled = {name: Manifest(labels=LABELS, root=Path(), records=()) for name in ("real", "synthetic")}
    assert plan(**filled).real_rows == 2
    assert plan(synthetic=None).real_rows == 0 == plan(synthetic_fraction=1.0).real_rows
    with pytest.raises(UserError, match=r"of a batch of 8, 5\.6 would be real"):
        plan(synthetic_fraction=0.3).real_rows  # noqa: B018


def test_mixtures_mix_soft_targets_and_weights_as_they_mix_images():
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.normal(size=(4, 6)).astype(np.float32),
        "label": np.array([0, 1, 2, 0], np.int32),
        "targets": rng.dirichlet(np.ones(3), 4).astype(np.float32),
        "weight": rng.uniform(0.2, 2, 4).astype(np.float32),
    }
    other = {name: array[::-1] for name, array in batch.items()}
    mixed = MIXTURES["mixup"](batch, other, np.random.default_rng(3), classes=3)
    share = ((mixed["image"] - other["image"]) / (batch["image"] - other["image"])).mean()
    for name in ("targets", "weight"):
        np.testing.assert_allclose(mixed[name], share * batch[name] + (1 - share) * other[name], atol=1e-5)


def test_the_loss_is_the_weighted_cross_entropy_of_soft_targets():
    classifier = fresh(describe("vit", RUN["settings"]("").architecture.vit.to_dict(), LABELS, 32), np.float32)
    params, variables = classifier.init(0)
    rng = np.random.default_rng(1)
    batch = {
        "image": rng.uniform(-1, 1, (4, 32, 32, 3)).astype(np.float32),
        "label": np.array([0, 1, 2, 0], np.int32),
        "targets": rng.dirichlet(np.ones(3), 4).astype(np.float32),
        "weight": np.array([2.0, 1.0, 0.5, 0.5], np.float32),
    }
    value, _ = recipes.loss(classifier, Recipe(last=None), 0.0)(params, variables, {}, batch, jax.random.key(0))
    logits, _ = classifier.logits(params, variables, batch["image"], train=True)
    expected = -(batch["weight"][:, None] * batch["targets"] * jax.nn.log_softmax(logits)).sum() / 4
    assert float(value) == pytest.approx(float(expected), rel=1e-6)


def test_statistics_apart_are_those_of_each_kind_and_the_running_ones_of_photographs():
    """Where all of a batch is mixed up in one set of statistics, both would be others."""
    classifier = fresh(describe("mobilenet_v2", {"depth_multiplier": 0.35}, LABELS, 96), np.float32)
    params, variables = classifier.init(0)
    logits = jax.jit(partial(Recipe(last=None).logits, classifier, params, variables, train=True))
    rng = np.random.default_rng(2)
    synthetic = np.array([True, False, False, True, False, True, False, True])
    image = rng.uniform(-1, 1, (8, 96, 96, 3)).astype(np.float32) * np.where(synthetic, 0.2, 1)[:, None, None, None]
    batch = {"image": jnp.asarray(image, jnp.float32), "synthetic": jnp.asarray(synthetic)}
    seen, running = jax.jit(lambda batch: recipes.apart(logits, batch, real_rows=4))(batch)
    real, of_real = logits(batch["image"][~synthetic])
    made, _ = logits(batch["image"][synthetic])
    np.testing.assert_allclose(seen[~synthetic], real, atol=1e-4)
    np.testing.assert_allclose(seen[synthetic], made, atol=1e-4)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), running, of_real)
    shared, _ = recipes.together(logits, batch)
    assert np.abs(shared - seen).max() > 1e-2


def test_batches_of_images_say_which_are_synthetic(tmp_path):
    real = records.read(RUN["draw"](tmp_path / "real", RUN["SIZES"], "none", seed=0))
    synthetic = records.read(RUN["draw"](tmp_path / "synthetic", {"train": 6}, "synthetic", seed=1))
    mixed = plan(real=real, synthetic=synthetic, synthetic_weight=0.5)
    batch = next(training_batches(mixed, size=32, augment="none"))
    assert batch["synthetic"].sum() == 6
    np.testing.assert_allclose(batch["weight"], np.where(batch["synthetic"], 0.8, 1.6))
    np.testing.assert_array_equal(batch["targets"], np.eye(2)[batch["label"]])


@pytest.mark.parametrize(
    "changed",
    [
        {"recipe": "frozen", "synthetic_weight": 0.5, "synthetic_targets": "judge"},
        {"recipe": "full", "synthetic_weight": 0.5, "synthetic_targets": "judge", "mixing": "mixup"},
        pytest.param(MOBILE | {"synthetic_statistics": "separate", "steps": 8}, marks=pytest.mark.slow),
        MOBILE | {"recipe": "last", "synthetic_statistics": "separate", "steps": 8},
    ],
    ids=["features", "images", "separate", "separate_last"],
)
def test_each_way_trains_and_leaves_its_files(tmp_path, changed):
    real = RUN["draw"](tmp_path / "real", RUN["SIZES"], "none", seed=0)
    synthetic = RUN["draw"](tmp_path / "synthetic", {"train": 6}, "synthetic", seed=1)
    RUN["change"](synthetic, lambda known: [replace(each, scores={"label": 0.9}) for each in known])
    run.run(RUN["settings"](real, synthetic=str(synthetic), **changed), tmp_path / "run")
    curve = writers.read(tmp_path / "run" / "metrics.jsonl")
    assert np.isfinite(curve[-1]["loss"]) and (tmp_path / "run" / "metrics.json").is_file()
