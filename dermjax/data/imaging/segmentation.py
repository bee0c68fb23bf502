"""Where the lesions are by classical means, which learnt from nobody, and what a mask says of an image.

Place in the flow: an image and a mask -> `measure_mask` -> how many lesions, how large, on what tone of skin.

Beer and Lambert as in `phantoms`: absorbance = log skin - log image does not depend on the tone of the skin or on the
light, which a quadratic in x and y takes away. A lesion is a blob of absorbance that is wide enough to hold a disc of
radius CORE, which hairs, ticks of a ruler and a pen ring are not. All lengths are fractions of the field.

Shape legend: S side in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from dermjax.data.imaging import filters
from dermjax.data.imaging.artefacts import View
from dermjax.data.imaging.colour import planes_to_lab, typology_angle
from dermjax.data.imaging.fields import away, coordinates
from dermjax.data.imaging.filters import blur, percentile

SMOOTHING = 0.008  # standard deviation of the blur that takes grain away
FAINTEST = 0.17  # absorbance below which nothing is a lesion; skin mottles reach 0.1
RESTLESS = 0.26  # twice that of the most mottled skin
SHARE = 0.42  # of a lesion's own absorbance: where its border is
EDGE = 0.9  # distance from the middle, in half fields, beyond which a lesion hardly reaches
BOWL = 0.02  # curvature of the light's logarithm that no dermatoscope has: the middle darker than the edge
BESIDE = 0.07  # side of the square that holds skin beside a hair
INK = 0.25  # how much more a violet pen takes of red and green than of blue
CLOSING = 0.016  # radius: bridges light spots within a lesion
CORE = 0.026  # radius of the disc that a lesion must hold; hairs are 0.008 wide on each side, a pen ring 0.02
SMALLEST = 0.0035  # area: a third of a tiny lesion


@dataclass(frozen=True)
class Segmentation:
    """The lesions of one image."""

    mask: np.ndarray  # bool [S, S]
    labels: np.ndarray  # int32 [S, S], 0 outside, 1 to count
    count: int
    areas: np.ndarray  # float [count], fractions of the field
    ita: float  # individual typology angle of the skin around them, degrees
    skin: np.ndarray  # float [3], the median colour of that skin, sRGB 0 to 255; NaN, as ita, where there is none
    certainty: float  # the overlap (IoU) with the truth that is to be expected; 1 of a given mask, NaN where unknown


def segment_classically(image: np.ndarray | View) -> Segmentation:
    """The lesions of a uint8 sRGB image [S, S, 3], by their absorbance."""
    view = View.of(image)
    size = len(view.image)
    absorbance, field = _absorbance(view)
    # more than FAINTEST where the skin itself is restless; beyond RESTLESS most of the field shows a lesion and no skin
    floor = min(max(FAINTEST, 2.5 * float(np.median(absorbance[field]))), RESTLESS)
    candidates = (absorbance > floor) & field
    candidates = filters.fill_holes(_close(candidates, CLOSING * size)) & field
    blobs, count = ndimage.label(_open(candidates, CORE * size))
    mask = np.zeros_like(field)
    for blob in range(1, count + 1):
        core = blobs == blob
        if not _is_ring(core):
            mask |= filters.grow(core, CORE * size) & (absorbance > SHARE * np.median(absorbance[core])) & candidates
    mask = _open(filters.fill_holes(_close(mask, CLOSING * size)), 0.9 * CORE * size)
    return _on_skin(view, mask, SMALLEST, field & (absorbance < FAINTEST), float("nan"))


def measure_mask(
    image: np.ndarray | View, mask: np.ndarray, smallest: float = 0.0, certainty: float = 1.0
) -> Segmentation:
    """The lesions that a mask bool [S, S] shows on an image; each connected piece is one.

    smallest: the area, a share of the field, that a piece must have.
    """
    view = View.of(image)
    absorbance, field = _absorbance(view)
    return _on_skin(view, mask, smallest, field & (absorbance < FAINTEST), certainty)


def _on_skin(view: View, mask: np.ndarray, smallest: float, plain: np.ndarray, certainty: float) -> Segmentation:
    """The pieces of a mask of at least this area, with the tone of what is plain, bool [S, S], and not near them."""
    pieces, _ = ndimage.label(mask)
    areas = np.bincount(pieces.ravel())[1:] / mask.size
    kept = areas >= smallest
    labels = np.concatenate([[0], np.where(kept, np.cumsum(kept), 0)]).astype(np.int32)[pieces]
    areas, mask = areas[kept], labels > 0
    skin = plain & ~filters.grow(mask, 0.03 * len(mask))
    if not skin.any():
        return Segmentation(mask, labels, len(areas), areas, float("nan"), np.full(3, np.nan), certainty)
    colours = view.planes.reshape(3, -1).take(np.flatnonzero(skin), 1)
    ita = typology_angle([percentile(each, 50) for each in planes_to_lab(colours)])
    middle = np.array([percentile(each.astype(np.float64), 50) for each in colours])
    return Segmentation(mask, labels, len(areas), areas, ita, middle, certainty)


def _absorbance(view: View) -> tuple[np.ndarray, np.ndarray]:
    """How much darker than the skin around it each pixel is, and where the image shows skin or lesions at all.

    Returns float32 [S, S] and bool [S, S], which leaves out dark corners and a ruler's strip.
    """
    size = len(view.image)
    light = [np.log(plane.astype(np.float32) / 255 + 0.02) for plane in view.planes]
    if view.strands.any():  # hairs give way to the brighter skin on both sides of them
        hidden, beside = filters.grow(view.strands, 0.016 * size), round(BESIDE * size) | 1
        light = [np.where(hidden, filters.close_by_square(plane, beside), plane) for plane in light]
    light = np.stack([blur(plane, SMOOTHING * size) for plane in light])
    field = ~view.outside
    terms, sampled = _terms(size)
    samples = _samples(size)
    known = field[samples].ravel()
    values = light[samples].reshape(3, -1)
    surface = _surface(sampled, values, known, [percentile(plane, 62) for plane in values[:, known]])
    if (
        surface[:, 3] + surface[:, 5]
    ).mean() > BOWL:  # light falls off towards the edge: what is darkest amid is a lesion
        edge = known & (2 * away(size)[samples].ravel() > EDGE)
        start = [percentile(plane, 80) for plane in values[:, edge if edge.any() else known]]
        surface = _surface(sampled[:3], values, known, start)
    red, green, blue = darker = (surface @ terms[: surface.shape[1]]).reshape(light.shape) - light
    ink = np.minimum(red, green) - blue > INK
    field &= ~filters.grow(ink & (2 * away(size) > 0.85), 0.02 * size)
    return np.sqrt(sum(plane.clip(0) ** 2 for plane in darker) / np.float32(3)), field


def _samples(size: int) -> tuple:
    """Which pixels the surface is fitted to: 64 along each side of the field."""
    return (..., *(slice(size // 128 or None, None, max(size // 64, 1)),) * 2)


@lru_cache(4)
def _terms(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The terms of a quadratic at every pixel, float32 [6, S S], and at the samples alone."""
    x, y = (2 * axis - 1 for axis in np.broadcast_arrays(*coordinates(size)))
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y])
    return terms.reshape(6, -1), terms[_samples(size)].reshape(6, -1)


def _surface(terms: np.ndarray, values: np.ndarray, known: np.ndarray, start: Sequence[float]) -> np.ndarray:
    """The coefficients [3, T] of the skin's light: of terms [T, n] where the image has `values` [3, n] and is known.

    Lesions and hairs cover less than half of the field: the fit starts at `start`, a little above the median, and keeps
    the pixels that agree.
    """
    fitted, both = np.array(start, np.float32)[:, None], np.concatenate([terms, values])
    for tolerance in (0.35, 0.25, 0.18, 0.15):
        skin = terms * (known & (np.sqrt(np.mean((values - fitted) ** 2, 0)) < tolerance))
        # the normal equations, six by six: a thread is all they take
        products = skin @ both.T
        surface = np.linalg.lstsq(products[:, : len(terms)], products[:, len(terms) :], rcond=None)[0].T
        fitted = surface @ terms
    return surface


def _is_ring(blob: np.ndarray) -> bool:
    """Whether a blob is a piece of a pen ring: far from the middle of the image and narrower than the least lesion."""
    rows, columns = np.nonzero(blob)
    away = np.hypot(rows.mean() / len(blob) - 0.5, columns.mean() / len(blob) - 0.5)
    return bool(away > 0.45 and ndimage.distance_transform_edt(np.pad(blob, 1)).max() < 0.036 * len(blob))


def _open(mask: np.ndarray, radius: float) -> np.ndarray:
    """The mask without what is too narrow for a disc of `radius` pixels; beyond the image there is nothing."""
    return filters.grow(filters.shrink(mask, radius), radius)


def _close(mask: np.ndarray, radius: float) -> np.ndarray:
    """The mask with gaps bridged that are too narrow for a disc of `radius` pixels."""
    return ~filters.grow(~filters.grow(mask, radius), radius)
