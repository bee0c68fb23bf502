"""Samplers: each is the update of its paper, the walk down a ladder is written once, the table SAMPLERS is at the foot.

A sampler is `sample(denoise, x, ladder, keys)`. It knows a model only as `denoised = denoise(x, sigma)` and works on
x = latents + sigma noise, where the probability-flow ODE reads dx/dsigma = (x - denoised) / sigma (Karras et al. 2022,
arXiv 2206.00364, eq. 1 and 3). What a step knows beforehand, its sigmas and its weights, is a table made on the host in
float64, one row a rung. To add a sampler, write its step, walk it, and give it a row in the table.

Step s of image i draws its noise from fold_in(key_i, s): an image does not depend on the batch it is made in.

B batch, h w latent, C channels.
"""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dermjax.diffusion import ladders
from dermjax.diffusion.denoiser import Denoiser, bound
from dermjax.diffusion.ladders import BENDS, Ladder, Layout
from dermjax.diffusion.schedule import normal
from dermjax.errors import UserError

Array = jax.Array


def walk(step: Callable, state: Any, rungs: tuple[np.ndarray, ...], keys: Array) -> Any:
    """Returns the state after step(state, *rung, keys) on every rung; the rungs are tables with one row a step.

    Numbers enter in the precision of the state, float32: half-precision sigmas would turn images black.
    """
    dtype = jax.tree.leaves(state)[0].dtype

    def down(state, numbered):
        number, rung = numbered
        return step(state, *rung, jax.vmap(jax.random.fold_in, (0, None))(keys, number)), None

    rungs = tuple(rung if rung.dtype == bool else rung.astype(dtype) for rung in rungs)
    return jax.lax.scan(down, state, (jnp.arange(len(rungs[0])), rungs))[0]


def slope(denoised: Array, x: Array, sigma: Array) -> Array:
    """Returns dx/dsigma at (x, sigma), which is the noise that the denoised latents leave in x."""
    return (x - denoised) / sigma


def euler_step(latents: Array, x: Array, sigma: Array, sigma_next: Array) -> Array:
    """Returns x at sigma_next on the straight line from x at sigma to the latents at 0.

    It is x + (sigma_next - sigma) slope, written so that float32 loses nothing where sigma is in the thousands.
    """
    left = sigma_next / sigma
    return left * x + (1 - left) * latents


def ancestral_sigmas(sigma: np.ndarray, sigma_next: np.ndarray, eta: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sigma to walk down to and the one of fresh noise that together make sigma_next.

    eta 1 is the posterior of DDPM (Ho et al. 2020, arXiv 2006.11239, eq. 7), 0 no fresh noise (Song et al. 2020, arXiv
    2010.02502, eq. 16).
    """
    up = eta * sigma_next * np.sqrt(1 - (sigma_next / sigma) ** 2)
    return np.sqrt(sigma_next**2 - up**2), up


def euler(denoise: Denoiser, x: Array, ladder: Ladder, keys: Array) -> Array:
    """Euler's method on the probability-flow ODE (Karras et al. 2022, arXiv 2206.00364). Order 1.

    k-diffusion's `sample_euler` and diffusers' EulerDiscreteScheduler, both without churn.
    """

    def step(x, sigma, sigma_next, keys):
        return euler_step(denoise(x, sigma), x, sigma, sigma_next)

    return walk(step, x, ladder.rungs, keys)


def ancestral(denoise: Denoiser, x: Array, ladder: Ladder, keys: Array, eta: float) -> Array:
    """Euler's method to below the next sigma, then fresh noise up to it.

    With eta 1 it is k-diffusion's `sample_euler_ancestral` and, down another ladder, DDPM (Ho et al. 2020, arXiv
    2006.11239, with the smaller of its variances); with any eta it is DDIM, see `ddim`.
    """

    def step(x, sigma, down, up, keys):
        return euler_step(denoise(x, sigma), x, sigma, down) + up * normal(keys, x.shape[1:])

    return walk(step, x, (ladder.rungs[0], *ancestral_sigmas(*ladder.rungs, eta)), keys)


def ddim(denoise: Denoiser, x: Array, ladder: Ladder, keys: Array, eta: float) -> Array:
    """DDIM (Song et al. 2020, arXiv 2010.02502, eq. 12), which with eta 0 is Euler's method.

    Where diffusers' DDIM does not end a step at its next time ("linspace", and "trailing" where the steps do not divide
    the training times), ours follows the paper and does. Where latents are held within bounds, the noise in x stays
    what the network predicts, as in diffusers.
    """
    if denoise.bound is None:
        return ancestral(denoise, x, ladder, keys, eta)

    def step(x, sigma, down, up, keys):
        latents = denoise.denoised(denoise.predict(x, sigma), x, sigma)
        return denoise.bound(latents) + down * slope(latents, x, sigma) + up * normal(keys, x.shape[1:])

    return walk(step, x, (ladder.rungs[0], *ancestral_sigmas(*ladder.rungs, eta)), keys)


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


# Two evaluations a step: a look ahead, then the step from where it began. The scan goes over evaluations, so that it
# holds one network. The step to sigma 0 is Euler's, as in k-diffusion and diffusers: N steps take 2 N - 1 evaluations.


def heun(denoise: Denoiser, x: Array, ladder: Ladder, keys: Array) -> Array:
    """Heun's method: along the mean of the slopes at both ends (Karras et al. 2022, arXiv 2206.00364). Order 2."""
    sigma, after = ladder.rungs

    def update(stage, keys):
        latents = jnp.where(stage.is_second, (stage.first + stage.from_start) / 2, stage.denoised)
        return euler_step(latents, stage.x_start, stage.sigma, stage.sigma_next)

    return walk_twice(update, denoise, x, pairs((sigma, sigma, after), (after, sigma, after)), keys)


def dpm2(denoise: Denoiser, x: Array, ladder: Ladder, keys: Array, eta: float) -> Array:
    """DPM-Solver-2: along the slope at the midpoint in log sigma (Lu et al. 2022, arXiv 2206.00927, alg. 1). Order 2.

    k-diffusion's `sample_dpm_2` with eta 0 and `sample_dpm_2_ancestral` with eta 1, where the step goes below the next
    sigma and fresh noise fills up. On a Karras ladder too the network gets exact times, which diffusers rounds; an
    ancestral midpoint is the next rung and gets its time, which in "linspace" is up to 0.003 from diffusers'.
    """

    def update(stage, up, keys):
        latents = jnp.where(stage.is_second, stage.from_start, stage.denoised)
        return euler_step(latents, stage.x_start, stage.sigma, stage.sigma_next) + up * normal(keys, x.shape[1:])

    return walk_twice(update, denoise, x, midpoints(ladder, eta), keys)


def dpmpp_2s_ancestral(denoise: Denoiser, x: Array, ladder: Ladder, keys: Array) -> Array:
    """DPM-Solver++(2S) to below the next sigma, then fresh noise: k-diffusion's `sample_dpmpp_2s_ancestral`.

    Lu et al. 2022, arXiv 2211.01095, algorithm 1 with its midpoint in log sigma: towards the latents that the midpoint
    shows. diffusers has no such scheduler.
    """

    def update(stage, up, keys):
        moved = euler_step(stage.denoised, stage.x_start, stage.sigma, stage.sigma_next)
        return moved + up * normal(keys, x.shape[1:])

    return walk_twice(update, denoise, x, midpoints(ladder, 1.0), keys)


def dpmpp_2s(denoise: Denoiser, x: Array, ladder: Ladder, keys: Array) -> Array:
    """DPM-Solver++(2S) over pairs of rungs, so that N steps take N evaluations. Order 2.

    Lu et al. 2022, arXiv 2211.01095, algorithm 1, as diffusers' DPMSolverSinglestepScheduler has it: the step to sigma
    0 is of first order. The pairs are those of the complete ladder: down its lower part the first may stand alone.
    """
    sigma, after = ladder.rungs
    second = (ladder.above + np.arange(len(sigma))) % 2 == 1
    second &= (np.arange(len(sigma)) > 0) & (after > 0)
    begin = np.where(second, np.roll(sigma, 1), sigma)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = 0.5 * np.log(begin / after) / np.log(begin / sigma)  # half a step over the look ahead, in log sigma
    share = np.where(second, np.nan_to_num(ratio, nan=1.0, posinf=1.0), 1.0)

    def update(stage, share, keys):
        between = stage.first + share * (stage.denoised - stage.first)
        latents = jnp.where(stage.is_second, between, stage.denoised)
        return euler_step(latents, stage.x_start, stage.sigma, stage.sigma_next)

    return walk_twice(update, denoise, x, (second, sigma, begin, after, share), keys)


def dpmpp_sde(denoise: Denoiser, x: Array, ladder: Ladder, keys: Array) -> Array:
    """DPM-Solver++(SDE), whose look ahead is noisy as well: k-diffusion's `sample_dpmpp_sde`, diffusers' DPMSolverSDE.

    Lu et al. 2022, arXiv 2211.01095. The noise of a step and that of its look ahead are one Brownian path in sigma: the
    increment over the step is that over its first half and a fresh one over its second.
    """
    sigma, after = ladder.rungs
    middle, none = np.sqrt(sigma * after), np.zeros(len(sigma))
    fresh = np.sqrt((middle - after) / np.where(sigma > after, sigma - after, 1))

    def step(state, is_second, sigma_eval, sigma, down, up, fresh, keys):
        x, x_start, noise = state
        x_start = jnp.where(is_second, x_start, x)
        noise = jnp.sqrt(1 - fresh**2) * noise + fresh * normal(keys, x.shape[1:])
        return euler_step(denoise(x, sigma_eval), x_start, sigma, down) + up * noise, x_start, noise

    first = (sigma, sigma, *ancestral_sigmas(sigma, middle, 1.0), none + 1)
    second = (middle, sigma, *ancestral_sigmas(sigma, after, 1.0), fresh)
    return walk(step, (x, x, x), pairs(first, second), keys)[0]


class Stage(NamedTuple):
    """One of the two evaluations of a step: the look ahead, or the second, which decides where the step goes."""

    x_start: Array  # where the step begins
    first: Array  # the denoised latents of the evaluation before
    denoised: Array
    is_second: Array
    sigma_eval: Array  # where the network is evaluated
    sigma: Array  # from which
    sigma_next: Array  # and to which x goes

    @property
    def from_start(self) -> Array:
        """The latents that the slope after the look ahead points to from where the step began.

        The look ahead went from x at `sigma` towards the latents `first` down to `sigma_eval`, where the slope is
        (x' - denoised) / sigma_eval = (x - these) / sigma. Neither x is in it: where sigma is in the thousands their
        difference would have no digits left in float32.
        """
        return self.first + self.sigma / self.sigma_eval * (self.denoised - self.first)


def walk_twice(update: Callable, denoise: Denoiser, x: Array, rungs: tuple[np.ndarray, ...], keys: Array) -> Array:
    """Returns x after rungs (is_second, sigma_eval, sigma, sigma_next, …); update(stage, …, keys) is x at the last."""

    def step(state, is_second, sigma_eval, sigma, sigma_next, *rest):
        x, x_start, first = state
        denoised = denoise(x, sigma_eval)
        x_start = jnp.where(is_second, x_start, x)
        stage = Stage(x_start, first, denoised, is_second, sigma_eval, sigma, sigma_next)
        return update(stage, *rest), x_start, denoised

    return walk(step, (x, x, x), rungs, keys)[0]


def pairs(first: tuple[np.ndarray, ...], second: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """Returns is_second, then the columns (sigma_eval, sigma, sigma_next, …) of rungs: first, second, first, second, …

    A step to sigma 0 has no second: its look ahead is there already.
    """
    taken = np.stack([np.ones(len(first[0]), bool), second[0] > 0], 1)
    is_second = np.tile([False, True], (len(taken), 1))
    return (is_second[taken], *(np.stack(pair, 1)[taken] for pair in zip(first, second, strict=True)))


def midpoints(ladder: Ladder, eta: float) -> tuple[np.ndarray, ...]:
    """Returns the rungs (…, fresh noise) of steps that look ahead to the midpoint in log sigma."""
    sigma, (down, up) = ladder.rungs[0], ancestral_sigmas(*ladder.rungs, eta)
    middle = np.sqrt(sigma * down)
    return pairs((sigma, sigma, middle, np.zeros(len(sigma))), (middle, sigma, down, up))


# One evaluation a step, and the memory of the last few: a step goes along a weighted mean of the newest and the older
# slopes, or towards one of denoised latents. The weights [steps, remembered + 1], newest first, depend on the ladder.


def plms(denoise: Denoiser, x: Array, ladder: Ladder, keys: Array) -> Array:
    """Pseudo linear multistep: Euler's step along an Adams-Bashforth mean of the last four predictions.

    Liu et al. 2022, arXiv 2202.09778, as diffusers' PNDMScheduler with skip_prk_steps has it (the first step of latent
    diffusion's own code differs): the first step is made twice, the second time along the mean of the predictions at
    its two ends, so N steps take N + 1 evaluations. What is averaged is what the network predicts, the noise or v. Down
    the lower part of a ladder ours starts the same way; diffusers' makes another step twice there and leaves one out.
    """
    sigma, sigma_next = ladder.rungs
    at = np.concatenate([sigma[:1], sigma_next[:1], sigma[1:]])
    begin, end = np.insert(sigma, 0, sigma[0]), np.insert(sigma_next, 0, sigma_next[0])
    again = np.arange(len(at)) == 1  # the step before is made once more

    def step(state, at, begin, end, weights, again, keys):
        x, origin, past = state
        known = remembered(denoise.predict(x, at), past)
        origin = jnp.where(again, origin, x)
        x = euler_step(denoise.denoised(mean(weights, known), origin, begin), origin, begin, end)
        return x, origin, jnp.where(again, past, known[:-1])

    weights = ADAMS_BASHFORTH[np.minimum(np.arange(len(at)), len(ADAMS_BASHFORTH) - 1)]
    return walk(step, (x, x, blank(x, 3)), (at, begin, end, weights, again), keys)[0]


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
    of fewer than 15 steps Euler's. So is one to sigma 0, which has no logarithm: a list of sigmas may end there.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = interpolating(ladder.sigmas, 2, np.log, np.exp)
    if ladder.requested < 15 or ladder.sigmas[-1] == 0:
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
        return euler_step(denoised, x, sigma, sigma_next) + (sigma_next - sigma) * mean(more, known), known[:-1]

    return walk(step, (x, blank(x, weights.shape[1] - 1)), (*ladder.rungs, more), keys)[0]


def dpmpp_2m(denoise: Denoiser, x: Array, ladder: Ladder, keys: Array, eta: float) -> Array:
    """DPM-Solver++(2M): towards the latents extrapolated from the last two (Lu et al. 2022, arXiv 2211.01095, alg. 2).

    Order 2. eta 0 is the ODE; eta 1 the SDE in its midpoint form, DPM++ 2M SDE, which walks to below the next sigma and
    adds fresh noise. The step to sigma 0 is of first order, as in diffusers and k-diffusion; so is, as in diffusers
    only, the last of fewer than 15 to any other sigma.
    """
    ahead = extrapolating(ladder.sigmas, to_the_end=ladder.requested >= 15)

    def step(state, sigma, down, up, weights, keys):
        x, past = state
        known = remembered(denoise(x, sigma), past)
        x = euler_step(mean(weights, known), x, sigma, down)
        return x + up * normal(keys, x.shape[1:]), known[:-1]

    rungs = (ladder.rungs[0], *ancestral_sigmas(*ladder.rungs, eta), ahead)
    return walk(step, (x, blank(x, 1)), rungs, keys)[0]


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
        origin = euler_step(mean(last, known), origin, before, sigma)
        x = euler_step(mean(following, known[:2]), origin, sigma, sigma_next)
        return x, origin, known[:-1]

    ahead = extrapolating(ladder.sigmas, to_the_end=False)
    rungs = (before, sigma, sigma_next, correcting(ladder.sigmas), ahead)
    return walk(step, (x, x, blank(x, 2)), rungs, keys)[0]


def remembered(now: Array, past: Array) -> Array:
    """Returns what is known, the newest first, [k + 1, B, h, w, C], from now [B, h, w, C] and past [k, B, h, w, C]."""
    return jnp.concatenate([now[None], past])


def blank(x: Array, count: int) -> Array:
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


@dataclass(frozen=True)
class Sampler:
    """A row of the table.

    name is A1111's; aliases are the names of diffusers (its class) and k-diffusion. order: of the formula, without its
    noise. evaluations: of the network in N steps, (a, b) for a N + b. bounds: the options of a scheduler file that hold
    denoised latents within bounds and that diffusers' class knows. spacing: what the name adds, "" for nothing.
    """

    name: str
    sample: Callable[[Denoiser, Array, Ladder, Array], Array]
    layout: Layout
    order: int
    evaluations: tuple[int, int]
    noisy: bool
    paper: str
    aliases: tuple[str, ...]
    bounds: tuple[str, ...] = ()
    spacing: str = ""

    def check(self, spacing: str) -> None:
        """Raises UserError for a spacing that this sampler cannot walk, or beside the one that its name asks for."""
        if self.spacing and spacing not in ("", self.spacing):
            raise UserError(f"spacing {spacing!r}: {self.name} names its own; leave out one of the two")
        ladders.check(self.layout, spacing)

    def ladder(self, scheduler: dict, steps: int, spacing: str) -> Ladder:
        """Returns the ladder of this sampler for a model's scheduler; "" is the spacing of its name or of the model.

        Steps out of range and a spacing that it cannot walk are a UserError.
        """
        self.check(spacing)
        return ladders.ladder(self.layout, scheduler, steps, spacing or self.spacing)

    def bounded(self, denoise: Denoiser, scheduler: dict) -> Denoiser:
        """Returns the denoiser with its latents held as a model's scheduler asks, where this sampler knows how."""
        return replace(denoise, bound=bound(scheduler, self.bounds))

    def unheeded(self, scheduler: dict) -> list[str]:
        """Returns what to say of a scheduler file's bounds that this sampler does not know."""
        return [
            f"warning: the model's scheduler_config.json asks for {option}, which {self.name} does not know; it is "
            "left out, as in diffusers"
            for option in BOUNDS
            if scheduler.get(option) and option not in self.bounds
        ]

    def count(self, steps: int) -> int:
        """Returns how often the network is evaluated in a number of steps."""
        each, more = self.evaluations
        return each * steps + more


def get_sampler(name: str) -> Sampler:
    """Returns the sampler of a name or alias, written in any case.

    After it "eta 0.4" sets the share of fresh noise, and "Karras" or "Exponential" the ladder. An unknown name is a
    UserError with the nearest ones.
    """
    plain, eta, bend = WRITTEN.fullmatch(_key(name)).groups()
    known = {_key(each): sampler for sampler in SAMPLERS.values() for each in (sampler.name, *sampler.aliases)}
    if plain not in known:
        near = [known[key].name for key in difflib.get_close_matches(plain, known, n=5, cutoff=0.5)] or list(SAMPLERS)
        raise UserError(f"sampler {name!r} is not known; did you mean one of: {', '.join(dict.fromkeys(near))}?")
    sampler = known[plain]
    if eta:
        sampler = _with_eta(sampler, float(eta), name)
    if not bend:
        return sampler
    if not sampler.layout.bends:
        raise UserError(f"sampler {name!r}: {sampler.name} walks whole training times and has no {bend} ladder")
    return replace(sampler, name=f"{sampler.name} {bend.capitalize()}", spacing=bend)


def _with_eta(sampler: Sampler, eta: float, name: str) -> Sampler:
    """Returns a sampler with another share of fresh noise."""
    formula = getattr(sampler.sample, "func", None)
    if formula not in WITH_ETA:
        others = ", ".join(s.name for s in SAMPLERS.values() if getattr(s.sample, "func", None) in WITH_ETA)
        raise UserError(f"sampler {name!r}: {sampler.name} has no eta; {others} have")
    if not 0 <= eta <= 1:
        raise UserError(f"sampler {name!r}: give an eta from 0, no fresh noise, to 1")
    return replace(sampler, name=f"{sampler.name} eta {eta:g}", sample=partial(formula, eta=eta), noisy=eta > 0)


def _key(name: str) -> str:
    """Returns a name without what people write in different ways: case, blanks, "Scheduler", ++ for pp.

    A sign before a number for eta stays.
    """
    return re.sub(r"[_()]|(?<!eta)-|scheduler", "", re.sub(r"\s", "", name.lower())).replace("++", "pp")


WRITTEN = re.compile(rf"(.*?)(?:eta(-?\d*\.?\d+))?({'|'.join(BENDS)})?")  # what `_key` returns, in parts
WITH_ETA = (ancestral, ddim, dpm2)  # the formulas in which eta means what it means in diffusers and k-diffusion

IN_SIGMA = Layout(spacing="linspace")  # k-diffusion's: written in sigma, at any time
ENDING = replace(IN_SIGMA, ending="final_sigmas_type")
SOLVER = replace(ENDING, whole=True, spare=True)  # those of DPM-Solver's authors
WHOLE = Layout(spacing="leading", whole=True, bends=False, endless=True)  # written in alpha_bar
DISTILLED = replace(WHOLE, spacing="distilled", fixed=True)

BOUNDS = ("thresholding", "clip_sample")
THRESHOLD, CLIP = BOUNDS[:1], BOUNDS[1:]
N, TWO_N, N_AND_ONE = (1, 0), (2, -1), (1, 1)  # evaluations
DDPM, DDIM = "Ho et al. 2020, arXiv 2006.11239", "Song et al. 2020, arXiv 2010.02502"
EDM, LMS = "Karras et al. 2022, arXiv 2206.00364", "Adams and Bashforth 1883, in k-diffusion's form"
DPM, DPMPP = "Lu et al. 2022, arXiv 2206.00927", "Lu et al. 2022, arXiv 2211.01095"
PNDM, DEIS = "Liu et al. 2022, arXiv 2202.09778", "Zhang and Chen 2022, arXiv 2204.13902"
UNIPC, LCM = "Zhao et al. 2023, arXiv 2302.04867", "Luo et al. 2023, arXiv 2310.04378"

# name, formula, layout, order, evaluations, noisy, paper, aliases
# fmt: off
SAMPLERS = {each.name: each for each in (
    Sampler("Euler", euler, ENDING, 1, N, False, EDM,
            ("EulerDiscreteScheduler", "k_euler")),
    Sampler("Euler a", partial(ancestral, eta=1.0), IN_SIGMA, 1, N, True, f"{DDPM}, in k-diffusion's form",
            ("EulerAncestralDiscreteScheduler", "euler_ancestral", "k_euler_a")),
    Sampler("Heun", heun, IN_SIGMA, 2, TWO_N, False, EDM,
            ("HeunDiscreteScheduler", "k_heun"), CLIP),
    Sampler("LMS", lms, IN_SIGMA, 4, N, False, LMS,
            ("LMSDiscreteScheduler", "k_lms")),
    Sampler("PLMS", plms, replace(WHOLE, to_zero=False, ending="set_alpha_to_one"), 4, N_AND_ONE, False, PNDM,
            ("PNDMScheduler",)),
    Sampler("DDIM", partial(ddim, eta=0.0), replace(WHOLE, ending="set_alpha_to_one"), 1, N, False, DDIM,
            ("DDIMScheduler",), BOUNDS),
    Sampler("DDPM", partial(ancestral, eta=1.0), WHOLE, 1, N, True, DDPM,
            ("DDPMScheduler",), BOUNDS),
    Sampler("DPM2", partial(dpm2, eta=0.0), IN_SIGMA, 2, TWO_N, False, DPM,
            ("KDPM2DiscreteScheduler", "dpm_2", "k_dpm_2")),
    Sampler("DPM2 a", partial(dpm2, eta=1.0), IN_SIGMA, 2, TWO_N, True, f"{DPM}, in k-diffusion's form",
            ("KDPM2AncestralDiscreteScheduler", "dpm_2_ancestral", "k_dpm_2_a")),
    Sampler("DPM++ 2S", dpmpp_2s, replace(SOLVER, fixed=True), 2, N, False, DPMPP,
            ("DPMSolverSinglestepScheduler",), THRESHOLD),
    Sampler("DPM++ 2S a", dpmpp_2s_ancestral, IN_SIGMA, 2, TWO_N, True, f"{DPMPP}, in k-diffusion's form",
            ("dpmpp_2s_ancestral", "k_dpmpp_2s_a")),
    Sampler("DPM++ 2M", partial(dpmpp_2m, eta=0.0), SOLVER, 2, N, False, DPMPP,
            ("DPMSolverMultistepScheduler", "k_dpmpp_2m"), THRESHOLD),
    Sampler("DPM++ 2M SDE", partial(dpmpp_2m, eta=1.0), SOLVER, 2, N, True, DPMPP,
            ("k_dpmpp_2m_sde",), THRESHOLD),
    Sampler("DPM++ SDE", dpmpp_sde, IN_SIGMA, 2, TWO_N, True, f"{DPMPP}, in k-diffusion's form",
            ("DPMSolverSDEScheduler", "k_dpmpp_sde")),
    Sampler("UniPC", unipc, SOLVER, 3, N, False, UNIPC,
            ("UniPCMultistepScheduler", "uni_pc"), THRESHOLD),
    Sampler("DEIS", deis, replace(SOLVER, to_zero=False, ending=""), 2, N, False, DEIS,
            ("DEISMultistepScheduler",), THRESHOLD),
    Sampler("LCM", lcm, DISTILLED, 1, N, True, LCM,
            ("LCMScheduler",), BOUNDS),
)}
# fmt: on


def show() -> None:
    """Prints the table of samplers (`dermjax samplers`)."""
    header = ("sampler", "order", "evaluations", "noise", "also called", "paper")
    rows = [
        (s.name, str(s.order), _formula(*s.evaluations), "yes" if s.noisy else "no", ", ".join(s.aliases), s.paper)
        for s in SAMPLERS.values()
    ]
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print("\nN is the number of steps. Add Karras or Exponential to a name for that ladder, as in DPM++ 2M Karras;")
    print(f"{', '.join(s.name for s in SAMPLERS.values() if not s.layout.bends)} have none. Add eta and a number from")
    print("0 to 1 to DDIM, and to a sampler with an a, for that share of fresh noise, as in DDIM eta 0.4.")


def _formula(each: int, more: int) -> str:
    return f"{each if each > 1 else ''}N{f' {more:+d}'.replace('+', '+ ').replace('-', '- ') if more else ''}"
