"""Stable Diffusion's autoencoder (Rombach et al. 2022, arXiv 2112.10752), driven by diffusers' config.json.

Attribute names are those of diffusers' AutoencoderKL. Every GroupNorm here uses 1e-6, the encoder pads (0, 1) before
it halves, and latents leave unscaled: the scale belongs to the bundle in stable_diffusion.py. The ways in and out are
float32 whatever the rest is: they are small, and much of what bfloat16 costs arises there.

Shapes: B batch, H W image, h w latent (H/8, W/8 for four levels), C channels, Z latent channels.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike

from dermjax.models import configs
from dermjax.models.layers import Attention, Downsample, GroupNorm, ResnetBlock, Upsample, conv, silu
from dermjax.models.nnx_tree import Module

Array = jax.Array
# Of moments and decoded images, for whatever is kept of them: raise it where they change by more than rounding
NUMERIC_VERSION = 1
EPSILON = 1e-6


class AttentionBlock(Attention):
    """One-headed attention over all pixels, with a norm before it and a residual (diffusers: residual_connection)."""

    def __init__(self, channels: int, groups: int, *, dtype: DTypeLike):
        super().__init__(channels, channels, 1, head_dim=channels, bias=True, dtype=dtype)
        self.group_norm = GroupNorm(groups, channels, epsilon=EPSILON, dtype=dtype)

    def __call__(self, x: Array) -> Array:
        h, w = x.shape[1:3]
        tokens = rearrange(self.group_norm(x), "B h w C -> B (h w) C")
        return x + rearrange(super().__call__(tokens, tokens), "B (h w) C -> B h w C", h=h, w=w)


class MidBlock(Module):
    """Attention between two resnets at latent resolution."""

    def __init__(self, channels: int, groups: int, *, dtype: DTypeLike):
        self.resnets = nnx.List(resnet(channels, channels, groups, dtype=dtype) for _ in range(2))
        self.attentions = nnx.List([AttentionBlock(channels, groups, dtype=dtype)])

    def __call__(self, x: Array) -> Array:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class DownBlock(Module):
    """Resnets, then a halving unless this is the last block."""

    def __init__(self, cin: int, cout: int, layers: int, groups: int, last: bool, *, dtype: DTypeLike):
        inputs = [cin] + [cout] * (layers - 1)
        self.resnets = nnx.List(resnet(c, cout, groups, dtype=dtype) for c in inputs)
        pads = ((0, 1), (0, 1))
        self.downsamplers = nnx.List([] if last else [Downsample(cout, padding=pads, dtype=dtype)])

    def __call__(self, x: Array) -> Array:
        for block in (*self.resnets, *self.downsamplers):
            x = block(x)
        return x


class UpBlock(Module):
    """Resnets, then a doubling unless this is the last block."""

    def __init__(self, cin: int, cout: int, layers: int, groups: int, last: bool, *, dtype: DTypeLike):
        inputs = [cin] + [cout] * (layers - 1)
        self.resnets = nnx.List(resnet(c, cout, groups, dtype=dtype) for c in inputs)
        self.upsamplers = nnx.List([] if last else [Upsample(cout, dtype=dtype)])

    def __call__(self, x: Array) -> Array:
        for block in self.resnets:
            x = block(x)
        for upsampler in self.upsamplers:
            x = upsampler(x, 2 * x.shape[1], 2 * x.shape[2])
        return x


class Encoder(Module):
    """Images [B, H, W, 3] to features [B, h, w, 2 Z]."""

    def __init__(self, config: dict, *, dtype: DTypeLike):
        widths, groups = config["block_out_channels"], config["norm_num_groups"]
        self.dtype = dtype
        self.conv_in = conv(config["in_channels"], widths[0], 3, padding=1, dtype=jnp.float32)
        self.down_blocks = nnx.List(
            DownBlock(cin, cout, config["layers_per_block"], groups, i == len(widths) - 1, dtype=dtype)
            for i, (cin, cout) in enumerate(zip([widths[0], *widths[:-1]], widths, strict=True))
        )
        self.mid_block = MidBlock(widths[-1], groups, dtype=dtype)
        self.conv_norm_out = GroupNorm(groups, widths[-1], epsilon=EPSILON, dtype=jnp.float32)
        self.conv_out = conv(widths[-1], 2 * config["latent_channels"], 3, padding=1, dtype=jnp.float32)

    def __call__(self, x: Array) -> Array:
        x = self.conv_in(x).astype(self.dtype)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(Module):
    """Latents [B, h, w, Z] to images [B, H, W, 3]; one resnet a block more than the encoder."""

    def __init__(self, config: dict, *, dtype: DTypeLike):
        widths, groups = config["block_out_channels"][::-1], config["norm_num_groups"]
        self.dtype = dtype
        self.conv_in = conv(config["latent_channels"], widths[0], 3, padding=1, dtype=jnp.float32)
        self.mid_block = MidBlock(widths[0], groups, dtype=dtype)
        self.up_blocks = nnx.List(
            UpBlock(cin, cout, config["layers_per_block"] + 1, groups, i == len(widths) - 1, dtype=dtype)
            for i, (cin, cout) in enumerate(zip([widths[0], *widths[:-1]], widths, strict=True))
        )
        self.conv_norm_out = GroupNorm(groups, widths[-1], epsilon=EPSILON, dtype=jnp.float32)
        self.conv_out = conv(widths[-1], config["out_channels"], 3, padding=1, dtype=jnp.float32)

    def __call__(self, x: Array) -> Array:
        x = self.mid_block(self.conv_in(x).astype(self.dtype))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(silu(self.conv_norm_out(x)))


class VAE(Module):
    """Images in [-1, 1] to the moments (mean, log-variance) of their latents, and latents back to images."""

    def __init__(self, config: dict, *, dtype: DTypeLike):
        configs.check_vae(config)
        latent = config["latent_channels"]
        self.encoder = Encoder(config, dtype=dtype)
        self.decoder = Decoder(config, dtype=dtype)
        self.quant_conv = conv(2 * latent, 2 * latent, 1, padding=0, dtype=jnp.float32)
        self.post_quant_conv = conv(latent, latent, 1, padding=0, dtype=jnp.float32)

    def encode(self, image: Array) -> Array:
        """Returns moments [B, h, w, 2 Z], float32: mean first, then log-variance clipped to [-30, 20]."""
        moments = self.quant_conv(self.encoder(image))
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return jnp.concatenate([mean, jnp.clip(log_variance, -30.0, 20.0)], axis=-1)

    def decode(self, latents: Array) -> Array:
        """Returns images [B, H, W, 3], float32, about [-1, 1] and not clipped, from unscaled latents [B, h, w, Z]."""
        return self.decoder(self.post_quant_conv(latents))


def resnet(cin: int, cout: int, groups: int, *, dtype: DTypeLike) -> ResnetBlock:
    """Returns the UNet's resnet without its time embedding and with the autoencoder's epsilon."""
    return ResnetBlock(cin, cout, time=0, groups=groups, epsilon=EPSILON, dtype=dtype)
