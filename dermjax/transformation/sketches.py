"""A requested change drawn roughly on an image by classical means: what the model then starts from and makes real.

Lambert and Beer (see data/phantoms): a lesion is a layer that absorbs, so log image = log skin - layer. The layer is
taken off the skin, which is filled in smoothly below it, and laid on again: larger, smaller, or in more places. Another
skin tone is another skin below the same layers. The sketch says where things are; noise and the model do the rest
(SDEdit, Meng et al. 2021, arXiv 2108.01073). All lengths are fractions of the field.

Shape legend: S side in pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from dermjax.data.imaging.colour import lab_to_rgb, rgb_to_lab
from dermjax.data.imaging.segmentation import Segmentation
from dermjax.data.phantoms.appearance import REDNESS, TONES, YELLOWNESS
from dermjax.errors import UserError

FLOOR = 0.02  # of light, below which logarithms are not taken
RIM = 0.03  # beside a lesion that still belongs to its layer, as borders are soft
MARGIN = 0.045  # around old and new lesions that is painted as well: most of a latent cell of 1/16
SPREAD = 0.05  # standard deviation of the skin's fill
APART = 0.06  # least distance of a further lesion to the others and to the edge
LARGEST = 0.27  # radius beyond which a lesion is not enlarged: the field has to hold it with skin around
SMALLEST = 0.045  # radius below which it is not made smaller: three quarters of the least tiny lesion


@dataclass(frozen=True)
class Sketch:
    """What to start from: uint8 [S, S, 3], and where to paint, bool [S, S]; elsewhere the image is as it was."""

    image: np.ndarray
    region: np.ndarray


def larger(image: np.ndarray, lesions: Segmentation, factor: float) -> Sketch:
    """Returns every lesion `factor` times as wide, or as wide as the field allows."""
    return _resize(image, lesions, [max(1.0, min(factor, LARGEST / radius)) for radius in _radii(lesions)])


def smaller(image: np.ndarray, lesions: Segmentation, factor: float) -> Sketch:
    """Returns every lesion as wide as one over `factor`, or as is still no speck."""
    return _resize(image, lesions, [min(1.0, max(1 / factor, SMALLEST / radius)) for radius in _radii(lesions)])


def more(image: np.ndarray, lesions: Segmentation) -> Sketch:
    """Returns one more lesion: a mirrored copy of the smallest where there is most room, made smaller until it fits."""
    layer, skin = _split_layers(image, lesions.mask)
    which = int(np.argmin(lesions.areas)) + 1
    free = ndimage.distance_transform_edt(np.pad(~lesions.mask, 1))[1:-1, 1:-1]
    inner = np.zeros_like(free)
    edge = max(round(APART * len(image)), 1)
    inner[edge:-edge, edge:-edge] = free[edge:-edge, edge:-edge]
    to = np.array(np.unravel_index(np.argmax(inner), inner.shape), float)
    room = inner.max() - APART * len(image)
    radius = float(_radii(lesions)[which - 1]) * len(image)
    scale = float(np.clip(room / (1.2 * radius), 0.0, 1.0))
    if scale * radius < SMALLEST * len(image):
        raise UserError("there is no room for a further lesion")
    mirrored = (lesions.labels == which)[:, ::-1]
    layer_mirrored = np.where(_grow(mirrored, RIM)[..., None], layer[:, ::-1], 0)
    copy = _move(layer_mirrored, _centre(mirrored), to, scale)
    place = _move(mirrored[..., None], _centre(mirrored), to, scale)[..., 0] > 0.5
    return Sketch(_pixels(skin - np.maximum(layer, copy)), _grow(place, MARGIN))


def toned(image: np.ndarray, lesions: Segmentation, tone: str) -> Sketch:
    """Returns the same lesions on skin of a tone, the middle of what its word stands for; the skin alone is painted."""
    yellow, red = np.mean(YELLOWNESS[tone]), np.mean(REDNESS[tone])
    lightness = 50 + yellow * np.tan(np.radians(np.mean(TONES[tone])))
    target = lab_to_rgb(np.array([lightness, red, yellow]))
    bare = ~_grow(lesions.mask, RIM)
    if not bare.any():
        raise UserError("there is no skin that could have another tone")
    now = lab_to_rgb(np.median(rgb_to_lab(image[bare]), 0))
    light = np.log(image / 255 + FLOOR) + np.log(target + FLOOR) - np.log(now + FLOOR)
    return Sketch(_pixels(light), ~lesions.mask)


def _resize(image: np.ndarray, lesions: Segmentation, scales: list[float]) -> Sketch:
    layer, skin = _split_layers(image, lesions.mask)
    rest = np.where(_grow(lesions.mask, RIM)[..., None], 0, layer)
    places = lesions.mask.copy()
    rows, columns = ndimage.distance_transform_edt(~lesions.mask, return_distances=False, return_indices=True)
    nearest = lesions.labels[rows, columns]
    for which, scale in enumerate(scales, start=1):
        lesion = lesions.labels == which
        centre = _centre(lesion)
        near = (nearest == which) & _grow(lesion, RIM)  # with its rim, but nothing of another lesion
        rest = np.maximum(rest, _move(np.where(near[..., None], layer, 0), centre, centre, scale))
        places |= _move(lesion[..., None], centre, centre, scale)[..., 0] > 0.5
    return Sketch(_pixels(skin - rest), _grow(places, MARGIN))


def _split_layers(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns what lesions absorb, float [S, S, 3], 0 on skin, and the logarithm of the skin as if there were none."""
    light = np.log(image / 255 + FLOOR)
    hidden = _grow(mask, RIM)
    filled = light.copy()
    for spread in (4 * SPREAD, SPREAD):  # first from far, then from near, where there is skin
        sigma = (spread * len(image),) * 2
        weight = ndimage.gaussian_filter((~hidden).astype(float), sigma)[..., None]
        known = ndimage.gaussian_filter(np.where(hidden[..., None], 0, light), (*sigma, 0))
        share = np.clip(weight / 0.2, 0, 1)
        base = filled if spread == SPREAD else np.median(light[~hidden], 0) if (~hidden).any() else light
        filled = np.where(hidden[..., None], share * known / np.maximum(weight, 1e-6) + (1 - share) * base, light)
    return np.where(hidden[..., None], np.maximum(filled - light, 0), 0), filled


def _move(field: np.ndarray, centre: np.ndarray, to: np.ndarray, scale: float) -> np.ndarray:
    """Returns a field [S, S, C] scaled around a centre that comes to lie elsewhere; what enters from outside is 0."""
    offset = centre - to / scale
    planes = [
        ndimage.affine_transform(field[..., c].astype(float), np.eye(2) / scale, offset, order=1)
        for c in range(field.shape[-1])
    ]
    return np.stack(planes, -1)


def _pixels(light: np.ndarray) -> np.ndarray:
    return (np.clip(np.exp(light) - FLOOR, 0, 1) * 255 + 0.5).astype(np.uint8)


def _radii(lesions: Segmentation) -> np.ndarray:
    """Returns the radius of the disc of each lesion's area."""
    return np.sqrt(lesions.areas / np.pi)


def _centre(mask: np.ndarray) -> np.ndarray:
    return np.array(ndimage.center_of_mass(mask))


def _grow(mask: np.ndarray, share: float) -> np.ndarray:
    """Returns everything within a share of the field's side of the mask."""
    return ndimage.distance_transform_edt(~mask) <= share * len(mask) if mask.any() else mask


SKETCHES: dict[str, Callable[..., Sketch]] = {
    "larger": larger,
    "smaller": smaller,
    "more": lambda image, lesions, factor: more(image, lesions),
    **{f"{tone} skin": lambda image, lesions, factor, tone=tone: toned(image, lesions, tone) for tone in TONES},
}
