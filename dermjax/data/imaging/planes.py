"""What is computed over planes of pixels again and again: a blur and a percentile, in a fraction of SciPy's time."""

from functools import cache

import numpy as np

REACH = 4  # standard deviations after which the Gaussian ends, as SciPy's does


def blur(plane: np.ndarray, sigma: float) -> np.ndarray:
    """A plane float32 [H, W] under a Gaussian of `sigma` pixels, mirrored at the edges, as ndimage.gaussian_filter.

    Summed in float32, by shifted copies of the whole: the padded plane is one row of memory (see `morphology`).
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


@cache
def _gaussian(sigma: float) -> np.ndarray:
    """The weights of a Gaussian from its middle on, float32."""
    away = np.arange(int(REACH * sigma + 0.5) + 1)
    weights = np.exp(-0.5 * (away / sigma) ** 2)
    return (weights / (2 * weights.sum() - weights[0])).astype(np.float32)
