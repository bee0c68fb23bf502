"""DeepCache (Ma et al. 2023, arXiv 2312.00858): the UNet's deep features change slowly, so most evaluations reuse them.

Place in the flow: between the UNet and the denoiser of `text_to_image`. An approximation where the interval is above 1.
"""

import jax
import jax.numpy as jnp

from dermjax.diffusion.denoiser import Context, Network
from dermjax.models.unet import UNet

Array = jax.Array


def deep_cache(unet: UNet, interval: int, x: jax.ShapeDtypeStruct, context_kv: Context) -> Network:
    """Returns the network that computes its deep features again every `interval` evaluations; 1 is always, and exact.

    x [B, h, w, C] and context_kv are what one pass of a batch takes; a guided pass, of twice the batch, has a cache of
    its own. The cache is mutable (`jax.new_ref`): a sampler's scan carries it without knowing of it.
    """
    if interval == 1:
        return lambda x, t, context_kv: unet.full(x, t, context_kv)[0]
    now = jax.new_ref(jnp.int32(0))  # evaluations so far
    memory = {}
    for batch in (x.shape[0], 2 * x.shape[0]):
        given = jax.tree.map(
            lambda a, batch=batch: jax.ShapeDtypeStruct((batch, *a.shape[1:]), a.dtype), (x, context_kv)
        )
        t = jax.ShapeDtypeStruct((batch,), jnp.float32)
        depths = jax.eval_shape(lambda x, t, context_kv: unet.full(x, t, context_kv)[1], given[0], t, given[1])
        made_at = jnp.int32(-interval)  # the evaluation
        memory[batch] = jax.new_ref(jnp.zeros(depths.shape, depths.dtype)), jax.new_ref(made_at)

    def network(x: Array, t: Array, context_kv: Context) -> Array:
        depths, made_at = memory[len(x)]
        due = now[...] - made_at[...] >= interval

        def reused(x: Array, t: Array, context_kv: Context, depths: Array) -> tuple[Array, Array]:
            return unet.shallow(x, t, context_kv, depths), depths

        def refreshed(x: Array, t: Array, context_kv: Context, depths: Array) -> tuple[Array, Array]:
            return unet.full(x, t, context_kv)

        prediction, depths[...] = jax.lax.cond(due, refreshed, reused, x, t, context_kv, depths[...])
        made_at[...] = jnp.where(due, now[...], made_at[...])
        now[...] += 1
        return prediction

    return network
