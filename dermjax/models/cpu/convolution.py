"""3x3 convolutions that XLA computes slowly on a CPU: for many channels on few pixels, and depthwise.

For many channels on few pixels: XLA on a CPU reads such a kernel badly and, for the gradient, writes it out number by
number with its channels exchanged, on every device: two images of 8 x 8 pixels and 1280 channels take 65 ms forwards
and 152 ms backwards on one core. One product of nine columns a pixel with the kernel as it lies, [9 C, D], takes 20 ms;
one of the gradient with it, [B h w, D] with [D, 9 C], gives each pixel nine columns, which are added where they belong:
31 ms. With many pixels for few channels the columns cost more than the kernel did.

The gradient with respect to a kernel of many channels is a product of the columns, or of each of the nine taps, with
that of the output: 28 in place of 55 ms for 16 x 16 pixels and 640 channels, 50 in place of 102 for 8 x 8 and 1280.

Depthwise, one filter a channel and no sum over channels: at batch 32, 32 x 32 pixels and 144 channels on two cores
XLA's takes 129 ms forward and 470 ms with its gradients; nine shifted multiply-adds take 4 and 96 ms, and 30 ms once
the kernel's gradient is summed row by row, so that what is summed stays in the cache.

Shapes: B batch, H W image, h w output, C channels in, D channels out; kernel [3, 3, C, D] with one zero around the
image, or depthwise [3, 3, 1, C] with pads, the zeros around it.
"""

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
FEW = 4  # pixels of a batch for each channel of the output, at most, for columns of a gradient
FEWER = 4  # channels for each pixel of an image, at least, for columns of the image; whatever the batch
FEWEST = 512  # pixels of a batch, at most, for a kernel's gradient by columns
NARROW, WIDE = 96, 256  # channels in and out, at least, for products; and for any number of pixels
MOST = 64  # pixels of a batch for each channel, at most, between these two
TAPS = tuple((i, j) for i in range(3) for j in range(3))
Pads = tuple[tuple[int, int], tuple[int, int]]  # (top, bottom), (left, right)


def small(x: Array) -> bool:
    """Returns whether `columns` is the faster way for images [B, h, w, C]."""
    _, h, w, C = x.shape
    return FEWER * h * w <= C


def columns(x: Array, kernel: Array) -> Array:  # [B, h, w, C], [3, 3, C, D] -> [B, h, w, D]
    """Returns the convolution by nine columns a pixel, summed in float32."""
    B, h, w, C = x.shape
    taken = jnp.concatenate(nine(x), axis=-1)
    products = jnp.matmul(taken.reshape(-1, 9 * C), kernel.reshape(9 * C, -1), preferred_element_type=jnp.float32)
    return products.astype(x.dtype).reshape(B, h, w, -1)


def nine(x: Array) -> list[Array]:
    """Returns what each tap sees of images [B, h, w, C], with one zero around them: nine like x."""
    _, h, w, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [padded[:, i : i + h, j : j + w] for i, j in TAPS]


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


def many_channels(x: Array, gradient: Array) -> bool:
    """Returns whether `kernel_gradient` is the faster way for images [B, h, w, C] and a gradient [B, h, w, D]."""
    (B, h, w, C), D = x.shape, gradient.shape[-1]
    least = min(C, D)
    return least >= WIDE or (least >= NARROW and B * h * w <= MOST * least)


def kernel_gradient(x: Array, gradient: Array) -> Array:  # [B, h, w, C], [B, h, w, D] -> [3, 3, C, D]
    """Returns the gradient with respect to the kernel by products of matrices, summed in float32."""
    (B, h, w, C), D = x.shape, gradient.shape[-1]
    by_tap = [jnp.concatenate(nine(x), axis=-1)] if B * h * w <= FEWEST else nine(x)
    rows = gradient.reshape(-1, D)
    products = [
        lax.dot_general(each.reshape(len(rows), -1), rows, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        for each in by_tap
    ]
    return jnp.concatenate(products).astype(x.dtype).reshape(3, 3, C, D)


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
