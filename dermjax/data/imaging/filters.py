"""A blur, a percentile, closing, opening and growing by small shapes: those of SciPy and NumPy, many times as fast.

The blur is SciPy's up to the rounding of float32, what works by shapes number for number.

SciPy visits every pixel under a shape for every pixel of the image. Here the padded image is one row of memory, in
which a step down is a step by its width, so a shape is a few shifted copies of the whole: a disc is a stack of rows,
whose windows of 1, 2, 4, … pixels are each the larger of two shorter ones. What wraps around an edge falls into the
padding, which is cut off again.

Shapes: H, W the sides in pixels. An image is one plane [H, W]: what a plane of 128 pixels takes is memory at hand, what
three take the system has to find anew for every copy.
"""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from scipy import ndimage

REACH = 4  # standard deviations after which the Gaussian ends, as SciPy's does


def blur(plane: np.ndarray, sigma: float) -> np.ndarray:
    """A plane float32 [H, W] under a Gaussian of `sigma` pixels, mirrored at the edges, as ndimage.gaussian_filter.

    Summed in float32, by shifted copies of the padded plane.

    """
    weights = _gaussian(sigma)
    reach = len(weights) - 1
    padded = np.pad(plane, reach, "symmetric")
    flat = padded.ravel()
    for step in (1, padded.shape[1]):
        count = flat.size - 2 * reach * step
        total, pair = flat[reach * step :][:count] * weights[0], np.empty(count, np.float32)
        for away in range(1, reach + 1):
            np.add(flat[(reach - away) * step :][:count], flat[(reach + away) * step :][:count], out=pair)
            pair *= weights[away]
            total += pair
        flat = total
    padded.ravel()[: flat.size] = flat
    return padded[: plane.shape[0], : plane.shape[1]]


def percentile(values: np.ndarray, share: float) -> np.floating:
    """What `share` percent of values without NaN stay below, linear between two of them, as np.percentile."""
    place = (values.size - 1) * share / 100
    ordered = np.partition(values, int(place), axis=None)
    low = ordered[int(place)]
    high = ordered[int(place) + 1 :].min() if place % 1 else low
    return low + values.dtype.type(place % 1) * (high - low)


def disc(radius: float) -> np.ndarray:
    """The pixels within `radius` of the middle, bool [2 r + 1, 2 r + 1], r the whole part of the radius."""
    reach = int(radius)
    rows, columns = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    return np.sqrt(rows**2 + columns**2) <= radius


def close_by_disc(image: np.ndarray, radius: int) -> np.ndarray:
    """The grey closing of an image [H, W] by a disc: what is dark and narrower than it gives way to its surround.

    Beyond its edges the image is its mirror image.
    """
    return _over_disc(_over_disc(image, radius, np.maximum, "symmetric"), radius, np.minimum, "symmetric")


def open_by_disc(image: np.ndarray, radius: int) -> np.ndarray:
    """The grey opening of an image [H, W] by a disc: what is bright and narrower than it gives way."""
    return _over_disc(_over_disc(image, radius, np.minimum, "symmetric"), radius, np.maximum, "symmetric")


def close_by_square(image: np.ndarray, side: int) -> np.ndarray:
    """The grey closing of an image [H, W] by a square of an odd side, in the middle of each pixel."""
    return _over_square(_over_square(image, side // 2, np.maximum), side // 2, np.minimum)


def grow(mask: np.ndarray, radius: float) -> np.ndarray:
    """Everything within `radius` pixels of a mask bool [H, W]."""
    return _over_disc(mask, radius, np.logical_or, "constant")


def shrink(mask: np.ndarray, radius: float) -> np.ndarray:
    """What of a mask bool [H, W] is more than `radius` pixels from what is not in it, or beyond the image."""
    return _over_disc(mask, radius, np.logical_and, "constant")


def open_by_any(mask: np.ndarray, shapes: Sequence[np.ndarray]) -> np.ndarray:
    """The pixels of a mask bool [H, W] that some of the shapes covers where it lies in the mask; none beyond the image.

    shapes: bool [h, w] of odd sides, each with its own middle.
    """
    reach = max(max(shape.shape) for shape in shapes) // 2
    padded = np.pad(mask, reach)
    width, margin = padded.shape[1], reach * (padded.shape[1] + 1)
    flat, inside = padded.ravel(), np.zeros(padded.size, bool)
    opened, middle = np.zeros_like(inside), slice(margin, padded.size - margin)
    for shape in shapes:
        rows, columns = np.nonzero(shape)
        steps = (rows - shape.shape[0] // 2) * width + columns - shape.shape[1] // 2
        inside[middle] = flat[middle]
        for step in steps:
            np.logical_and(inside[middle], flat[margin + step : padded.size - margin + step], out=inside[middle])
        if inside.any():
            for step in steps:
                np.logical_or(opened[middle], inside[margin - step : padded.size - margin - step], out=opened[middle])
    height, width = mask.shape
    return opened.reshape(padded.shape)[reach : reach + height, reach : reach + width]


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """A mask bool [H, W] with everything that it encloses."""
    pieces, _ = ndimage.label(~np.pad(mask, 1))
    return (pieces != pieces[0, 0])[1:-1, 1:-1]


@cache
def _gaussian(sigma: float) -> np.ndarray:
    """The weights of a Gaussian from its middle on, float32."""
    away = np.arange(int(REACH * sigma + 0.5) + 1)
    weights = np.exp(-0.5 * (away / sigma) ** 2)
    return (weights / (2 * weights.sum() - weights[0])).astype(np.float32)


def _over_disc(image: np.ndarray, radius: float, of_two: Callable, beyond: str) -> np.ndarray:
    """`of_two` over the pixels of a disc around every pixel; beyond: np.pad's mode for what lies beyond the image."""
    halves, reach = _halves(radius), int(radius)
    padded = np.pad(image, reach, beyond)
    flat, width = padded.ravel(), padded.shape[1]
    windows = _windows(flat, sorted(set(halves)), of_two, 1)
    made, count = np.empty_like(flat), flat.size - 2 * reach * (width + 1)
    made[:count] = windows[halves[0]][reach - halves[0] :][:count]
    for row, half in enumerate(halves[1:], 1):
        of_two(made[:count], windows[half][row * width + reach - half :][:count], out=made[:count])
    return made.reshape(padded.shape)[: image.shape[0], : image.shape[1]]


def _over_square(image: np.ndarray, half: int, of_two: Callable) -> np.ndarray:
    """`of_two` over the pixels of a square around every pixel: along rows, then along columns."""
    padded = np.pad(image, half, "symmetric")
    along = _windows(padded.ravel(), [half], of_two, 1)[half]
    both = _windows(along, [half], of_two, padded.shape[1])[half]
    padded.ravel()[: both.size] = both
    return padded[: image.shape[0], : image.shape[1]]


def _windows(flat: np.ndarray, halves: Sequence[int], of_two: Callable, step: int) -> dict[int, np.ndarray]:
    """{half: `of_two` over the 2 half + 1 pixels from each on, a step apart}, for ascending halves."""
    windows, power, length = {}, flat, 1
    for half in halves:
        wanted = 2 * half + 1
        while 2 * length <= wanted:
            power = of_two(power[: power.size - length * step], power[length * step :])
            length *= 2
        rest = (wanted - length) * step
        windows[half] = of_two(power[: power.size - rest], power[rest:]) if rest else power
    return windows


@cache
def _halves(radius: float) -> tuple[int, ...]:
    """Half the width of each row of a disc, without its middle."""
    return tuple(int(row.sum()) // 2 for row in disc(radius))
