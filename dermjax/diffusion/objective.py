"""The denoising loss that pretraining and DreamBooth share.

Place in the flow: latents and a prediction function -> one number; `schedule` gives x_t and its target.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dermjax.diffusion import schedule

Predict = Callable[[jax.Array, jax.Array], jax.Array]


def example_keys(key: jax.Array, batch: int) -> jax.Array:
    """Returns one key an example, by its index in the global batch: the same on one device and on many."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(batch))


def normal(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns standard normal noise [B, *shape], float32, from one key an example."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def times(keys: jax.Array, steps: int, bias: float) -> jax.Array:
    """Returns one timestep in [0, steps) an example, int32, with density growing as t^(bias - 1).

    bias 1 is uniform (Ho et al. 2020). Above 1 the high noise, where number and place are decided, comes more often.
    """
    uniform = jax.vmap(jax.random.uniform)(keys)
    return jnp.minimum(jnp.floor(steps * uniform ** (1.0 / bias)), steps - 1).astype(jnp.int32)


def denoising(
    predict: Predict,
    prediction: str,
    alpha_bar: np.ndarray,
    latents: jax.Array,
    noise: jax.Array,
    t: jax.Array,
    weight: jax.Array,
) -> jax.Array:
    """Returns the weighted mean over the batch of the squared error of `predict(x_t, t)`, float32 scalar.

    latents, noise: [B, h, w, Z]; t: int32 [B]; weight: float32 [B], 1 for an instance image and the prior weight for
    a class image, so that prior preservation (DreamBooth, arXiv 2208.12242, eq. 2) is no second branch.
    """
    x = schedule.add_noise(alpha_bar, latents, noise, t)
    target = schedule.target(prediction, alpha_bar, latents, noise, t)
    error = jnp.square(predict(x, t) - target).mean((1, 2, 3))
    return (weight * error).sum() / weight.sum()
