"""The one function from text to image: context, start noise, sampler, decoder, pixels, compiled as a whole.

B batch, H W image, h w latent, C latent channels, N tokens.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from dermjax.diffusion.denoiser import denoiser
from dermjax.diffusion.samplers import Sampler, normal
from dermjax.models.stable_diffusion import StableDiffusion


def text_to_image(model: StableDiffusion, sampler: Sampler, steps: int, size: int) -> Callable[..., jax.Array]:
    """Returns the compiled function images(params, tokens, negative, seeds, guidance) -> uint8 [B, size, size, 3].

    tokens and negative are int [B, N]; negative None means no guidance and half the arithmetic. seeds are integers [B]:
    an image depends on its own seed and prompt, not on its batch. guidance is a scalar, and changing it compiles
    nothing. Steps out of range are a UserError.
    """
    scheduler = model.configs["scheduler"]
    ladder = sampler.ladder(scheduler, steps)
    shape = (size // model.factor, size // model.factor, model.configs["vae"]["latent_channels"])

    @jax.jit
    def images(
        params: dict, tokens: jax.Array, negative: jax.Array | None, seeds: jax.Array, guidance: jax.Array
    ) -> jax.Array:
        context = model.encode_text(params, tokens)
        against = None if negative is None else model.encode_text(params, negative)
        denoise = denoiser(partial(model.unet, params), scheduler, context, against, guidance)

        keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed)))(seeds)  # [B, 2]: to start and to walk
        x = sampler.sample(denoise, ladder.start * normal(keys[:, 0], shape), ladder, keys[:, 1])
        latents = x * (1 + ladder.sigmas[-1] ** 2) ** -0.5  # a ladder that ends above 0 ends at an x_t: diffusers' PLMS
        return pixels(model.decode(params, latents))

    return images


def pixels(image: jax.Array) -> jax.Array:
    """Returns values in [-1, 1] as uint8 in 0..255, rounded to the nearest."""
    return jnp.clip(jnp.round((image + 1) * 127.5), 0, 255).astype(jnp.uint8)
