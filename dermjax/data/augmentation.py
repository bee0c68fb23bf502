"""Random changes of training images that leave the diagnosis as it is, by numpy and Pillow on the host.

Place in the flow: `images.load` -> a policy of POLICIES -> float32 in the model range -> a mixture of MIXTURES over the
batch. All turns, shears, shifts and crops of an image are one affine map of the square, so that it is resampled once;
all changes of light, contrast, saturation and hue are one affine map of its colours. What comes into an image from
beyond its edge is its mirror image: a black corner would look like a dermatoscope's.

Shapes: S side of the square image, B batch, K classes, 3 colours.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from dermjax.data import images

Batch = dict[str, np.ndarray]

# Of augmented views, for whatever is kept of them: raise it where a policy gives others for the same random numbers
NUMERIC_VERSION = 1
# The colour of a lesion is part of its diagnosis: mild.
CONTRAST, BRIGHTNESS, TINT = 0.1, 0.1, 0.04  # shares up or down; of the model range [-1, 1]
# `strong`, about half of what ImageNet recipes take.
AREA, ASPECT = (0.5, 1.0), (0.8, 1.25)  # of the part of the image that is shown
SHEAR = 10.0  # degrees
BEYOND = 0.35  # of its side that an image goes on mirrored at each edge: no map here reaches further
STRONG_CONTRAST, STRONG_BRIGHTNESS, SATURATION, HUE = 0.2, 0.2, 0.2, 8.0  # shares, degrees
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
# RandAugment (Cubuk et al. 2020, arXiv 1909.13719): so many operations an image, so strong of 30.
OPERATIONS_EACH, MAGNITUDE = 2, 9
MIXUP_ALPHA = 0.2  # Zhang et al. 2018, arXiv 1710.09412
CUTMIX_ALPHA = 1.0  # Yun et al. 2019, arXiv 1905.04899


def plain(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image as it is, uint8 [S, S, 3], in the model range, float32."""
    return images.to_model(image)


def mild(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One of the eight symmetries of the square (a lesion has no up) and a mild change of contrast, light and tint."""
    image = images.to_model(symmetric(image, rng))
    mean = image.mean(dtype=np.float32)
    shift = rng.uniform(-BRIGHTNESS, BRIGHTNESS) + rng.uniform(-TINT, TINT, size=3)
    image -= mean
    image *= np.float32(_about_one(rng, CONTRAST))
    image += (mean + shift).astype(np.float32)
    return np.clip(image, -1, 1, out=image)


def strong(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A part of the image at any angle, sheared and mirrored, with its light, contrast, saturation and hue changed."""
    moved = resample(Image.fromarray(image), crop_map(rng) @ turn_map(rng))
    saturation = _about_one(rng, SATURATION)
    colours = saturation * np.eye(3) + (1 - saturation) * np.outer(np.ones(3), LUMA)
    colours = _about_one(rng, STRONG_CONTRAST) * hue_map(np.deg2rad(rng.uniform(-HUE, HUE))) @ colours
    mean = np.full(3, image.mean(dtype=np.float32))
    offset = mean * _about_one(rng, STRONG_BRIGHTNESS) - colours @ mean
    terms = np.concatenate([colours, offset[:, None]], axis=1)
    return images.to_model(np.asarray(moved.convert("RGB", tuple(terms.ravel()))))


def randaugment(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One of the eight symmetries, then OPERATIONS_EACH of OPERATIONS at MAGNITUDE, up or down at random."""
    changed = Image.fromarray(symmetric(image, rng))
    for name in rng.choice(list(OPERATIONS), OPERATIONS_EACH):
        changed = OPERATIONS[name](changed, MAGNITUDE / 30 * rng.choice((-1, 1)))
    return images.to_model(np.asarray(changed))


def symmetric(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One of the eight symmetries of the square, all alike probable: quarter turns and flips, pixels as they are."""
    image = np.rot90(image, rng.integers(4))
    return np.ascontiguousarray(image[:, ::-1] if rng.random() < 0.5 else image)


def crop_map(rng: np.random.Generator) -> np.ndarray:
    """From the square [-1, 1]^2 to a part of it, of random area, aspect and place: an affine map, float [3, 3]."""
    side, aspect = np.sqrt(rng.uniform(*AREA)), np.exp(rng.uniform(*np.log(ASPECT)) / 2)
    wide, high = min(side * aspect, 1.0), min(side / aspect, 1.0)
    x, y = rng.uniform(wide - 1, 1 - wide), rng.uniform(high - 1, 1 - high)
    return _affine(wide, 0, 0, high, x, y)


def turn_map(rng: np.random.Generator) -> np.ndarray:
    """Any turn about the middle, a little shear, mirrored half of the time: an affine map, float [3, 3]."""
    angle, shear = rng.uniform(0, 2 * np.pi), np.tan(np.deg2rad(rng.uniform(-SHEAR, SHEAR)))
    return _turn(angle) @ _affine(rng.choice((-1.0, 1.0)), shear, 0, 1)


def hue_map(angle: float) -> np.ndarray:
    """The turn of colours about the grey axis by an angle in radians, float [3, 3]."""
    c, s = np.cos(angle), np.sin(angle)
    across = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    return c * np.eye(3) + s * across + (1 - c) / 3


def resample(image: Image.Image, to_source: np.ndarray) -> Image.Image:
    """What stands at `to_source` (x, y) for each (x, y) of the square [-1, 1]^2, bilinear; mirrored beyond."""
    edge, half = round(BEYOND * image.width), image.width / 2
    mirrored = np.pad(np.asarray(image), ((edge, edge), (edge, edge), (0, 0)), "reflect")
    to_square = _affine(1 / half, 0, 0, 1 / half, -1, -1)
    to_pixels = _affine(half, 0, 0, half, half + edge, half + edge)
    terms = tuple((to_pixels @ to_source @ to_square)[:2].ravel())
    return Image.fromarray(mirrored).transform(
        image.size, Image.Transform.AFFINE, terms, resample=Image.Resampling.BILINEAR
    )


def mixup(batch: Batch, other: Batch, rng: np.random.Generator, classes: int) -> Batch:
    """Each image is a weighted mean of it and the other, and so are the "targets", float32 [B, K]."""
    share = np.float32(rng.beta(MIXUP_ALPHA, MIXUP_ALPHA))
    image = share * batch["image"] + (1 - share) * other["image"]
    return {**batch, "image": image} | _shared(batch, other, share, classes)


def cutmix(batch: Batch, other: Batch, rng: np.random.Generator, classes: int) -> Batch:
    """A window of each image shows the other; the "targets", float32 [B, K], are shared by area."""
    image = batch["image"].copy()
    side = image.shape[1]
    cut = np.sqrt(rng.beta(CUTMIX_ALPHA, CUTMIX_ALPHA)) * side / 2
    centre = rng.uniform(0, side, 2)
    (top, left), (bottom, right) = np.clip(np.rint([centre - cut, centre + cut]), 0, side).astype(int)
    image[:, top:bottom, left:right] = other["image"][:, top:bottom, left:right]
    share = np.float32(1 - (bottom - top) * (right - left) / side**2)
    return {**batch, "image": image} | _shared(batch, other, share, classes)


def unmixed(batch: Batch, other: Batch, rng: np.random.Generator, classes: int) -> Batch:
    """The batch as it is."""
    return batch


def _shared(batch: Batch, other: Batch, share: np.float32, classes: int) -> Batch:
    """The targets of mixed images, and their weights in the loss where they have any."""

    def mean(value_of: Callable[[Batch], np.ndarray]) -> np.ndarray:
        return share * value_of(batch) + (1 - share) * value_of(other)

    hot = np.eye(classes, dtype=np.float32)
    shared = {"targets": mean(lambda each: each["targets"] if "targets" in each else hot[each["label"]])}
    return shared | ({"weight": mean(lambda each: each["weight"])} if "weight" in batch else {})


def _about_one(rng: np.random.Generator, share: float) -> float:
    return rng.uniform(1 - share, 1 + share)


def _affine(a: float, b: float, c: float, d: float, x: float = 0, y: float = 0) -> np.ndarray:
    return np.array([[a, b, x], [c, d, y], [0, 0, 1]])


def _turn(angle: float) -> np.ndarray:
    return _affine(np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle))


def _moved(to_source: Callable[[float], np.ndarray]) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, strength: resample(image, to_source(strength))


def _enhanced(enhance: type) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, strength: enhance(image).enhance(1 + 0.9 * strength)


# The fourteen operations of the paper, each of (image, strength in [-1, 1]).
OPERATIONS = {
    "identity": lambda image, _: image,
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "solarize": lambda image, strength: ImageOps.solarize(image, round(256 * (1 - abs(strength)))),
    "posterize": lambda image, strength: ImageOps.posterize(image, 8 - round(4 * abs(strength))),
    "color": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "rotate": _moved(lambda strength: _turn(np.deg2rad(30 * strength))),
    "shear_x": _moved(lambda strength: _affine(1, 0.3 * strength, 0, 1)),
    "shear_y": _moved(lambda strength: _affine(1, 0, 0.3 * strength, 1)),
    "translate_x": _moved(lambda strength: _affine(1, 0, 0, 1, 0.66 * strength, 0)),
    "translate_y": _moved(lambda strength: _affine(1, 0, 0, 1, 0, 0.66 * strength)),
}
POLICIES = {"none": plain, "mild": mild, "strong": strong, "randaugment": randaugment}
MIXTURES = {"none": unmixed, "mixup": mixup, "cutmix": cutmix}
