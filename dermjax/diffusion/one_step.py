"""Samplers that remember nothing: one evaluation, one step.

B batch, h w latent, C channels; the contract is `sample(denoise, x, ladder, keys)`, see `walk`.
"""

import jax
import jax.numpy as jnp

from dermjax.diffusion.denoiser import Denoiser
from dermjax.diffusion.ladders import Ladder
from dermjax.diffusion.walk import normal, renewed, slope, toward, walk

Array = jax.Array


def euler(denoise: Denoiser, x: Array, ladder: Ladder, keys: Array) -> Array:
    """Euler's method on the probability-flow ODE (Karras et al. 2022, arXiv 2206.00364). Order 1.

    k-diffusion's `sample_euler` and diffusers' EulerDiscreteScheduler, both without churn.
    """

    def step(x, sigma, sigma_next, keys):
        return toward(denoise(x, sigma), x, sigma, sigma_next)

    return walk(step, x, ladder.rungs, keys)


def ancestral(denoise: Denoiser, x: Array, ladder: Ladder, keys: Array, eta: float) -> Array:
    """Euler's method to below the next sigma, then fresh noise up to it.

    With eta 1 it is k-diffusion's `sample_euler_ancestral` and, down another ladder, DDPM (Ho et al. 2020, arXiv
    2006.11239, with the smaller of its variances); with any eta it is DDIM, see `ddim`.
    """

    def step(x, sigma, down, up, keys):
        return toward(denoise(x, sigma), x, sigma, down) + up * normal(keys, x.shape[1:])

    return walk(step, x, (ladder.rungs[0], *renewed(*ladder.rungs, eta)), keys)


def ddim(denoise: Denoiser, x: Array, ladder: Ladder, keys: Array, eta: float) -> Array:
    """DDIM (Song et al. 2020, arXiv 2010.02502, eq. 12), which with eta 0 is Euler's method.

    Where diffusers' DDIM does not end a step at the time that it asks next ("linspace", and "trailing" where the steps
    do not divide the training times), ours follows the paper and does. Where latents are held within bounds, the noise
    in x stays what the network says it is, as in diffusers.
    """
    if denoise.bound is None:
        return ancestral(denoise, x, ladder, keys, eta)

    def step(x, sigma, down, up, keys):
        latents = denoise.denoised(denoise.predict(x, sigma), x, sigma)
        return denoise.bound(latents) + down * slope(latents, x, sigma) + up * normal(keys, x.shape[1:])

    return walk(step, x, (ladder.rungs[0], *renewed(*ladder.rungs, eta)), keys)


def lcm(denoise: Denoiser, x: Array, ladder: Ladder, keys: Array) -> Array:
    """Multistep sampling of a latent consistency model (Luo et al. 2023, arXiv 2310.04378, algorithm 3).

    Each step jumps to latents and adds the noise of the next sigma. The share of the skip is that of diffusers'
    LCMScheduler: sigma_data 0.5, times scaled by 10.
    """
    skip = 0.5**2 / ((10 * ladder.times) ** 2 + 0.5**2)

    def step(x, sigma, sigma_next, skip, keys):
        x_t = x / jnp.sqrt(1 + sigma**2)
        latents = jnp.sqrt(1 - skip) * denoise(x, sigma) + skip * x_t
        return latents + sigma_next * normal(keys, x.shape[1:])

    return walk(step, x, (*ladder.rungs, skip), keys)
