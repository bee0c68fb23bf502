"""A small U-Net (Ronneberger et al. 2015, arXiv 1505.04597) that says of each pixel whether it is lesion.

It works on squares of PATCH x PATCH pixels, which go in as channels and come out as logits of their pixels (sub-pixel
convolution, Shi et al. 2016, arXiv 1609.05158): at full resolution, few channels would take most of the time.

Shapes: B batch, S side of the image, a multiple of PATCH * 2 ** (number of widths - 1); h w squares, C channels.
"""

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx
from jax.typing import DTypeLike

from dermjax.models import nnx_tree
from dermjax.models.layers import Downsample, GroupNorm, ResnetBlock, conv, silu
from dermjax.models.nnx_tree import Module, Params

Array = jax.Array

PATCH, WIDTHS, GROUPS, EPSILON = 4, (32, 64, 96), 8, 1e-5


class Segmenter(Module):
    """Images [B, S, S, 3] in [-1, 1] to logits [B, S, S], positive on the lesion."""

    def __init__(self, *, dtype: DTypeLike):
        self.conv_in = conv(3 * PATCH**2, WIDTHS[0], 3, padding=1, dtype=dtype)
        pairs = list(zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False))
        self.down = nnx.List(block(cin, cout, dtype=dtype) for cin, cout in pairs)
        self.halvings = nnx.List(Downsample(width, padding=1, dtype=dtype) for width in WIDTHS[:-1])
        self.middle = block(WIDTHS[-1], WIDTHS[-1], dtype=dtype)
        self.up = nnx.List(block(cin + cout, cout, dtype=dtype) for cout, cin in pairs[:0:-1])
        self.norm_out = GroupNorm(GROUPS, WIDTHS[0], epsilon=EPSILON, dtype=dtype)
        self.conv_out = conv(WIDTHS[0], PATCH**2, 3, padding=1, dtype=dtype)

    def __call__(self, image: Array) -> Array:
        squares = rearrange(image, "B (h p) (w q) C -> B h w (p q C)", p=PATCH, q=PATCH)
        x, kept = self.conv_in(squares), []
        for level, down in enumerate(self.down):
            x = down(x)
            if level < len(self.halvings):
                kept.append(x)
                x = self.halvings[level](x)
        x = self.middle(x)
        for up, beside in zip(self.up, kept[::-1], strict=True):
            x = up(jnp.concatenate([repeat(x, "B h w C -> B (h 2) (w 2) C"), beside], axis=-1))
        logits = self.conv_out(silu(self.norm_out(x))).astype(jnp.float32)
        return rearrange(logits, "B h w (p q) -> B (h p) (w q)", p=PATCH, q=PATCH)


def block(cin: int, cout: int, *, dtype: DTypeLike) -> ResnetBlock:
    """Returns a residual block of two 3x3 convolutions."""
    return ResnetBlock(cin, cout, time=0, groups=GROUPS, epsilon=EPSILON, dtype=dtype)


NETWORK = nnx_tree.split(lambda: Segmenter(dtype=jnp.float32))


def logits(params: Params, image: Array) -> Array:
    """Returns the logits [B, S, S] of images [B, S, S, 3] in [-1, 1]."""
    return NETWORK.merge(params)(image)
