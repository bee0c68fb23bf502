"""State dicts of timm and torchvision: their networks in ours, ours in theirs, and what cannot be said in them."""

import json
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dermjax.errors import UserError
from dermjax.models.classifier import describe, fresh
from dermjax.weights import classifiers
from dermjax.weights.torch_layout import flatten, to_file

LABELS = ("benign", "malignant")
VIT = {"patch_size": 8, "hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 2,
       "num_attention_heads": 2, "layer_norm_eps": 1e-6}  # fmt: skip
SETTINGS = {
    "timm vit": ("vit", VIT, "timm"),
    "timm vit, mean": ("vit", VIT | {"pooling": "mean"}, "timm"),
    "timm mobilenet": ("mobilenet_v2", {"depth_multiplier": 0.35, "tf_padding": False, "layer_norm_eps": 1e-5}, "timm"),
    "torchvision": (
        "mobilenet_v2", {"depth_multiplier": 0.5, "tf_padding": False, "layer_norm_eps": 1e-5}, "torchvision"
    ),
}  # fmt: skip


def shaken(tree, seed):
    """A tree with noise on every leaf, so that exchanged tensors show."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: np.asarray(a) + np.float32(rng.uniform(0.05, 0.15, a.shape)), tree)


def written(folder, kind, settings):
    """A random classifier's folder, and its trees."""
    classifier = fresh(describe(kind, settings, LABELS, 32), np.float32)
    trees = [shaken(tree, seed) for seed, tree in enumerate(classifier.init(0))]
    classifiers.write(folder, classifier, *trees)
    return trees


@pytest.mark.parametrize("name", SETTINGS)
def test_out_and_in_again_is_the_same_classifier(name, tmp_path):
    kind, settings, form = SETTINGS[name]
    trees = written(tmp_path / "ours", kind, settings)
    classifiers.convert(str(tmp_path / "ours"), str(tmp_path / "theirs.safetensors"), form)
    classifier, again = classifiers.read(tmp_path / "theirs.safetensors", LABELS, 32)
    jax.tree.map(np.testing.assert_array_equal, again, tuple(trees))
    assert classifier.config["model_type"] == kind
    for key in settings:
        assert classifier.config[key] == settings[key], key


def test_a_folder_of_shards_without_a_prefix_is_written_alike(tmp_path):
    """As transformers writes a large backbone."""
    kind, settings, form = SETTINGS["timm vit"]
    written(tmp_path / "ours", kind, settings)
    classifiers.convert(str(tmp_path / "ours"), str(tmp_path / "whole.safetensors"), form)
    file = tmp_path / "ours" / "model.safetensors"
    tensors = {name.removeprefix("vit."): tensor for name, tensor in load_file(file).items()}
    tensors["pooler.dense.bias"] = np.ones(128, np.float32)  # which no classifier reads
    places = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(tensors)}
    for part in set(places.values()):
        save_file({name: tensors[name] for name in tensors if places[name] == part}, file.with_name(part))
    file.with_name("model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    file.unlink()
    classifiers.convert(str(tmp_path / "ours"), str(tmp_path / "shards.safetensors"), form)
    whole, shards = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "shards"))
    assert whole.keys() == shards.keys()
    for name, tensor in whole.items():
        np.testing.assert_array_equal(shards[name], tensor)


@pytest.mark.parametrize("name", ["timm mobilenet", "torchvision"])
def test_mobilenet_has_the_names_of_the_library(name, tmp_path):
    kind, settings, form = SETTINGS[name]
    written(tmp_path / "ours", kind, settings)
    classifiers.convert(str(tmp_path / "ours"), str(tmp_path / "theirs.safetensors"), form)
    names = set(load_file(tmp_path / "theirs.safetensors"))
    assert len(names) == 52 * 6 + 2  # convolutions, each with five tensors of its batch normalisation, and the head
    if form == "timm":
        layer = r"(conv_stem|conv_head|bn[12]|classifier|blocks\.[0-6]\.[0-3]\.(conv_pwl?|conv_dw|bn[123]))"
    else:
        layer = r"(features\.\d+\.(conv\.)?\d(\.[01])?|classifier\.1)"
    assert all(re.fullmatch(layer + r"\.(weight|bias|running_mean|running_var|num_batches_tracked)", n) for n in names)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_dinov2", "mobilenetv2_050"])
def test_timm_s_own_networks_say_the_same(name, tmp_path):
    timm, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
    size = {"img_size": 56} if "14" in name else {"img_size": 32} if "vit" in name else {}
    say_the_same(timm.create_model(name, num_classes=2, **size), 56 if "14" in name else 32, torch, tmp_path)


def test_torchvision_s_own_network_says_the_same(tmp_path):
    torchvision, torch = pytest.importorskip("torchvision"), pytest.importorskip("torch")
    say_the_same(torchvision.models.mobilenet_v2(num_classes=2, width_mult=0.5), 32, torch, tmp_path)


def say_the_same(model, size, torch, folder):
    """Their network, saved, read by us: the same logits, or where our head is another, the same features."""
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]:
            tensor.add_(0.02 * torch.randn_like(tensor).abs() if tensor.ndim < 2 else 0.02 * torch.randn_like(tensor))
    model.eval()
    state = {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "theirs.safetensors", {"id2label": json.dumps({"0": "benign", "1": "malignant"})})
    classifier, (params, variables) = classifiers.read(folder / "theirs.safetensors", LABELS, size)
    image = np.random.default_rng(0).uniform(-1, 1, (2, size, size, 3)).astype(np.float32)
    pixels = ((image + 1) / 2 - np.array(classifier.mean)) / np.array(classifier.std)
    with torch.no_grad():
        pixels = torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32)
        dino = classifier.config["model_type"] == "dinov2"
        theirs = (model.forward_features(pixels)[:, 0] if dino else model(pixels)).numpy()
    if dino:
        ours = jax.jit(lambda p, v: classifier.lower(p, v, image, 0))(params, variables)[:, : theirs.shape[1]]
    else:
        ours = jax.jit(lambda p, v: classifier.logits(p, v, image, train=False)[0])(params, variables)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * max(1, np.abs(theirs).max()))


@pytest.mark.parametrize(("width", "number"), [
    (192, 3), (384, 6), (768, 12), (1024, 16), (1280, 16), (1408, 16), (1664, 16)
])  # fmt: skip
def test_a_state_dict_has_the_heads_of_timm_s_vit_of_its_width(width, number):
    """Their number is in no tensor; ViT-H, g and G have 16 of more than 64 channels."""
    classifier = fresh(describe("vit", VIT | {"hidden_size": width, "num_attention_heads": 1, "num_hidden_layers": 1},
                                LABELS, 32), np.float32)  # fmt: skip
    zeros = {name: np.zeros(each.shape, np.float32) for name, each in flatten(classifier.shapes[0]).items()}
    file = classifiers.to_timm_vit(to_file(zeros, np.float32), classifier.config)
    _, config, _ = classifiers.read_state_dict(file, "theirs")
    assert config["num_attention_heads"] == number


@pytest.mark.parametrize("width", [100, 1088, 2048])
def test_a_width_that_no_vit_of_timm_s_has_is_one_line(width, tmp_path):
    """The number of heads would be a guess, and the features silently wrong."""
    tensors = {"blocks.0.attn.qkv.weight": (1,), "blocks.0.mlp.fc1.weight": (8, width),
               "patch_embed.proj.weight": (width, 3, 8, 8)}  # fmt: skip
    save_file({name: np.zeros(size, np.float16) for name, size in tensors.items()}, tmp_path / "theirs.safetensors")
    with pytest.raises(UserError, match=f"theirs.safetensors: is {width} wide, and no ViT of timm's says how many"):
        classifiers.read(tmp_path / "theirs.safetensors", LABELS, 32)


def test_a_head_of_other_labels_is_replaced(tmp_path):
    kind, settings, form = SETTINGS["timm vit"]
    written(tmp_path / "ours", kind, settings)
    classifiers.convert(str(tmp_path / "ours"), str(tmp_path / "theirs.safetensors"), form)
    classifier, (params, _) = classifiers.read(tmp_path / "theirs.safetensors", ("a", "b", "c"), 32)
    assert classifier.labels == ("a", "b", "c") and params["classifier"]["kernel"].shape == (128, 3)


@pytest.mark.parametrize(
    ("settings", "form", "told"),
    [
        (("mobilenet_v2", {"depth_multiplier": 0.35}), "timm", "TensorFlow's"),
        (("vit", VIT), "torchvision", "MobileNetV2 only"),
        (("vit", VIT | {"layer_norm_eps": 1e-12}), "timm", "epsilon 1e-6"),
        (("vit", VIT | {"num_attention_heads": 4}), "timm", "of 128 channels has 2 heads, this one 4"),
        (("vit", VIT | {"hidden_size": 96}), "timm", "of 96 channels has no known number of heads, this one 2"),
        (("dinov2", {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}), "timm", "class token"),
        (("vit", VIT), "keras", "there are timm and torchvision"),
    ],
)
def test_what_cannot_be_said_is_refused(settings, form, told, tmp_path):
    written(tmp_path / "ours", *settings)
    with pytest.raises(UserError, match=told):
        classifiers.convert(str(tmp_path / "ours"), str(tmp_path / "theirs.safetensors"), form)
    assert not (tmp_path / "theirs.safetensors").exists()


def drop(name):
    return lambda tensors: tensors.pop(name)


@pytest.mark.parametrize(("name", "change", "told"), [
    ("timm vit", drop("patch_embed.proj.weight"), r"patch_embed\.proj\.weight is missing; neither timm's"),  # XCiT
    ("timm vit", drop("blocks.0.mlp.fc1.weight"), r"fc1\.weight is missing; neither timm's"),  # DINOv2's giant
    ("timm vit", lambda t: t.update({"patch_embed.proj.weight": np.zeros((128, 192), np.float32)}), r"\(128, 192\)"),
    ("timm vit", lambda t: t.update({"blocks.0.attn.qkv.weight": np.zeros((5, 128), np.float32)}), "is not expected"),
    ("timm vit", lambda t: t.update({"blocks.99999999.x": np.zeros(1, np.float32)}), "is not expected"),
    ("timm vit", lambda t: t.update({"blocks.900.x": np.zeros(1, np.float32)}), "num_hidden_layers = 901 should be"),
    ("timm mobilenet", drop("conv_head.weight"), r"conv_head\.weight is missing; neither timm's"),  # MobileNetV1
    ("torchvision", lambda t: t.update({"features.18.0.weight": np.zeros(3, np.float32)}), "neither timm's"),
])  # fmt: skip
def test_networks_that_begin_as_ours_are_one_line(name, change, told, tmp_path):
    kind, settings, form = SETTINGS[name]
    written(tmp_path / "ours", kind, settings)
    classifiers.convert(str(tmp_path / "ours"), str(tmp_path / "theirs.safetensors"), form)
    tensors = load_file(tmp_path / "theirs.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "theirs.safetensors")
    with pytest.raises(UserError, match=told) as error:
        classifiers.read(tmp_path / "theirs.safetensors", LABELS, 32)
    assert "theirs.safetensors" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("given", [None, [], {"mean": 0.5, "std": [0.5] * 3}, {"mean": ["a"] * 3}, {"std": [0, 1, 1]}])
def test_what_timm_s_config_says_of_pixels(given, tmp_path):
    written(tmp_path / "ours", *SETTINGS["timm vit"][:2])
    (tmp_path / "timm").mkdir()
    classifiers.convert(str(tmp_path / "ours"), str(tmp_path / "timm" / "model.safetensors"), "timm")
    config = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": given}
    (tmp_path / "timm" / "config.json").write_text(json.dumps(config))
    if given in (None, []) or given.get("mean") == 0.5:
        assert classifiers.read(tmp_path / "timm", LABELS, 32)[0].mean == (0.5, 0.5, 0.5)
    else:
        with pytest.raises(UserError, match=r"timm/config\.json: mean or std are no numbers to normalise by"):
            classifiers.read(tmp_path / "timm", LABELS, 32)


def test_a_normalisation_that_nothing_says_is_told(tmp_path, capsys):
    """And it can be given as the message says."""
    kind, settings, form = SETTINGS["timm vit"]
    written(tmp_path / "ours", kind, settings)
    folder = tmp_path / "theirs"
    folder.mkdir()
    classifiers.convert(str(tmp_path / "ours"), str(folder / "model.safetensors"), form)
    capsys.readouterr()
    classifier, _ = classifiers.read(folder / "model.safetensors", LABELS, 32)
    told = capsys.readouterr().out
    assert told.count("\n") == 1 and f"{folder / 'model.safetensors'}: nothing says how its pixels are norm" in told
    assert "assumed are mean 0.5 and deviation 0.5" in told and "DINO and MAE: 0.485, 0.456, 0.406 and 0.229" in told
    given = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    (folder / "config.json").write_text(json.dumps({"architecture": "vit_small_patch8", "pretrained_cfg": given}))
    classifier, _ = classifiers.read(folder, LABELS, 32)
    assert classifier.mean == tuple(given["mean"]) and not capsys.readouterr().out


def test_what_the_authors_of_deit_and_mae_save_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    kind, settings, form = SETTINGS["timm vit"]
    trees = written(tmp_path / "ours", kind, settings)
    classifiers.convert(str(tmp_path / "ours"), str(tmp_path / "theirs.safetensors"), form)
    tensors = {name: torch.tensor(each) for name, each in load_file(tmp_path / "theirs.safetensors").items()}
    torch.save({"model": tensors, "epoch": 300}, tmp_path / "deit.pth")
    _, (params, _) = classifiers.read(tmp_path / "deit.pth", LABELS, 32)
    jax.tree.map(np.testing.assert_array_equal, params["vit"], trees[0]["vit"])


@pytest.mark.parametrize(("to", "said"), [
    ("there.safetensors", "is there already; remove it or give another name"),
    ("theirs.pt", "pickles can run code and are not written"),
])  # fmt: skip
def test_a_state_dict_is_written_over_nothing(to, said, tmp_path):
    kind, settings, form = SETTINGS["timm vit"]
    written(tmp_path / "ours", kind, settings)
    (tmp_path / "there.safetensors").write_bytes(b"kept")
    with pytest.raises(UserError, match=said):
        classifiers.convert(str(tmp_path / "ours"), str(tmp_path / to), form)
    assert (tmp_path / "there.safetensors").read_bytes() == b"kept" and not (tmp_path / "theirs.pt").exists()
    classifiers.convert(str(tmp_path / "ours"), str(tmp_path / "new" / "theirs.safetensors"), form)
    assert load_file(tmp_path / "new" / "theirs.safetensors")


def test_labels_in_a_header_that_are_no_json_are_none(tmp_path):
    kind, settings, form = SETTINGS["timm vit"]
    written(tmp_path / "ours", kind, settings)
    classifiers.convert(str(tmp_path / "ours"), str(tmp_path / "theirs.safetensors"), form)
    save_file(load_file(tmp_path / "theirs.safetensors"), tmp_path / "x.safetensors", {"id2label": "["})
    _, (params, _) = classifiers.read(tmp_path / "x.safetensors", LABELS, 32)
    assert not np.any(params["classifier"]["kernel"])


def test_another_file_is_one_line(tmp_path):
    save_file({"layer1.weight": np.zeros(3, np.float32)}, tmp_path / "resnet.safetensors")
    with pytest.raises(UserError, match="neither timm's nor torchvision's"):
        classifiers.read(tmp_path / "resnet.safetensors", LABELS, 32)
