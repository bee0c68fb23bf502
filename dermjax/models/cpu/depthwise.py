"""The 3x3 depthwise convolution of MobileNetV2 as shifted multiply-adds: one filter a channel, no sum over channels.

XLA has no good kernel for it on a CPU: at batch 32, 32 x 32 pixels and 144 channels on two cores its convolution takes
129 ms forward and 470 ms with its gradients; nine shifted multiply-adds take 4 and 96 ms, and 30 ms once the kernel's
gradient is summed row by row, so that what is summed stays in the cache.

Shapes: B batch, H W image, h w output, C channels; x [B, H, W, C], kernel [3, 3, 1, C]; pads are the zeros around the
image, ((top, bottom), (left, right)).
"""

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Pads = tuple[tuple[int, int], tuple[int, int]]
TAPS = tuple((i, j) for i in range(3) for j in range(3))


def shifted(x: Array, kernel: Array, stride: int, dilation: int, pads: Pads) -> Array:  # -> [B, h, w, C]
    """Returns the convolution as nine shifted multiply-adds."""
    return taps(pad(x, pads), kernel, stride, dilation)


def pad(x: Array, pads: Pads) -> Array:
    """Returns x with the zeros around it."""
    return jnp.pad(x, ((0, 0), *pads, (0, 0)))


def taps(padded: Array, kernel: Array, stride: int, dilation: int) -> Array:
    """Returns the nine multiply-adds over what is padded already."""
    B, H, W, C = padded.shape
    h, w = ((n - 2 * dilation - 1) // stride + 1 for n in (H, W))

    def term(i: int, j: int) -> Array:
        top, left = i * dilation, j * dilation
        end = (B, top + (h - 1) * stride + 1, left + (w - 1) * stride + 1, C)
        return lax.slice(padded, (0, top, left, 0), end, (1, stride, stride, 1)) * kernel[None, None, i, j]

    return sum((term(i, j) for i, j in TAPS[1:]), start=term(*TAPS[0]))


def shifted_gradients(
    x: Array, kernel: Array, gradient: Array, stride: int, dilation: int, pads: Pads
) -> tuple[Array, Array]:
    """Returns the gradients of `shifted` with respect to x and kernel; the latter sums one output row at a time."""
    B, h, w, C = gradient.shape
    padded = pad(x, pads)

    def add_row(row: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        g = lax.dynamic_index_in_dim(gradient, row, axis=1, keepdims=False)  # [B, w, C]

        def product(i: int, j: int) -> Array:
            line = lax.dynamic_index_in_dim(padded, stride * row + i * dilation, axis=1, keepdims=False)
            left = j * dilation
            return lax.slice(line, (0, left, 0), (B, left + (w - 1) * stride + 1, C), (1, stride, 1)) * g

        return tuple(total + product(i, j) for total, (i, j) in zip(sums, TAPS, strict=True))

    zeros = jnp.zeros((B, w, C), jnp.float32)
    sums = lax.fori_loop(0, h, add_row, (zeros,) * len(TAPS))
    by_kernel = jnp.stack([total.sum((0, 1)) for total in sums]).reshape(3, 3, 1, C).astype(kernel.dtype)
    return turned(gradient, kernel, x.shape[1:3], stride, dilation, pads), by_kernel


def turned(
    gradient: Array, kernel: Array, sides: tuple[int, int], stride: int, dilation: int, pads: Pads
) -> Array:  # -> [B, H, W, C]
    """Returns the gradient with respect to an image of these sides: the kernel turned around, over the gradient spread.

    jax.vjp of `taps` would be a sum of nine padded arrays, which XLA on a CPU walks with a condition for every number.
    """
    before = [2 * dilation - low for low, _ in pads]
    after = [
        n + 2 * dilation - low - (m - 1) * stride - 1
        for n, m, low in zip(sides, gradient.shape[1:3], before, strict=True)
    ]
    spread = ((0, 0, 0), *((low, high, stride - 1) for low, high in zip(before, after, strict=True)), (0, 0, 0))
    return taps(lax.pad(gradient, jnp.zeros((), gradient.dtype), spread), kernel[::-1, ::-1], 1, dilation)
