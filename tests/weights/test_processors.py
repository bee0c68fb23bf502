"""What a folder's preprocessor_config.json makes of a photograph, beside transformers' own processors."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dermjax.classification import predictions
from dermjax.data import images
from dermjax.errors import UserError
from dermjax.models.classifier import HALVES, IMAGENET, describe, fresh
from dermjax.weights import classifiers, processors

SMALL = {"patch_size": 8, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
BIT, MOBILENET, DEIT = ({"image_processor_type": f"{name}ImageProcessor"} for name in ("Bit", "MobileNetV2", "DeiT"))
CLIP = {"feature_extractor_type": "CLIPFeatureExtractor"}  # as older files name it
VIT = {"image_processor_type": "ViTImageProcessorFast"}


def photograph(height, width):
    """uint8 [height, width, 3], as smooth as photographs are."""
    coarse = np.random.default_rng(height).integers(0, 256, (5, 5, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def written(folder, settings):
    """A folder with this preprocessor_config.json."""
    folder.mkdir(exist_ok=True)
    (folder / processors.FILE).write_text(json.dumps(settings))
    return folder


def theirs(folder, settings, pixels):
    """What transformers' processor of a file makes of an image: [H, W, 3], normalised."""
    transformers = pytest.importorskip("transformers")
    name = settings.get("image_processor_type") or settings["feature_extractor_type"].replace("Feature", "Image")
    name = name.replace("Extractor", "Processor").removesuffix("Fast")
    processor = getattr(transformers, f"{name}Pil").from_pretrained(folder)
    return processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)


@pytest.mark.parametrize("shape", [(60, 91), (123, 71), (50, 50)])
@pytest.mark.parametrize(("settings", "side"), [
    (VIT | {"size": {"height": 40, "width": 40}}, 40),  # squashed, and nothing is cut off
    (VIT | {"size": 40, "resample": 3}, 40),
    (VIT, 224),
    (VIT | {"size": 40, "do_center_crop": True, "crop_size": 32}, 32),
    (BIT | {"size": {"shortest_edge": 40}, "crop_size": {"height": 35, "width": 35}, "resample": 3}, 35),  # DINOv2's
    (BIT | {"size": 40, "crop_size": [40, 40]}, 40),
    (CLIP | {"size": 40, "crop_size": 32}, 32),
    (MOBILENET, 224),  # of 256
    (DEIT | {"size": 40, "crop_size": 32}, 32),
    (DEIT, 224),
    (VIT | {"size": 40, "do_center_crop": None, "crop_size": None}, 40),  # as transformers 5 writes what it has not
])  # fmt: skip
def test_images_are_resized_and_cut_as_transformers_does(settings, side, shape, tmp_path, capsys):
    folder, pixels = written(tmp_path / "folder", settings), photograph(*shape)
    size, resize = processors.read_sizes(folder, "vit", 99)
    mean, std = processors.read_pixels(folder, "vit", ((0.1,) * 3, (0.1,) * 3))
    assert size == side and not capsys.readouterr().out
    expected = (theirs(folder, settings, pixels) * np.array(std) + np.array(mean)) * 255
    np.testing.assert_allclose(images.load_any(pixels, size, resize), expected, atol=2.01)


@pytest.mark.parametrize("shape", [(60, 91), (123, 71), (50, 50)])
def test_what_we_write_says_what_we_do(shape, tmp_path):
    """But for half a pixel: transformers crops at whole ones."""
    classifier, pixels = fresh(describe("vit", SMALL, ("a", "b"), 40), jnp.float32), photograph(*shape)
    settings = processors.describe(classifier)
    folder = written(tmp_path / "folder", settings)
    assert processors.read_sizes(folder, "vit", 99) == (40, {})
    assert processors.read_pixels(folder, "vit", IMAGENET) == HALVES
    expected = (theirs(folder, settings, pixels) / 2 + 0.5) * 255
    step = np.abs(np.diff(expected, axis=0)).max() + np.abs(np.diff(expected, axis=1)).max()  # of a whole pixel
    np.testing.assert_allclose(images.load_any(pixels, 40), expected, atol=2 + 0.6 * step)


@pytest.mark.parametrize(("settings", "told", "side"), [
    ({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 40}}, "processor, ConvNextImage", 40),
    ({"image_processor_type": "EfficientNetImageProcessor", "do_center_crop": True}, "processor, EfficientNet", 99),
    ({"do_resize": False}, "are not resized", 99),
    (BIT | {"do_resize": False, "crop_size": 32}, "are not resized", 32),
    (VIT | {"size": {"height": 40, "width": 30}}, "are no squares", 99),
    (BIT | {"size": 40, "crop_size": {"height": 40, "width": 30}}, "are no squares", 99),
    (VIT | {"size": {"shortest_edge": 40}}, "are no squares", 40),
    (BIT | {"size": {"shortest_edge": 40, "longest_edge": 60}}, "are resized to shortest_edge and longest_edge", 224),
    (BIT | {"size": 24, "crop_size": 32}, "are filled up with black to 32 px", 32),
])  # fmt: skip
def test_what_is_not_done_as_the_processor_does_is_said(settings, told, side, tmp_path, capsys):
    folder = written(tmp_path / "folder", settings)
    assert processors.read_sizes(folder, "vit", 99) == (side, {})
    line = capsys.readouterr().out
    assert told in line and f"at {side} px" in line and str(folder / processors.FILE) in line and line.count("\n") == 1


@pytest.mark.parametrize("settings", [
    {"size": "224"}, {"size": 0}, {"size": -3}, {"size": {}}, {"size": None}, {"size": [1, 2, 3]},
    {"size": {"height": 22.4}},
    {"size": {"shortest_edge": 10**9}}, {"do_center_crop": True}, {"do_center_crop": True, "crop_size": True},
    {"resample": 9}, {"resample": "bicubic"},
])  # fmt: skip
def test_sizes_that_are_none_are_one_line(settings, tmp_path):
    folder = written(tmp_path / "folder", settings)
    with pytest.raises(UserError, match="mend it") as error:
        processors.read_sizes(folder, "vit", 99)
    assert str(folder / processors.FILE) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings", [None, {"image_processor_type": "ConvNextImageProcessor", "image_mean": [0.5] * 3}]
)
def test_a_normalisation_that_is_assumed_is_said(settings, tmp_path, capsys):
    folder = written(tmp_path / "folder", settings)
    if settings is None:
        (folder / processors.FILE).unlink()
    mean, std = processors.read_pixels(folder, "dinov2", IMAGENET)
    line = capsys.readouterr().out
    assert line.startswith(f"{folder}: no preprocessor_config.json says how its pixels") and line.count("\n") == 1
    assert std == IMAGENET[1] and mean == (IMAGENET[0] if settings is None else (0.5,) * 3)


def test_a_classifier_of_others_sees_what_transformers_shows_it(tmp_path):
    """A DINOv2 of a larger grid, fine-tuned at a smaller crop: its config.json has the size of the grid."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    labels = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
    config = transformers.Dinov2Config(**SMALL | {"image_size": 72, "initializer_range": 0.3}, **labels)
    network = transformers.Dinov2ForImageClassification(config).eval()
    network.save_pretrained(tmp_path / "folder")
    settings = BIT | {"size": {"shortest_edge": 48}, "crop_size": 40, "image_mean": 0.4, "image_std": 0.3}
    folder, pixels = written(tmp_path / "folder", settings), photograph(60, 91)
    with torch.no_grad():
        shown = torch.tensor(theirs(folder, settings, pixels).transpose(2, 0, 1)[None], dtype=torch.float32)
        expected = network(shown).logits.softmax(-1).numpy()
    classifier = predictions.LesionClassifier(folder)
    assert classifier.classifier.config["image_size"] == 40
    found = classifier.predict(pixels).probabilities
    np.testing.assert_allclose(found, expected, atol=5e-3)
    at_training, _ = classifiers.read(folder, ("a", "b"), 72)  # where config.size says it, and nothing is cut off
    assert at_training.config["image_size"] == 72 and not at_training.resize
