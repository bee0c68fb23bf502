"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381), driven by Hugging Face's config.json (model_type mobilenet_v2).

Attribute names are those of the files (`mobilenet_v2.layer.3.conv_3x3.convolution`). Batch statistics are variables of
type nnx.BatchStat: they are updated by `train=True` and read by `train=False`.

Shapes: B batch, H W image, h w features, C channels, L labels.
"""

from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike

from dermjax.errors import UserError
from dermjax.models.convolution import depthwise
from dermjax.models.layers import NO_KEYS, UNREAD, linear
from dermjax.models.nnx_tree import Module

Array = jax.Array
CHANNELS = (16, 24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160, 320)  # table 2 of the paper
STRIDES = (2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1)
# share of the old running statistics that a step keeps. TensorFlow's 0.997 needs thousands of steps to forget the
# start; PyTorch's 0.9 suits runs of a few hundred
STATISTICS_KEPT = 0.9
OVER = (0, 1, 2)  # the axes of [B, h, w, C] that statistics are taken over
CEILING = 6.0


class BatchNorm(nnx.BatchNorm):
    """Flax's BatchNorm (arXiv 1502.03167) of [B, h, w, C], statistics in float32, with ReLU6 behind it if `activate`.

    The two are one operation with one gradient. XLA's gradient of one after the other keeps x - mean beside x and
    divides by two where ReLU6 has a tie, and so reads images that do not fit into a cache three times as often. Here x
    alone is kept, and ReLU6's gradient at 0 and at 6 is zero, as PyTorch's is.
    """

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


def _normalised_forward(x: Array, mean: Array, inverse: Array, scale: Array, bias: Array, activate: bool):
    return normalised(x, mean, inverse, scale, bias, activate), (x, mean, inverse, scale, bias)


def _normalised_backward(activate: bool, saved: tuple[Array, ...], gradient: Array) -> tuple[Array, ...]:
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


normalised.defvjp(_normalised_forward, _normalised_backward)


def divisible(value: float, config: dict) -> int:
    """Returns the nearest allowed channel count, never more than 10 % below `value`."""
    step = config["depth_divisible_by"]
    rounded = max(config["min_depth"], int(value + step / 2) // step * step)
    return rounded + step if rounded < 0.9 * value else rounded


def scaled(channels: int, config: dict) -> int:
    """Returns the channel count under the config's depth multiplier."""
    return divisible(round(channels * config["depth_multiplier"]), config)


def padding(shape: tuple[int, ...], size: int, stride: int, dilation: int, tf_padding: bool) -> tuple:
    """Returns ((top, bottom), (left, right)): TensorFlow's SAME, which depends on the input's size, or PyTorch's."""
    if not tf_padding:
        return (((size - 1) // 2 * dilation,) * 2,) * 2
    totals = [max(size - (n % stride or stride), 0) for n in shape[1:3]]
    return tuple((total // 2 * dilation, (total - total // 2) * dilation) for total in totals)


class ConvLayer(Module):
    """Convolution, batch normalisation, ReLU6 unless it is a projection. `size` 1, 3, or 3 and one filter a channel."""

    def __init__(
        self,
        cin: int,
        cout: int,
        size: int,
        config: dict,
        *,
        geometry: tuple[int, int] = (1, 1),  # stride, dilation
        each: bool = False,
        activate: bool = True,
        dtype: DTypeLike,
    ):
        self.size, (self.stride, self.dilation) = size, geometry
        self.each, self.tf_padding, self.dtype = each, config["tf_padding"], dtype
        self.convolution = nnx.Conv(
            cin,
            cout,
            (size, size),
            strides=self.stride,
            padding="VALID",
            feature_group_count=cin if each else 1,
            use_bias=False,
            dtype=dtype,
            **UNREAD,
        )
        epsilon = config["layer_norm_eps"]
        self.normalization = BatchNorm(cout, momentum=STATISTICS_KEPT, epsilon=epsilon, activate=activate, dtype=dtype)

    def __call__(self, x: Array, *, train: bool) -> Array:
        return self.normalization(self.convolve(x.astype(self.dtype)), train=train)

    def convolve(self, x: Array) -> Array:
        kernel = self.convolution.kernel[...].astype(self.dtype)
        if self.size == 1:
            B, h, w, _ = x.shape
            # one matrix product over all pixels: XLA's CPU gradients of the batched form are three times slower
            return rearrange(rearrange(x, "B h w C -> (B h w) C") @ kernel[0, 0], "(B h w) D -> B h w D", B=B, h=h, w=w)
        pads = padding(x.shape, self.size, self.stride, self.dilation, self.tf_padding)
        if self.each:
            return depthwise(x, kernel, self.stride, self.dilation, pads)
        return self.convolution(jnp.pad(x, ((0, 0), *pads, (0, 0))))


class InvertedResidual(Module):
    """Expand, filter each channel, project; a residual where the shapes allow."""

    def __init__(self, cin: int, cout: int, config: dict, *, geometry: tuple[int, int], dtype: DTypeLike):
        inner = divisible(round(cin * config["expand_ratio"]), config)
        self.residual = geometry[0] == 1 and cin == cout
        self.expand_1x1 = ConvLayer(cin, inner, 1, config, dtype=dtype)
        self.conv_3x3 = ConvLayer(inner, inner, 3, config, geometry=geometry, each=True, dtype=dtype)
        self.reduce_1x1 = ConvLayer(inner, cout, 1, config, activate=False, dtype=dtype)

    def __call__(self, x: Array, *, train: bool) -> Array:
        y = self.reduce_1x1(self.conv_3x3(self.expand_1x1(x, train=train), train=train), train=train)
        return x + y if self.residual else y


class Stem(Module):
    """The first convolution, which halves the image and expands, then filter and project."""

    def __init__(self, inner: int, cout: int, config: dict, *, dtype: DTypeLike):
        separate = not config["first_layer_is_expansion"]
        self.first_conv = ConvLayer(config["num_channels"], inner, 3, config, geometry=(2, 1), dtype=dtype)
        self.expand_1x1 = ConvLayer(inner, inner, 1, config, dtype=dtype) if separate else None
        self.conv_3x3 = ConvLayer(inner, inner, 3, config, each=True, dtype=dtype)
        self.reduce_1x1 = ConvLayer(inner, cout, 1, config, activate=False, dtype=dtype)

    def __call__(self, x: Array, *, train: bool) -> Array:
        x = self.first_conv(x, train=train)
        if self.expand_1x1 is not None:
            x = self.expand_1x1(x, train=train)
        return self.reduce_1x1(self.conv_3x3(x, train=train), train=train)


class Backbone(Module):
    """Images [B, H, W, 3] to features [B, H/32, W/32, C]; past `output_stride` blocks dilate instead of halving."""

    def __init__(self, config: dict, *, dtype: DTypeLike):
        widths = [scaled(channels, config) for channels in CHANNELS]
        self.conv_stem = Stem(scaled(32, config), widths[0], config, dtype=dtype)
        self.layer = nnx.List()
        reached, dilation = 2, 1
        for cin, cout, stride in zip(widths[:-1], widths[1:], STRIDES, strict=True):
            dilate = reached == config["output_stride"]
            geometry = (1, dilation) if dilate else (stride, 1)
            reached, dilation = (reached, dilation * stride) if dilate else (reached * stride, dilation)
            self.layer.append(InvertedResidual(cin, cout, config, geometry=geometry, dtype=dtype))
        full = config["finegrained_output"] and config["depth_multiplier"] < 1.0
        self.width = 1280 if full else scaled(1280, config)
        self.conv_1x1 = ConvLayer(widths[-1], self.width, 1, config, dtype=dtype)

    def __call__(self, image: Array, last: int, *, train: bool) -> Array:
        """Features below the `last` last blocks."""
        x = self.conv_stem(image, train=train)  # [B, H/2, W/2, C]
        return self.blocks(x, slice(0, len(self.layer) - last), train=train)

    def blocks(self, x: Array, chosen: slice, *, train: bool) -> Array:
        """Features after some of the blocks."""
        for block in list(self.layer)[chosen]:
            x = block(x, train=train)
        return x


class MobileNetV2(Module):
    """A backbone and a linear head on the mean of its features: `upper` of `lower`, cut below its `last` blocks."""

    def __init__(self, config: dict, labels: int, *, dtype: DTypeLike):
        if config["hidden_act"] != "relu6":
            raise UserError(f"config.json: hidden_act = {config['hidden_act']!r} is not MobileNetV2's relu6")
        self.mobilenet_v2 = Backbone(config, dtype=dtype)
        self.classifier = linear(self.mobilenet_v2.width, labels, dtype=dtype)

    def lower(self, image: Array, last: int, *, train: bool) -> Array:
        """Features [B, h, w, C] below the cut, of normalised images [B, H, W, 3]; pooled ones [B, C] for 0."""
        features = self.mobilenet_v2(image, last, train=train)
        return features if last else self.pool(features, train=train)

    def upper(self, x: Array, last: int, *, train: bool) -> Array:
        """Logits [B, L], float32, of what `lower` returned."""
        if last:
            backbone = self.mobilenet_v2
            features = backbone.blocks(x, slice(len(backbone.layer) - last, None), train=train)
            x = self.pool(features, train=train)
        return self.classifier(x).astype(jnp.float32)

    def pool(self, features: Array, *, train: bool) -> Array:  # [B, h, w, C] -> [B, C]
        """The features that the head reads."""
        return self.mobilenet_v2.conv_1x1(features, train=train).mean((1, 2))

    def maps(self, image: Array) -> Array:  # [B, H, W, 3] -> [B, h, w, C]
        """The features that the head reads, before their mean over the image is taken."""
        return self.mobilenet_v2.conv_1x1(self.mobilenet_v2(image, 0, train=False), train=False)
