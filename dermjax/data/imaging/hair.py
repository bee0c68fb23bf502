"""Dark hairs: where they are, and a photograph without them in the way of DullRazor.

An ablation, as the Derm-T2IM paper removed hairs before tuning: lesions lose fine structure with them, so nothing here
does it unless it is requested. Where a closing by lines brightens a band of colour, something dark and narrow lies;
what is straight for a while and long is hair, and gives way to the skin beside it. Light hairs stay.
DullRazor: Lee et al. 1997, Comput. Biol. Med. 27(6).

Shapes: H, W the sides in pixels. All lengths are fractions of the shorter side.
"""

from functools import lru_cache

import numpy as np
from scipy import ndimage

from dermjax.data.imaging import filters

LINE = 0.05  # length of the lines; hairs are narrower than it, lesions are not
DARKER = 18  # levels of 255 that a hair is darker than what the lines show
STRAIGHT = 0.075  # length of the least straight piece of a hair
DIRECTIONS = 16  # in which such a piece may lie
LONG = 0.12  # extent of the least hair
FULL = 0.2  # share of its squared extent that a hair, or a few that cross, cover at most
EDGE = 0.006  # of a hair that is lighter than DARKER
BESIDE, NEAREST = 0.012, 1.5  # standard deviation of the weights of the skin that replaces a hair; in pixels at least


def remove_hairs(image: np.ndarray) -> np.ndarray:
    """A uint8 image [H, W, 3] with its dark hairs replaced by what lies beside them; all else keeps its pixels."""
    hairs = hair_mask(image)
    if not hairs.any():
        return image
    reach = max(BESIDE * min(image.shape[:2]), NEAREST)
    weights = ndimage.gaussian_filter((~hairs).astype(np.float32), reach)
    known = np.where(hairs[..., None], 0, image).astype(np.float32)
    beside = ndimage.gaussian_filter(known, (reach, reach, 0)) / np.maximum(weights, 1e-6)[..., None]
    filled = np.where((hairs & (weights > 1e-3))[..., None], beside, image)
    return filled.round().clip(0, 255).astype(np.uint8)


def hair_mask(image: np.ndarray) -> np.ndarray:
    """Where the hairs of a uint8 image [H, W, 3] are, with their soft edges: bool [H, W]."""
    side = min(image.shape[:2])
    lines = [line(LINE * side, 180 * way / 4)[..., None] for way in range(4)]
    closed = np.max([ndimage.grey_closing(image, footprint=each) for each in lines], axis=0)
    dark = (closed.astype(np.int16) - image > DARKER).any(-1)
    hairs = long_pieces(straight_pieces(dark, STRAIGHT * side, DIRECTIONS), LONG * side, FULL)
    return ndimage.binary_dilation(hairs, iterations=max(round(EDGE * side), 1)) if hairs.any() else hairs


def straight_pieces(mask: np.ndarray, length: float, directions: int) -> np.ndarray:
    """The parts of a mask bool [H, W] in which a line of so many pixels fits, in one of the directions."""
    return filters.open_by_any(mask, [line(length, 180 * way / directions) for way in range(directions)])


def long_pieces(mask: np.ndarray, length: float, share: float) -> np.ndarray:
    """The connected pieces of a mask bool [H, W] that extend over more than `length` pixels and are thin.

    share: of its squared extent, what a piece covers less than.
    """
    pieces, _ = ndimage.label(mask, np.ones((3, 3)))
    chosen = np.zeros_like(mask)
    for number, box in enumerate(ndimage.find_objects(pieces), 1):
        extent = np.hypot(*(side.stop - side.start for side in box))
        if extent > length:
            piece = pieces[box] == number
            chosen[box] |= piece & (piece.sum() < share * extent**2)
    return chosen


@lru_cache(64)
def line(length: float, degrees: float) -> np.ndarray:
    """A line of pixels of an odd length in a direction, as a bool footprint."""
    reach = max(round(length) // 2, 1)
    steps = np.arange(-reach, reach + 1)
    across, down = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    scale = max(abs(across), abs(down))
    footprint = np.zeros((2 * reach + 1, 2 * reach + 1), bool)
    footprint[
        np.rint(steps * down / scale).astype(int) + reach, np.rint(steps * across / scale).astype(int) + reach
    ] = 1
    return footprint[footprint.any(1)][:, footprint.any(0)]
