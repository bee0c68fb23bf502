"""How close images are to others by their perceptual hash, whichever way round they are held.

Place in the flow: `curate` -> `orientation_hashes` -> the distance to training images and within the set.

A copy may be mirrored or turned: an image is compared with all eight orientations of the others. Distances are bits of
256 that differ (`duplicates` has the measured ranges; turned the eight ways, the nearest of 1950 photographs to
another stays 59 bits away, a blurred mirror image of itself 2).

Shapes: N and M images, 4 words of 64 bits a hash.
"""

from collections.abc import Callable

import numpy as np

from dermjax.data.leaks.duplicates import BITS, FREQUENCIES, VIEWS, signs, spectra
from dermjax.data.leaks.neighbours import Index

ORIENTATIONS = 8
ACROSS = (-1.0) ** np.arange(FREQUENCIES, dtype=np.float32)  # what a mirror from left to right does to cosines
DOWN = ACROSS[:, None]
BLOCK = 1 << 20  # distances held at once
EXACT, A_BLOCK = 1 << 13, 1 << 11  # images
SLACK = 2  # bits: the hash of a turned image may differ from the turned hash where a cosine is next to nothing


def orientation_hashes(image: np.ndarray) -> np.ndarray:
    """The hashes of the eight orientations of uint8 [S, S, 3], as uint64 [8, 4]; the first is of the image itself.

    In their order `duplicates.orientations` turns an image; of its cosines a turn exchanges the axes and a mirror
    negates every other one.
    """
    spectrum = spectra(image, VIEWS[:1])[0]
    quarters = (spectrum, spectrum.T * DOWN, spectrum * DOWN * ACROSS, spectrum.T * ACROSS)
    return signs(np.stack([each for way in quarters for each in (way, way * ACROSS)]))


def distances(upright: np.ndarray, turned: np.ndarray) -> np.ndarray:
    """The distance of each of N images to each of M others at its best orientation: [N, 4], [M, 8, 4] -> int [N, M]."""
    return np.bitwise_count(upright[:, None, None] ^ turned).sum(-1, dtype=np.int64).min(-1)


def nearest(upright: np.ndarray, turned: np.ndarray) -> np.ndarray:
    """The distance of each image to the nearest of the others: [N, 4], [M, 8, 4] -> int [N]."""
    rows = max(1, BLOCK // len(turned) // ORIENTATIONS)
    blocks = [distances(upright[start : start + rows], turned).min(-1) for start in range(0, len(upright), rows)]
    return np.concatenate(blocks)


def nearest_other(turned: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The distance of some images of one set [M, 8, 4], given by index, to the nearest other image of that set."""
    others = [np.delete(distances(turned[index : index + 1, 0], turned)[0], index) for index in chosen]
    return np.array([each.min(initial=BITS) for each in others])


def nearest_kept(
    turned: np.ndarray, limit: float, eligible: np.ndarray, tick: Callable[[int], None] = lambda images: None
) -> np.ndarray:
    """The distance of each image [N, 8, 4] to the nearest earlier one that is kept: int [N].

    It is BITS where none is within the limit. eligible: bool [N], the images that nothing else speaks against. One of
    them is kept when no earlier kept one is within the limit, so that of a group of duplicates the first is. tick(n)
    counts images.

    Up to EXACT images are compared with all kept ones. Of more, a block is, and those of earlier blocks are found by
    tables (`neighbours.Index`), which hold the kept ones alone: memory grows with these, however alike the others are.
    """
    bits, kept = np.full(len(turned), BITS), np.empty_like(turned)
    many, count = len(turned) > EXACT, 0
    index = Index(int(eligible.sum()), min(int(limit) + SLACK, BITS - 1)) if many else None
    for start in range(0, len(turned), A_BLOCK if many else EXACT):
        block, first = turned[start : start + (A_BLOCK if many else EXACT)], count
        if many and first:
            for row, near in index.near(block):
                bits[start + row] = distances(block[row : row + 1, 0], kept[near]).min()
        for row in range(start, start + len(block)):
            if count > first:
                bits[row] = min(bits[row], distances(turned[row : row + 1, 0], kept[first:count]).min())
            if bits[row] > limit:
                bits[row] = BITS
                if eligible[row]:
                    kept[count] = turned[row]
                    count += 1
        tick(len(block))
        if many:
            index.add(kept[first:count, 0])
    return bits
