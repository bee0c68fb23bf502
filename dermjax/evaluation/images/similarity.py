"""How alike the images of a class are to each other: MS-SSIM of pairs of them (Odena et al. 2017, arXiv 1610.09585).

Classes whose images are more alike than real ones have lost variety. It compares pixels where they are, so that it
misses what is only moved or turned; the Vendi score, of features, does not.

Shapes: P pairs, S side, C channels.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dermjax.data import images
from dermjax.data.records import Manifest, Record
from dermjax.evaluation import intervals
from dermjax.evaluation.intervals import Estimate

Array = jax.Array
SIDE = 224  # pixels at which images are compared; the coarsest of five scales has a sixteenth
PAIRS, LEAST = 100, 5  # of a class
BATCH = 10
# of the scales, the finest first (Wang, Simoncelli and Bovik 2003)
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW, SIGMA = 11, 1.5
LUMINANCE, CONTRAST = 0.01**2, 0.03**2  # what keeps the quotients from dividing by zero, of pixels in [0, 1]


@jax.jit
def ms_ssim(one: Array, other: Array) -> Array:
    """The multi-scale structural similarity of images [P, S, S, C] in [0, 1], float32 [P]: 1 of equal ones.

    The mean over channels; negative terms count as 0. S is 11 x 16 or more.
    """
    terms = []
    for scale in range(len(WEIGHTS)):
        means, variances, covariance = _moments(one, other)
        structure = (2 * covariance + CONTRAST) / (variances[0] + variances[1] + CONTRAST)
        if scale == len(WEIGHTS) - 1:
            light = (2 * means[0] * means[1] + LUMINANCE) / (means[0] ** 2 + means[1] ** 2 + LUMINANCE)
            structure = structure * light
        terms.append(jnp.maximum(structure.mean((1, 2)), 0.0))
        one, other = (_halved(each) for each in (one, other))
    weights = jnp.array(WEIGHTS).reshape(-1, 1, 1)
    return jnp.prod(jnp.stack(terms) ** weights, axis=0).mean(-1)


def _moments(one: Array, other: Array) -> tuple[list[Array], list[Array], Array]:
    """Means, variances and the covariance under a Gaussian window at every place."""
    at = np.arange(WINDOW) - WINDOW // 2
    kernel = np.exp(-(at**2) / (2 * SIGMA**2))
    kernel = (kernel / kernel.sum()).tolist()

    def blur(x: Array) -> Array:
        """Sums of shifted images: of three channels each by itself XLA on a CPU has no fast convolution."""
        for axis in (1, 2):
            most = x.shape[axis] - WINDOW + 1
            x = sum(weight * jax.lax.slice_in_dim(x, i, i + most, axis=axis) for i, weight in enumerate(kernel))
        return x

    means = [blur(each) for each in (one, other)]
    variances = [blur(each**2) - mean**2 for each, mean in zip((one, other), means, strict=True)]
    return means, variances, blur(one * other) - means[0] * means[1]


def _halved(x: Array) -> Array:
    rows, columns = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    return x[:, :rows, :columns].reshape(len(x), rows // 2, 2, columns // 2, 2, -1).mean((2, 4))


def within(manifest: Manifest, records: list[Record], seed: int) -> Estimate | None:
    """The mean MS-SSIM of pairs of images of different lesions, each image in one pair; None of fewer than LEAST.

    Its interval is Student's.
    """
    order = np.random.default_rng(seed).permutation(len(records))
    pairs = [(records[one], records[other]) for one, other in zip(order[::2], order[1::2], strict=False)]
    pairs = [pair for pair in pairs if not pair[0].lesion_id or pair[0].lesion_id != pair[1].lesion_id][:PAIRS]
    if len(pairs) < LEAST:
        return None
    values = []
    for start in range(0, len(pairs), BATCH):
        some = pairs[start : start + BATCH]
        sides = [np.stack([images.load(manifest.path(pair[side]), SIDE) for pair in some]) for side in (0, 1)]
        values.append(np.asarray(ms_ssim(*(side.astype(np.float32) / 255 for side in sides))))
    return intervals.mean(np.concatenate(values).astype(np.float64))
