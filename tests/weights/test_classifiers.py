"""Classifier folders: ours in transformers, theirs in ours, the real backbones, and every way a folder can be wrong."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dermjax.classification import networks
from dermjax.curation import label_score
from dermjax.errors import UserError
from dermjax.models.classifier import describe, fresh
from dermjax.weights import classifiers, image_encoders

LABELS = ("benign", "malignant")
BACKBONES = Path(__file__).parents[2] / ".." / "shared" / "weights"
SETTINGS = {
    "vit": {
        "patch_size": 8,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 12,
        "num_attention_heads": 2,
    },
    "dinov2": {"patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    "mobilenet_v2": {"depth_multiplier": 0.35},
}


def shaken(tree, seed):
    """A tree with noise on every leaf: zeros, ones and biases of a fresh network would hide exchanged tensors."""
    leaves, shape = jax.tree.flatten(tree)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(shape, [np.asarray(a) + np.float32(rng.uniform(0.1, 0.3, a.shape)) for a in leaves])


def make(kind: str, folder: Path):
    """A random classifier of ours, written to a folder: (classifier, params, variables)."""
    classifier = fresh(describe(kind, SETTINGS[kind], LABELS, 32), jnp.float32)
    params, variables = (shaken(tree, seed) for seed, tree in enumerate(classifier.init(0)))
    classifiers.write(folder, classifier, params, variables)
    return classifier, params, variables


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A folder of a small ViT."""
    folder = tmp_path_factory.mktemp("vit") / "classifier"
    make("vit", folder)
    return folder


@pytest.fixture
def broken(vit, tmp_path):
    """A copy of that folder, to be damaged: (folder, its config, its tensors)."""
    folder = shutil.copytree(vit, tmp_path / "broken")
    return folder, json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


@pytest.mark.parametrize("kind", SETTINGS)
def test_what_we_write_is_read_bit_for_bit(kind, tmp_path):
    classifier, *trees = make(kind, tmp_path / "classifier")
    again, read = classifiers.read(tmp_path / "classifier", LABELS, 32)
    assert again.config == classifier.config
    jax.tree.map(np.testing.assert_array_equal, read, tuple(trees))


@pytest.mark.parametrize("kind", SETTINGS)
def test_transformers_loads_what_we_write_and_computes_the_same(kind, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    classifier, params, variables = make(kind, tmp_path / "classifier")
    twin, report = getattr(transformers, classifier.architecture.name).from_pretrained(
        tmp_path / "classifier", output_loading_info=True
    )
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert twin.config.id2label == {0: "benign", 1: "malignant"}
    image = np.random.default_rng(2).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    pixels = ((image + 1) / 2 - np.array(classifier.mean)) / np.array(classifier.std)
    with torch.no_grad():
        theirs = twin.eval()(torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32)).logits.numpy()
    ours = jax.jit(lambda *trees: classifier.logits(*trees, image, train=False)[0])(params, variables)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * max(1, np.abs(theirs).max()))


def test_a_vit_that_pools_by_the_mean_is_one_that_transformers_refuses(tmp_path, capsys):
    """It would read the class token and say something else; we read our folder, and those of before its name."""
    classifier = fresh(describe("vit", SETTINGS["vit"] | {"pooling": "mean"}, LABELS, 32), jnp.float32)
    trees = tuple(shaken(tree, seed) for seed, tree in enumerate(classifier.init(0)))
    classifiers.write(tmp_path / "classifier", classifier, *trees)
    told = capsys.readouterr().out
    assert "reads the mean of the patches" in told and "transformers refuses it" in told and told.count("\n") == 1
    file = tmp_path / "classifier" / "config.json"
    for written in (json.loads(file.read_text()), classifier.config):
        file.write_text(json.dumps(written))
        again, read = networks.load(tmp_path)
        assert again.config == classifier.config
        jax.tree.map(np.testing.assert_array_equal, read, trees)
    classifiers.write(tmp_path / "classifier", classifier, *trees)
    transformers = pytest.importorskip("transformers")
    with pytest.raises(ValueError, match="vit_mean_pooled"):
        transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "classifier")


@pytest.mark.parametrize(("name", "size"), [("dinov2_vits14", 224), ("mobilenet_v2_1.0_160", 160)])
def test_real_backbones_give_pytorch_s_features(name, size):
    folder = BACKBONES / name
    if not folder.is_dir():
        pytest.skip("the real backbones are not here")
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    classifier, (params, variables) = classifiers.read(folder, LABELS, size)
    image = np.random.default_rng(3).uniform(-1, 1, (1, size, size, 3)).astype(np.float32)
    ours = jax.jit(lambda *trees: classifier.lower(*trees, image, 0))(params, variables)

    pixels = ((image + 1) / 2 - np.array(classifier.mean)) / np.array(classifier.std)
    twin = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        said = twin(torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32))
    theirs = said.pooler_output.numpy()
    if name.startswith("dinov2"):  # the head reads the patches' mean beside the class token
        theirs = np.concatenate([theirs, said.last_hidden_state[:, 1:].mean(1).numpy()], axis=-1)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def test_other_labels_get_a_new_head_and_nothing_else_changes(vit):
    _, (kept, _) = classifiers.read(vit, LABELS, 32)
    _, (replaced, _) = classifiers.read(vit, ("a", "b", "c"), 32)
    assert replaced["classifier"]["kernel"].shape == (16, 3)
    jax.tree.map(np.testing.assert_array_equal, kept["vit"], replaced["vit"])


def test_position_embeddings_follow_the_size(vit):
    classifier, (params, _) = classifiers.read(vit, LABELS, 48)
    assert classifier.config["image_size"] == 48
    assert params["vit"]["embeddings"]["position_embeddings"].shape == (1, 1 + 6 * 6, 16)


def test_preprocessing_is_read_and_written(broken):
    folder, *_ = broken
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    assert settings["image_mean"] == [0.5, 0.5, 0.5] and settings["crop_size"] == {"height": 32, "width": 32}
    settings["image_mean"] = [0.1, 0.2, 0.3]
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    assert classifiers.read(folder, LABELS, 32)[0].mean == (0.1, 0.2, 0.3)


def test_every_wrong_tensor_is_named_at_once(broken):
    folder, _, tensors = broken
    tensors.pop("vit.layernorm.bias")
    tensors["vit.extra"] = np.zeros(3, np.float32)
    tensors["vit.encoder.layer.3.output.dense.bias"] = np.zeros(5, np.float32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError) as error:
        classifiers.read(folder, LABELS, 32)
    told = str(error.value)
    for word in ("layernorm.bias is missing", "vit.extra is not expected", "layer.3.output.dense.bias is (5,)", "3 of"):
        assert word in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "resnet"}'), "'resnet' is not one of"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": ["vit"]}'), "is not one of"),
        (lambda folder: (folder / "config.json").write_text("<html>"), "config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs"), "model.safetensors"),
    ],
    ids=["no config", "other architecture", "several architectures", "html", "no weights", "git-lfs pointer"],
)
def test_a_broken_folder_is_one_line(broken, damage, told):
    folder, *_ = broken
    damage(folder)
    with pytest.raises(UserError, match=told) as error:
        classifiers.read(folder, LABELS, 32)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("spoil", [
    lambda a: a[0], lambda a: a[0, 0, 0], lambda a: a[:, :1], lambda a: a[:, :0], lambda a: np.tile(a, (2, 1, 1)),
    lambda a: np.concatenate([a, a], 1), lambda a: a[..., :3],
])  # fmt: skip
def test_positions_of_no_square_grid_are_one_line(broken, spoil):
    folder, _, tensors = broken
    name = f"vit.{classifiers.POSITIONS}"
    save_file(tensors | {name: np.ascontiguousarray(spoil(tensors[name]))}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"1 of \d+ tensors do not fit: .*position_embeddings is \(") as error:
        classifiers.read(folder, LABELS, 32)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", ["shards", "variant", "PyTorch's"])
def test_every_form_of_a_folder_s_weights_is_read(broken, form):
    folder, _, tensors = broken
    _, expected = classifiers.read(folder, LABELS, 32)
    before = image_encoders.read(folder).digest
    file, names = folder / "model.safetensors", sorted(tensors)
    if form == "shards":
        parts = {f"model-0000{n}-of-00002.safetensors": names[n - 1 :: 2] for n in (1, 2)}
        for part, held in parts.items():
            save_file({name: tensors[name] for name in held}, folder / part)
        places = {name: part for part, held in parts.items() for name in held}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
        file.unlink()
    elif form == "variant":
        file.rename(folder / "model.fp16.safetensors")
    else:
        torch = pytest.importorskip("torch")
        torch.save({name: torch.tensor(each) for name, each in tensors.items()}, folder / "pytorch_model.bin")
        file.unlink()
    _, found = classifiers.read(folder, LABELS, 32)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert image_encoders.read(folder).digest != before, "its weights are other files"
    for trees in (networks.load(folder)[1], label_score.read(str(folder), LABELS).trees):  # and those that predict
        jax.tree.map(np.testing.assert_array_equal, trees, expected)


def test_a_backbone_without_a_head_predicts_nothing(broken):
    """Of a fine-tuned model, `model.vit.save_pretrained` leaves the classes in config.json."""
    folder, _, tensors = broken
    kept = {name: each for name, each in tensors.items() if not name.startswith("classifier.")}
    save_file(kept, folder / "model.safetensors")
    for load in (lambda: networks.load(folder), lambda: label_score.read(str(folder), LABELS)):
        with pytest.raises(UserError, match=r"has no head \(classifier\.weight\), so that it predicts nothing; train"):
            load()
    assert not np.any(classifiers.read(folder, LABELS, 32)[1][0]["classifier"]["kernel"]), "training begins from it"


def test_more_than_ten_classes_keep_their_order(tmp_path):
    """JSON in the order of its keys has "10" before "2"."""
    labels = tuple(f"class {number}" for number in range(12))
    classifier = fresh(describe("vit", SETTINGS["vit"], labels, 32), jnp.float32)
    trees = tuple(shaken(tree, seed) for seed, tree in enumerate(classifier.init(0)))
    classifiers.write(tmp_path / "classifier", classifier, *trees)
    written = json.loads((tmp_path / "classifier" / "config.json").read_text())
    assert tuple(written["id2label"].values()) != labels
    again, read = networks.load(tmp_path)
    assert again.labels == labels
    jax.tree.map(np.testing.assert_array_equal, read, trees)
    assert label_score.read(str(tmp_path), labels).classifier.labels == labels


@pytest.mark.parametrize("change, said", [
    ({"id2label": {"0": "benign", "2": "malignant"}}, "does not name 2 classes by 0 to 1"),
    ({"id2label": {"0": "benign", "1": "benign"}}, "does not name 2 classes by 0 to 1"),
    ({"id2label": {"0": "benign", "1": ["malignant"]}}, "does not name 2 classes by 0 to 1"),
    ({"id2label": ["benign", "malignant"]}, "names no classes or no image size"),
    ({"image_size": "32"}, "names no classes or no image size"),
])  # fmt: skip
def test_classes_that_are_not_named_by_their_numbers_are_one_line(broken, change, said):
    folder, config, _ = broken
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=said) as error:
        networks.load(folder)
    assert str(folder / "config.json") in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("change, said", [
    ({"id2label": {"0": "malignant"}}, "one class only, malignant: dermjax predicts one of two or more"),
    ({"problem_type": "multi_label_classification"}, "problem_type = 'multi_label_classification': dermjax predicts"),
    ({"problem_type": "regression"}, "problem_type = 'regression': dermjax predicts one of two or more classes"),
])  # fmt: skip
def test_logits_that_no_softmax_is_for_are_one_line(broken, change, said):
    """A softmax of one logit is 1 whatever the image; transformers takes a sigmoid, of several labels as well."""
    folder, config, _ = broken
    (folder / "config.json").write_text(json.dumps(config | change))
    for load in (lambda: networks.load(folder), lambda: label_score.read(str(folder), LABELS)):
        with pytest.raises(UserError, match=said) as error:
            load()
        assert str(folder / "config.json") in str(error.value) and "\n" not in str(error.value)
    config.pop("problem_type")  # what transformers leaves out
    (folder / "config.json").write_text(json.dumps(config))
    assert networks.load(folder)[0].labels == LABELS


@pytest.mark.parametrize("settings", [
    {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]},
    {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "do_normalize": False},
    {"image_mean": [100.0, 110.0, 120.0], "image_std": [50.0, 60.0, 70.0], "do_rescale": False},
    {"image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 1.0, 1.0], "rescale_factor": 2 / 255},
])  # fmt: skip
def test_pixels_are_normalised_as_the_folder_says(broken, settings):
    transformers = pytest.importorskip("transformers")
    folder, _, _ = broken
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_resize": False} | settings))
    classifier, _ = classifiers.read(folder, LABELS, 32)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    theirs = transformers.ViTImageProcessorPil.from_pretrained(folder)(pixels, return_tensors="np")["pixel_values"][0]
    ours = classifier._normalised(jnp.asarray(pixels[None], jnp.float32) / 127.5 - 1)[0]
    np.testing.assert_allclose(ours, theirs.transpose(1, 2, 0), rtol=0, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize("settings", [
    {"image_mean": None}, {"image_mean": [0.5, 0.5]}, {"image_std": [0, 1, 1]}, {"image_std": "0.5 0.5 0.5"},
    {"rescale_factor": 0}, {"image_mean": [float("nan")] * 3}, {"image_std": 10**400},
])  # fmt: skip
def test_a_normalisation_that_is_none_is_one_line(broken, settings):
    folder, _, _ = broken
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="no numbers to normalise by") as error:
        classifiers.read(folder, LABELS, 32)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
