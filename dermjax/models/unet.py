"""Stable Diffusion's UNet (Rombach et al. 2022, arXiv 2112.10752), driven by diffusers' config.json.

Attribute names are those of diffusers' UNet2DConditionModel, so that a parameter's path is its name in a weight file.

Shapes: B batch, h w latent height and width, C channels, N tokens, D width of the text context.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from dermjax.errors import UserError
from dermjax.models.layers import (
    Attention,
    Downsample,
    GroupNorm,
    ResnetBlock,
    Upsample,
    conv,
    layer_norm,
    linear,
    timestep_embedding,
)

Array = jax.Array

# What a config may say about the options that are not implemented: any other value is refused, never ignored.
FIXED = {
    "act_fn": "silu",
    "addition_embed_type": None,
    "addition_embed_type_num_heads": 64,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": 1,
}


class FeedForward(nnx.Module):
    """The gated feed-forward layer (GEGLU, arXiv 2002.05202); `net` keeps diffusers' indices 0 and 2."""

    def __init__(self, width: int, *, dtype, rngs: nnx.Rngs):
        self.net = nnx.List([GEGLU(width, 4 * width, dtype=dtype, rngs=rngs), Nothing(),
                             linear(4 * width, width, dtype=dtype, rngs=rngs)])  # fmt: skip

    def __call__(self, x: Array) -> Array:
        return self.net[2](self.net[0](x))


class GEGLU(nnx.Module):
    """A linear layer whose second half gates the first through the exact GELU."""

    def __init__(self, width: int, inner: int, *, dtype, rngs: nnx.Rngs):
        self.proj = linear(width, 2 * inner, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        value, gate = jnp.split(self.proj(x), 2, axis=-1)
        return value * nnx.gelu(gate, approximate=False)


class Nothing(nnx.Module):
    """Holds the place of a dropout of rate zero in a list whose indices are the file's."""


class TransformerBlock(nnx.Module):
    """diffusers' BasicTransformerBlock: self-attention, cross-attention, feed-forward, each on a LayerNorm."""

    def __init__(self, width: int, context: int, heads: int, *, dtype, rngs: nnx.Rngs):
        norm = {"epsilon": 1e-5, "dtype": dtype, "rngs": rngs}
        attention = {"head_dim": width // heads, "bias": False, "dtype": dtype, "rngs": rngs}
        self.norm1 = layer_norm(width, **norm)
        self.attn1 = Attention(width, width, heads, **attention)
        self.norm2 = layer_norm(width, **norm)
        self.attn2 = Attention(width, context, heads, **attention)
        self.norm3 = layer_norm(width, **norm)
        self.ff = FeedForward(width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, context: Array) -> Array:
        y = self.norm1(x)
        x = x + self.attn1(y, y)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer(nnx.Module):
    """diffusers' Transformer2DModel: the pixels of [B, h, w, C] as tokens that look at each other and at the text."""

    def __init__(self, width: int, context: int, heads: int, *, groups: int, flat: bool, dtype, rngs: nnx.Rngs):
        self.norm = GroupNorm(groups, width, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.flat = flat  # SD 2.x projects tokens with linear layers, SD 1.x pixels with 1x1 convolutions
        if flat:
            self.proj_in = linear(width, width, dtype=dtype, rngs=rngs)
            self.proj_out = linear(width, width, dtype=dtype, rngs=rngs)
        else:
            self.proj_in = conv(width, width, 1, padding=0, dtype=dtype, rngs=rngs)
            self.proj_out = conv(width, width, 1, padding=0, dtype=dtype, rngs=rngs)
        self.transformer_blocks = nnx.List([TransformerBlock(width, context, heads, dtype=dtype, rngs=rngs)])

    def __call__(self, x: Array, context: Array) -> Array:
        h, w = x.shape[1:3]
        # a 1x1 convolution and a linear layer are the same arithmetic, pixel by pixel
        y = rearrange(self.proj_in(self.norm(x)), "B h w C -> B (h w) C")
        for block in self.transformer_blocks:
            y = block(y, context)
        return x + self.proj_out(rearrange(y, "B (h w) C -> B h w C", h=h, w=w))


class Block(nnx.Module):
    """Resnets [(channels in, out)], each followed by a transformer where `heads` is not 0."""

    def __init__(self, widths: list[tuple[int, int]], heads: int, *, context, time, norm, flat, dtype, rngs):
        groups, epsilon = norm
        self.resnets = nnx.List(
            ResnetBlock(cin, cout, time=time, groups=groups, epsilon=epsilon, dtype=dtype, rngs=rngs)
            for cin, cout in widths
        )
        self.attentions = nnx.List(
            Transformer(cout, context, heads, groups=groups, flat=flat, dtype=dtype, rngs=rngs)
            for _, cout in (widths if heads else ())
        )

    def layer(self, j: int, x: Array, temb: Array, context: Array) -> Array:
        """Resnet j and its transformer, if it has one."""
        x = self.resnets[j](x, temb)
        return self.attentions[j](x, context) if self.attentions else x


class DownBlock(Block):
    """A block whose every layer leaves a skip, then a halving unless it is the last."""

    def __init__(self, widths: list[tuple[int, int]], heads: int, last: bool, **shared):
        super().__init__(widths, heads, **shared)
        made = {"dtype": shared["dtype"], "rngs": shared["rngs"]}
        self.downsamplers = nnx.List([] if last else [Downsample(widths[-1][1], padding=1, **made)])

    def __call__(self, x: Array, temb: Array, context: Array) -> tuple[Array, list[Array]]:
        skips = []
        for j in range(len(self.resnets)):
            x = self.layer(j, x, temb, context)
            skips.append(x)
        for downsampler in self.downsamplers:
            x = downsampler(x)
            skips.append(x)
        return x, skips


class MidBlock(nnx.Module):
    """A transformer between two resnets at the lowest resolution."""

    def __init__(self, width: int, heads: int, *, context, time, norm, flat, dtype, rngs):
        groups, epsilon = norm
        self.resnets = nnx.List(
            ResnetBlock(width, width, time=time, groups=groups, epsilon=epsilon, dtype=dtype, rngs=rngs)
            for _ in range(2)
        )
        self.attentions = nnx.List(
            [Transformer(width, context, heads, groups=groups, flat=flat, dtype=dtype, rngs=rngs)]
        )

    def __call__(self, x: Array, temb: Array, context: Array) -> Array:
        x = self.resnets[0](x, temb)
        return self.resnets[1](self.attentions[0](x, context), temb)


class UpBlock(Block):
    """A block whose every layer first takes the skip of its height from the way down, then a doubling."""

    def __init__(self, widths: list[tuple[int, int]], heads: int, last: bool, **shared):
        super().__init__(widths, heads, **shared)
        made = {"dtype": shared["dtype"], "rngs": shared["rngs"]}
        self.upsamplers = nnx.List([] if last else [Upsample(widths[-1][1], **made)])

    def __call__(self, x: Array, skips: list[Array], temb: Array, context: Array) -> Array:
        for j in range(len(self.resnets)):
            x = self.layer(j, jnp.concatenate([x, skips.pop()], axis=-1), temb, context)
        for upsampler in self.upsamplers:
            x = upsampler(x)
        return x


class TimeEmbedding(nnx.Module):
    """Two linear layers on the sinusoidal timestep."""

    def __init__(self, width: int, time: int, *, dtype, rngs: nnx.Rngs):
        self.linear_1 = linear(width, time, dtype=dtype, rngs=rngs)
        self.linear_2 = linear(time, time, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.linear_2(nnx.silu(self.linear_1(x)))


class UNet(nnx.Module):
    """Predicts eps or v [B, h, w, 4] from noisy latents x [B, h, w, 4], timesteps t [B] and context [B, N, D]."""

    def __init__(self, config: dict, *, dtype, rngs: nnx.Rngs):
        refuse_unknown(config)
        widths = config["block_out_channels"]
        depth, layers, time = len(widths), config["layers_per_block"], 4 * widths[0]
        heads = per_block(config.get("num_attention_heads") or config["attention_head_dim"], depth)
        attends = [kind.startswith("CrossAttn") for kind in config["down_block_types"]]
        heads_down = [n if on else 0 for n, on in zip(heads, attends, strict=True)]
        attends = [kind.startswith("CrossAttn") for kind in config["up_block_types"]]
        heads_up = [n if on else 0 for n, on in zip(reversed(heads), attends, strict=True)]
        norm = (config["norm_num_groups"], config["norm_eps"])
        shared = {
            "context": config["cross_attention_dim"],
            "time": time,
            "norm": norm,
            "flat": config.get("use_linear_projection", False),
            "dtype": dtype,
            "rngs": rngs,
        }
        self.dtype = dtype
        self.time = (widths[0], config["flip_sin_to_cos"], config["freq_shift"])
        self.conv_in = conv(config["in_channels"], widths[0], 3, padding=1, dtype=dtype, rngs=rngs)
        self.time_embedding = TimeEmbedding(widths[0], time, dtype=dtype, rngs=rngs)

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
        self.conv_norm_out = GroupNorm(norm[0], widths[0], epsilon=norm[1], dtype=dtype, rngs=rngs)
        self.conv_out = conv(widths[0], config["out_channels"], 3, padding=1, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, t: Array, context: Array) -> Array:
        width, flip, shift = self.time
        temb = self.time_embedding(timestep_embedding(t, width, flip=flip, shift=shift).astype(self.dtype))
        context = context.astype(self.dtype)
        x = self.conv_in(x.astype(self.dtype))
        skips = [x]
        for block in self.down_blocks:
            x, more = block(x, temb, context)
            skips += more
        x = self.mid_block(x, temb, context)
        for block in self.up_blocks:
            x = block(x, skips, temb, context)
        return self.conv_out(nnx.silu(self.conv_norm_out(x))).astype(jnp.float32)


def per_block(value: int | list[int], blocks: int) -> list[int]:
    """Returns one head count a block. diffusers' `attention_head_dim` has always held the NUMBER of heads."""
    return list(value) if isinstance(value, list | tuple) else [value] * blocks


def refuse_unknown(config: dict) -> None:
    """Raises UserError when the config asks for an option that this network does not have."""
    for key, known in FIXED.items():
        if config.get(key, known) not in (known, None):
            raise UserError(f"unet/config.json: {key} = {config[key]!r} is not implemented; dermjax knows {known!r}")
    kinds = {"DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"}
    for kind in (*config["down_block_types"], *config["up_block_types"]):
        if kind not in kinds:
            raise UserError(f"unet/config.json: block type {kind!r} is not implemented; dermjax knows {sorted(kinds)}")
