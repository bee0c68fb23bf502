"""DeepCache: the depths of the UNet change slowly along a ladder, so most evaluations borrow them (arXiv 2312.00858).

A declared approximation: off unless asked for, and named in the record of every image that it made.

B batch, h w latent, C channels.
"""

from typing import Protocol

import jax
import jax.numpy as jnp

from dermjax.diffusion.denoiser import Context, Network

Array = jax.Array


class Deep(Protocol):
    """A UNet that can be asked for its depths, and be given those of an earlier evaluation."""

    def whole(self, x: Array, t: Array, words: Context) -> tuple[Array, Array]:
        """Returns the prediction and the depths."""

    def shallow(self, x: Array, t: Array, words: Context, depths: Array) -> Array:
        """Returns the prediction over given depths."""


def deep_cache(unet: Deep, interval: int, x: jax.ShapeDtypeStruct, words: Context) -> Network:
    """Returns the network that makes its depths anew where they are `interval` evaluations old; 1 is always: exact.

    x [B, h, w, C] and words are what one pass of a batch takes; a guided pass, of twice the batch, has depths of its
    own. The memory is in references, which the sampler's scan carries along unseen.
    """
    if interval == 1:
        return lambda x, t, words: unet.whole(x, t, words)[0]
    now = jax.new_ref(jnp.int32(0))  # evaluations so far
    memory = {}
    for batch in (x.shape[0], 2 * x.shape[0]):
        given = jax.tree.map(lambda a, batch=batch: jax.ShapeDtypeStruct((batch, *a.shape[1:]), a.dtype), (x, words))
        t = jax.ShapeDtypeStruct((batch,), jnp.float32)
        depths = jax.eval_shape(lambda x, t, words: unet.whole(x, t, words)[1], given[0], t, given[1])
        made = jnp.int32(-interval)  # at which evaluation
        memory[batch] = jax.new_ref(jnp.zeros(depths.shape, depths.dtype)), jax.new_ref(made)

    def network(x: Array, t: Array, words: Context) -> Array:
        depths, made = memory[len(x)]
        fresh = now[...] - made[...] >= interval

        def borrowing(x, t, words, depths):
            return unet.shallow(x, t, words, depths), depths

        def making(x, t, words, depths):
            return unet.whole(x, t, words)

        prediction, depths[...] = jax.lax.cond(fresh, making, borrowing, x, t, words, depths[...])
        made[...] = jnp.where(fresh, now[...], made[...])
        now[...] += 1
        return prediction

    return network
