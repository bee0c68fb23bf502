"""Stable Diffusion's UNet (Rombach et al. 2022, arXiv 2112.10752), driven by diffusers' config.json.

Attribute names are those of diffusers' UNet2DConditionModel, Transformer2DModel and BasicTransformerBlock, so that a
parameter's path is its name in a weight file. The keys and values of the text come in ready: they are the same at every
step of sampling.

Shapes: B batch, h w latent height and width, C channels, N tokens, D width of the text context.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike

from dermjax.models import configs
from dermjax.models.layers import (
    KEPT,
    Attention,
    Downsample,
    GroupNorm,
    ResnetBlock,
    Upsample,
    conv,
    gelu,
    kept,
    layer_norm,
    linear,
    silu,
    timestep_embedding,
)
from dermjax.models.nnx_tree import Module

Array = jax.Array
# Of predictions, for whatever is kept of them: raise it where they change by more than rounding
NUMERIC_VERSION = 1

# What training keeps of a layer between its forward and its backward pass; the rest is computed a second time.
REMAT = {
    "none": lambda layer: layer,
    "attention": partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(KEPT)),
    "blocks": jax.checkpoint,
}
Words = Any  # the keys and values of a context, as a tree that mirrors the modules


class FeedForward(Module):
    """The gated feed-forward layer (GEGLU, arXiv 2002.05202); `net` keeps diffusers' indices 0 and 2."""

    def __init__(self, width: int, *, dtype: DTypeLike):
        self.net = nnx.List([GEGLU(width, 4 * width, dtype=dtype), Nothing(), linear(4 * width, width, dtype=dtype)])

    def __call__(self, x: Array) -> Array:
        return self.net[2](self.net[0](x))


class GEGLU(Module):
    """A linear layer whose second half gates the first through the exact GELU."""

    def __init__(self, width: int, inner: int, *, dtype: DTypeLike):
        self.proj = linear(width, 2 * inner, dtype=dtype)

    def __call__(self, x: Array) -> Array:
        value, gate = jnp.split(kept(self.proj(x)).astype(jnp.float32), 2, axis=-1)
        return (value * gelu(gate)).astype(x.dtype)


class Nothing(Module):
    """Holds the place of a dropout of rate zero in a list whose indices are the file's."""


class TransformerBlock(Module):
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


class Transformer(Module):
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


class Block(Module):
    """Resnets [(channels in, out)], each followed by a transformer where `heads` is not 0.

    `resnet` and `transformer` are the options that all resnets and all transformers of a UNet share.
    """

    def __init__(self, widths: list[tuple[int, int]], heads: int, *, resnet: dict, transformer: dict, remat: str):
        self.remat = remat
        self.resnets = nnx.List(ResnetBlock(cin, cout, **resnet) for cin, cout in widths)
        self.attentions = nnx.List(
            Transformer(cout, heads=heads, **transformer) for _, cout in (widths if heads else ())
        )

    def words(self, context: Array) -> Words:
        """The keys and values that the transformers make of a context."""
        return [transformer.words(context) for transformer in self.attentions]

    def layer(self, j: int, x: Array, temb: Array, words: Words) -> Array:
        """Resnet j and its transformer, if it has one."""

        def both(x: Array, temb: Array, words: Words) -> Array:
            x = self.resnets[j](x, temb)
            return self.attentions[j](x, words[j]) if self.attentions else x

        return REMAT[self.remat](both)(x, temb, words)


class DownBlock(Block):
    """A block whose every layer leaves a skip, then a halving unless it is the last."""

    def __init__(self, widths: list[tuple[int, int]], heads: int, last: bool, **shared):
        super().__init__(widths, heads, **shared)
        dtype = shared["resnet"]["dtype"]
        self.downsamplers = nnx.List([] if last else [Downsample(widths[-1][1], padding=1, dtype=dtype)])

    def __call__(self, x: Array, temb: Array, words: Words) -> tuple[Array, list[Array]]:
        skips = []
        for j in range(len(self.resnets)):
            x = self.layer(j, x, temb, words)
            skips.append(x)
        for downsampler in self.downsamplers:
            x = downsampler(x)
            skips.append(x)
        return x, skips


class MidBlock(Block):
    """A transformer between two resnets at the lowest resolution."""

    def __init__(self, width: int, heads: int, **shared):
        super().__init__([(width, width)], heads, **shared)
        self.resnets.append(ResnetBlock(width, width, **shared["resnet"]))

    def __call__(self, x: Array, temb: Array, words: Words) -> Array:
        def all_three(x: Array, temb: Array, words: Words) -> Array:
            x = self.resnets[0](x, temb)
            return self.resnets[1](self.attentions[0](x, words[0]), temb)

        return REMAT[self.remat](all_three)(x, temb, words)


class UpBlock(Block):
    """A block whose every layer first takes the skip of its height from the way down, then a doubling."""

    def __init__(self, widths: list[tuple[int, int]], heads: int, last: bool, **shared):
        super().__init__(widths, heads, **shared)
        self.upsamplers = nnx.List([] if last else [Upsample(widths[-1][1], dtype=shared["resnet"]["dtype"])])

    def __call__(self, x: Array, skips: list[Array], temb: Array, words: Words) -> Array:
        x = self.layers(range(len(self.resnets)), x, skips, temb, words)
        for upsampler in self.upsamplers:
            x = upsampler(x, *skips[-1].shape[1:3])
        return x

    def layers(self, which: range, x: Array, skips: list[Array], temb: Array, words: Words) -> Array:
        """Some of the layers, which take the last of the skips off their list."""
        for j in which:
            x = self.layer(j, jnp.concatenate([x, skips.pop()], axis=-1), temb, words)
        return x


class TimeEmbedding(Module):
    """Two linear layers on the sinusoidal timestep."""

    def __init__(self, width: int, time: int, *, dtype: DTypeLike):
        self.linear_1 = linear(width, time, dtype=dtype)
        self.linear_2 = linear(time, time, dtype=dtype)

    def __call__(self, x: Array) -> Array:
        return self.linear_2(silu(self.linear_1(x)))


class UNet(Module):
    """Predicts eps or v [B, h, w, 4] from noisy latents x [B, h, w, 4], timesteps t [B] and context [B, N, D]."""

    def __init__(self, config: dict, *, dtype: DTypeLike, remat: str = "none"):
        configs.check_unet(config)
        widths, layers = config["block_out_channels"], config["layers_per_block"]
        depth, time = len(widths), 4 * widths[0]
        groups, epsilon = config["norm_num_groups"], config["norm_eps"]
        heads = per_block(config["attention_head_dim"], depth)

        def attending(kinds: str, heads: list[int]) -> list[int]:
            return [n if kind.startswith("CrossAttn") else 0 for n, kind in zip(heads, config[kinds], strict=True)]

        heads_down, heads_up = attending("down_block_types", heads), attending("up_block_types", heads[::-1])
        transformer = {
            "context": config["cross_attention_dim"],
            "groups": groups,
            "flat": config.get("use_linear_projection", False),
            "dtype": dtype,
        }
        resnet = {"time": time, "groups": groups, "epsilon": epsilon, "dtype": dtype}
        shared = {"resnet": resnet, "transformer": transformer, "remat": remat}
        self.dtype = dtype
        self.time = (widths[0], config["flip_sin_to_cos"], config["freq_shift"])
        # the ways in and out are float32: they are small, and much of what bfloat16 costs arises there
        self.conv_in = conv(config["in_channels"], widths[0], 3, padding=1, dtype=jnp.float32)
        self.time_embedding = TimeEmbedding(widths[0], time, dtype=dtype)

        self.down_blocks = nnx.List()
        cin, skips = widths[0], [widths[0]]
        for i, cout in enumerate(widths):
            last = i == depth - 1
            inputs = [cin] + [cout] * (layers - 1)
            self.down_blocks.append(DownBlock([(c, cout) for c in inputs], heads_down[i], last, **shared))
            skips += [cout] * (layers + (not last))
            cin = cout
        self.mid_block = MidBlock(widths[-1], heads[-1], **shared)
        self.up_blocks = nnx.List()
        for i, cout in enumerate(reversed(widths)):
            inputs = [c + skips.pop() for c in [cin] + [cout] * layers]
            self.up_blocks.append(UpBlock([(c, cout) for c in inputs], heads_up[i], i == depth - 1, **shared))
            cin = cout
        self.conv_norm_out = GroupNorm(groups, widths[0], epsilon=epsilon, dtype=jnp.float32)
        self.conv_out = conv(widths[0], config["out_channels"], 3, padding=1, dtype=jnp.float32)

    def __call__(self, x: Array, t: Array, context: Array) -> Array:
        return self.full(x, t, self.words(context))[0]

    def words(self, context: Array) -> Words:
        """The keys and values of a context [B, N, D]: they do not depend on x or t, so once a prompt is enough."""
        context = context.astype(self.dtype)
        return [block.words(context) for block in (*self.down_blocks, self.mid_block, *self.up_blocks)]

    def full(self, x: Array, t: Array, words: Words) -> tuple[Array, Array]:
        """The prediction, and the depths [B, h, w, C]: what enters the last two layers on the way up."""
        count = len(self.down_blocks)
        x, temb = self.enter(x, t)
        skips = [x]
        for block, keys_values in zip(self.down_blocks, words[:count], strict=True):
            x, more = block(x, temb, keys_values)
            skips += more
        x = self.mid_block(x, temb, words[count])
        for block, keys_values in zip(self.up_blocks[:-1], words[count + 1 : -1], strict=True):
            x = block(x, skips, temb, keys_values)
        top = self.up_blocks[-1]
        depths = top.layers(range(len(top.resnets) - 2), x, skips, temb, words[-1])
        return self.leave(depths, skips, temb, words), depths

    def shallow(self, x: Array, t: Array, words: Words, depths: Array) -> Array:
        """The prediction by the topmost layers alone, over depths of an earlier one (DeepCache, arXiv 2312.00858)."""
        x, temb = self.enter(x, t)
        return self.leave(depths, [x, self.down_blocks[0].layer(0, x, temb, words[0])], temb, words)

    def enter(self, x: Array, t: Array) -> tuple[Array, Array]:
        """The first convolution, and the embedding of the timestep."""
        width, flip, shift = self.time
        temb = self.time_embedding(timestep_embedding(t, width, flip=flip, shift=shift).astype(self.dtype))
        return self.conv_in(x).astype(self.dtype), temb

    def leave(self, x: Array, skips: list[Array], temb: Array, words: Words) -> Array:
        """The last two layers on the way up, and the way out, float32."""
        top = self.up_blocks[-1]
        x = top.layers(range(len(top.resnets) - 2, len(top.resnets)), x, skips, temb, words[-1])
        return self.conv_out(silu(self.conv_norm_out(x)))


def per_block(value: int | list[int], blocks: int) -> list[int]:
    """Returns one head count a block. diffusers' `attention_head_dim` has always held the NUMBER of heads."""
    return value if isinstance(value, list) else [value] * blocks
