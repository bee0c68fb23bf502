"""Options of `classify` that cannot be meant are one line before anything is read; those that can be do as they say."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from dermjax.classification import inputs, networks, run
from dermjax.data.augmentation import MIXTURES
from dermjax.errors import UserError
from dermjax.study import run as study
from dermjax.training import writers

RUN = runpy.run_path(str(Path(__file__).parent / "test_run.py"))
SEPARATE = {"synthetic_statistics": "separate", "classifier": "mobilenetv2"}
STUDY = Path(__file__).parents[2] / "configs" / "study.py"


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return RUN["draw"](tmp_path_factory.mktemp("real"), RUN["SIZES"], "none", seed=0)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"recipe": "frozen", "mixing": "cutmix"}, "config.mixing = cutmix cuts windows .* config.recipe = frozen"),
        ({"recipe": "last", "mixing": "cutmix"}, "config.mixing = cutmix cuts windows .* config.recipe = last"),
        ({"recipe": "frozen", "mixing": "cutmx"}, "config.mixing 'cutmx' is unknown; did you mean cutmix"),
        ({"recipe": "frozen", "augment": "milde"}, "config.augment 'milde' is unknown; did you mean mild"),
        ({"recipe": "probe"}, "config.recipe 'probe' is unknown"),
        ({"optimizer": "adam"}, "config.optimizer 'adam' is unknown; did you mean adamw"),
        ({"schedule": "cosin"}, "config.schedule 'cosin' is unknown; did you mean cosine"),
        ({"accumulate": 3}, "batch = 8 in accumulate = 3 parts does not divide; give a multiple of 3"),
        ({"accumulate": 0}, "config.accumulate = 0: give 1 or more"),
        ({"batch": 0}, "config.batch = 0: give 1 or more"),
        ({"mesh.fsdp": 0}, "config.mesh.fsdp = 0: give 1 or more"),
        ({"mesh.data": -1}, "config.mesh.data = -1: give 0 or more"),
        ({"steps": 0}, "config.steps = 0: give 1 or more"),
        ({"views": 0}, "config.views = 0: give 1 to 1000"),
        ({"views": 10**6}, "config.views = 1000000: give 1 to 1000"),
        ({"synthetic": "runs/curate", "synthetic_fraction": 0.0}, "no image of config.synthetic would be trained on"),
        ({"size": 0}, "config.size = 0: give the side in pixels"),
        ({"warmup": -1}, "config.warmup = -1: give 0 or more"),
        ({"rate": float("nan")}, "config.rate = nan: give 0 or more"),
        ({"clip": -1.0}, "config.clip = -1.0: give 0 or more"),
        ({"patience": -1}, "config.patience = -1: give 0 or more"),
        ({"patience": 4, "evaluate_every": 0}, "config.patience needs evaluations on the validation images"),
        ({"seed": -1}, "config.seed = -1: give a seed from 0 to 4294967295"),
        ({"layer_decay": 0.0}, "config.layer_decay = 0.0: give more than 0"),
        ({"label_smoothing": 1.0}, "config.label_smoothing = 1.0: give 0 or more and less than 1"),
        ({"ema_decay": 1.0}, "config.ema_decay = 1.0: give 0 or more and less than 1"),
        ({"recipe": "last", "features": __file__}, "config.features = .* is no folder"),
        ({"recipe": "frozen", "augment": "strong"}, "augment = strong: config.recipe = frozen .* config.views = 2"),
        ({"recipe": "last", "augment": "randaugment"}, "config.recipe = last augments .* after the first"),
        ({"views": 4}, "views = 4: config.recipe = full does nothing with it; .* take the recipe last or frozen"),
        ({"features": "shared"}, "config.features = shared: config.recipe = full does nothing with it"),
        ({"last_blocks": 1}, "last_blocks = 1: config.recipe = full does nothing with it; .* take the recipe last$"),
        ({"recipe": "frozen", "last_blocks": 1}, "config.last_blocks = 1: config.recipe = frozen does nothing with it"),
        ({"recipe": "frozen", "layer_decay": 0.8}, "layer_decay = 0.8: config.recipe = frozen does nothing with it"),
        ({"synthetic_fraction": 1.5}, "config.synthetic_fraction = 1.5: give 0 to 1"),
        ({"synthetic_weight": 0.0}, "config.synthetic_weight = 0.0: give more than 0"),
        ({"synthetic_targets": "juge"}, "config.synthetic_targets 'juge' is unknown; did you mean judge"),
        ({"synthetic_statistics": "separated"}, "config.synthetic_statistics .* did you mean separate"),
        ({"synthetic_statistics": "separate"}, "separate does not go with config.classifier = vit"),
        (SEPARATE | {"recipe": "frozen"}, "separate does not go with config.recipe = frozen"),
        (SEPARATE | {"mixing": "mixup"}, "separate does not go with config.mixing = mixup"),
        (SEPARATE | {"accumulate": 2}, "separate does not go with config.accumulate = 2"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_meant_is_one_line_before_anything_is_read(real, tmp_path, monkeypatch, changed, told):
    monkeypatch.setattr(inputs, "read", lambda *_: pytest.fail("read"))
    config = RUN["settings"](real)
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict(changed)
    with pytest.raises(UserError, match=told) as error:
        run.run(config, tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_what_does_nothing_without_synthetic_images_is_said(real, tmp_path, capsys):
    run.run(RUN["settings"](real, steps=1, synthetic_targets="judge", synthetic_weight=0.5), tmp_path / "run")
    said = capsys.readouterr().out
    assert (
        "synthetic_weight = 0.5, config.synthetic_targets = judge: without config.synthetic it changes nothing" in said
    )


def test_images_are_cut_into_whole_patches(real, tmp_path):
    """Pixels of the last column and row would be in no patch."""
    with pytest.raises(UserError, match="size = 40 is not a multiple of the classifier's patches of 16; give 3"):
        run.run(RUN["settings"](real, size=40), tmp_path / "run")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"num_attention_heads": 3}, "config.architecture.vit: hidden_size = 16 is not a multiple of its 3 heads"),
        ({"num_hidden_layers": 10**7}, "config.architecture.vit.num_hidden_layers = 10000000 should be a whole"),
        ({"hidden_size": 10**9}, "config.architecture.vit.hidden_size = 1000000000 should be a whole"),
        ({"num_layers": 3}, "config.architecture.vit.num_layers: there are .*, num_hidden_layers"),
        ({"hidden_dropout_prob": 0.1}, "config.architecture.vit.hidden_dropout_prob = 0.1: nothing is dropped here"),
    ],
)
def test_an_architecture_that_cannot_be_built_is_one_line(changed, told):
    shape = {"patch_size": 16, "hidden_size": 16, "num_attention_heads": 2} | changed
    with pytest.raises(UserError, match=told):
        config = dict(classifier="vit", init="", architecture={"vit": shape}, size=32, seed=0, precision="float32")
        networks.build(ConfigDict(config), ("a", "b"))


def test_dropout_in_a_folder_is_said_to_do_nothing(real, tmp_path, capsys):
    run.run(RUN["settings"](real, steps=1), tmp_path / "first")
    file = tmp_path / "first" / "classifier" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hidden_dropout_prob": 0.1}))
    capsys.readouterr()
    config = RUN["settings"](real, init=str(tmp_path / "first"))
    networks.build(config, ("benign", "malignant"))
    told = f"config.init = {config.init}: hidden_dropout_prob = 0.1: nothing is dropped here, in training neither\n"
    assert capsys.readouterr().out == told


@pytest.mark.parametrize("recipe", ["full", "last", "frozen"])
def test_what_nobody_gave_can_be_meant(real, recipe):
    """And augment = none, which is what a recipe on one view of each image does."""
    run.check(RUN["settings"](real, recipe=recipe))
    run.check(RUN["settings"](real, recipe=recipe, augment="none"))
    if recipe != "full":
        run.check(RUN["settings"](real, recipe=recipe, augment="strong", views=2, features="shared"))


@pytest.mark.parametrize(("recipe", "mixing"), [("frozen", "mixup"), ("last", "mixup")])
def test_a_mean_of_features_is_learnt_from_in_parts_too(real, tmp_path, recipe, mixing):
    """Two blobs of colour are told apart, whose targets are mixed by as much as their features."""
    blocks = {"last_blocks": 1} if recipe == "last" else {}
    config = RUN["settings"](real, recipe=recipe, mixing=mixing, accumulate=2, steps=24, warmup=30, **blocks)
    run.run(config, tmp_path)
    curve = writers.read(tmp_path / "metrics.jsonl")
    assert curve[-1]["validation_auroc"] == 1.0 and np.isfinite(curve[-1]["loss"])


@pytest.mark.parametrize("shape", [(8,), (5, 6)], ids=["pooled", "tokens"])
def test_features_are_mixed_as_much_as_their_targets(shape):
    """Features that say their class alone, one number everywhere, are after mixup what the targets say."""
    label = np.array([0, 1, 1, 0, 0, 0], np.int32)
    image = np.broadcast_to(label.reshape(-1, *(1 for _ in shape)), (6, *shape)).astype(np.float32)
    batch = {"image": image, "label": label}
    other = {name: array[::-1] for name, array in batch.items()}
    mixed = MIXTURES["mixup"](batch, other, np.random.default_rng(3), classes=2)
    assert mixed["targets"][:, 1].max() > 0 and not np.array_equal(mixed["image"], image)
    everywhere = np.broadcast_to(mixed["targets"][:, 1].reshape(-1, *(1 for _ in shape)), image.shape)
    np.testing.assert_allclose(mixed["image"], everywhere, atol=1e-6)


@pytest.mark.parametrize("variant", ["frozen", "last", "full"])
def test_an_arm_of_a_study_may_augment(variant):
    config = runpy.run_path(str(STUDY))["get_config"](variant)
    config.arms = ("real_equal_steps", "real_augmented")
    config.synthetic = config.training = config.manifest = "runs/prepare"
    assert len(study.plan(config)) == 2 * len(config.classifiers) * len(config.shots) * len(config.seeds)


def test_a_batch_of_whole_images_is_one_whatever_floats_make_of_it():
    """A third of 30 was refused: "has 10 real images in a batch of 30; give another"."""
    config = runpy.run_path(str(STUDY))["get_config"]("full")
    del config.classifiers.vit
    config.arms, config.classifiers.mobilenetv2.batch = ("real_equal_steps", "hybrid_2_apart"), 30
    config.synthetic = config.training = config.manifest = "runs/prepare"
    assert study.plan(config)
    config.classifiers.mobilenetv2.batch = 32
    with pytest.raises(UserError, match=r"hybrid_2_apart has 10\.6667 real images in a batch of 32"):
        study.plan(config)


def test_what_cells_set_is_not_taken_from_a_classifier_s_options():
    for key, value, instead in (
        ("seed", 7, "seeds"),
        ("synthetic_fraction", 0.5, "arms"),
        ("judged", "x", "synthetic"),
    ):
        config = runpy.run_path(str(STUDY))["get_config"]("frozen")
        config.synthetic = config.training = config.manifest = "runs/prepare"
        config.classifiers.vit[key] = value
        told = rf"config\.classifiers\.vit\.{key} = {value}: a study goes by config\.{instead} instead"
        with pytest.raises(UserError, match=told):
            study.plan(config)


def test_what_is_taught_by_a_judge_is_known_by_its_probabilities(real, tmp_path):
    drawn = RUN["draw"](tmp_path / "drawn", {"train": 2}, "synthetic", seed=1)
    config = RUN["settings"](real, synthetic=str(drawn), synthetic_targets="judge")
    manifest = run.records.read(drawn)
    scored = [replace(manifest, records=tuple(replace(r, scores={"label": p}) for r in manifest.records))
              for p in (0.6, 0.7)]  # fmt: skip
    one, other = (run._inputs(config, run.records.read(real), each) for each in scored)
    assert one["images"] == other["images"] and one["judge"] != other["judge"]
    assert "judge" not in run._inputs(RUN["settings"](real), run.records.read(real), scored[0])


def test_a_study_says_it_before_it_tunes_a_generator():
    config = runpy.run_path(str(STUDY))["get_config"]("frozen")
    config.classifiers.vit.mixing = "cutmix"
    with pytest.raises(UserError, match=r"config\.classifiers\.vit: config\.mixing = cutmix"):
        study.plan(config)


def test_the_configs_that_come_with_the_package_can_be_meant():
    for name, variants in (("classify", ("probe", "vit", "mobilenetv2", "demo")), ("study", ("last", "full", "folds"))):
        for variant in variants:
            config = runpy.run_path(str(STUDY.with_name(f"{name}.py")))["get_config"](variant)
            for each in [config] if name == "classify" else config.classifiers.values():
                run.check(each)
