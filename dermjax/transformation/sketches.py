"""A wished change drawn roughly on an image by classical means: what the model then starts from and makes real.

Lambert and Beer (see data/phantom.py): a lesion is a layer that absorbs, so log image = log skin - layer. The layer is
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


def larger(image: np.ndarray, seen: Segmentation, factor: float) -> Sketch:
    """Every lesion `factor` times as wide, or as wide as the field allows."""
    return _resized(image, seen, [max(1.0, min(factor, LARGEST / radius)) for radius in _radii(seen)])


def smaller(image: np.ndarray, seen: Segmentation, factor: float) -> Sketch:
    """Every lesion as wide as one over `factor`, or as can still be told from a speck."""
    return _resized(image, seen, [min(1.0, max(1 / factor, SMALLEST / radius)) for radius in _radii(seen)])


def more(image: np.ndarray, seen: Segmentation) -> Sketch:
    """A further lesion, a mirrored copy of the smallest, where there is most room; made smaller until it fits."""
    layer, skin = _parted(image, seen.mask)
    which = int(np.argmin(seen.areas)) + 1
    free = ndimage.distance_transform_edt(np.pad(~seen.mask, 1))[1:-1, 1:-1]
    inner = np.zeros_like(free)
    edge = max(round(APART * len(image)), 1)
    inner[edge:-edge, edge:-edge] = free[edge:-edge, edge:-edge]
    to = np.array(np.unravel_index(np.argmax(inner), inner.shape), float)
    room = inner.max() - APART * len(image)
    radius = float(_radii(seen)[which - 1]) * len(image)
    scale = float(np.clip(room / (1.2 * radius), 0.0, 1.0))
    if scale * radius < SMALLEST * len(image):
        raise UserError("there is no room for a further lesion")
    own = np.where(_grown(seen.labels == which, RIM)[..., None], layer, 0)
    copy = _moved(own[:, ::-1], _centre((seen.labels == which)[:, ::-1]), to, scale)
    place = _moved((seen.labels == which)[:, ::-1, None].astype(np.float32), _centre((seen.labels == which)[:, ::-1]),
                   to, scale)[..., 0] > 0.5  # fmt: skip
    return Sketch(_laid(skin, np.maximum(layer, copy)), _grown(place, MARGIN))


def toned(image: np.ndarray, seen: Segmentation, tone: str) -> Sketch:
    """The same lesions on skin of a tone, in the middle of what the word stands for; all but the lesions is painted."""
    yellow, red = np.mean(YELLOWNESS[tone]), np.mean(REDNESS[tone])
    lightness = 50 + yellow * np.tan(np.radians(np.mean(TONES[tone])))
    wanted = lab_to_rgb(np.array([lightness, red, yellow]))
    bare = ~_grown(seen.mask, RIM)
    if not bare.any():
        raise UserError("there is no skin that could have another tone")
    now = lab_to_rgb(np.median(rgb_to_lab(image[bare]), 0))
    light = np.log(image / 255 + FLOOR) + np.log(wanted + FLOOR) - np.log(now + FLOOR)
    return Sketch(_pixels(light), ~seen.mask)


def _resized(image: np.ndarray, seen: Segmentation, scales: list[float]) -> Sketch:
    layer, skin = _parted(image, seen.mask)
    rest = np.where(_grown(seen.mask, RIM)[..., None], 0, layer)
    places = seen.mask.copy()
    for which, scale in enumerate(scales, start=1):
        own = seen.labels == which
        centre = _centre(own)
        near = _nearest(seen, which)
        rest = np.maximum(rest, _moved(np.where(near[..., None], layer, 0), centre, centre, scale))
        places |= _moved(own[..., None].astype(np.float32), centre, centre, scale)[..., 0] > 0.5
    return Sketch(_laid(skin, rest), _grown(places, MARGIN))


def _parted(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What lesions absorb, float [S, S, 3] and 0 on skin, and the logarithm of the skin as if there were none."""
    light = np.log(image / 255 + FLOOR)
    hidden = _grown(mask, RIM)
    filled = light.copy()
    for spread in (4 * SPREAD, SPREAD):  # first from far, then from near, where there is skin
        sigma = (spread * len(image),) * 2
        weight = ndimage.gaussian_filter((~hidden).astype(float), sigma)[..., None]
        known = ndimage.gaussian_filter(np.where(hidden[..., None], 0, light), (*sigma, 0))
        share = np.clip(weight / 0.2, 0, 1)
        base = filled if spread == SPREAD else np.median(light[~hidden], 0) if (~hidden).any() else light
        filled = np.where(hidden[..., None], share * known / np.maximum(weight, 1e-6) + (1 - share) * base, light)
    return np.where(hidden[..., None], np.maximum(filled - light, 0), 0), filled


def _moved(field: np.ndarray, centre: np.ndarray, to: np.ndarray, scale: float) -> np.ndarray:
    """A field [S, S, C] scaled around a centre that comes to lie elsewhere; what enters from outside is 0."""
    offset = centre - to / scale
    planes = [
        ndimage.affine_transform(field[..., c].astype(float), np.eye(2) / scale, offset, order=1)
        for c in range(field.shape[-1])
    ]
    return np.stack(planes, -1)


def _nearest(seen: Segmentation, which: int) -> np.ndarray:
    """The pixels of a lesion and its rim that are nearer to it than to another lesion."""
    rows, columns = ndimage.distance_transform_edt(~seen.mask, return_distances=False, return_indices=True)
    return (seen.labels[rows, columns] == which) & _grown(seen.labels == which, RIM)


def _laid(skin: np.ndarray, layer: np.ndarray) -> np.ndarray:
    return _pixels(skin - layer)


def _pixels(light: np.ndarray) -> np.ndarray:
    return (np.clip(np.exp(light) - FLOOR, 0, 1) * 255 + 0.5).astype(np.uint8)


def _radii(seen: Segmentation) -> np.ndarray:
    """The radius of the disc of each lesion's area."""
    return np.sqrt(seen.areas / np.pi)


def _centre(mask: np.ndarray) -> np.ndarray:
    return np.array(ndimage.center_of_mass(mask))


def _grown(mask: np.ndarray, share: float) -> np.ndarray:
    """Everything within a share of the field's side of the mask."""
    return ndimage.distance_transform_edt(~mask) <= share * len(mask) if mask.any() else mask


SKETCHES: dict[str, Callable[..., Sketch]] = {
    "larger": larger,
    "smaller": smaller,
    "more": lambda image, seen, factor: more(image, seen),
    **{f"{tone} skin": lambda image, seen, factor, tone=tone: toned(image, seen, tone) for tone in TONES},
}
