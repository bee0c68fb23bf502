"""The 3x3 depthwise convolution of MobileNetV2: one filter a channel, no sum over channels.

XLA has no good kernel for it on CPU: at batch 32, 32 x 32 pixels and 144 channels on two cores the library convolution
takes 129 ms forward and 470 ms with its gradients; nine shifted multiply-adds take 4 and 96 ms, and 30 ms once the
kernel's gradient is summed row by row, so that what is summed stays in the cache. Accelerators keep the library.

Shapes: B batch, H W image, h w output, C channels; x [B, H, W, C], kernel [3, 3, 1, C].
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
TAPS = tuple((i, j) for i in range(3) for j in range(3))


class Geometry(NamedTuple):
    """Strides, dilation and zero padding ((top, bottom), (left, right)) of one convolution."""

    stride: int
    dilation: int
    pads: tuple[tuple[int, int], tuple[int, int]]

    def output(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Returns (h, w) of the output for an input of this shape."""
        return tuple(
            (n + sum(p) - 2 * self.dilation - 1) // self.stride + 1 for n, p in zip(shape[1:3], self.pads, strict=True)
        )


def pad(x: Array, geometry: Geometry) -> Array:
    """Returns x with the zeros around it."""
    return jnp.pad(x, ((0, 0), *geometry.pads, (0, 0)))


def library(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """The convolution as XLA's grouped convolution."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (geometry.stride, geometry.stride),
        geometry.pads,
        rhs_dilation=(geometry.dilation, geometry.dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def shifted(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """The convolution as nine shifted multiply-adds."""
    return taps(pad(x, geometry), kernel, geometry.stride, geometry.dilation, geometry.output(x.shape))


def taps(padded: Array, kernel: Array, stride: int, dilation: int, output: tuple[int, int]) -> Array:
    """Returns the nine multiply-adds over what is padded already."""
    (h, w), (B, *_, C) = output, padded.shape

    def term(i: int, j: int) -> Array:
        top, left = i * dilation, j * dilation
        end = (B, top + (h - 1) * stride + 1, left + (w - 1) * stride + 1, C)
        return lax.slice(padded, (0, top, left, 0), end, (1, stride, stride, 1)) * kernel[None, None, i, j]

    return sum((term(i, j) for i, j in TAPS[1:]), start=term(*TAPS[0]))


def turned(gradient: Array, kernel: Array, geometry: Geometry, shape: tuple[int, ...]) -> Array:
    """Returns the gradient with respect to x of this shape: the kernel turned around, over the gradient spread out.

    jax.vjp of `taps` would be a sum of nine padded arrays, which XLA on a CPU walks with a condition for every number.
    """
    stride, dilation, pads = geometry
    before = [2 * dilation - low for low, _ in pads]
    after = [
        n + 2 * dilation - low - (m - 1) * stride - 1
        for n, m, low in zip(shape[1:3], gradient.shape[1:3], before, strict=True)
    ]
    spread = ((0, 0, 0), *((low, high, stride - 1) for low, high in zip(before, after, strict=True)), (0, 0, 0))
    padded = lax.pad(gradient, jnp.zeros((), gradient.dtype), spread)
    return taps(padded, kernel[::-1, ::-1], 1, dilation, shape[1:3])


def library_gradients(x: Array, kernel: Array, gradient: Array, geometry: Geometry) -> tuple[Array, Array]:
    """Gradients of `library` with respect to x and kernel."""
    return jax.vjp(partial(library, geometry=geometry), x, kernel)[1](gradient)


def shifted_gradients(x: Array, kernel: Array, gradient: Array, geometry: Geometry) -> tuple[Array, Array]:
    """Gradients of `shifted` with respect to x and kernel; the latter accumulates one output row at a time."""
    stride, dilation, _ = geometry
    h, w = geometry.output(x.shape)
    B, C = x.shape[0], x.shape[-1]
    padded = pad(x, geometry)

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
    return turned(gradient, kernel, geometry, x.shape), by_kernel


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise(x: Array, kernel: Array, geometry: Geometry) -> Array:  # [B, H, W, C] -> [B, h, w, C]
    """Returns the depthwise convolution of x, computed the way that is fast where it runs."""
    ways = {"cpu": partial(shifted, geometry=geometry), "default": partial(library, geometry=geometry)}
    return lax.platform_dependent(x, kernel, **ways)


def _forward(x: Array, kernel: Array, geometry: Geometry):
    return depthwise(x, kernel, geometry), (x, kernel)


def _backward(geometry: Geometry, saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    ways = {"cpu": shifted_gradients, "default": library_gradients}
    return lax.platform_dependent(*saved, gradient, **{k: partial(f, geometry=geometry) for k, f in ways.items()})


depthwise.defvjp(_forward, _backward)
