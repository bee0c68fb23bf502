"""How far a set of images is from another, and how varied it is, by the features that a frozen network has of them.

Frechet and kernel distances see whole sets; precision, recall, density and coverage look at the neighbours of each
image; the Vendi score counts how many different images there are. None has a meaning of its own: beside each stands the
same figure of one half of the real images against the other.

Shapes: N real images, M synthetic ones, D features. Features are as the network gives them, any float [N, D].
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

NEIGHBOURS = 5  # k of precision, recall, density and coverage, as in arXiv 2002.09797
ROWS = 1024  # images that are compared with all others at a time
GROUP = 64  # columns of which the nearest alone is kept in a first pass
CMMD_WIDTH, CMMD_SCALE = 10.0, 1000.0  # of arXiv 2401.09603


def frechet(real: np.ndarray, synthetic: np.ndarray) -> float:
    """The Frechet distance of the normal distributions of both means and covariances (Heusel et al. 2017), squared.

    Below about D images a covariance has no full rank, and the distance is large whatever the images are.
    """
    first, second = (each.astype(np.float64) for each in (real, synthetic))
    root = _square_root(np.cov(first, rowvar=False))
    between = np.linalg.eigvalsh(root @ np.cov(second, rowvar=False) @ root)
    apart = np.square(first.mean(0) - second.mean(0)).sum()
    spread = first.var(0, ddof=1).sum() + second.var(0, ddof=1).sum()
    return float(apart + spread - 2 * np.sqrt(np.maximum(between, 0)).sum())


def frechet_at_infinity(real: np.ndarray, synthetic: np.ndarray, seed: int, points: int = 8) -> float:
    """The Frechet distance without the share that falls with the number n of images (Chong and Forsyth, CVPR 2020).

    It is the value at 1/n = 0 of the line through distances of `points` random subsets, from a half of the images on.
    """
    most = min(len(real), len(synthetic))
    sizes = np.unique(np.linspace(most / 2, most, points).astype(int))
    rng = np.random.default_rng(seed)
    drawn = [[rng.choice(each, size, replace=False) for each in (real, synthetic)] for size in sizes]
    slope_and_value = np.polyfit(1 / sizes, [frechet(*pair) for pair in drawn], 1)
    return float(slope_and_value[1])


def kid(real: np.ndarray, synthetic: np.ndarray, block: int, blocks: int, seed: int) -> tuple[float, float]:
    """The kernel distance (Binkowski et al. 2018) and its standard error: mean and spread over random blocks of images.

    It is unbiased, so that it may be negative; the kernel is (x.y / D + 1)^3. `block` should be much smaller than the
    sets: blocks of all images are one block many times.
    """
    rng = np.random.default_rng(seed)
    block = min(block, len(real), len(synthetic))
    found = []
    for _ in range(blocks):
        x, y = (rng.choice(each, block, replace=False).astype(np.float64) for each in (real, synthetic))
        within = sum((_cubic(each, each).sum() - np.trace(_cubic(each, each))) for each in (x, y))
        found.append(within / (block * (block - 1)) - 2 * _cubic(x, y).mean())
    return float(np.mean(found)), float(np.std(found, ddof=1) / len(found) ** 0.5) if blocks > 1 else float("nan")


def cmmd(real: np.ndarray, synthetic: np.ndarray) -> float:
    """The distance of arXiv 2401.09603: 1000 times the squared MMD of features of length 1 under a wide Gaussian."""
    x, y = (each.astype(np.float64) / np.linalg.norm(each, axis=1, keepdims=True) for each in (real, synthetic))
    return CMMD_SCALE * float(_gaussian(x, x) + _gaussian(y, y) - 2 * _gaussian(x, y))


def vendi(features: np.ndarray) -> float:
    """How many different images there are (Friedman and Dieng 2023): 1 of one many times, N of N without likeness."""
    unit = features.astype(np.float64) / np.linalg.norm(features, axis=1, keepdims=True)
    kernel = unit.T @ unit if unit.shape[0] > unit.shape[1] else unit @ unit.T  # both have the same values
    shares = np.linalg.eigvalsh(kernel / len(unit))
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


@dataclass(frozen=True)
class Neighbourhoods:
    """Shares in 0 to 1, but density, whose value is 1 where both sets are of one distribution.

    precision: of synthetic images that lie within the reach of a real one (Kynkaanniemi et al. 2019).
    recall: of real images within the reach of a synthetic one.
    density: of reaches of real images that a synthetic one lies in, over those expected (Naeem et al. 2020).
    coverage: of real images with a synthetic one within their reach.
    authentic: of synthetic images that the nearest real one is nearer to another real one than to (Alaa et al. 2022).
    The reach of an image is the distance to its k-th neighbour within its own set.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    authentic: float


def neighbourhoods(real: np.ndarray, synthetic: np.ndarray, k: int = NEIGHBOURS) -> Neighbourhoods:
    """Looks at the neighbours of every image; each set needs more than k images."""
    middle = real.mean(0, keepdims=True)  # nearer to zero, float32 keeps more of a difference
    real, synthetic = (np.asarray(each - middle, np.float32) for each in (real, synthetic))
    reach_of_real, reach_of_synthetic = (nearest(each, each, k, itself=True) for each in (real, synthetic))
    radii = reach_of_real[:, -1], reach_of_synthetic[:, -1]
    within, covered, reached, distance, index = _compare(real, synthetic, *radii)
    return Neighbourhoods(
        precision=float((within > 0).mean()),
        recall=float(reached.mean()),
        density=float(within.mean() / k),
        coverage=float(covered.mean()),
        authentic=float((distance > reach_of_real[index, 0]).mean()),
    )


def nearest(features: np.ndarray, others: np.ndarray, k: int, *, itself: bool = False) -> np.ndarray:
    """The squared distances of each image [N, D] to its k nearest others [M, D], ascending: float32 [N, k].

    With `itself` both are one set, and no image is its own neighbour.
    """
    columns = _filled(others, GROUP)
    valid = jnp.arange(len(columns)) < len(others)
    found = [_nearest(rows, columns, valid, start if itself else -ROWS, k=k) for start, rows in _blocks(features)]
    return np.concatenate(found)[: len(features)]


@partial(jax.jit, static_argnames="k")
def _nearest(rows: jax.Array, columns: jax.Array, valid: jax.Array, start: jax.Array, *, k: int) -> jax.Array:
    number = jnp.arange(len(columns))
    own = number[None] == start + jnp.arange(len(rows))[:, None]
    apart = jnp.where(valid[None] & ~own, _squared(rows, columns), jnp.inf).reshape(len(rows), -1, GROUP)
    # the k nearest columns lie in the k groups whose nearest columns are nearest
    best = jax.lax.top_k(-apart.min(-1), min(k, apart.shape[1]))[1]
    chosen = jnp.take_along_axis(apart, best[..., None], axis=1).reshape(len(rows), -1)
    return -jax.lax.top_k(-chosen, k)[0]


def _compare(real: np.ndarray, synthetic: np.ndarray, real_radius: np.ndarray, synthetic_radius: np.ndarray):
    """Of each synthetic image: reaches of real ones that it is in [M], squared distance and index of the nearest [M];
    of each real one: whether a synthetic one is in its reach [N], and whether it is in the reach of one [N]."""
    within, distance, index = [], [], []
    covered, reached = np.zeros(len(real), bool), np.zeros(len(real), bool)
    radii = _filled(synthetic_radius, ROWS, -1.0)
    for start, rows in _blocks(synthetic):
        filled = min(ROWS, len(synthetic) - start)
        each = _compared(rows, real, real_radius, radii[start : start + ROWS], filled)
        inside, near, at, over, under = (np.asarray(value) for value in each)
        within.append(inside[:filled])
        distance.append(near[:filled])
        index.append(at[:filled])
        covered |= over
        reached |= under
    return np.concatenate(within), covered, reached, np.concatenate(distance), np.concatenate(index)


@jax.jit
def _compared(rows: jax.Array, real: jax.Array, real_radius: jax.Array, radius: jax.Array, filled: jax.Array):
    valid = (jnp.arange(len(rows)) < filled)[:, None]
    apart = jnp.where(valid, _squared(rows, real), jnp.inf)
    inside = apart <= real_radius[None]
    return inside.sum(1), apart.min(1), apart.argmin(1), inside.any(0), (apart <= radius[:, None]).any(0)


def _squared(rows: jax.Array, columns: jax.Array) -> jax.Array:
    product = jnp.matmul(rows, columns.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum((rows**2).sum(1)[:, None] + (columns**2).sum(1)[None] - 2 * product, 0)


def _blocks(features: np.ndarray):
    """The first index and the images of every block of ROWS, the last one filled with zeros."""
    filled = _filled(features, ROWS)
    for start in range(0, len(filled), ROWS):
        yield start, filled[start : start + ROWS]


def _filled(array: np.ndarray, multiple: int, value: float = 0.0) -> np.ndarray:
    rest = -len(array) % multiple
    return np.concatenate([array, np.full((rest, *array.shape[1:]), value, array.dtype)])


def _square_root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def _cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _gaussian(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.exp((x @ y.T - 1) / CMMD_WIDTH**2).mean())  # |x - y|^2 = 2 - 2 x.y
