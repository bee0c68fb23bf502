"""The classify stage on two colours: it learns, resumes, judges real images only, and refuses nonsense."""

import csv
import hashlib
import json
import runpy
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dermjax import sharding
from dermjax.classification import inputs, run
from dermjax.classification.predictions import predictor
from dermjax.classification.recipes import Recipe
from dermjax.data import records
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.training import writers

CONFIG = Path(__file__).parents[2] / "configs" / "classify.py"
COLOURS = {"benign": (190, 150, 130), "malignant": (90, 60, 60)}
SIZES = {"train": 8, "validation": 3, "test": 5}


def draw(folder: Path, splits: dict[str, int], manipulation: str, seed: int) -> Path:
    """Writes noisy squares of each class's colour and their manifest; returns the manifest's path."""
    rng = np.random.default_rng(seed)
    found = []
    for label, colour in COLOURS.items():
        for split, count in splits.items():
            for number in range(count):
                name = f"{label}/{split}{number}.png"
                pixels = np.clip(np.array(colour) + rng.normal(0, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
                (folder / label).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(folder / name)
                digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
                found.append(
                    Record(image=name, sha256=digest, label=label, split=split, source="squares",
                           image_manipulation=manipulation)
                )  # fmt: skip
    path = folder / records.FILE
    records.write(path, Manifest(labels=tuple(COLOURS), root=folder, records=tuple(found)))
    return path


def change(path: Path, function) -> None:
    """Rewrites a manifest with a function on its records."""
    manifest = records.read(path)
    records.write(path, replace(manifest, records=tuple(function(list(manifest.records)))))


def settings(real: Path, **changed):
    """The demo's config at the size of a test."""
    config = runpy.run_path(str(CONFIG))["get_config"]("demo")
    config.architecture.vit.update(
        {"patch_size": 16, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    )
    config.update(manifest=str(real), size=32, steps=12, batch=8, rate=1e-2, warmup=2, save_every=6, log_every=3,
                  evaluate_every=6, mesh={"data": 1, "fsdp": 1})  # fmt: skip
    config.update(changed)
    return config.lock()


@pytest.fixture
def real(tmp_path):
    return draw(tmp_path / "real", SIZES, "none", seed=0)


@pytest.fixture
def synthetic(tmp_path):
    return draw(tmp_path / "synthetic", {"train": 6}, "synthetic", seed=1)


def predictions(workdir: Path, file: str = "predictions.csv") -> list[dict]:
    with (workdir / file).open() as rows:
        return list(csv.DictReader(rows))


def test_it_learns_judges_real_images_and_leaves_every_file(real, synthetic, tmp_path, capsys):
    workdir = tmp_path / "run"
    run.run(settings(real, synthetic=str(synthetic), judged=str(synthetic)), workdir)
    metrics = json.loads((workdir / "metrics.json").read_text())
    assert metrics["test"] == {"n": 10, "accuracy": 1.0, "auroc": 1.0, "sensitivity": 1.0, "specificity": 1.0}
    assert metrics["validation"]["n"] == 6

    rows = predictions(workdir)
    assert list(rows[0]) == ["image", "label", "split", "sha256", "p_benign", "p_malignant"]
    assert [row["split"] for row in rows] == ["validation"] * 6 + ["test"] * 10
    assert all(abs(float(row["p_benign"]) + float(row["p_malignant"]) - 1) < 1e-6 for row in rows)
    assert {row["split"] for row in predictions(workdir, "synthetic_predictions.csv")} == {"train"}

    curve = writers.read(workdir / "metrics.jsonl")
    assert curve[0].keys() == {"step", *(name for name in curve[0] if name.startswith("validation_"))}
    assert curve[-1]["loss"] < curve[1]["loss"] and curve[-1]["validation_auroc"] == 1.0
    config = json.loads((workdir / "classifier" / "config.json").read_text())
    assert config["id2label"] == {"0": "benign", "1": "malignant"}
    assert "classify: 1 devices" in capsys.readouterr().out

    run.run(settings(real, synthetic=str(synthetic), judged=str(synthetic)), workdir)
    assert "nothing to do" in capsys.readouterr().out
    change(real, lambda found: [replace(r, label="benign") if r.image == "malignant/test0.png" else r for r in found])
    run.run(settings(real, synthetic=str(synthetic), judged=str(synthetic)), workdir)
    said = capsys.readouterr().out
    assert "was started from other inputs (judging_images" in said and "nothing to do" not in said
    real.unlink()
    run.run(settings(real, synthetic=str(synthetic), judged=str(synthetic)), workdir)
    said = capsys.readouterr().out
    assert "cannot be compared: manifest" in said and "nothing to do" in said


def test_a_run_may_be_what_training_starts_from(real, tmp_path):
    run.run(settings(real, steps=1), tmp_path / "first")
    run.run(settings(real, steps=1, init=str(tmp_path / "first"), warmup=0), tmp_path / "second")
    assert (tmp_path / "second" / "classifier").is_dir()


def test_a_killed_run_ends_as_if_it_had_not_been(real, tmp_path, killed_at_its_first_checkpoint):
    config = settings(real, ema_decay=0.9)
    run.run(config, tmp_path / "whole")

    killed_at_its_first_checkpoint(run.run, config, tmp_path / "killed")
    assert not (tmp_path / "killed" / "metrics.json").exists()
    run.run(config, tmp_path / "killed")
    for name in ("predictions.csv", "metrics.json", "metrics.jsonl", "classifier/model.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_with_the_largest_seed_and_periods_of_0_it_learns_without_looks(real, tmp_path):
    run.run(settings(real, seed=2**32 - 1, evaluate_every=0, save_every=0, steps=3), tmp_path / "run")
    lines = writers.read(tmp_path / "run" / "metrics.jsonl")
    assert lines[0]["step"] == 1 and not [name for line in lines for name in line if name.startswith("validation")]
    assert (tmp_path / "run" / "metrics.json").exists()


def test_a_rate_that_spoils_everything_writes_no_classifier(real, tmp_path):
    with pytest.raises(UserError, match="was not finite"):
        run.run(settings(real, rate=1e30, warmup=0, steps=4), tmp_path / "run")
    assert not (tmp_path / "run" / "classifier").exists()


def test_fine_tuning_starts_from_a_folder_of_its_own_kind(real, tmp_path):
    run.run(settings(real), tmp_path / "first")
    folder = str(tmp_path / "first" / "classifier")
    run.run(settings(real, init=folder, steps=1, rate=0.0, warmup=0), tmp_path / "second")
    pairs = zip(predictions(tmp_path / "first"), predictions(tmp_path / "second"), strict=True)
    # the folder is calibrated already, so calibrating again changes next to nothing
    assert all(abs(float(a["p_benign"]) - float(b["p_benign"])) < 1e-3 for a, b in pairs)
    with pytest.raises(UserError, match="is a vit, not a mobilenetv2"):
        run.run(settings(real, init=folder, classifier="mobilenetv2"), tmp_path / "third")


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda found: [r for r in found if (r.split, r.label) != ("test", "malignant")], "malignant in test"),
        (lambda found: [r for r in found if r.split != "validation"], "benign in validation, malignant in validation"),
        (lambda found: [*found[:-1], replace(found[-1], sha256=found[0].sha256)], "are one image"),
    ],
    ids=["class without a test image", "no validation split", "one image in two splits"],
)
def test_a_manifest_that_would_make_the_figures_untrue_is_refused(real, tmp_path, function, told):
    change(real, function)
    with pytest.raises(UserError, match=told):
        run.run(settings(real), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_synthetic_copy_of_a_test_image_is_refused(real, synthetic, tmp_path):
    copied = records.read(real).split("test")[0].sha256
    change(synthetic, lambda found: [replace(found[0], sha256=copied), *found[1:]])
    with pytest.raises(UserError, match="are one image"):
        run.run(settings(real, synthetic=str(synthetic)), tmp_path / "run")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"manifest": ""}, "config.manifest"),
        ({"classifier": "mobilnet"}, "mobilenetv2"),
        ({"precision": "float16"}, "float32"),
        ({"init": "nowhere"}, "nowhere/config.json"),
        ({"batch": 7, "mesh": {"data": 2, "fsdp": 1}}, "2 devices|does not divide"),
        ({"classifier": "mobilenetv2", "ema_decay": 0.9}, "config.ema_decay"),
        ({"rate": 1e30, "clip": 0.0}, "loss is|not finite"),
    ],
    ids=[
        "no manifest",
        "unknown classifier",
        "unknown precision",
        "no init folder",
        "batch",
        "average of statistics",
        "diverges",
    ],
)
def test_nonsense_is_one_line(real, tmp_path, changed, told):
    with pytest.raises(UserError, match=told) as error:
        run.run(settings(real, **changed), tmp_path / "run")
    assert "\n" not in str(error.value)


def test_other_classes_are_refused(real, synthetic, tmp_path):
    manifest = records.read(synthetic)
    strangers = tuple(replace(r, label={"benign": "cat", "malignant": "dog"}[r.label]) for r in manifest.records)
    records.write(synthetic, replace(manifest, labels=("cat", "dog"), records=strangers))
    for key in ("synthetic", "judged"):
        with pytest.raises(UserError, match="cat, dog"):
            run.run(settings(real, **{key: str(synthetic)}), tmp_path / "run")


def test_the_same_classes_in_another_order_are_those_of_the_real_images(real, synthetic):
    """`generate` has classes by the alphabet, `prepare` malignant ones last: melanoma and nevus were refused."""
    drawn = records.read(synthetic)
    records.write(synthetic, replace(drawn, labels=drawn.labels[::-1]))
    manifest, made = inputs.read(str(real), str(synthetic))
    judged = inputs.read_judged(str(synthetic), manifest)
    assert manifest.labels == made.labels == judged.labels == tuple(COLOURS)
    assert made.records == judged.records == drawn.records


def test_real_images_are_not_judged_as_synthetic_ones(real, tmp_path):
    with pytest.raises(UserError, match=r"config\.judged = .* holds real images"):
        run.run(settings(real, judged=str(real)), tmp_path / "run")


def test_a_synthetic_image_among_the_judges_is_refused(real, tmp_path):
    lines = real.read_text().splitlines()
    changed = [
        line.replace('"image_manipulation": "none"', '"image_manipulation": "synthetic"')
        if '"split": "validation"' in line else line
        for line in lines
    ]  # fmt: skip
    real.write_text("\n".join(changed) + "\n")
    with pytest.raises(UserError, match="a synthetic image in the validation split") as error:
        run.run(settings(real), tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_logits_that_are_no_numbers_are_counted():
    class Broken:
        def logits(self, params, variables, image, *, train):
            return jnp.where(jnp.arange(4)[:, None] > 0, image.mean((1, 2)), jnp.nan), variables

    predict = predictor(Broken(), Recipe(last=None), sharding.mesh(1, 1))
    batch = {"image": np.zeros((4, 2, 2, 3), np.float32), "valid": np.ones(4, bool)}
    with pytest.raises(UserError, match="1 of 4 predictions are not finite"):
        predict({}, {}, iter([batch]))
