"""Samplers: from noise to latents down a ladder of sigmas, each the formula of its paper.

A sampler knows a model only as `denoised = denoise(x, sigma)` and works on x = latents + sigma noise, where the
probability-flow ODE reads dx/dsigma = (x - denoised) / sigma (Karras et al. 2022, eq. 1 and 3). The walk down the
ladder is written once: one `lax.scan`, so the network is compiled once however many steps there are.

Step s of image i draws its noise from fold_in(key_i, s): an image does not depend on the batch it is made in.

B batch, h w latent, C channels.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dermjax.diffusion import schedule
from dermjax.diffusion.denoiser import Denoiser
from dermjax.diffusion.schedule import Ladder
from dermjax.errors import UserError

Array = jax.Array


def euler(denoise: Denoiser, x: Array, ladder: Ladder, keys: Array) -> Array:
    """Euler's method on the probability-flow ODE (Karras et al. 2022, arXiv 2206.00364). Order 1.

    DDIM without noise (Song et al. 2020, arXiv 2010.02502) is this same step in another variable.
    """

    def step(x, sigma, sigma_next, keys):
        return x + (sigma_next - sigma) * slope(denoise(x, sigma), x, sigma)

    return walk(step, x, ladder.rungs, keys)


def euler_ancestral(denoise: Denoiser, x: Array, ladder: Ladder, keys: Array) -> Array:
    """Euler's method to below the next sigma, then fresh noise up to it: k-diffusion's `sample_euler_ancestral`.

    The two are those of the posterior of DDPM (Ho et al. 2020, eq. 7): sigma_down = sigma_next^2 / sigma, and
    sigma_down^2 + sigma_up^2 = sigma_next^2.
    """

    def step(x, sigma, sigma_next, keys):
        sigma_down = sigma_next**2 / sigma
        sigma_up = sigma_next * jnp.sqrt(1 - (sigma_next / sigma) ** 2)
        x = x + (sigma_down - sigma) * slope(denoise(x, sigma), x, sigma)
        return x + sigma_up * normal(keys, x.shape[1:])

    return walk(step, x, ladder.rungs, keys)


def plms(denoise: Denoiser, x: Array, ladder: Ladder, keys: Array) -> Array:
    """Pseudo linear multistep: Euler's step along an Adams-Bashforth mean of the last four predictions.

    Liu et al. 2022, arXiv 2202.09778, as diffusers' PNDMScheduler with skip_prk_steps has it (the first step of latent
    diffusion's own code differs): the first step is made twice, the second time along the mean of the predictions at
    its two ends, so N steps take N + 1 evaluations. What is averaged is what the network predicts, the noise or v.
    """
    sigma, sigma_next = ladder.rungs
    rungs = (
        np.concatenate([sigma[:1], sigma_next[:1], sigma[1:]]),  # where the network is asked
        np.insert(sigma, 0, sigma[0]),  # where the step begins
        np.insert(sigma_next, 0, sigma_next[0]),  # where it ends
        MULTISTEP[np.minimum(np.arange(len(sigma) + 1), len(MULTISTEP) - 1)],
        np.arange(len(sigma) + 1) == 1,  # whether it makes the step before once more
    )

    def step(state, asked, sigma, sigma_next, weights, again, keys):
        x, before, past = state
        known = jnp.concatenate([denoise.predict(x, asked)[None], past])  # [4, B, h, w, C], the newest first
        mean = jnp.einsum("k,k...->...", weights, known, precision="highest")
        before = jnp.where(again, before, x)
        x = before + (sigma_next - sigma) * slope(denoise.denoised(mean, before, sigma), before, sigma)
        return x, before, jnp.where(again, past, known[:3])

    return walk(step, (x, x, jnp.zeros((3, *x.shape))), rungs, keys)[0]


# the weights of the newest and the three older predictions: at the first evaluation, at the second, and so on
MULTISTEP = np.array(
    [
        [1, 0, 0, 0],
        [1 / 2, 1 / 2, 0, 0],
        [3 / 2, -1 / 2, 0, 0],
        [23 / 12, -16 / 12, 5 / 12, 0],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    ],
    np.float32,
)


def slope(denoised: Array, x: Array, sigma: Array) -> Array:
    """Returns dx/dsigma at (x, sigma), which is the noise that the denoised latents leave in x."""
    return (x - denoised) / sigma


def normal(keys: Array, shape: tuple[int, ...]) -> Array:
    """Returns standard normal noise [B, *shape], one key [B] an image."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def walk(step: Callable, state: Any, rungs: tuple[np.ndarray, ...], keys: Array) -> Any:
    """Returns the state after step(state, *rung, keys) on every rung; the rungs are tables with one row a step."""

    def down(state, numbered):
        number, rung = numbered
        return step(state, *rung, jax.vmap(jax.random.fold_in, (0, None))(keys, number)), None

    return jax.lax.scan(down, state, (jnp.arange(len(rungs[0])), rungs))[0]


@dataclass(frozen=True)
class Sampler:
    """A sampler with the ladder it walks where the model's scheduler file does not name one (`timestep_spacing`).

    spacing is the one that diffusers and k-diffusion give it; to_zero says whether the last step goes to sigma 0 or
    to the first training time (0.0292 for Stable Diffusion 1.x), where methods written in alpha_bar end.
    """

    sample: Callable[[Denoiser, Array, Ladder, Array], Array]
    spacing: str
    to_zero: bool

    def ladder(self, scheduler: dict, steps: int) -> Ladder:
        """Returns the ladder of this sampler for a model's scheduler; steps out of range are a UserError."""
        to_zero = self.to_zero or scheduler.get("set_alpha_to_one", False)
        end = 0.0 if to_zero else schedule.sigmas(scheduler)[0]
        return schedule.ladder(scheduler, steps, scheduler.get("timestep_spacing", self.spacing), end)


def named(name: str) -> Sampler:
    """Returns the sampler of a name, upper or lower case; an unknown one is a UserError with the nearest names."""
    known = {known.lower(): sampler for known, sampler in SAMPLERS.items()}
    if name.lower() not in known:
        near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4) or known
        names = ", ".join(known for known in SAMPLERS if known.lower() in near)
        raise UserError(f"sampler {name!r} is not known; did you mean one of: {names}?")
    return known[name.lower()]


SAMPLERS = {
    "Euler": Sampler(euler, spacing="linspace", to_zero=True),
    "Euler a": Sampler(euler_ancestral, spacing="linspace", to_zero=True),
    "PLMS": Sampler(plms, spacing="leading", to_zero=False),
}


def show() -> None:
    """Prints the names of the samplers (`dermjax samplers`)."""
    print("\n".join(SAMPLERS))
