"""How far a set of images is from another, and how varied it is, by the features that a frozen network has of them.

Frechet and kernel distances see whole sets; precision, recall, density and coverage look at the neighbours of each
image; the Vendi score counts how many different images there are. None has a meaning of its own: beside each stands the
same figure of real images (`images.fidelity`).

Shapes: N real images, M synthetic ones, D features. Features are as the network gives them, any float [N, D].
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

NEIGHBOURS = 5  # k of precision, recall, density and coverage, as in arXiv 2002.09797
TILE = 1024  # images that are compared with as many others at a time: their distances stay in a core's cache
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
    reach_of_real, reach_of_synthetic = (_nearest_of_own(each, k) for each in (real, synthetic))
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


def nearest(features: np.ndarray, others: np.ndarray, k: int) -> np.ndarray:
    """The squared distances of each image [N, D] to its k nearest others [M, D], ascending: float32 [N, k]."""
    found = []
    for rows in _tiles(features):
        best = jnp.full((len(rows), k), jnp.inf)
        for columns in _tiles(others):
            best = _nearer(_squared(rows, columns), best)
        found.append(best)
    return np.concatenate(found)


def _nearest_of_own(features: np.ndarray, k: int) -> np.ndarray:
    """`nearest` of the other images of the same set; each pair of tiles is multiplied once and read both ways."""
    tiles = _tiles(features)
    best = [jnp.full((len(rows), k), jnp.inf) for rows in tiles]
    for i, rows in enumerate(tiles):
        best[i] = _nearer_of_own(rows, best[i])
        for j in range(i + 1, len(tiles)):
            best[i], best[j] = _nearer_both_ways(rows, tiles[j], best[i], best[j])
    return np.concatenate(best)


@jax.jit
def _nearer_of_own(rows: jax.Array, best: jax.Array) -> jax.Array:
    return _nearer(jnp.where(jnp.eye(len(rows), dtype=bool), jnp.inf, _squared(rows, rows)), best)


@jax.jit
def _nearer_both_ways(rows: jax.Array, columns: jax.Array, best_of_rows: jax.Array, best_of_columns: jax.Array):
    apart = _squared(rows, columns)
    return _nearer(apart, best_of_rows), _nearer(apart.T, best_of_columns)


@jax.jit
def _nearer(apart: jax.Array, best: jax.Array) -> jax.Array:
    """The smallest distances of each row of `apart` and of those known, `best` [rows, k], ascending."""
    return -jax.lax.top_k(-jnp.concatenate([apart, best], axis=1), best.shape[1])[0]


def _compare(
    real: np.ndarray, synthetic: np.ndarray, reach_of_real: np.ndarray, reach_of_synthetic: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Of each synthetic image: reaches of real ones that it is in, squared distance and index of the nearest, [M]; of
    each real one: whether a synthetic one is in its reach, and whether it is in the reach of one, bool [N]."""
    of_synthetic, of_real = [], np.zeros((2, len(real)), bool)
    columns = list(zip(_tiles(real), _tiles(reach_of_real), strict=True))
    for rows, reach in zip(_tiles(synthetic), _tiles(reach_of_synthetic), strict=True):
        # one tile after the other: two at a time would push each other's distances out of the cache
        found = [jax.device_get(_compared(rows, *each, reach)) for each in columns]
        within, distance, index, covered, reached = zip(*found, strict=True)
        tile, each = np.argmin(distance, axis=0), np.arange(len(rows))
        at = TILE * tile + np.stack(index)[tile, each]
        of_synthetic.append((np.sum(within, axis=0), np.stack(distance)[tile, each], at))
        of_real |= np.stack([np.concatenate(covered), np.concatenate(reached)])
    return *(np.concatenate(each) for each in zip(*of_synthetic, strict=True)), *of_real


@jax.jit
def _compared(rows: jax.Array, columns: jax.Array, reach_of_columns: jax.Array, reach_of_rows: jax.Array):
    apart = _squared(rows, columns)
    inside = apart <= reach_of_columns[None]
    nearest, index = jax.lax.top_k(-apart, 1)  # on a CPU much quicker than argmin
    return inside.sum(1), -nearest[:, 0], index[:, 0], inside.any(0), (apart <= reach_of_rows[:, None]).any(0)


@jax.jit
def _squared(rows: jax.Array, columns: jax.Array) -> jax.Array:
    product = jnp.matmul(rows, columns.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum((rows**2).sum(1)[:, None] + (columns**2).sum(1)[None] - 2 * product, 0)


def _tiles(array: np.ndarray) -> list[jax.Array]:
    return [jnp.asarray(array[start : start + TILE]) for start in range(0, len(array), TILE)]


def _square_root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def _cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _gaussian(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.exp((x @ y.T - 1) / MMD_WIDTH**2)  # |x - y|^2 = 2 - 2 x.y


def _between(x: np.ndarray, y: np.ndarray, kernel: Kernel) -> float:
    """The mean of a kernel over all pairs, a block of rows at a time."""
    blocks = (kernel(x[start : start + TILE], y).sum() for start in range(0, len(x), TILE))
    return float(sum(blocks) / (len(x) * len(y)))


def _within(x: np.ndarray, kernel: Kernel) -> float:
    """The mean of a kernel over pairs of different rows."""
    alone = sum(kernel(row[None], row[None]).item() for row in x)
    return (_between(x, x, kernel) * len(x) ** 2 - alone) / (len(x) * (len(x) - 1))
