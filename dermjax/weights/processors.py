"""preprocessor_config.json: how the images of a classifier's folder are resized, cut and normalised.

It is read as transformers' own processors read it, which fill in what a file leaves out. What `data.images.load` cannot
do of it is said in one line.
"""

from pathlib import Path
from typing import Any

import numpy as np

from dermjax.errors import UserError
from dermjax.models.classifier import HALVES, Classifier
from dermjax.models.configs import COUNT
from dermjax.progress import say
from dermjax.weights.tensor_files import read_json

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation of pixels in [0, 1]
FILE = "preprocessor_config.json"
CLIP: Normalisation = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
LANCZOS, BILINEAR, BICUBIC = 1, 2, 3  # Pillow's numbers; data/images.py resizes by the first
RESAMPLES = range(6)  # of Pillow
SHORTER, BOTH = {"shortest_edge"}, {"height", "width"}  # the ways of resizing that are implemented


def _processor(size: dict[str, int], crop: int, resample: int, pixels: Normalisation) -> dict[str, Any]:
    """What a processor of transformers has where a file does not say it."""
    cut = {"do_center_crop": True, "crop_size": crop} if crop else {}
    return {"size": size, "resample": resample, "image_mean": pixels[0], "image_std": pixels[1]} | cut


PROCESSORS = {
    "ViTImageProcessor": _processor({"height": 224, "width": 224}, 0, BILINEAR, HALVES),
    "DeiTImageProcessor": _processor({"height": 256, "width": 256}, 224, BICUBIC, HALVES),
    "BitImageProcessor": _processor({"shortest_edge": 224}, 224, BICUBIC, CLIP),
    "CLIPImageProcessor": _processor({"shortest_edge": 224}, 224, BICUBIC, CLIP),
    "MobileNetV2ImageProcessor": _processor({"shortest_edge": 256}, 224, BILINEAR, HALVES),
}
USUAL = {  # of a model type, where a file names none
    "vit": "ViTImageProcessor",
    "dinov2": "BitImageProcessor",
    "mobilenet_v2": "MobileNetV2ImageProcessor",
    "clip": "CLIPImageProcessor",
    "clip_vision_model": "CLIPImageProcessor",
}


def read_pixels(folder: Path, kind: str, usual: Normalisation) -> Normalisation:
    """Returns mean and deviation of pixels in [0, 1] for a network of the model type `kind`; the usual ones, which is
    said, where nothing in the folder says it.

    Raises:
      UserError: they are no numbers, three or one for all colours.
    """
    path = folder / FILE
    settings = _named(read_json(path), kind)[1] if path.exists() else {}
    names = ("image_mean", "image_std")
    if settings.get("do_normalize", True) and not set(names) <= settings.keys():
        say(f"{folder}: no {FILE} says how its pixels are normalised; assumed are mean {shown(usual[0])} and deviation "
            f"{shown(usual[1])}, as most of its kind; copy the file from where the model comes from")  # fmt: skip
    given = [settings.get(name, value) for name, value in zip(names, usual, strict=True)]
    given = given if settings.get("do_normalize", True) else [0.0, 1.0]
    factor = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
    mean, std, scale = numbers(*given, factor, f"{path}: image_mean, image_std or rescale_factor")
    if not np.allclose(255 * scale, 1, rtol=1e-6):  # of pixels in 0 to 255
        mean, std = mean / (255 * scale), std / (255 * scale)
    return tuple(mean.tolist()), tuple(std.tolist())


def read_sizes(folder: Path, kind: str, usual: int) -> tuple[int, dict[str, int]]:
    """Returns the side in pixels of the squares that a network of the model type `kind` is shown, and what images are
    resized to before these are cut out of the middle: `resize` of `data.images.load`.

    Without the file the side is the usual one, and squares are as large as fit. They are as well, which is said, where
    the processor does what is not implemented.

    Raises:
      UserError: the file has no sizes where they are asked for.
    """
    path = folder / FILE
    if not path.exists():
        return usual, {}
    name, settings = _named(read_json(path), kind)
    known, edges = PROCESSORS.get(name, {}), {}
    if settings.get("do_resize", True) and (known or "size" in settings):
        edges = _edges(settings, "size", path, "height" in known.get("size", {}))
    cut = edges
    if settings.get("do_center_crop") and (known or "crop_size" in settings):
        cut = _edges(settings, "crop_size", path, True)
    sides, resample = set(cut.values()), settings.get("resample", BILINEAR)
    side = next(iter(sides)) if len(sides) == 1 else usual
    if type(resample) is not int or resample not in RESAMPLES:
        raise UserError(f"{path}: resample = {resample!r} is none of Pillow's, 0 to {RESAMPLES[-1]}; mend it")
    unlike = {
        f"dermjax does not know its processor, {name}": not known,
        "its images are not resized": not edges,
        f"its images are resized to {' and '.join(edges)}": set(edges) not in (SHORTER, BOTH),
        "its images are no squares": set(cut) != BOTH or len(sides) != 1,
        f"its images are filled up with black to {side} px": min(edges.values(), default=side) < side,
    }
    if problem := next((each for each, meets in unlike.items() if meets), ""):
        say(f"{path}: {problem}; dermjax shows the largest square in the middle instead, at {side} px")
        return side, {}
    plain = edges == {"shortest_edge": side} and resample == LANCZOS  # as data/images.py does by itself
    return side, {} if plain else edges | {"resample": resample}


def describe(classifier: Classifier) -> dict[str, Any]:
    """Returns the preprocessor_config.json of how data/images.py and the classifier treat a photograph."""
    size = classifier.config["image_size"]
    return {
        "image_processor_type": "BitImageProcessor",  # shorter side, then centre crop
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": LANCZOS,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(classifier.mean),
        "image_std": list(classifier.std),
    }


def numbers(mean: Any, std: Any, factor: Any, told: str) -> np.ndarray:
    """Returns mean, deviation and factor as float64 [3, 3], a number for each colour.

    Raises:
      UserError: beginning with `told`, where they are no numbers to normalise by.
    """
    try:
        values = np.array([np.broadcast_to(np.asarray(each, float), 3) for each in (mean, std, factor)])
    except (TypeError, ValueError, OverflowError):
        values = np.full((3, 3), np.nan)
    if not (np.isfinite(values).all() and values[1:].min() > 0):
        raise UserError(f"{told} are no numbers to normalise by; mend it")
    return values


def shown(values: tuple[float, ...]) -> str:
    """Returns the numbers of three colours, or the one for all, as messages have them."""
    return ", ".join(f"{value:g}" for value in (values[:1] if len(set(values)) == 1 else values))


def _named(settings: dict, kind: str) -> tuple[str, dict]:
    """The name of the processor that a file is for, as in transformers 5, and the settings with what that fills in."""
    older = str(settings.get("feature_extractor_type") or "").replace("FeatureExtractor", "ImageProcessor")
    name = str(settings.get("image_processor_type") or older or USUAL[kind]).removesuffix("Fast").removesuffix("Pil")
    return name, PROCESSORS.get(name, {}) | settings


def _edges(settings: dict, key: str, path: Path, to_square: bool) -> dict[str, int]:
    """The sides in pixels that a setting names, of which older files have one number for both or for the shorter."""
    value = settings.get(key)
    if type(value) is int:
        value = {"height": value, "width": value} if to_square else {"shortest_edge": value}
    if type(value) is list and len(value) == 2:
        value = dict(zip(("height", "width"), value, strict=True))
    if not isinstance(value, dict) or not value or not all(map(COUNT.fits, value.values())):
        raise UserError(f"{path}: {key} = {settings.get(key)!r} should name sides, each {COUNT.words}; mend it")
    return value
