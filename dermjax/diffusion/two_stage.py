"""Samplers of two evaluations a step: a look ahead, then the step itself from where it began.

The scan goes over evaluations, so that it holds one network: `again` says that a rung returns to its step's origin. The
step to sigma 0 is Euler's and takes one evaluation, as in k-diffusion and diffusers: N steps take 2 N - 1.

B batch, h w latent, C channels; the contract is `sample(denoise, x, ladder, keys)`, see `walk`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dermjax.diffusion.denoiser import Denoiser
from dermjax.diffusion.ladders import Ladder
from dermjax.diffusion.walk import normal, renewed, toward, walk

Array = jax.Array


def heun(denoise: Denoiser, x: Array, ladder: Ladder, keys: Array) -> Array:
    """Heun's method: along the mean of the slopes at both ends (Karras et al. 2022, arXiv 2206.00364). Order 2."""
    sigma, after = ladder.rungs

    def step(state, asked, begin, end, again, keys):
        x, origin, before = state
        now = denoise(x, asked)
        origin = jnp.where(again, origin, x)
        latents = jnp.where(again, (before + seen_from(begin, asked, before, now)) / 2, now)
        return toward(latents, origin, begin, end), origin, now

    return walk(step, (x, x, x), halves((sigma, sigma, after), (after, sigma, after)), keys)[0]


def dpm2(denoise: Denoiser, x: Array, ladder: Ladder, keys: Array, eta: float) -> Array:
    """DPM-Solver-2: along the slope at the midpoint in log sigma (Lu et al. 2022, arXiv 2206.00927, alg. 1). Order 2.

    k-diffusion's `sample_dpm_2` with eta 0 and `sample_dpm_2_ancestral` with eta 1, where the step goes below the next
    sigma and fresh noise fills up. On a Karras ladder too the network is told exact times, which diffusers rounds; an
    ancestral midpoint is the next rung and is told its time, which in "linspace" is up to 0.003 from diffusers'.
    """
    sigma = ladder.rungs[0]
    down, up = renewed(*ladder.rungs, eta)
    middle, none = np.sqrt(sigma * down), np.zeros(len(sigma))

    def step(state, asked, begin, end, up, again, keys):
        x, origin, before = state
        now = denoise(x, asked)
        origin = jnp.where(again, origin, x)
        x = toward(jnp.where(again, seen_from(begin, asked, before, now), now), origin, begin, end)
        return x + up * normal(keys, x.shape[1:]), origin, now

    return walk(step, (x, x, x), halves((sigma, sigma, middle, none), (middle, sigma, down, up)), keys)[0]


def dpmpp_2s_ancestral(denoise: Denoiser, x: Array, ladder: Ladder, keys: Array) -> Array:
    """DPM-Solver++(2S) to below the next sigma, then fresh noise: k-diffusion's `sample_dpmpp_2s_ancestral`.

    Lu et al. 2022, arXiv 2211.01095, algorithm 1 with its midpoint in log sigma: towards the latents that the midpoint
    shows. diffusers has no such scheduler.
    """
    sigma = ladder.rungs[0]
    down, up = renewed(*ladder.rungs, 1.0)
    middle, none = np.sqrt(sigma * down), np.zeros(len(sigma))

    def step(state, asked, begin, end, up, again, keys):
        x, origin = state
        origin = jnp.where(again, origin, x)
        x = toward(denoise(x, asked), origin, begin, end)
        return x + up * normal(keys, x.shape[1:]), origin

    return walk(step, (x, x), halves((sigma, sigma, middle, none), (middle, sigma, down, up)), keys)[0]


def dpmpp_sde(denoise: Denoiser, x: Array, ladder: Ladder, keys: Array) -> Array:
    """DPM-Solver++(SDE), whose look ahead is noisy as well: k-diffusion's `sample_dpmpp_sde`, diffusers' DPMSolverSDE.

    Lu et al. 2022, arXiv 2211.01095. The noise of a step and that of its look ahead are one Brownian path in sigma: the
    increment over the step is that over its first half and a fresh one over its second.
    """
    sigma, after = ladder.rungs
    middle, none = np.sqrt(sigma * after), np.zeros(len(sigma))
    fresh = np.sqrt((middle - after) / np.where(sigma > after, sigma - after, 1))

    def step(state, asked, begin, down, up, fresh, again, keys):
        x, origin, noise = state
        origin = jnp.where(again, origin, x)
        noise = jnp.sqrt(1 - fresh**2) * noise + fresh * normal(keys, x.shape[1:])
        return toward(denoise(x, asked), origin, begin, down) + up * noise, origin, noise

    first = (sigma, sigma, *renewed(sigma, middle, 1.0), none + 1)
    second = (middle, sigma, *renewed(sigma, after, 1.0), fresh)
    return walk(step, (x, x, x), halves(first, second), keys)[0]


def dpmpp_2s(denoise: Denoiser, x: Array, ladder: Ladder, keys: Array) -> Array:
    """DPM-Solver++(2S) over pairs of rungs, so that N steps take N evaluations. Order 2.

    Lu et al. 2022, arXiv 2211.01095, algorithm 1, as diffusers' DPMSolverSinglestepScheduler has it: the step to sigma
    0 is of first order. The pairs are those of the whole ladder: down its lower part the first rung may stand alone.
    """
    sigma, after = ladder.rungs
    second = (ladder.above + np.arange(len(sigma))) % 2 == 1
    second &= (np.arange(len(sigma)) > 0) & (after > 0)
    begin = np.where(second, np.roll(sigma, 1), sigma)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = 0.5 * np.log(begin / after) / np.log(begin / sigma)  # half a step over the look ahead, in log sigma
    share = np.where(second, np.nan_to_num(ratio, nan=1.0, posinf=1.0), 1.0)

    def step(state, asked, begin, end, share, again, keys):
        x, origin, before = state
        now = denoise(x, asked)
        origin = jnp.where(again, origin, x)
        latents = jnp.where(again, before + share * (now - before), now)
        return toward(latents, origin, begin, end), origin, now

    return walk(step, (x, x, x), (sigma, begin, after, share, second), keys)[0]


def seen_from(begin: Array, asked: Array, before: Array, now: Array) -> Array:
    """Returns the latents that the slope after a look ahead points to where the step began.

    The look ahead went from x at `begin` towards the latents `before` down to `asked`, where the network says `now`:
    its slope there, (x' - now) / asked, is (x - these) / begin. Neither x is in it: where sigma is in the thousands
    their difference would have no digits left in float32.
    """
    return before + begin / asked * (now - before)


def halves(first: tuple[np.ndarray, ...], second: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """Returns the rungs first, second, first, second, … and, as their last column, whether it is a second.

    The first and the third column are where the network is asked and where the rung ends. A step to sigma 0 has no
    second: its look ahead is there already.
    """
    taken = np.stack([np.ones(len(first[0]), bool), second[0] > 0], 1)
    again = np.tile([False, True], (len(taken), 1))
    return (*(np.stack(pair, 1)[taken] for pair in zip(first, second, strict=True)), again[taken])
