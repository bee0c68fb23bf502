"""A 3x3 convolution for many channels on few pixels, and its gradient with respect to the image, by one product each.

XLA on a CPU reads such a kernel badly and, for the gradient, writes it out number by number with its channels
exchanged, on every device: two images of 8 x 8 pixels and 1280 channels take 65 ms forwards and 152 ms backwards on one
core. One product of nine columns a pixel with the kernel as it lies, [9 C, D], takes 20 ms; one of the gradient with
it, [B h w, D] with [D, 9 C], gives each pixel nine columns, which are added where they belong: 31 ms. With many pixels
for few channels the columns cost more than the kernel did.

Shapes: B batch, h w image, C channels in, D channels out; kernel [3, 3, C, D], one zero around the image.
"""

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
FEW = 4  # pixels of a batch for each channel of the output, at most, for columns of a gradient
FEWER = 4  # channels for each pixel of an image, at least, for columns of the image; whatever the batch
TAPS = tuple((i, j) for i in range(3) for j in range(3))


def small(x: Array) -> bool:
    """Returns whether `columns` is the faster way for images [B, h, w, C]."""
    _, h, w, C = x.shape
    return FEWER * h * w <= C


def columns(x: Array, kernel: Array) -> Array:  # [B, h, w, C], [3, 3, C, D] -> [B, h, w, D]
    """Returns the convolution by nine columns a pixel, summed in float32."""
    B, h, w, C = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taken = jnp.concatenate([padded[:, i : i + h, j : j + w] for i, j in TAPS], axis=-1)
    products = jnp.matmul(taken.reshape(-1, 9 * C), kernel.reshape(9 * C, -1), preferred_element_type=jnp.float32)
    return products.astype(x.dtype).reshape(B, h, w, -1)


def few_pixels(gradient: Array) -> bool:
    """Returns whether `columns_gradient` is the faster way for a gradient [B, h, w, D]."""
    B, h, w, D = gradient.shape
    return B * h * w <= FEW * D


def columns_gradient(kernel: Array, gradient: Array) -> Array:  # [3, 3, C, D], [B, h, w, D] -> [B, h, w, C]
    """Returns the gradient with respect to the image by nine columns a pixel, summed in float32."""
    (B, h, w, D), C = gradient.shape, kernel.shape[2]
    products = lax.dot_general(gradient.reshape(-1, D), kernel.reshape(-1, D), (((1,), (1,)), ((), ())),
                               preferred_element_type=jnp.float32).reshape(B, h, w, 9, C)  # fmt: skip
    padded = jnp.pad(products, ((0, 0), (1, 1), (1, 1), (0, 0), (0, 0)))
    total = sum(padded[:, 2 - i : 2 - i + h, 2 - j : 2 - j + w, 3 * i + j] for i, j in TAPS)
    return total.astype(gradient.dtype)
