"""What can be measured on one image by itself: lesion-like contrast, structure, sharpness, colour.

An image is uint8 [S, S, 3] in sRGB, S a multiple of FINE, as cells of unequal size would look sharp. Lightness and
colour are CIE L*a*b*, in which a distance of about 2 is just visible, as planes [3, S, S]. No measure knows the class
of the image.
"""

from functools import cache

import numpy as np
from scipy import ndimage

from dermjax.data.imaging.artefacts import View
from dermjax.data.imaging.colour import planes_to_lab

FINE, COARSE, COARSEST = 64, 32, 16  # cells a side of the resolutions at which an image is measured


def measure(image: np.ndarray | View) -> dict[str, float]:
    """All scores of an image: contrast, structure, sharpness, and its mean colour as chroma_a and chroma_b."""
    colours = planes_to_lab(View.of(image).planes)
    return {
        "contrast": contrast(colours),
        "structure": structure(colours),
        "sharpness": sharpness(colours),
        "chroma_a": float(colours[1].mean()),
        "chroma_b": float(colours[2].mean()),
    }


def contrast(colours: np.ndarray) -> float:
    """How steep the steepest fiftieth of the field is, in L*a*b* units from one of 32 cells a side to the next.

    A lesion has a border; an empty field, uneven light and mottled skin have none. Corners are left out: a dark frame
    is not a lesion. Measured on phantoms at 128 px, limit as calibrated: all of 150 fields of bare skin are flagged (of
    those with hairs, ruler or ink, which have edges as well, half), and no lesion.
    """
    down, across = np.gradient(_cells(colours, COARSE), axis=(1, 2))
    steep = np.linalg.norm(np.concatenate([down, across]), axis=0)
    return float(np.percentile(steep[_disc(COARSE)], 98))


def structure(colours: np.ndarray) -> float:
    """The share, 0..1, of the variance of lightness that is left when each of 16 x 16 cells is averaged.

    Skin with a lesion keeps most of it; noise keeps one part in the number of pixels of a cell. An image without any
    variance has no structure.
    """
    lightness = colours[:1]
    variance = lightness[0, _disc(lightness.shape[1])].var()
    return float(_cells(lightness, COARSEST)[0, _disc(COARSEST)].var() / variance) if variance > 1e-6 else 0.0


def sharpness(colours: np.ndarray) -> float:
    """log10 of the detail of lightness at a fine resolution over that at a coarse one; about -1 where it is blurred.

    Detail is the variance of the Laplacian (Pech-Pacheco et al. 2000). Alone it follows contrast and texture; the ratio
    does not. Phantoms out of focus (Gaussians of 1.1 to 1.7 % of the width) lie below -0.69 (calibration.json); no
    photograph of 2,438 does. What derm-tiny's decoder makes lies between -0.94 and -0.55, as soft as one out of focus.
    """
    fine, coarse = (_detail(_cells(colours[:1], cells)[0]) for cells in (FINE, COARSE))
    return float(np.log10((fine + 1e-6) / (coarse + 1)))  # 1: above what 8-bit rounding leaves in an empty field


def _detail(lightness: np.ndarray) -> float:
    return ndimage.laplace(lightness, mode="nearest").var()


def _cells(colours: np.ndarray, cells: int) -> np.ndarray:
    """The mean of each cell, [C, cells, cells]."""
    side = colours.shape[1] // cells
    rows = colours.reshape(len(colours), cells, side, -1).sum(2)  # NumPy is slow over short last axes
    return np.add.reduceat(rows, np.arange(0, rows.shape[-1], side), axis=-1) / np.float32(side**2)


@cache
def _disc(side: int) -> np.ndarray:
    """The pixels whose centres lie in the inscribed disc, bool [side, side]."""
    centres = (np.arange(side) + 0.5) / side - 0.5
    return centres[:, None] ** 2 + centres[None, :] ** 2 <= 0.25
