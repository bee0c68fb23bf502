"""Near-duplicates: a perceptual hash that proposes pairs of images, and a correlation of colours that confirms them.

Place in the flow: pixels -> `views` and `cells` (a fingerprint) -> `neighbours.near` -> `confirm` -> `group`.

The hash is the sign of the low 16 x 16 cosine coefficients of the grey image (pHash, Zauner 2010, with 256 bits in
place of 64). Measured on 2,438 HAM10000 photographs, one a lesion, 3.0 million pairs: different lesions differ in 53
bits or more; the same photograph at half size, as JPEG of quality 70, brighter by 10 % or with 15 % more contrast in at
most 21, with a border of 2 % cut off in at most 46. With 64 bits the two ranges overlap, as lesions look alike. A crop
moves every cosine, so an image has several hashes: of itself and of crops of it (VIEWS). What somebody cut out of it is
near to one of them.

A hash keeps signs of cosines of brightness, and among millions of pairs two lesions may share most of them. So a near
pair is laid over each other, in all eight orientations and every crop of VIEWS, and its brightness and its colours are
correlated cell by cell. Light, contrast and a cast of colour do not count: a copy may have been edited.

Shapes: N images, S side in pixels, V views, P pairs, C cells a side, M cells a side of a window.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from functools import cache

import numpy as np
from einops import rearrange
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

NEAR = 40  # bits of 256: between the two ranges above
# Of a crop and a whole image; other lesions come as near as 37 bits, and `confirm` tells them apart. Recall on 305
# photographs, turned and compressed again: cut by 2 to 5 % anywhere, 99 %; by 5 to 10 %, 99 %; by 10 to 14 %, 27 %.
NEAR_CROPPED = 38
FREQUENCIES = 16
BITS = FREQUENCIES * FREQUENCIES
HASHED = 128  # side in pixels at which an image is hashed; the hash hardly depends on it
# Windows of an image, (down, across, side) as shares of it: the whole, and what a crop may have left of it.
VIEWS = (
    (0.0, 0.0, 1.0),
    (0.06, 0.06, 0.88),
    (0.025, 0.025, 0.95),
    *((0.07 * down / 3, 0.07 * across / 3, 0.93) for down in range(4) for across in range(4)),
)
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as in Pillow's convert("L")
BLOCK = 1 << 19  # pairs compared at once: their distances stay in the processor's cache, 200 million pairs a second

CELLS = 16
WINDOW = 12  # cells a side that two images are compared in
# Measured on HAM10000 photographs: 200 copies, cut by 2 to 12 % anywhere, turned, with other light, contrast and tint
# and compressed at quality 60, correlate by 0.941 or more; of the 400 pairs of different lesions whose hashes are
# nearest (43 to 77 bits, of 3.0 million pairs), 98 % by less than 0.92.
ALIKE = 0.92
WINDOW_BLOCK = 64  # pairs correlated at once


def views(images: np.ndarray, windows: Sequence[tuple[float, float, float]] = VIEWS) -> np.ndarray:
    """The hashes of windows of uint8 images [N, S, S, 3], S at least 16, as uint64 [N, V, 4]; independent of S."""
    hashes = np.empty((len(images), len(windows), BITS // 64), np.uint64)
    for row, image in enumerate(images):  # one at a time: all of them in float would be four times the images
        hashes[row] = signs(spectra(image, windows))
    return hashes


def spectra(image: np.ndarray, windows: Sequence[tuple[float, float, float]]) -> np.ndarray:
    """The low cosine coefficients of windows of an image uint8 [S, S, 3], float32 [V, FREQUENCIES, FREQUENCIES]."""
    grey = image @ LUMA
    grey -= grey.mean()  # else the brightness would leak into a window that ends within a pixel
    side = len(image)
    rows = {(down, length): _cosines(side, down, length) @ grey for down, _, length in windows}
    return np.stack([rows[down, length] @ _cosines(side, across, length).T for down, across, length in windows])


def signs(spectra: np.ndarray) -> np.ndarray:
    """The hashes uint64 [N, 4] of spectra [N, FREQUENCIES, FREQUENCIES]: which coefficients are positive."""
    bits = spectra.reshape(len(spectra), BITS) > 0
    bits[:, 0] = False  # the mean brightness says nothing
    return np.packbits(bits, axis=-1).view(np.uint64)


def pairs(a: np.ndarray, b: np.ndarray, distance: int) -> np.ndarray:
    """The pairs (row in a, row in b, bits that differ) of hashes at most `distance` apart, as int64 [P, 3] in order."""
    rows = max(1, BLOCK // max(1, len(b)))
    words = np.ascontiguousarray(rearrange(b, "m w -> w m"))
    near = [np.empty((0, 3), np.int64)]
    for first in range(0, len(a), rows):
        block = rearrange(a[first : first + rows], "n w -> w n 1")
        bits = sum(np.bitwise_count(one ^ other).astype(np.uint16) for one, other in zip(block, words, strict=True))
        row_a, row_b = np.nonzero(bits <= distance)
        near.append(np.stack([row_a + first, row_b, bits[row_a, row_b]], axis=-1))
    return np.concatenate(near)


def group(links: np.ndarray, identities: Sequence[Sequence[Hashable]]) -> np.ndarray:
    """The group of each of N images, int [N]: those tied by a link (rows of [P, >= 2]) or by an equal identity.

    identities: per image what ties it to others, such as ("lesion", "HAM_0001"); images may have none or many.
    """
    holders = defaultdict(list)
    for row, of_row in enumerate(identities):
        for identity in of_row:
            holders[identity].append(row)
    shared = [(rows[0], row) for rows in holders.values() for row in rows[1:]]
    ends = np.concatenate([links[:, :2], np.array(shared, np.int64).reshape(-1, 2)])
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(len(identities), len(identities)))
    return connected_components(graph, directed=False)[1]


def cells(image: np.ndarray) -> np.ndarray:
    """The mean colours of an image uint8 [S, S, 3], S a multiple of CELLS, as uint8 [CELLS, CELLS, 3]."""
    side = len(image) // CELLS
    rows = image.reshape(CELLS, side, -1).sum(1, dtype=np.float32)  # whole numbers: exact in any order
    return (rows.reshape(CELLS, CELLS, side, 3).sum(2) / side**2).round().astype(np.uint8)


def confirm(near: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Those rows of near pairs int [P, 3] (row, row, bits) that look alike, or have one and the same hash.

    colours: the cells of each image, uint8 [N, C, C, 3].
    """
    confirmed = near[:, 2] == 0
    for views in (VIEWS[:1], VIEWS[1:]):  # most copies are of the whole image, which takes less time
        open_ = np.flatnonzero(~confirmed)
        for block in np.split(open_, range(WINDOW_BLOCK, len(open_), WINDOW_BLOCK)):
            confirmed[block] = likeness(colours[near[block, 0]], colours[near[block, 1]], views) >= ALIKE
    return near[confirmed]


def likeness(one: np.ndarray, other: np.ndarray, views: Sequence[tuple[float, float, float]]) -> np.ndarray:
    """The correlation of pairs of images uint8 [P, C, C, 3] where they fit best, from -1 to 1, as float32 [P].

    They fit where one in any orientation is what the views show of the other, or the other way round.
    """
    best = np.full(len(one), -1, np.float32)
    for whole, cut in ((one, other), (other, one)):
        turned = np.concatenate(orientations(_windows(whole, VIEWS[:1])), axis=1)
        fits = np.einsum("p o k, p v k -> p o v", _standard(turned), _standard(_windows(cut, views)))
        np.maximum(best, fits.max((1, 2)), out=best)
    return best


def orientations(images: np.ndarray) -> list[np.ndarray]:
    """The eight ways to hold square images [P, V, M, M, 3], the given one first."""
    turned = [np.rot90(images, quarter, (2, 3)) for quarter in range(4)]
    return [each for way in turned for each in (way, np.flip(way, 3))]


@cache
def _cosines(side: int, start: float, length: float) -> np.ndarray:
    """The cosines over a window of a row of pixels, float32 [FREQUENCIES, side]; start and length as shares of it."""
    edges = np.clip(np.arange(side + 1) / side, start, start + length)
    covered, middle = np.diff(edges), (edges[:-1] + edges[1:]) / 2 - start
    return (np.cos(np.pi * np.outer(np.arange(FREQUENCIES), middle / length)) * covered).astype(np.float32)


def _windows(colours: np.ndarray, views: Sequence[tuple[float, float, float]]) -> np.ndarray:
    """Windows of cells [P, C, C, 3], float32 [P, V, M, M, 3]."""
    down, across = (np.stack([_resampling(view[axis], view[2]) for view in views]) for axis in (0, 1))
    rows = np.einsum("v m c, p c d k -> p v m d k", down, colours.astype(np.float32))
    return np.einsum("v n d, p v m d k -> p v m n k", across, rows)


@cache
def _resampling(start: float, length: float) -> np.ndarray:
    """The weights of a row of cells in each cell of a window of it, bilinear: float32 [M, CELLS]."""
    centres = (start + length * (np.arange(WINDOW) + 0.5) / WINDOW) * CELLS - 0.5
    return np.maximum(0, 1 - abs(np.clip(centres, 0, CELLS - 1)[:, None] - np.arange(CELLS))).astype(np.float32)


def _standard(windows: np.ndarray) -> np.ndarray:
    """Brightness and colours less their means, brightness and colours each of length 1 / sqrt(2): [P, V, M M 3]."""
    windows = windows - windows.mean((2, 3), keepdims=True)
    light = windows.mean(-1, keepdims=True)
    halves = [rearrange(half, "p v m n k -> p v (m n k)") for half in (light, windows - light)]
    return np.concatenate(
        [half / (np.linalg.norm(half, axis=-1, keepdims=True) * 2**0.5 + 1e-6) for half in halves], -1
    )
