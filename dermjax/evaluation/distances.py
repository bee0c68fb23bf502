"""How far a set of images is from another, and how varied it is, by the features that a frozen network has of them.

Frechet and kernel distances see whole sets; precision, recall, density and coverage look at the neighbours of each
image; the Vendi score counts how many different images there are. None has a meaning of its own: beside each stands the
same figure of real images (`images.fidelity`).

Shapes: N real images, M synthetic ones, D features. Features are as the network gives them, any float [N, D].
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

NEIGHBOURS = 5  # k of precision, recall, density and coverage, as in arXiv 2002.09797
ROWS = 1024  # images that are compared with all others at a time
GROUP = 64  # columns of which the nearest alone is kept in a first pass
Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]
SMALLEST_PART, PARTS, REPEATS = 0.5, 6, 3  # of the extrapolation
MMD_WIDTH, MMD_SCALE = 10.0, 1000.0  # those of CMMD (arXiv 2401.09603), which is this distance on CLIP's features


def frechet(real: np.ndarray, synthetic: np.ndarray) -> float:
    """The Frechet distance of the normal distributions of both means and covariances (Heusel et al. 2017), squared.

    Of few images it is too large, by a share that falls with 1/n; `intervals.jackknife` takes it off. Of fewer than D
    images a covariance has no full rank, and nothing mends that.
    """
    first, second = (each.astype(np.float64) for each in (real, synthetic))
    root = _square_root(np.cov(first, rowvar=False))
    between = np.linalg.eigvalsh(root @ np.cov(second, rowvar=False) @ root)
    apart = np.square(first.mean(0) - second.mean(0)).sum()
    spread = first.var(0, ddof=1).sum() + second.var(0, ddof=1).sum()
    return float(apart + spread - 2 * np.sqrt(np.maximum(between, 0)).sum())


def frechet_infinite(real: np.ndarray, synthetic: np.ndarray, seed: int) -> float:
    """The Frechet distance of infinitely many images by extrapolation (Chong and Forsyth 2020, arXiv 1911.07023).

    Its bias falls with 1/n: of random parts of both sets a straight line in 1/n is fitted, and read off at 0. The
    smallest part, SMALLEST_PART of a set, needs more than D images.
    """
    rng = np.random.default_rng(seed)
    shares = np.repeat(np.linspace(SMALLEST_PART, 1, PARTS), REPEATS)
    found = [
        frechet(*(rng.choice(each, round(share * len(each)), replace=False) for each in (real, synthetic)))
        for share in shares
    ]
    return float(np.polyfit(1 / shares, found, 1)[1])


def kid(real: np.ndarray, synthetic: np.ndarray) -> float:
    """The kernel distance (Binkowski et al. 2018), unbiased, so that it may be negative: kernel (x.y / D + 1)^3."""
    x, y = (each.astype(np.float64) for each in (real, synthetic))
    return _within(x, _cubic) + _within(y, _cubic) - 2 * _between(x, y, _cubic)


def mmd(real: np.ndarray, synthetic: np.ndarray) -> float:
    """1000 times the squared MMD of features of length 1 under a wide Gaussian (Jayasumana et al. 2024)."""
    x, y = (each.astype(np.float64) / np.linalg.norm(each, axis=1, keepdims=True) for each in (real, synthetic))
    return MMD_SCALE * sum(sign * _between(*pair, _gaussian) for sign, pair in ((1, (x, x)), (1, (y, y)), (-2, (x, y))))


def vendi(features: np.ndarray) -> float:
    """How many different images there are (Friedman and Dieng 2023): 1 of one many times, N of N without likeness."""
    unit = features.astype(np.float64) / np.linalg.norm(features, axis=1, keepdims=True)
    kernel = unit.T @ unit if unit.shape[0] > unit.shape[1] else unit @ unit.T  # both have the same values
    shares = np.linalg.eigvalsh(kernel / len(unit))
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


@dataclass(frozen=True)
class Neighbourhoods:
    """What the neighbours of each image say of it; means over the images are the usual figures.

    The reach of an image is the distance to its k-th neighbour within its own set.
    precision bool [M]: the synthetic image lies within the reach of a real one (Kynkaanniemi et al. 2019).
    recall bool [N]: the real image lies within the reach of a synthetic one.
    density float [M]: how many reaches of real images it lies in, over k (Naeem et al. 2020). Its mean is 1 where both
      sets are of one distribution.
    coverage bool [N]: a synthetic image is within the reach of the real one.
    authentic bool [M]: the nearest real image is nearer to another real one than to it (Alaa et al. 2022).
    """

    precision: np.ndarray
    recall: np.ndarray
    density: np.ndarray
    coverage: np.ndarray
    authentic: np.ndarray


def neighbourhoods(real: np.ndarray, synthetic: np.ndarray, k: int = NEIGHBOURS) -> Neighbourhoods:
    """Looks at the neighbours of every image; each set needs more than k images."""
    middle = real.mean(0, keepdims=True)  # nearer to zero, float32 keeps more of a difference
    real, synthetic = (np.asarray(each - middle, np.float32) for each in (real, synthetic))
    reach_of_real, reach_of_synthetic = (nearest(each, each, k, itself=True) for each in (real, synthetic))
    within, distance, index, covered, reached = _compare(
        real, synthetic, reach_of_real[:, -1], reach_of_synthetic[:, -1]
    )
    return Neighbourhoods(
        precision=within > 0,
        recall=reached,
        density=within / k,
        coverage=covered,
        authentic=distance > reach_of_real[index, 0],
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


def _compare(
    real: np.ndarray, synthetic: np.ndarray, real_radius: np.ndarray, synthetic_radius: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Of each synthetic image: reaches of real ones that it is in, squared distance and index of the nearest, [M]; of
    each real one: whether a synthetic one is in its reach, and whether it is in the reach of one, bool [N]."""
    own, of_real = [], np.zeros((2, len(real)), bool)
    radii = _filled(synthetic_radius, ROWS, -1.0)
    for start, rows in _blocks(synthetic):
        filled = min(ROWS, len(synthetic) - start)
        found = _compared(rows, real, real_radius, radii[start : start + ROWS], filled)
        own.append([np.asarray(each)[:filled] for each in found[:3]])
        of_real |= np.stack(found[3:])
    return *(np.concatenate(each) for each in zip(*own, strict=True)), *of_real


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


def _gaussian(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.exp((x @ y.T - 1) / MMD_WIDTH**2)  # |x - y|^2 = 2 - 2 x.y


def _between(x: np.ndarray, y: np.ndarray, kernel: Kernel) -> float:
    """The mean of a kernel over all pairs, a block of rows at a time."""
    blocks = (kernel(x[start : start + ROWS], y).sum() for start in range(0, len(x), ROWS))
    return float(sum(blocks) / (len(x) * len(y)))


def _within(x: np.ndarray, kernel: Kernel) -> float:
    """The mean of a kernel over pairs of different rows."""
    alone = sum(kernel(row[None], row[None]).item() for row in x)
    return (_between(x, x, kernel) * len(x) ** 2 - alone) / (len(x) * (len(x) - 1))
