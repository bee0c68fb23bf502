"""Samplers that remember: one evaluation a step, and what the last few of them said.

A step goes along a weighted mean of the newest and the older slopes, or towards one of denoised latents. The weights
depend on the ladder alone: tables [steps, remembered + 1], the newest first, made on the host in float64.

B batch, h w latent, C channels; the contract is `sample(denoise, x, ladder, keys)`, see `walk`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dermjax.diffusion.denoiser import Denoiser
from dermjax.diffusion.ladders import Ladder
from dermjax.diffusion.walk import normal, renewed, slope, toward, walk

Array = jax.Array


def plms(denoise: Denoiser, x: Array, ladder: Ladder, keys: Array) -> Array:
    """Pseudo linear multistep: Euler's step along an Adams-Bashforth mean of the last four predictions.

    Liu et al. 2022, arXiv 2202.09778, as diffusers' PNDMScheduler with skip_prk_steps has it (the first step of latent
    diffusion's own code differs): the first step is made twice, the second time along the mean of the predictions at
    its two ends, so N steps take N + 1 evaluations. What is averaged is what the network predicts, the noise or v. Down
    the lower part of a ladder ours starts the same way; diffusers' makes another step twice there and leaves one out.
    """
    sigma, sigma_next = ladder.rungs
    asked = np.concatenate([sigma[:1], sigma_next[:1], sigma[1:]])
    begin, end = np.insert(sigma, 0, sigma[0]), np.insert(sigma_next, 0, sigma_next[0])
    again = np.arange(len(asked)) == 1  # the step before is made once more

    def step(state, asked, begin, end, weights, again, keys):
        x, origin, past = state
        known = remembered(denoise.predict(x, asked), past)
        origin = jnp.where(again, origin, x)
        x = toward(denoise.denoised(mean(weights, known), origin, begin), origin, begin, end)
        return x, origin, jnp.where(again, past, known[:-1])

    weights = ADAMS_BASHFORTH[np.minimum(np.arange(len(asked)), len(ADAMS_BASHFORTH) - 1)]
    return walk(step, (x, x, nothing(x, 3)), (asked, begin, end, weights, again), keys)[0]


def lms(denoise: Denoiser, x: Array, ladder: Ladder, keys: Array) -> Array:
    """Linear multistep: the polynomial in sigma through the last four slopes, integrated. Order 4.

    Adams and Bashforth's method on rungs of any width: k-diffusion's `sample_lms`, diffusers' LMSDiscreteScheduler. The
    first three steps, which remember less, are of lower order. So they are down the lower part of a ladder, where
    diffusers' takes the weights of four slopes for one, two and three.
    """
    weights = interpolating(ladder.sigmas, 4, lambda sigma: sigma, np.ones_like)
    return along_slopes(denoise, x, ladder, keys, weights)


def deis(denoise: Denoiser, x: Array, ladder: Ladder, keys: Array) -> Array:
    """DEIS: the polynomial in log sigma through the last two slopes, integrated. Order 2.

    Zhang and Chen 2022, arXiv 2204.13902, "log-rho", as diffusers' DEISMultistepScheduler has it, which makes the last
    of fewer than 15 steps Euler's.
    """
    weights = interpolating(ladder.sigmas, 2, np.log, np.exp)
    if ladder.laid < 15:
        weights[-1] = [1, 0]
    return along_slopes(denoise, x, ladder, keys, weights)


def along_slopes(denoise: Denoiser, x: Array, ladder: Ladder, keys: Array, weights: np.ndarray) -> Array:
    """Returns x after Euler's steps along weighted means of slopes.

    A step is written as one along the newest slope and what the weights add to it: from where sigma is in the
    thousands, at the first step, that is nothing, and float32 keeps its digits.
    """
    more = weights - np.eye(1, weights.shape[1])

    def step(state, sigma, sigma_next, more, keys):
        x, past = state
        denoised = denoise(x, sigma)
        known = remembered(slope(denoised, x, sigma), past)
        return toward(denoised, x, sigma, sigma_next) + (sigma_next - sigma) * mean(more, known), known[:-1]

    return walk(step, (x, nothing(x, weights.shape[1] - 1)), (*ladder.rungs, more), keys)[0]


def dpmpp_2m(denoise: Denoiser, x: Array, ladder: Ladder, keys: Array, eta: float) -> Array:
    """DPM-Solver++(2M): towards the latents extrapolated from the last two (Lu et al. 2022, arXiv 2211.01095, alg. 2).

    Order 2. eta 0 is the ODE; eta 1 the SDE in its midpoint form, DPM++ 2M SDE, which walks to below the next sigma and
    adds fresh noise. The step to sigma 0 is of first order, as in diffusers and k-diffusion; so is, as in diffusers
    only, the last of fewer than 15 to any other sigma.
    """
    ahead = extrapolating(ladder.sigmas, to_the_end=ladder.laid >= 15)

    def step(state, sigma, down, up, weights, keys):
        x, past = state
        known = remembered(denoise(x, sigma), past)
        x = toward(mean(weights, known), x, sigma, down)
        return x + up * normal(keys, x.shape[1:]), known[:-1]

    rungs = (ladder.rungs[0], *renewed(*ladder.rungs, eta), ahead)
    return walk(step, (x, nothing(x, 1)), rungs, keys)[0]


def unipc(denoise: Denoiser, x: Array, ladder: Ladder, keys: Array) -> Array:
    """UniPC of order 2 with B(h) = exp(h) - 1: diffusers' UniPCMultistepScheduler (Zhao et al. 2023, arXiv 2302.04867).

    Every evaluation first corrects the step that led to it (UniC), then predicts the next (UniP, which in this order is
    DPM-Solver++(2M)), so the order is one higher than the predictor's at no cost. The last prediction
    is of first order.
    """
    sigma, sigma_next = ladder.rungs
    before = np.insert(sigma[:-1], 0, sigma[0])  # nothing led to the first rung: a step of no length

    def step(state, before, sigma, sigma_next, last, following, keys):
        x, origin, past = state
        known = remembered(denoise(x, sigma), past)
        origin = toward(mean(last, known), origin, before, sigma)
        x = toward(mean(following, known[:2]), origin, sigma, sigma_next)
        return x, origin, known[:-1]

    ahead = extrapolating(ladder.sigmas, to_the_end=False)
    rungs = (before, sigma, sigma_next, correcting(ladder.sigmas), ahead)
    return walk(step, (x, x, nothing(x, 2)), rungs, keys)[0]


def remembered(now: Array, past: Array) -> Array:
    """Returns what is known, the newest first, [k + 1, B, h, w, C], from now [B, h, w, C] and past [k, B, h, w, C]."""
    return jnp.concatenate([now[None], past])


def nothing(x: Array, count: int) -> Array:
    """Returns a past of `count` evaluations that have not been made; their weights are 0."""
    return jnp.zeros((count, *x.shape), x.dtype)


def mean(weights: Array, known: Array) -> Array:
    """Returns the weighted mean over the first axis."""
    return jnp.einsum("k,k...->...", weights, known, precision="highest")


# PLMS at equal steps of time: at the first evaluation, at the second, and so on
ADAMS_BASHFORTH = np.array([
    [1, 0, 0, 0],
    [1 / 2, 1 / 2, 0, 0],
    [3 / 2, -1 / 2, 0, 0],
    [23 / 12, -16 / 12, 5 / 12, 0],
    [55 / 24, -59 / 24, 37 / 24, -9 / 24],
])  # fmt: skip


def interpolating(sigmas: np.ndarray, order: int, curve: Callable, width: Callable) -> np.ndarray:
    """Returns the weights with which slopes at the rungs make the mean over a step of the polynomial through them.

    The polynomial is one in u = curve(sigma), and width(u) is dsigma/du. [steps, order]; the first steps know less, and
    a rung that stands on the one before adds nothing.
    """
    nodes, shares = np.polynomial.legendre.leggauss(16)  # exact to rounding for what is integrated here
    weights = np.zeros((len(sigmas) - 1, order))
    for i in range(len(weights)):
        known = curve(sigmas[max(0, i + 1 - order) : i + 1][::-1])
        known = known[: 1 + np.argmin(np.append(np.diff(known) > 0, False))]
        begin, end = known[0], curve(sigmas[i + 1])
        u = begin + (end - begin) * (nodes + 1) / 2
        for k, one in enumerate(known):
            others = np.delete(known, k)
            basis = np.prod([(u - other) / (one - other) for other in others], axis=0)
            weights[i, k] = np.sum(shares * width(u) * basis) / np.sum(shares * width(u))
    return weights


def extrapolating(sigmas: np.ndarray, to_the_end: bool) -> np.ndarray:
    """Returns the weights [steps, 2] that look half a step ahead in log sigma.

    The first step looks nowhere, nor does one to 0, nor the last one unless to_the_end.
    """
    half = np.zeros(len(sigmas) - 1)
    for i in range(1, len(half) - (not to_the_end)):
        if sigmas[i + 1] > 0 and sigmas[i - 1] > sigmas[i]:
            half[i] = np.log(sigmas[i] / sigmas[i + 1]) / np.log(sigmas[i - 1] / sigmas[i]) / 2
    return np.stack([1 + half, -half], 1)


def correcting(sigmas: np.ndarray) -> np.ndarray:
    """Returns the weights [steps, 3] of the step that led to each rung, once the rung itself is known (UniC-2)."""
    weights = np.zeros((len(sigmas) - 1, 3))
    weights[:, :2] = 0.5  # the first correction, and where a rung stands on another
    weights[0] = [1, 0, 0]
    for i in range(2, len(weights)):
        if sigmas[i - 2] > sigmas[i - 1] > sigmas[i]:
            h = np.log(sigmas[i - 1] / sigmas[i])
            past = -np.log(sigmas[i - 2] / sigmas[i - 1]) / h  # where the rung before stands, in steps
            scale = np.expm1(-h)
            phi_2 = scale / -h - 1
            phi_3 = phi_2 / -h - 0.5
            old, new = np.linalg.solve([[1, 1], [past, 1]], [phi_2 / scale, 2 * phi_3 / scale])
            weights[i] = [new, 1 - new - old / past, old / past]
    return weights
