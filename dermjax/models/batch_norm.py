"""Batch normalisation (arXiv 1502.03167) and the ReLU6 behind it, as one operation with one gradient on every platform.

XLA's gradient of the two, one after the other, keeps x - mean beside x and divides by two where ReLU6 has a tie, and so
reads images that do not fit into a cache three times as often. Here x alone is kept, and ReLU6's gradient at 0 and at 6
is zero, as PyTorch's is.

Shapes: B batch, h w features, C channels.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dermjax.models.layers import NO_KEYS

Array = jax.Array
OVER = (0, 1, 2)  # the axes of [B, h, w, C] that statistics are taken over
CEILING = 6.0


class BatchNorm(nnx.BatchNorm):
    """Flax's BatchNorm of [B, h, w, C], statistics in float32, with ReLU6 behind it if `activate`."""

    def __init__(self, channels: int, *, momentum: float, epsilon: float, activate: bool, dtype: DTypeLike):
        super().__init__(channels, momentum=momentum, epsilon=epsilon, dtype=dtype, rngs=NO_KEYS)
        self.activate = activate

    def __call__(self, x: Array, *, train: bool) -> Array:
        if not train:
            x = super().__call__(x, use_running_average=True)
            return jnp.clip(x, 0.0, CEILING) if self.activate else x
        x32 = jax.lax.stop_gradient(x).astype(jnp.float32)
        mean = x32.mean(OVER)
        # E[x^2] - E[x]^2 can fall below zero by rounding when a channel is constant
        variance = jnp.maximum((x32 * x32).mean(OVER) - mean * mean, 0.0)
        for kept, new in ((self.mean, mean), (self.var, variance)):
            kept[...] = self.momentum * kept[...] + (1 - self.momentum) * new
        inverse = jax.lax.rsqrt(variance + self.epsilon)
        return normalised(x, mean, inverse, self.scale[...], self.bias[...], self.activate)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def normalised(x: Array, mean: Array, inverse: Array, scale: Array, bias: Array, activate: bool) -> Array:
    """Returns (x - mean) * inverse * scale + bias, and ReLU6 of it if `activate`.

    mean and inverse, one over the standard deviation, are those of x, [C]: the gradient with respect to x goes through
    them as well, and theirs is zero.
    """
    y = line(x, inverse * scale, bias - mean * inverse * scale)
    return (jnp.clip(y, 0.0, CEILING) if activate else y).astype(x.dtype)


def line(x: Array, slope: Array, shift: Array) -> Array:
    """Returns x * slope + shift, a channel, in float32."""
    return x.astype(jnp.float32) * slope[None, None, None] + shift[None, None, None]


def _forward(x: Array, mean: Array, inverse: Array, scale: Array, bias: Array, activate: bool):
    return normalised(x, mean, inverse, scale, bias, activate), (x, mean, inverse, scale, bias)


def _backward(activate: bool, saved: tuple[Array, ...], gradient: Array) -> tuple[Array, ...]:
    x, mean, inverse, scale, bias = saved
    slope, gradient = inverse * scale, gradient.astype(jnp.float32)
    if activate:
        y = line(x, slope, bias - mean * slope)
        gradient = jnp.where((y > 0) & (y < CEILING), gradient, 0.0)
    by_bias = gradient.sum(OVER)
    # of x itself and not of x - mean, which XLA would write to memory for this sum
    by_scale = ((gradient * x).sum(OVER) - mean * by_bias) * inverse
    pixels = x.size // x.shape[-1]
    # slope * (gradient - mean(gradient) - x_hat * mean(gradient * x_hat))
    through = slope * inverse * by_scale / pixels
    by_x = gradient * slope[None, None, None] - line(x, through, slope * by_bias / pixels - mean * through)
    return by_x.astype(x.dtype), jnp.zeros_like(mean), jnp.zeros_like(inverse), by_scale, by_bias


normalised.defvjp(_forward, _backward)
