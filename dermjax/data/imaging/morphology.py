"""Closing and opening by small shapes, as scipy.ndimage gives them, number for number, several times as fast.

SciPy visits every pixel under a shape for every pixel of the image. A shape here is a few shifted copies of the whole
image: a disc is a stack of rows, whose windows of 1, 2, 4, … pixels are each the larger of two shorter ones.

Shapes: H, W the sides in pixels; … trailing channels, each for itself.
"""

from collections.abc import Callable

import numpy as np


def disc(radius: int) -> np.ndarray:
    """The pixels within `radius` of the middle, bool [2 radius + 1, 2 radius + 1]."""
    rows, columns = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return rows**2 + columns**2 <= radius**2 + 0.5


def close_by_disc(image: np.ndarray, radius: int) -> np.ndarray:
    """The grey closing of an image [H, W, …] by a disc: what is dark and narrower than it gives way to its surround.

    Beyond its edges the image is its mirror image.
    """
    return _over_disc(_over_disc(image, radius, np.maximum), radius, np.minimum)


def open_by_disc(image: np.ndarray, radius: int) -> np.ndarray:
    """The grey opening of an image [H, W, …] by a disc: what is bright and narrower than it gives way."""
    return _over_disc(_over_disc(image, radius, np.minimum), radius, np.maximum)


def close_by_square(image: np.ndarray, side: int) -> np.ndarray:
    """The grey closing of an image [H, W, …] by a square of an odd side, in the middle of each pixel."""
    return _over_square(_over_square(image, side // 2, np.maximum), side // 2, np.minimum)


def open_by(mask: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """The opening of a mask bool [H, W] by a shape bool [h, w] of odd sides; beyond the image there is nothing."""
    offsets = np.argwhere(shape) - np.array(shape.shape) // 2
    reach = int(np.abs(offsets).max())
    inside = _over(np.pad(mask, reach), offsets, mask.shape, reach, np.logical_and)
    return _over(np.pad(inside, reach), -offsets, mask.shape, reach, np.logical_or)


def _over(padded: np.ndarray, offsets: np.ndarray, shape: tuple[int, int], reach: int, of_two: Callable) -> np.ndarray:
    """`of_two` over the shifted copies of an image that is padded by `reach`."""
    height, width = shape
    result = None
    for row, column in offsets + reach:
        part = padded[row : row + height, column : column + width]
        result = part.copy() if result is None else of_two(result, part, out=result)
    return result


def _over_disc(image: np.ndarray, radius: int, of_two: Callable) -> np.ndarray:
    """`of_two` over the pixels of a disc around every pixel."""
    height, width = image.shape[:2]
    padded = np.pad(image, ((radius, radius), (radius, radius)) + ((0, 0),) * (image.ndim - 2), "symmetric")
    halves = [int(row.sum()) // 2 for row in disc(radius)]  # of the width of each row of the disc, without its middle
    windows = _windows(padded, sorted(set(halves)), of_two)
    result = None
    for row, half in enumerate(halves):
        part = windows[half][row : row + height, radius - half : radius - half + width]
        result = part.copy() if result is None else of_two(result, part, out=result)
    return result


def _over_square(image: np.ndarray, half: int, of_two: Callable) -> np.ndarray:
    """`of_two` over the pixels of a square around every pixel: along rows, then along columns."""
    height, width = image.shape[:2]
    padded = np.pad(image, ((half, half), (half, half)) + ((0, 0),) * (image.ndim - 2), "symmetric")
    along = _windows(padded, [half], of_two)[half][:, :width]
    return _windows(along.swapaxes(0, 1), [half], of_two)[half][:, :height].swapaxes(0, 1)


def _windows(padded: np.ndarray, halves: list[int], of_two: Callable) -> dict[int, np.ndarray]:
    """{half: `of_two` over the 2 half + 1 pixels from each on to the right}, for ascending halves."""
    windows, power, length = {}, padded, 1
    for half in halves:
        wanted = 2 * half + 1
        while 2 * length <= wanted:
            power = of_two(power[:, :-length], power[:, length:])
            length *= 2
        rest = wanted - length
        windows[half] = of_two(power[:, : power.shape[1] - rest], power[:, rest:]) if rest else power
    return windows
