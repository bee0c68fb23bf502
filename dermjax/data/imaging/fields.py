"""Scalar fields on the unit square, of which phantoms are painted: coordinates, smooth noise, dots, soft steps.

Lengths are fractions of the field. Noise is drawn on a coarse grid that does not depend on the size of the image and is
brought to it by cubic B-splines, so one seed gives one field at every size.

Shape legend: S side in pixels, C = 3 channels.
"""

from functools import cache, lru_cache

import numpy as np


@cache
def coordinates(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres in fields: x [1, S] and y [S, 1]."""
    centres = ((np.arange(size) + 0.5) / size).astype(np.float32)
    return centres[None, :], centres[:, None]


@lru_cache(4)
def away(size: int) -> np.ndarray:
    """How far each pixel is from the middle, in fields: float32 [S, S]."""
    x, y = coordinates(size)
    return np.hypot(x - 0.5, y - 0.5)


def noise(rng: np.random.Generator, cells: int, size: int) -> np.ndarray:
    """Smooth noise of mean zero and variance one with `cells` features across the field. float32 [S, S]"""
    knots = rng.standard_normal((cells + 3, cells + 3), np.float32)
    nearest, weights = _spline(cells, size)
    # Four knots a pixel instead of a matrix product, whose threads fight over the cores when several programs run.
    across = np.einsum("st,stn->sn", weights, knots.T.take(nearest, 0))
    return np.einsum("st,stn->sn", weights, np.ascontiguousarray(across.T).take(nearest, 0))


@cache
def _spline(cells: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The four knots around each pixel and their weights, both [S, 4], of a uniform cubic B-spline.

    The weights are scaled so that the variance of independent knots is about kept.
    """
    position = (np.arange(size) + 0.5) / size * cells
    t = (position - np.floor(position))[:, None]
    weights = np.concatenate([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], 1) / 6
    weights /= np.sqrt((weights**2).sum(1).mean())
    return np.floor(position).astype(int)[:, None] + np.arange(4), weights.astype(np.float32)


def dots(rng: np.random.Generator, size: int, period: float, radius: float, share: float) -> np.ndarray:
    """Round dots (0 to 1), one in `share` of the squares of a jittered lattice. float32 [S, S]."""
    x, y = coordinates(size)
    count = int(1 / period) + 2
    row = (y / period).astype(int)
    x = x + 0.5 * period * (row % 2)  # every other row is shifted, so that no lattice shows
    column = (x / period).astype(int)
    jitter = rng.uniform(0.32, 0.68, (2, count, count)).astype(np.float32)
    strength = ((rng.random((count, count)) < share) * rng.uniform(0.6, 1, (count, count))).astype(np.float32)
    dx, dy = x / period - column - jitter[0][row, column], y / period - row - jitter[1][row, column]
    return strength[row, column] * np.exp(-(dx**2 + dy**2) * np.float32((period / radius) ** 2))


def blend(image: np.ndarray, share: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """The image [S, S, C] covered by a share [S, S] of a colour [C]."""
    return image + share[..., None] * (colour - image)


def smoothstep(t: np.ndarray) -> np.ndarray:
    """The cubic step from 0 at t = 0 to 1 at t = 1."""
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)
