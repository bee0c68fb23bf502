"""What is frozen stays, what is cached is what the whole network computes, and heads say what they said."""

import os
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from dermjax import sharding
from dermjax.classification import recipes, run
from dermjax.classification.batches import Mixture, standardisation
from dermjax.classification.features import VERSIONS, Features, causes
from dermjax.classification.recipes import Recipe
from dermjax.data import records
from dermjax.data.pipelines import MixturePlan
from dermjax.data.records import Manifest
from dermjax.errors import UserError
from dermjax.models.classifier import describe, fresh
from dermjax.training import writers
from dermjax.weights.torch_layout import flatten

DRAW = runpy.run_path(str(Path(__file__).parent / "test_run.py"))
SMALL = {"patch_size": 16, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}


def vit():
    classifier = fresh(describe("vit", SMALL, ("benign", "malignant"), 32), np.float32)
    return classifier, *classifier.init(0)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return DRAW["draw"](tmp_path_factory.mktemp("real"), DRAW["SIZES"], "none", seed=0)


@pytest.mark.parametrize("kind", ["vit", "dinov2", "mobilenet_v2"])
def test_below_the_cut_and_above_it_are_the_whole(kind):
    settings = {"depth_multiplier": 0.35} if kind == "mobilenet_v2" else SMALL
    classifier = fresh(describe(kind, settings, ("a", "b"), 32), np.float32)
    params, variables = classifier.init(0)
    image = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)

    @jax.jit
    def both(params, variables):
        cut = [
            classifier.upper(params, variables, classifier.lower(params, variables, image, last), last, train=False)[0]
            for last in (0, 2)
        ]
        return classifier.logits(params, variables, image, train=False)[0], cut

    whole, cut = both(params, variables)
    for each in cut:
        np.testing.assert_allclose(each, whole, rtol=0, atol=1e-5)


def test_a_recipe_parts_the_parameters_and_rates_fall_with_depth():
    _, params, _ = vit()
    flat = flatten(params)
    for name, blocks, trained in (("frozen", 1, {"head"}), ("last", 2, {"head", "norm", "1", "2"})):
        parts = recipes.divide(params, recipes.recipe(name, blocks, params))
        assert flatten(parts[0]).keys() | flatten(parts[1]).keys() == flat.keys()
        kinds = {
            "head" if path.startswith("classifier") else "norm" if ".layernorm." in path else path.split(".")[3]
            for path in flatten(parts[0])
        }
        assert kinds == trained
        jax.tree.map(np.testing.assert_array_equal, recipes.join(*parts), params)
    slowed, _ = recipes.layerwise(0.5, params).update(jax.tree.map(np.ones_like, params), None)
    slowed = {path: float(leaf.flat[0]) for path, leaf in flatten(slowed).items()}
    assert slowed["classifier.kernel"] == slowed["vit.layernorm.scale"] == 1
    assert slowed["vit.encoder.layer.2.output.dense.kernel"] == 0.5
    assert slowed["vit.encoder.layer.0.output.dense.kernel"] == 0.125
    assert slowed["vit.embeddings.cls_token"] == 0.0625
    with pytest.raises(UserError, match="the classifier has 3 blocks"):
        recipes.recipe("last", 4, params)
    with pytest.raises(UserError, match="full or last or frozen"):
        recipes.recipe("probe", 1, params)


def features(folder, last=0, change=0.0):
    classifier, params, variables = vit()
    params = jax.tree.map(lambda leaf: leaf + np.float32(change), params)
    recipe, grid = Recipe(last=last), sharding.mesh(1, 1)
    return Features(
        classifier=classifier, params=params, variables=variables, last=last, policy="mild", batch=4,
        grid=grid, causes=causes(classifier, params, variables, recipe, grid), within=folder,
    )  # fmt: skip


def test_features_are_computed_once_by_digest(real, tmp_path, monkeypatch):
    manifest = records.read(real)
    chosen = manifest.split("test")[:6]
    found = features(tmp_path).read(manifest, chosen, 2)
    assert found.shape == (6, 2, 16) and found.dtype == np.float32
    assert np.abs(found[:, 0] - found[:, 1]).max() > 1e-4  # the second view is augmented
    monkeypatch.setattr(Features, "_view", lambda *_: pytest.fail("computed again"))
    np.testing.assert_array_equal(features(tmp_path).read(manifest, chosen[::-1], 1)[::-1, 0], found[:, 0])
    assert features(tmp_path, change=0.1).folder != features(tmp_path).folder
    assert features(tmp_path, last=1).folder != features(tmp_path).folder
    features(tmp_path).path(chosen[0], 0).write_bytes(b"\x93NUMPY")
    with pytest.raises(UserError, match="damaged"):
        features(tmp_path).read(manifest, chosen, 1)


def test_features_of_other_code_or_arithmetic_are_computed_again(real, tmp_path, monkeypatch, capsys):
    manifest = records.read(real)
    chosen = manifest.split("test")[:3]
    (tmp_path / "0123456789abcdef").mkdir()  # as the first versions named it
    (tmp_path / "0123456789abcdef" / "of_an_image.npy").write_bytes(b"")
    first = features(tmp_path)
    first.read(manifest, chosen, 1)
    said = capsys.readouterr().out
    assert f"features in {tmp_path} are computed again (made by an older version" in said and "removed" in said
    assert {path.name for path in tmp_path.iterdir()} == {first.folder.name, f"{first.folder.name}.json"}

    coarse = replace(first, causes=first.causes | {"arithmetic": "bfloat16"})
    coarse.read(manifest, chosen, 1)
    assert '(arithmetic: "float32" -> "bfloat16")' in capsys.readouterr().out
    assert first.folder.is_dir() and coarse.folder.is_dir()

    changed = "dermjax.classification.features.VERSIONS"
    monkeypatch.setattr(changed, VERSIONS | {"classifier": VERSIONS["classifier"] + 1})
    later = features(tmp_path)
    later.read(manifest, chosen, 1)
    said = capsys.readouterr().out
    assert "(numeric_versions.classifier: 1 -> 2); 2 of an older version removed" in said
    assert {path.name for path in tmp_path.iterdir()} == {later.folder.name, f"{later.folder.name}.json"}
    later.read(manifest, chosen, 1)
    assert "again" not in capsys.readouterr().out


def test_the_first_process_alone_writes_and_removes_features(real, tmp_path, monkeypatch):
    """The others compute what it lacks and read what it wrote; where that is on another disk, they say so."""
    manifest = records.read(real)
    old = tmp_path / "features_0123456789abcdef"
    old.mkdir()
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    asked = "dermjax.classification.features.multihost_utils.broadcast_one_to_all"
    monkeypatch.setattr(asked, lambda absent: ~absent)  # the first process lacks them all
    with pytest.raises(UserError, match="removed meanwhile, or not on a disk that all hosts share") as error:
        features(tmp_path).read(manifest, manifest.split("test")[:3], 1)
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == [old]


def test_mixtures_of_features_are_exact_resumable_and_in_turns():
    sources = [np.full((n, 1, 3), value, np.float32) for value, n in enumerate((5, 4, 7, 3))]
    nothing = Manifest(labels=("a", "b"), root=Path(), records=())
    plan = MixturePlan(
        real=nothing, synthetic=nothing, synthetic_fraction=0.75, batch=8, rows=np.arange(8), seed=1, mixing="none"
    )

    def mixture(**changes):
        return Mixture(sources, [[{}] * len(each) for each in sources], replace(plan, **changes))

    one = mixture()
    batches = [next(one) for _ in range(6)]
    values = np.concatenate([batch["image"][:, 0] for batch in batches])
    assert [(values == source).sum() for source in range(4)] == [6, 6, 18, 18]
    assert (np.concatenate([batch["label"] for batch in batches]) == values % 2).all()
    again = mixture()
    again.set_state({"next": 4})
    np.testing.assert_array_equal(next(again)["image"], batches[4]["image"])
    mixed = next(mixture(mixing="mixup"))
    np.testing.assert_allclose(mixed["targets"].sum(-1), 1, atol=1e-6)
    part = next(mixture(mixing="mixup", rows=np.array([1, 4, 7])))
    for name in mixed:
        np.testing.assert_array_equal(part[name], mixed[name][[1, 4, 7]])


def test_features_that_few_images_show_do_not_drown_the_others():
    rng = np.random.default_rng(0)
    values = rng.normal(3, 2, (50, 40)).astype(np.float32)
    values[:, :5], values[:, 5:8] = 0, 1e-5 * values[:, 5:8]  # what ReLU6 leaves of a channel in a few images
    mean, deviation = standardisation(values)
    np.testing.assert_allclose(deviation[8:], values[:, 8:].std(0), rtol=1e-6)
    another = rng.normal(3, 2, (50, 40))  # in which all are alive
    assert np.abs((another - mean) / deviation).max() < 60  # it was 1e6
    flat = np.full((4, 3), 2.0, np.float32)
    np.testing.assert_array_equal((flat - standardisation(flat)[0]) / standardisation(flat)[1], np.zeros((4, 3)))


def test_heads_say_the_same_in_other_units():
    rng = np.random.default_rng(0)
    head = {"kernel": rng.normal(size=(5, 2)), "bias": rng.normal(size=2)}
    mean, deviation, x = rng.normal(size=5), rng.uniform(0.5, 2, 5), rng.normal(size=(7, 5))
    scaled = run.standardised_head(head, mean, deviation)
    said = (x - mean) / deviation @ scaled["kernel"] + scaled["bias"]
    np.testing.assert_allclose(said, x @ head["kernel"] + head["bias"], atol=1e-5)
    back = run.plain_head(scaled, mean, deviation)
    np.testing.assert_allclose(back["kernel"], head["kernel"], atol=1e-5)
    np.testing.assert_allclose(back["bias"], head["bias"], atol=1e-5)


def test_the_temperature_of_overconfident_logits_is_found():
    rng = np.random.default_rng(0)
    honest = rng.normal(size=(20_000, 2))
    labels = (rng.random(20_000) < 1 / (1 + np.exp(honest[:, 0] - honest[:, 1]))).astype(int)
    assert run.fitted_temperature(3 * honest, labels) == pytest.approx(3, rel=0.05)
    cooled = run.cooled_head({"kernel": np.ones((2, 2)), "bias": np.ones(2)}, 4.0)
    assert cooled["kernel"][0, 0] == cooled["bias"][0] == 0.25


@pytest.mark.parametrize("spread", [1.6, 0.6])
def test_a_frequent_class_does_not_decide_how_sure_the_others_are(spread):
    """Probabilities are as if classes were equally frequent: of such logits the temperature is 1, however rare one is.
    By images it was 0.6 where the rare class varies more, and 1.5 where it varies less."""
    rng = np.random.default_rng(0)
    labels = (rng.random(20_000) < 0.1).astype(int)
    x = np.where(labels == 1, 1.5 + spread * rng.normal(size=20_000), rng.normal(size=20_000))
    honest = x**2 / 2 - (x - 1.5) ** 2 / (2 * spread**2) - np.log(spread)
    assert run.fitted_temperature(np.stack([0 * honest, honest], 1), labels) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize(
    ("margin", "wrong", "bound"),
    [(0.5, 0, "0.05"), (200, 0, "0.05"), (0.5, 8, ""), (4, 8, ""), (200, 8, "20"), (0.5, 40, "20"), (200, 40, "20")],
)
def test_a_calibration_that_ends_at_its_bound_is_said(capsys, margin, wrong, bound):
    """With a margin of 200 the search ends somewhere above the bound where all images are right."""
    labels = np.arange(40) % 2
    found = run.fitted_temperature(margin * np.eye(2)[np.where(np.arange(40) < wrong, 1 - labels, labels)], labels)
    said = capsys.readouterr().out
    assert run.TEMPERATURES[0] <= found <= run.TEMPERATURES[1] and said.count("\n") == bool(bound)
    assert not bound or f"classify: calibration ended at its bound, {bound}: " in said


@pytest.mark.parametrize("recipe", ["frozen", "last"])
def test_what_is_frozen_stays_bit_for_bit(real, tmp_path, recipe):
    shape = {"patch_size": 16, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
             "num_attention_heads": 2}  # fmt: skip
    config = DRAW["settings"](real)
    config = type(config)(config.to_dict())
    config.architecture.vit = shape
    config.update(recipe=recipe, views=2, patience=6, evaluate_every=3)
    if recipe == "last":
        config.update(last_blocks=1, layer_decay=0.5)
    run.run(config.lock(), tmp_path / recipe)
    file = load_file(tmp_path / recipe / "classifier" / "model.safetensors")
    start = fresh(describe("vit", shape, ("benign", "malignant"), 32), np.float32).init(config.seed)[0]
    below = {"vit.encoder.layer.0.", "vit.embeddings."} | ({"vit.encoder.layer.1."} if recipe == "frozen" else set())
    flat = flatten(start)
    names = {path.replace("kernel", "weight").replace("scale", "weight"): path for path in flat}
    for name, tensor in file.items():
        same = np.array_equal(np.sort(tensor, axis=None), np.sort(flat[names[name]], axis=None))
        if any(name.startswith(each) for each in below):
            assert same, name
    assert not np.allclose(file["classifier.weight"], flat["classifier.kernel"].T)
    curve = writers.read(tmp_path / recipe / "metrics.jsonl")
    assert curve[-1]["validation_auroc"] == 1.0 and curve[-1]["step"] < 12  # ended early, at the best


@pytest.mark.slow
def test_batch_statistics_are_of_the_whole_batch_on_two_devices(tmp_path):
    """One step of MobileNetV2 over two devices leaves the statistics and parameters of one step on one."""
    program = (
        "import sys, jax, numpy as np, optax\n"
        "from dermjax import sharding\n"
        "from dermjax.classification import recipes\n"
        "from dermjax.classification.recipes import Recipe\n"
        "from dermjax.models.classifier import describe, fresh\n"
        "from dermjax.training.loop import LoopConfig, Task, fit\n"
        "from dermjax.training.state import create\n"
        "from pathlib import Path\n"
        "classifier = fresh(describe('mobilenet_v2', {'depth_multiplier': 0.35}, ('a', 'b'), 64), np.float32)\n"
        "rng = np.random.default_rng(0)\n"
        "batch = {'image': rng.uniform(-1, 1, (8, 64, 64, 3)).astype('f4'), 'label': np.arange(8, dtype='i4') % 2}\n"
        "class Same:\n"
        "    def __next__(self): return batch\n"
        "    def get_state(self): return {}\n"
        "    def set_state(self, state): pass\n"
        "found = []\n"
        "for devices, accumulate in ((1, 1), (2, 1), (1, 2)):\n"
        "    params, variables = classifier.init(0)\n"
        "    rule = optax.sgd(0.1)\n"
        "    loss = recipes.loss(classifier, Recipe(last=None), 0.0)\n"
        "    state = create(params, variables, rule, ema=False)\n"
        "    config = LoopConfig(seed=0, steps=1, accumulate=accumulate, save_every=10, log_every=10)\n"
        "    state = fit(Task('one', loss, rule), state, {}, Same(), config, mesh=sharding.mesh(devices, 1),\n"
        "                workdir=Path(sys.argv[1]) / f'{devices}{accumulate}')\n"
        "    found.append(jax.device_get((state.variables, state.params)))\n"
        "whole, divided, parts = found\n"
        "for one, two in zip(*map(jax.tree.leaves, (whole[0], divided[0])), strict=True):\n"
        "    np.testing.assert_allclose(one, two, rtol=0, atol=1e-4)\n"
        "def apart(one, two):\n"
        "    pairs = zip(*map(jax.tree.leaves, (one[1], two[1])), strict=True)\n"
        "    return sum(float(((a - b) ** 2).sum()) for a, b in pairs) ** 0.5\n"
        "# a value that rounding moves over a kink of ReLU6 changes gradients by steps, statistics of parts far more\n"
        "assert apart(whole, divided) < 0.05 * apart(whole, parts)\n"
        "moved = [np.abs(leaf - before).max() for leaf, before in\n"
        "         zip(jax.tree.leaves(found[1][0]), jax.tree.leaves(classifier.init(0)[1]), strict=True)]\n"
        "assert min(moved) > 0\n"
    )
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
