"""The layers that Stable Diffusion's networks share, under the names of diffusers; the classifiers share some of them.

Every epsilon, padding and activation is passed explicitly: Flax's defaults differ from PyTorch's, and the places where
Stable Diffusion uses 1e-5 and 1e-6 differ too. Parameters are float32; `dtype` is the type of the arithmetic. Modules
are built for their shapes alone (`nnx_tree.split`), with initial values that are `unread`.

Shapes: B batch, h w latent height and width, C channels, N tokens, D width, K heads.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from dermjax.models.attention import attention
from dermjax.models.convolution import convolution
from dermjax.models.nnx_tree import Module, parameter, unread

Array = jax.Array
Pads = tuple[tuple[int, int], tuple[int, int]]  # (top, bottom), (left, right)

NO_KEYS = SimpleNamespace(params=lambda: None)  # `unread` initial values want none
UNREAD = {"kernel_init": unread, "bias_init": unread, "rngs": NO_KEYS}
KEPT = "kept"  # names what a layer's matrices and convolutions give, which costs more to compute again than to keep


def kept(x: Array) -> Array:
    """The same array under the name that rematerialisation policies know."""
    return checkpoint_name(x, KEPT)


def conv(cin: int, cout: int, size: int, *, stride: int = 1, padding: int | Pads, dtype: DTypeLike) -> nnx.Conv:
    """A 2-d convolution over [B, h, w, C]; `padding` is a number of pixels or ((top, bottom), (left, right))."""
    pads = ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding
    kind = {(1, 1, 0): PixelLinear, (3, 1, 1): Conv3x3}.get((size, stride, padding), nnx.Conv)
    return kind(cin, cout, (size, size), strides=stride, padding=pads, dtype=dtype, **UNREAD)


class Conv3x3(nnx.Conv, pytree=False):
    """A 3x3 convolution of stride 1 and padding 1, whose gradient is fast on a CPU too."""

    def __call__(self, x: Array) -> Array:  # [B, h, w, C] -> [B, h, w, D]
        x, kernel, bias = self.promote_dtype((x, self.kernel[...], self.bias[...]), dtype=self.dtype)
        return convolution(x, kernel) + bias[None, None, None]


class PixelLinear(nnx.Conv, pytree=False):
    """A 1x1 convolution as one product over all pixels, for the reason of `Linear`."""

    def __call__(self, x: Array) -> Array:  # [B, h, w, C] -> [B, h, w, D]
        x, kernel, bias = self.promote_dtype((x, self.kernel[...], self.bias[...]), dtype=self.dtype)
        rows = product(rearrange(x, "B h w C -> (B h w) C"), kernel[0, 0]) + bias[None]
        return rows.reshape(*x.shape[:-1], self.out_features)


class Linear(nnx.Linear, pytree=False):
    """nnx.Linear, with its product taken over a matrix [rows, D] whatever the axes before the last.

    XLA's CPU compiler turns the gradients of the batched form into products with transposed copies of what came in
    and of its cotangent: a third to a half of a transformer's step. On accelerators the reshape costs nothing.
    """

    def __call__(self, x: Array) -> Array:
        bias = None if self.bias is None else self.bias[...]
        x, kernel, bias = self.promote_dtype((x, self.kernel[...], bias), dtype=self.dtype)
        rows = product(x.reshape(-1, self.in_features), kernel)
        return (rows if bias is None else rows + bias[None]).reshape(*x.shape[:-1], self.out_features)


@jax.custom_vjp
def product(x: Array, kernel: Array) -> Array:  # [rows, D], [D, E] -> [rows, E]
    """Returns x @ kernel, with the gradient of the kernel in the kernel's layout.

    JAX derives it as [E, D] and transposes it, which XLA fuses into the product but for sums over devices on a CPU,
    where it copies every kernel twice: a twentieth of derm-tiny's step on two devices.
    """
    return x @ kernel


product.defvjp(
    lambda x, kernel: (x @ kernel, (x, kernel)),
    lambda saved, gradient: (gradient @ saved[1].T, saved[0].T @ gradient),
)


def linear(din: int, dout: int, *, bias: bool = True, dtype: DTypeLike) -> nnx.Linear:
    """A dense layer over the last axis."""
    return Linear(din, dout, use_bias=bias, dtype=dtype, **UNREAD)


def silu(x: Array) -> Array:
    """SiLU in the type of x, rounded once: x * sigmoid(x) in bfloat16 would round twice, PyTorch's does not."""
    return nnx.silu(x.astype(jnp.float32)).astype(x.dtype)


def gelu(x: Array) -> Array:
    """The exact GELU (arXiv 1606.08415) in the type of x, rounded once.

    Of erf, as PyTorch's, and not of Flax's erfc, which is made of two branches and an exponential that XLA on a CPU
    writes to memory for the gradient: twice the time.
    """
    x32 = x.astype(jnp.float32)
    return (0.5 * x32 * (1 + jax.lax.erf(x32 * 0.5**0.5))).astype(x.dtype)


def layer_norm(width: int, *, epsilon: float, dtype: DTypeLike) -> nnx.LayerNorm:
    """LayerNorm over the last axis, statistics in float32.

    Flax's fast variance, E[x^2] - E[x]^2, is 200 times less exact than PyTorch's where a mean is 100 deviations.
    """
    return nnx.LayerNorm(
        width, epsilon=epsilon, use_fast_variance=False, dtype=dtype, scale_init=unread, bias_init=unread, rngs=NO_KEYS
    )


class GroupNorm(Module):
    """Group normalisation (arXiv 1803.08494) of [B, h, w, C] with statistics in float32.

    Sums are taken a channel first and joined into groups afterwards: the image is read once in its own layout, which
    is the fast way on every backend, and the affine step becomes one multiply-add.
    """

    def __init__(self, groups: int, channels: int, *, epsilon: float, dtype: DTypeLike):
        self.groups, self.epsilon, self.dtype = groups, epsilon, dtype
        self.scale = parameter(channels)
        self.bias = parameter(channels)

    def __call__(self, x: Array) -> Array:
        x32 = x.astype(jnp.float32)
        grouped = "B (G c) -> B G c"
        mean_c = rearrange(x32.mean((1, 2)), grouped, G=self.groups)
        square_c = rearrange((x32 * x32).mean((1, 2)), grouped, G=self.groups)
        mean = mean_c.mean(-1, keepdims=True)  # [B, G, 1]
        # E[x^2] - E[x]^2 can fall below zero by rounding when a group is constant
        variance = jnp.maximum(square_c.mean(-1, keepdims=True) - mean * mean, 0.0)
        inverse = jax.lax.rsqrt(variance + self.epsilon)
        scale = rearrange(self.scale[...], "(G c) -> 1 G c", G=self.groups) * inverse
        shift = rearrange(self.bias[...], "(G c) -> 1 G c", G=self.groups) - mean * scale
        scale, shift = (rearrange(v, "B G c -> B 1 1 (G c)") for v in (scale, shift))
        return (x32 * scale + shift).astype(self.dtype)


class ResnetBlock(Module):
    """diffusers' ResnetBlock2D: two 3x3 convolutions, an embedding of the time between them unless `time` is 0."""

    def __init__(self, cin: int, cout: int, *, time: int, groups: int, epsilon: float, dtype: DTypeLike):
        self.norm1 = GroupNorm(groups, cin, epsilon=epsilon, dtype=dtype)
        self.conv1 = conv(cin, cout, 3, padding=1, dtype=dtype)
        self.time_emb_proj = linear(time, cout, dtype=dtype) if time else None
        self.norm2 = GroupNorm(groups, cout, epsilon=epsilon, dtype=dtype)
        self.conv2 = conv(cout, cout, 3, padding=1, dtype=dtype)
        self.conv_shortcut = conv(cin, cout, 1, padding=0, dtype=dtype) if cin != cout else None

    def __call__(self, x: Array, temb: Array | None = None) -> Array:
        h = kept(self.conv1(silu(self.norm1(x))))
        if self.time_emb_proj is not None:
            h = h + rearrange(self.time_emb_proj(silu(temb)), "B C -> B 1 1 C")
        h = kept(self.conv2(silu(self.norm2(h))))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(Module):
    """diffusers' Attention: queries from x, keys and values from `context`; `bias` is that of q, k and v."""

    def __init__(self, width: int, context: int, heads: int, *, head_dim: int, bias: bool, dtype: DTypeLike):
        inner, self.heads = heads * head_dim, heads
        self.to_q = linear(width, inner, bias=bias, dtype=dtype)
        self.to_k = linear(context, inner, bias=bias, dtype=dtype)
        self.to_v = linear(context, inner, bias=bias, dtype=dtype)
        self.to_out = nnx.List([linear(inner, width, dtype=dtype)])

    def __call__(self, x: Array, context: Array) -> Array:  # [B, N, D], [B, M, E] -> [B, N, D]
        return self.attend(x, self.keys_values(context))

    def keys_values(self, context: Array) -> tuple[Array, Array]:
        """What does not depend on x: the keys and values [B, M, K, d] of a context [B, M, E]."""
        k, v = kept(self.to_k(context)), kept(self.to_v(context))
        return tuple(rearrange(a, "B M (K d) -> B M K d", K=self.heads) for a in (k, v))

    def attend(self, x: Array, keys_values: tuple[Array, Array]) -> Array:
        """Attention of x [B, N, D] to keys and values."""
        q = rearrange(kept(self.to_q(x)), "B N (K d) -> B N K d", K=self.heads)
        return kept(self.to_out[0](rearrange(attention(q, *keys_values), "B N K d -> B N (K d)")))


class Downsample(Module):
    """Halves the image by a strided convolution. The UNet pads (1, 1), the VAE's encoder (0, 1)."""

    def __init__(self, channels: int, *, padding: int | Pads, dtype: DTypeLike):
        self.conv = conv(channels, channels, 3, stride=2, padding=padding, dtype=dtype)

    def __call__(self, x: Array) -> Array:
        return self.conv(x)


class Upsample(Module):
    """Doubles the image by repetition (nearest neighbour), then a convolution.

    Halving rounds up, so that a doubled image may be a row and a column larger than the one it joins, [B, height,
    width, C]: they are cut off before the convolution, which is diffusers' interpolation to that size.
    """

    def __init__(self, channels: int, *, dtype: DTypeLike):
        self.conv = conv(channels, channels, 3, padding=1, dtype=dtype)

    def __call__(self, x: Array, height: int, width: int) -> Array:
        x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        return self.conv(x[:, :height, :width])


def timestep_embedding(t: Array, width: int, *, flip: bool, shift: float) -> Array:
    """Returns the sinusoidal embedding [B, width] of timesteps t [B], float32 (diffusers' Timesteps).

    `flip` puts the cosines first; `shift` is diffusers' freq_shift. Both come from the config.
    """
    half = width // 2
    exponent = -jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / (half - shift)
    angle = t.astype(jnp.float32)[:, None] * jnp.exp(exponent)[None, :]
    waves = (jnp.cos(angle), jnp.sin(angle)) if flip else (jnp.sin(angle), jnp.cos(angle))
    return jnp.concatenate(waves, axis=-1)
