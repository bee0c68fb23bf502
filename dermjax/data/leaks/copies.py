"""How close images are to others by their perceptual hash, whichever way round they are held.

A copy may be mirrored or turned: an image is compared with all eight orientations of the others. Distances are bits of
256 that differ (data/duplicates.py has the measured ranges; turned the eight ways, the nearest of 1950 photographs to
another stays 59 bits away, a blurred mirror image of itself 2).
"""

import numpy as np
from einops import rearrange, reduce

from dermjax.data.leaks import duplicates

BITS = 256
ORIENTATIONS = 8
BLOCK = 1 << 20  # distances held at once


def hash_all_ways(image: np.ndarray) -> np.ndarray:
    """The hashes of the eight orientations of uint8 [S, S, 3], as uint64 [8, 4]; the first is of the image itself."""
    turned = [np.rot90(image, quarter) for quarter in range(4)]
    return duplicates.hashes(np.stack([each for way in turned for each in (way, way[:, ::-1])]))


def distances(upright: np.ndarray, all_ways: np.ndarray) -> np.ndarray:
    """The distance of each of N images to each of M others at its best orientation: [N, 4], [M, 8, 4] -> int [N, M]."""
    ways = rearrange(all_ways, "m o w -> (m o) w")
    apart = duplicates.pairs(upright, ways, BITS)[:, 2]  # at most all bits differ, so every pair is there, in order
    return reduce(apart, "(n m o) -> n m", "min", n=len(upright), m=len(all_ways))


def nearest(upright: np.ndarray, all_ways: np.ndarray) -> np.ndarray:
    """The distance of each image to the nearest of the others, int [N]."""
    rows = max(1, BLOCK // len(all_ways) // ORIENTATIONS)
    blocks = [distances(upright[start : start + rows], all_ways).min(-1) for start in range(0, len(upright), rows)]
    return np.concatenate(blocks)


def nearest_other(all_ways: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The distance of some images of one set, given by index, to the nearest other image of that set."""
    found = []
    for index in chosen:
        apart = distances(all_ways[index : index + 1, 0], all_ways)[0]
        found.append(np.delete(apart, index).min(initial=BITS))
    return np.array(found)


def nearest_kept(all_ways: np.ndarray, limit: float, standing: np.ndarray) -> np.ndarray:
    """The distance of each image to the nearest earlier one that stays in the set, BITS where there is none.

    standing: bool [N], the images that nothing else speaks against. One of them stays when no earlier one that stays is
    within the limit, so that of a group of duplicates the first is kept.
    """
    found = np.full(len(all_ways), BITS)
    staying = []
    for index in range(len(all_ways)):
        if staying:
            found[index] = distances(all_ways[index : index + 1, 0], all_ways[staying]).min()
        if standing[index] and found[index] > limit:
            staying.append(index)
    return found
