"""Winograd's F(2x2, 3x3): a 3x3 convolution with 16 products for four pixels in place of 36 (arXiv 1509.09308).

Worth it where one kernel meets many images, as in a sampler: the kernel is transformed once, which costs as much as one
or two convolutions. On one core such a convolution of SD 1.5 takes 0.6 to 0.75 of XLA's time; in float32 it is as near
to the exact result. Bands of rows whose transform fits the cache: all of a large image at once is slower than XLA's own.

Shapes: B batch, h w image, both even; C channels in, D channels out; kernel [3, 3, C, D], one zero around the image.
"""

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
CHANNELS = 256  # at least; with fewer XLA's convolution is nearly as fast, and compiled in half the time
WIDTHS = (32, 128)  # pixels a row; below it does not repay compiling, above moving transforms takes what products save
BAND = 2**20  # numbers in the transform of a band, at most: 4 MB


def fits(x: Array, kernel: Array) -> bool:
    """Returns whether the algorithm is the faster one for x [B, h, w, C], whatever the batch."""
    (_, h, w, C), D = x.shape, kernel.shape[-1]
    return x.dtype == jnp.float32 and h % 2 == w % 2 == 0 and WIDTHS[0] <= w <= WIDTHS[1] and min(C, D) >= CHANNELS


def transform(kernel: Array) -> Array:  # [3, 3, C, D] -> [16, C, D]
    """Returns G kernel G^T, with the four rows of G being g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2 and g2."""

    def rows(g0: Array, g1: Array, g2: Array) -> tuple[Array, ...]:
        return g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2

    return jnp.stack([each for row in rows(*kernel) for each in rows(*row)])


def winograd(x: Array, transformed: Array) -> Array:  # [B, h, w, C], [16, C, D] -> [B, h, w, D]
    """Returns the convolution of x with a transformed kernel."""
    B, h, w, C = x.shape
    rows = max(2, BAND // (4 * B * w * C) // 2 * 2)  # 16 numbers of four pixels
    while h % rows:
        rows -= 2
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def add_band(i: Array, out: Array) -> Array:
        band = lax.dynamic_slice_in_dim(padded, i * rows, rows + 2, axis=1)
        return lax.dynamic_update_slice_in_dim(out, _band(band, transformed), i * rows, axis=1)

    if rows == h:
        return _band(padded, transformed)
    return lax.fori_loop(0, h // rows, add_band, jnp.zeros((B, h, w, transformed.shape[-1]), x.dtype))


def _band(padded: Array, transformed: Array) -> Array:  # [B, h + 2, w + 2, C] -> [B, h, w, D]
    """The tiles d [4, 4] of padded pixels, B^T d B for each; their products; A^T m A for each."""
    (B, H, W, C), D = padded.shape, transformed.shape[-1]
    h, w = H - 2, W - 2

    def tiles(i: int, j: int) -> Array:  # one number of each tile: [B, h / 2, w / 2, C]
        return lax.slice(padded, (0, i, j, 0), (B, i + h - 1, j + w - 1, C), (1, 2, 2, 1))

    def into(d0: Array, d1: Array, d2: Array, d3: Array) -> tuple[Array, ...]:
        return d0 - d2, d1 + d2, d2 - d1, d1 - d3

    def out_of(m0: Array, m1: Array, m2: Array, m3: Array) -> tuple[Array, Array]:
        return m0 + m1 + m2, m1 - m2 - m3

    columns = [into(*(tiles(i, j) for i in range(4))) for j in range(4)]
    rows = [into(*(column[i] for column in columns)) for i in range(4)]
    taken = jnp.stack([each for row in rows for each in row]).reshape(16, -1, C)
    products = lax.dot_general(taken, transformed, (((2,), (1,)), ((0,), (0,)))).reshape(4, 4, B, h // 2, w // 2, D)
    halves = [out_of(*products[:, j]) for j in range(4)]
    pixels = [out_of(*(half[a] for half in halves)) for a in range(2)]  # [row][column] of each tile
    return jnp.stack([jnp.stack(row, axis=3) for row in pixels], axis=2).reshape(B, h, w, D)
