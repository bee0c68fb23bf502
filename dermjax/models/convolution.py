"""The convolutions of 3x3 that XLA has no good kernels or gradients for on a CPU: everywhere else they are XLA's.

Shapes: B batch, H W image, h w output, C channels in, D channels out.
"""

from functools import partial

import jax
from jax import lax

from dermjax.models.cpu.convolution import (
    Pads,
    columns,
    columns_gradient,
    few_pixels,
    kernel_gradient,
    many_channels,
    shifted,
    shifted_gradients,
    small,
)

Array = jax.Array
LAYOUT = ("NHWC", "HWIO", "NHWC")


@jax.custom_vjp
def convolution(x: Array, kernel: Array) -> Array:  # [B, h, w, C], [3, 3, C, D] -> [B, h, w, D]
    """Returns the convolution of x, with one zero around it, in the type of x."""
    cpu = columns if small(x) else xla_convolution
    return lax.platform_dependent(x, kernel, cpu=cpu, default=xla_convolution)


def xla_convolution(x: Array, kernel: Array) -> Array:
    """Returns `convolution` by XLA."""
    return lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=LAYOUT)


def _backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved

    def transposed(kernel: Array, gradient: Array) -> Array:
        return jax.linear_transpose(partial(xla_convolution, kernel=kernel), x)(gradient)[0]

    def transposed_by_kernel(x: Array, gradient: Array) -> Array:
        return jax.linear_transpose(partial(xla_convolution, x), kernel)(gradient)[0]

    cpu = columns_gradient if few_pixels(gradient) else transposed
    by_x = lax.platform_dependent(kernel, gradient, cpu=cpu, default=transposed)
    cpu = kernel_gradient if many_channels(x, gradient) else transposed_by_kernel
    return by_x, lax.platform_dependent(x, gradient, cpu=cpu, default=transposed_by_kernel)


convolution.defvjp(lambda x, kernel: (convolution(x, kernel), (x, kernel)), _backward)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def depthwise(x: Array, kernel: Array, stride: int, dilation: int, pads: Pads) -> Array:
    """Returns the convolution [B, h, w, C] of x [B, H, W, C] with one filter a channel, kernel [3, 3, 1, C]."""
    geometry = (stride, dilation, pads)
    cpu, default = (lambda x, kernel, way=way: way(x, kernel, *geometry) for way in (shifted, xla_depthwise))
    return lax.platform_dependent(x, kernel, cpu=cpu, default=default)


def xla_depthwise(x: Array, kernel: Array, stride: int, dilation: int, pads: Pads) -> Array:
    """Returns `depthwise` by XLA."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        pads,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=LAYOUT,
        feature_group_count=x.shape[-1],
    )


def _depthwise_backward(stride: int, dilation: int, pads: Pads, saved: tuple[Array, Array], gradient: Array):
    def cpu(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
        return shifted_gradients(x, kernel, gradient, stride, dilation, pads)

    def default(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
        return jax.vjp(lambda x, kernel: xla_depthwise(x, kernel, stride, dilation, pads), x, kernel)[1](gradient)

    return lax.platform_dependent(*saved, gradient, cpu=cpu, default=default)


depthwise.defvjp(lambda x, kernel, *geometry: (depthwise(x, kernel, *geometry), (x, kernel)), _depthwise_backward)
