"""From a network's prediction to `denoised = denoise(x, sigma)`, all that a sampler knows of a model.

x = latents + sigma noise is the sampler's variable. The network was trained on x_t = x / sqrt(1 + sigma^2), which has
unit variance at every t, and predicts the noise, the velocity or the latents; the denoiser scales, asks, guides and
converts. Everything here is float32, whatever the network computes in.

B batch, h w latent, C channels, N tokens, D context width; sigma is a scalar.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from dermjax.diffusion import schedule

Network = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # x_t [B, h, w, C], t [B], context [B, N, D]


@dataclass(frozen=True)
class Denoiser:
    """The best guess at the latents behind x at noise level sigma.

    predict(x, sigma) asks the network; kind names what it predicts. A multistep method, which averages predictions
    before it makes latents of them, takes the two halves apart; every other method calls the whole.
    """

    predict: Callable[[jax.Array, jax.Array], jax.Array]
    kind: str

    def __call__(self, x: jax.Array, sigma: jax.Array) -> jax.Array:
        """Returns the denoised latents [B, h, w, C]."""
        return self.denoised(self.predict(x, sigma), x, sigma)

    def denoised(self, prediction: jax.Array, x: jax.Array, sigma: jax.Array) -> jax.Array:
        """Returns the latents that a prediction at (x, sigma) means (Karras et al. 2022, table 1)."""
        return DENOISED[self.kind](prediction, x, sigma)


DENOISED = {
    "epsilon": lambda noise, x, sigma: x - sigma * noise,
    "v_prediction": lambda v, x, sigma: x / (1 + sigma**2) - sigma / jnp.sqrt(1 + sigma**2) * v,
    "sample": lambda latents, x, sigma: latents,
}


def denoiser(
    network: Network, scheduler: dict, context: jax.Array, negative: jax.Array | None, guidance: jax.Array
) -> Denoiser:
    """Returns the denoiser of a network for the contexts [B, N, D], guided unless negative is None."""
    table = jnp.asarray(schedule.sigmas(scheduler), jnp.float32)
    times = jnp.arange(len(table), dtype=jnp.float32)
    ask = plain(network, context) if negative is None else guided(network, context, negative, guidance)

    def predict(x: jax.Array, sigma: jax.Array) -> jax.Array:
        t = jnp.interp(sigma, table, times)  # exact to one ulp of float32, and defined between the training times
        return ask(x / jnp.sqrt(1 + sigma**2), jnp.full(len(x), t)).astype(jnp.float32)

    return Denoiser(predict, scheduler.get("prediction_type", "epsilon"))  # absent means epsilon, as in diffusers


def plain(network: Network, context: jax.Array) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns the network for one context: one pass an evaluation."""
    return lambda x, t: network(x, t, context)


def guided(
    network: Network, context: jax.Array, negative: jax.Array, guidance: jax.Array
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns classifier-free guidance (Ho and Salimans 2022): both contexts in one pass of twice the batch.

    An image's two halves lie side by side, so that a batch spread over devices stays where it is.
    """
    contexts = rearrange([negative, context], "two B N D -> (B two) N D")

    def ask(x: jax.Array, t: jax.Array) -> jax.Array:
        pairs = network(repeat(x, "B h w C -> (B two) h w C", two=2), repeat(t, "B -> (B two)", two=2), contexts)
        without, within = rearrange(pairs.astype(jnp.float32), "(B two) h w C -> two B h w C", two=2)
        return without + guidance * (within - without)

    return ask
