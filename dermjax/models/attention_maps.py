"""Where a UNet's cross-attention looks for each word: the attention weights of its transformers in one pass.

Place in the flow: noisy latents and words -> `cross_attention` -> generation.attention_masks. The weights are recorded
while one pass of the network is traced; the network itself knows nothing of it (as in DAAM, Tang et al. 2022, arXiv
2210.04885, but on the finished image).

Shapes: B batch, h w latent, Z latent channels, n the pixels of a transformer, N tokens, D context width, K heads.
"""

import jax
import jax.numpy as jnp
from einops import rearrange

from dermjax.models.layers import Attention
from dermjax.models.stable_diffusion import Params, StableDiffusion

Array = jax.Array


class Watched:
    """A cross-attention that also records its weights [B, n, N], the mean of the heads."""

    def __init__(self, attention: Attention, seen: list[Array]):
        self.attention, self.seen = attention, seen
        self.keys_values = attention.keys_values

    def attend(self, x: Array, keys_values: tuple[Array, Array]) -> Array:
        """Attention of x [B, n, D] to keys and values."""
        q = rearrange(self.attention.to_q(x), "B n (K d) -> B n K d", K=self.attention.heads)
        logits = jnp.einsum("BnKd,BNKd->BKnN", q, keys_values[0], preferred_element_type=jnp.float32)
        self.seen.append(jax.nn.softmax(logits / jnp.sqrt(q.shape[-1]), axis=-1).mean(1))
        return self.attention.attend(x, keys_values)


def cross_attention(model: StableDiffusion, params: Params, x: Array, t: Array, context: Array) -> list[Array]:
    """Returns the weights [B, n, N] of every transformer for noisy latents x [B, h, w, Z] at timesteps t [B]."""
    unet = model.network(params)
    seen: list[Array] = []
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        for transformer in block.attentions:
            for each in transformer.transformer_blocks:
                each.attn2 = Watched(each.attn2, seen)
    unet(x, t, context)
    return seen
