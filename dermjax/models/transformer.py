"""The spatial transformer of Stable Diffusion's UNet: attention of pixels to each other and to the text.

Attribute names are those of diffusers' Transformer2DModel and BasicTransformerBlock. The keys and values of the text
come in ready: they are the same at every step of sampling.

Shapes: B batch, h w latent height and width, C channels, N tokens, D width of the text context.
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike

from dermjax.models.layers import Attention, GroupNorm, conv, gelu, kept, layer_norm, linear

Array = jax.Array
Words = Any  # the keys and values of a context, as a tree that mirrors the modules


class FeedForward(nnx.Module):
    """The gated feed-forward layer (GEGLU, arXiv 2002.05202); `net` keeps diffusers' indices 0 and 2."""

    def __init__(self, width: int, *, dtype: DTypeLike):
        self.net = nnx.List([GEGLU(width, 4 * width, dtype=dtype), Nothing(), linear(4 * width, width, dtype=dtype)])

    def __call__(self, x: Array) -> Array:
        return self.net[2](self.net[0](x))


class GEGLU(nnx.Module):
    """A linear layer whose second half gates the first through the exact GELU."""

    def __init__(self, width: int, inner: int, *, dtype: DTypeLike):
        self.proj = linear(width, 2 * inner, dtype=dtype)

    def __call__(self, x: Array) -> Array:
        value, gate = jnp.split(kept(self.proj(x)).astype(jnp.float32), 2, axis=-1)
        return (value * gelu(gate)).astype(x.dtype)


class Nothing(nnx.Module):
    """Holds the place of a dropout of rate zero in a list whose indices are the file's."""


class TransformerBlock(nnx.Module):
    """diffusers' BasicTransformerBlock: self-attention, cross-attention, feed-forward, each on a LayerNorm."""

    def __init__(self, width: int, context: int, heads: int, *, dtype: DTypeLike):
        attention = {"head_dim": width // heads, "bias": False, "dtype": dtype}
        self.norm1 = layer_norm(width, epsilon=1e-5, dtype=dtype)
        self.attn1 = Attention(width, width, heads, **attention)
        self.norm2 = layer_norm(width, epsilon=1e-5, dtype=dtype)
        self.attn2 = Attention(width, context, heads, **attention)
        self.norm3 = layer_norm(width, epsilon=1e-5, dtype=dtype)
        self.ff = FeedForward(width, dtype=dtype)

    def __call__(self, x: Array, words: Words) -> Array:  # [B, N, D]
        def images(rows: Array) -> Array:
            return rearrange(rows, "(B N) D -> B N D", B=x.shape[0])

        # the residual stream is a matrix, as in ViT's layer
        rows = rearrange(x, "B N D -> (B N) D")
        y = images(self.norm1(rows))
        rows = rows + rearrange(self.attn1(y, y), "B N D -> (B N) D")
        rows = rows + rearrange(self.attn2.attend(images(self.norm2(rows)), words), "B N D -> (B N) D")
        return images(rows + self.ff(self.norm3(rows)))


class Transformer(nnx.Module):
    """diffusers' Transformer2DModel: the pixels of [B, h, w, C] as tokens that attend to each other and to the text."""

    def __init__(self, width: int, context: int, heads: int, *, groups: int, flat: bool, dtype: DTypeLike):
        self.norm = GroupNorm(groups, width, epsilon=1e-6, dtype=dtype)
        # SD 2.x projects tokens with linear layers, SD 1.x pixels with 1x1 convolutions
        self.proj_in, self.proj_out = (
            linear(width, width, dtype=dtype) if flat else conv(width, width, 1, padding=0, dtype=dtype)
            for _ in range(2)
        )
        self.transformer_blocks = nnx.List([TransformerBlock(width, context, heads, dtype=dtype)])

    def words(self, context: Array) -> Words:
        """The keys and values that each block makes of a context."""
        return [block.attn2.keys_values(context) for block in self.transformer_blocks]

    def __call__(self, x: Array, words: Words) -> Array:
        h, w = x.shape[1:3]
        # a 1x1 convolution and a linear layer are the same arithmetic, pixel by pixel
        y = rearrange(self.proj_in(self.norm(x)), "B h w C -> B (h w) C")
        for block, keys_values in zip(self.transformer_blocks, words, strict=True):
            y = block(y, keys_values)
        return x + self.proj_out(rearrange(y, "B (h w) C -> B h w C", h=h, w=w))
