"""Position embeddings of a ViT for another number of patches, resampled as PyTorch does it."""

import numpy as np
from einops import rearrange

KEYS_CUBIC = -0.75  # the free parameter of the cubic kernel that PyTorch uses


def resize_positions(positions: np.ndarray, side: int) -> np.ndarray:
    """Returns position embeddings [1, 1 + side², D] made from [1, 1 + s², D], as transformers interpolates them.

    The class token keeps its own; the patches' grid is resampled by PyTorch's bicubic kernel without antialiasing.
    """
    first, patches = positions[:, :1], positions[:, 1:]
    old = round(patches.shape[1] ** 0.5)
    if old == side:
        return positions
    weights = bicubic(old, side)
    square = rearrange(patches, "1 (h w) D -> h w D", h=old)
    resized = np.einsum("ih,jw,hwD->ijD", weights, weights, square)
    return np.concatenate([first, rearrange(resized, "h w D -> 1 (h w) D")], axis=1).astype(positions.dtype)


def bicubic(old: int, new: int) -> np.ndarray:
    """Returns the [new, old] matrix of cubic interpolation with half-pixel centres and the border repeated."""
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    matrix = np.zeros((new, old))
    for offset in (-1, 0, 1, 2):
        column = np.floor(centres).astype(int) + offset
        np.add.at(matrix, (np.arange(new), column.clip(0, old - 1)), cubic(np.abs(centres - column)))
    return matrix


def cubic(distance: np.ndarray) -> np.ndarray:
    """Returns Keys's cubic convolution kernel (1981) at distances in [0, 2]."""
    a, d = KEYS_CUBIC, distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, far)
