"""Dark hairs taken out of a photograph in the way of DullRazor (Lee et al. 1997, Comput. Biol. Med. 27(6)).

An ablation, as the Derm-T2IM paper removed hairs before tuning: lesions lose fine structure with them, so nothing here
does it unless it is asked for. Where a closing by lines brightens a band of colour, something dark and narrow lies;
what is straight for a while and long is hair, and gives way to the skin beside it. Light hairs stay.

Shapes: H, W the sides in pixels. All lengths are fractions of the shorter side.
"""

import numpy as np
from scipy import ndimage

LINE = 0.05  # length of the lines; hairs are narrower than it, lesions are not
DARKER = 18  # levels of 255 that a hair is darker than what the lines show
STRAIGHT = 0.075  # length of the least straight piece of a hair
DIRECTIONS = 16  # in which such a piece may lie
LONG = 0.12  # extent of the least hair
FULL = 0.2  # share of its squared extent that a hair, or a few that cross, cover at most
EDGE = 0.006  # of a hair that is lighter than DARKER
BESIDE, NEAREST = 0.012, 1.5  # standard deviation of the weights of the skin that replaces a hair; in pixels at least


def without_hair(image: np.ndarray) -> np.ndarray:
    """A uint8 image [H, W, 3] with its dark hairs replaced by what lies beside them; all else keeps its pixels."""
    hairs = found(image)
    if not hairs.any():
        return image
    reach = max(BESIDE * min(image.shape[:2]), NEAREST)
    weights = ndimage.gaussian_filter((~hairs).astype(np.float32), reach)
    known = np.where(hairs[..., None], 0, image).astype(np.float32)
    beside = ndimage.gaussian_filter(known, (reach, reach, 0)) / np.maximum(weights, 1e-6)[..., None]
    filled = np.where((hairs & (weights > 1e-3))[..., None], beside, image)
    return filled.round().clip(0, 255).astype(np.uint8)


def found(image: np.ndarray) -> np.ndarray:
    """Where the hairs of a uint8 image [H, W, 3] are, with their soft edges: bool [H, W]."""
    side = min(image.shape[:2])
    lines = [line(LINE * side, 180 * way / 4) for way in range(4)]
    closed = np.max([ndimage.grey_closing(image, footprint=line[..., None]) for line in lines], axis=0)
    dark = (closed.astype(np.int16) - image > DARKER).any(-1)
    ways = [line(STRAIGHT * side, 180 * way / DIRECTIONS) for way in range(DIRECTIONS)]
    straight = np.any([ndimage.binary_opening(dark, way) for way in ways], axis=0)
    pieces, _ = ndimage.label(straight, np.ones((3, 3)))
    hairs = np.zeros_like(dark)
    for piece, box in enumerate(ndimage.find_objects(pieces), 1):
        place = pieces[box] == piece
        extent = np.hypot(*place.shape)
        if extent > LONG * side and place.sum() < FULL * extent**2:
            hairs[box] |= place
    return ndimage.binary_dilation(hairs, iterations=max(round(EDGE * side), 1)) if hairs.any() else hairs


def line(length: float, degrees: float) -> np.ndarray:
    """A line of pixels of an odd length in a direction, as a bool footprint."""
    reach = max(round(length) // 2, 1)
    steps = np.arange(-reach, reach + 1)
    across, down = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    scale = max(abs(across), abs(down))
    line = np.zeros((2 * reach + 1, 2 * reach + 1), bool)
    line[np.rint(steps * down / scale).astype(int) + reach, np.rint(steps * across / scale).astype(int) + reach] = True
    return line[line.any(1)][:, line.any(0)]
