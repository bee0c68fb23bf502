"""Whether images that are near by their hashes also look alike: the check on every near-duplicate.

A hash keeps signs of cosines of brightness, and among millions of pairs two lesions may share most of them. Here the
pair is laid over each other, in all eight orientations and every crop of `duplicates.VIEWS`, and its brightness and its
colours are correlated cell by cell. Light, contrast and a cast of colour do not count: a copy may have been edited.

Shapes: N images, P pairs, C cells a side, M cells a side of a window, V views.
"""

from functools import cache

import numpy as np
from einops import rearrange, reduce

from dermjax.data.duplicates import VIEWS

CELLS = 16
WINDOW = 12  # cells a side that two images are compared in
# Measured on HAM10000 photographs: 200 copies, cut by 2 to 12 % anywhere, turned, with other light, contrast and tint
# and compressed at quality 60, correlate by 0.941 or more; of the 400 pairs of different lesions whose hashes are
# nearest (43 to 77 bits, of 3.0 million pairs), 98 % by less than 0.92.
ALIKE = 0.92
BLOCK = 64  # pairs compared at once


def cells(image: np.ndarray) -> np.ndarray:
    """The mean colours of an image uint8 [S, S, 3], S a multiple of CELLS, as uint8 [CELLS, CELLS, 3]."""
    return reduce(image.astype(np.float32), "(h a) (w b) c -> h w c", "mean", h=CELLS, w=CELLS).round().astype(np.uint8)


def confirmed(near: np.ndarray, of_each: np.ndarray) -> np.ndarray:
    """Those rows of near pairs int [P, 3] (row, row, bits) that look alike, or have one and the same hash.

    of_each: uint8 [N, CELLS, CELLS, 3].
    """
    chosen = near[:, 2] == 0
    for views in (VIEWS[:1], VIEWS[1:]):  # most copies are of the whole image, which is soon seen
        asked = np.flatnonzero(~chosen)
        for block in np.split(asked, range(BLOCK, len(asked), BLOCK)):
            chosen[block] = likeness(of_each[near[block, 0]], of_each[near[block, 1]], views) >= ALIKE
    return near[chosen]


def likeness(one: np.ndarray, other: np.ndarray, views: tuple) -> np.ndarray:
    """The correlation of pairs of images uint8 [P, C, C, 3] where they fit best, from -1 to 1, as float32 [P].

    They fit where one in any orientation is what the views show of the other, or the other way round.
    """
    best = np.full(len(one), -1, np.float32)
    for whole, cut in ((one, other), (other, one)):
        ways = np.concatenate(_orientations(_windows(whole, VIEWS[:1])), axis=1)
        fits = np.einsum("p o k, p v k -> p o v", _standard(ways), _standard(_windows(cut, views)))
        np.maximum(best, fits.max((1, 2)), out=best)
    return best


def _windows(of_each: np.ndarray, views: tuple) -> np.ndarray:
    """Windows of cells, float32 [P, V, M, M, 3]."""
    down, across = (np.stack([_resampling(view[axis], view[2]) for view in views]) for axis in (0, 1))
    rows = np.einsum("v m c, p c d k -> p v m d k", down, of_each.astype(np.float32))
    return np.einsum("v n d, p v m d k -> p v m n k", across, rows)


@cache
def _resampling(start: float, length: float) -> np.ndarray:
    """The weights of a row of cells in each cell of a window of it, bilinear: float32 [M, CELLS]."""
    places = (start + length * (np.arange(WINDOW) + 0.5) / WINDOW) * CELLS - 0.5
    return np.maximum(0, 1 - abs(np.clip(places, 0, CELLS - 1)[:, None] - np.arange(CELLS))).astype(np.float32)


def _orientations(windows: np.ndarray) -> list[np.ndarray]:
    turned = [np.rot90(windows, quarter, (2, 3)) for quarter in range(4)]
    return [each for way in turned for each in (way, way[:, :, :, ::-1])]


def _standard(windows: np.ndarray) -> np.ndarray:
    """Brightness and colours less their means, brightness and colours each of length 1 / sqrt(2): [P, V, M M 3]."""
    windows = windows - windows.mean((2, 3), keepdims=True)
    light = windows.mean(-1, keepdims=True)
    parts = [rearrange(part, "p v m n k -> p v (m n k)") for part in (light, windows - light)]
    return np.concatenate([part / (np.linalg.norm(part, axis=-1, keepdims=True) * 2**0.5 + 1e-6) for part in parts], -1)
