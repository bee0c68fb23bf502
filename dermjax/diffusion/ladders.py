"""Ladders: the decreasing sigmas that a sampler walks down, and the times that the network gets there.

A ladder goes through training times (leading, linspace, trailing: Lin et al. 2023, arXiv 2305.08891, table 2, as
diffusers computes them), or is bent between two sigmas (Karras et al. 2022, arXiv 2206.00364, eq. 5; exponential), or
is a list of sigmas that the user gives. Everything here is made on the host in float64.

T training times.
"""

import math
import re
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from dermjax.diffusion import schedule
from dermjax.errors import UserError


@dataclass(frozen=True)
class Ladder:
    """The sigmas that a sampler walks down and the standard deviation of the noise it starts from.

    sigmas: float64 [steps + 1], decreasing; the network is evaluated at all of them but the last, where the image is.
    times: float64 [steps], those of the sigmas.
    table: float64 [T], the schedule's sigmas, which give a time to what lies between the rungs.
    above: how many rungs of the complete ladder are above these and are not walked.
    """

    sigmas: np.ndarray
    times: np.ndarray
    start: np.float32
    table: np.ndarray
    above: int

    @property
    def requested(self) -> int:
        """The steps of the complete ladder, those above included: some methods depend on it, as in diffusers."""
        return self.above + len(self.times)

    @property
    def rungs(self) -> tuple[np.ndarray, np.ndarray]:
        """The sigmas at the beginning and at the end of every step, each [steps]."""
        return self.sigmas[:-1], self.sigmas[1:]

    def time(self, sigma: jax.Array) -> jax.Array:
        """Returns the time of sigma: that of a rung, to one ulp, or one between training times."""
        # straight lines in sigma, each 0.1 % of it long or less, to follow those in log sigma: `times_of`
        low, high = np.log(self.table[[0, -1]])
        fine = np.exp(np.linspace(low, high, 1 + int((high - low) / 1e-3)))
        sigmas = np.concatenate([self.sigmas[:-1], self.table, fine])
        between = np.concatenate([np.arange(len(self.table)), times_of(self.table, fine)])
        times = np.concatenate([self.times, between]).astype(np.float32)
        knots, first = np.unique(sigmas.astype(np.float32), return_index=True)  # a rung goes first where they meet
        return jnp.interp(sigma, knots, times[first])

    def below(self, strength: float) -> "Ladder":
        """Returns the lower int(steps * strength) rungs, that an image is taken through; strength is in (0, 1]."""
        above = len(self.times) - walked_steps(len(self.times), strength)
        return replace(self, sigmas=self.sigmas[above:], times=self.times[above:], above=self.above + above)


@dataclass(frozen=True)
class Layout:
    """How a method spaces its ladder; where the model's scheduler file has an option for it, that goes first.

    spacing: the method's; fixed: the file cannot name another (`timestep_spacing`).
    whole: the method is written in alpha_bar at whole training times and starts from noise of unit variance.
    spare: one rung more than steps is spaced and the lowest left out; Karras ladders reach both ends of the schedule.
    bends: whether Karras and exponential ladders are for this method.
    to_zero: the last step goes to sigma 0, not to the first training time (0.0292 for Stable Diffusion 1.x).
    ending: the key of the file that may say otherwise, "" for none.
    endless: where the schedule ends without signal, sigma is as good as infinite, not diffusers' 4096 for the others.
    """

    spacing: str
    fixed: bool = False
    whole: bool = False
    spare: bool = False
    bends: bool = True
    to_zero: bool = True
    ending: str = ""
    endless: bool = False


def ladder(layout: Layout, scheduler: dict, steps: int, spacing: str) -> Ladder:
    """Returns the ladder of `steps` rungs that a method walks for a model's scheduler.

    spacing is one of SPACINGS or of BENDS, or the sigmas themselves, "14.6 3.1 0.4 0", one more than steps; "" is the
    model's choice, then the method's. A number of steps or a spacing that cannot be is a UserError; so is an option of
    the scheduler file for ladders that are not known here.
    """
    check(layout, spacing)
    for option in FOREIGN:
        if scheduler.get(option):
            raise UserError(f"scheduler: {option} is not known here; set it to false and choose another spacing")
    ending = scheduler.get("final_sigmas_type", ENDINGS[0])
    if ending not in ENDINGS:
        raise UserError(f"scheduler: final_sigmas_type {ending!r} is not one of {', '.join(ENDINGS)}")
    table = schedule.sigmas(scheduler)
    if layout.endless and scheduler.get("rescale_betas_zero_snr", False):
        table[-1] = ENDLESS
    most = scheduler.get("original_inference_steps", DISTILLED) if layout.spacing == "distilled" else len(table)
    if not 1 <= steps <= most:
        raise UserError(f"steps {steps}: this sampler takes 1 to {most} steps")
    if given := parse_sigmas(spacing):
        if len(given) != steps + 1:
            raise UserError(f"steps {steps}: the spacing's {len(given)} sigmas make {len(given) - 1} steps; say so")
        return explicit(scheduler, given)
    bend = spacing if spacing in BENDS else ""
    if layout.bends and not spacing:
        bend = next((name for name in BENDS if scheduler.get(f"use_{name}_sigmas")), "")
    if spacing not in SPACINGS:
        spacing = layout.spacing if layout.fixed else scheduler.get("timestep_spacing", layout.spacing)
    if spacing not in SPACINGS:
        raise UserError(f"scheduler: timestep_spacing {spacing!r} is not one of {', '.join(SPACINGS)}")

    times = SPACINGS[spacing](scheduler, steps, steps + layout.spare)
    times = np.round(times) if layout.whole else times
    times = times - max(0, times[0] - len(table) + 1)  # "leading" with an offset passes the end at 1000 steps
    rungs = np.interp(times, np.arange(len(table)), table)
    if bend:
        ends = (table[-1], table[0]) if layout.spare else (rungs[0], rungs[-1])
        rungs = BENDS[bend](*ends, steps)
        times = times_of(table, rungs)
        times = ROUNDING[bend](times) if layout.whole else times

    ending = scheduler.get(layout.ending, layout.to_zero)
    end = 0.0 if ending in (True, "zero") else min(table[0], rungs[-1])
    # k-diffusion's samplers count the signal in when they start below the top
    start = np.sqrt(rungs[0] ** 2 + 1) if layout.whole or spacing == "leading" else rungs[0]
    return Ladder(np.append(rungs, end), times, np.float32(start), table, above=0)


def explicit(scheduler: dict, sigmas: list[float]) -> Ladder:
    """Returns the ladder of given sigmas, the last of which is where the image is; other than decreasing: UserError."""
    rungs = np.asarray(sigmas, np.float64)
    if len(rungs) < 2 or not np.isfinite(rungs).all() or rungs[-1] < 0 or (np.diff(rungs) >= 0).any():
        raise UserError(f"sigmas {', '.join(f'{s:g}' for s in rungs)}: give two or more, decreasing to 0 or more")
    table = schedule.sigmas(scheduler)
    return Ladder(rungs, times_of(table, rungs[:-1]), np.float32(rungs[0]), table, above=0)


def parse_sigmas(spacing: str) -> list[float]:
    """Returns the sigmas of a spacing that is a list of them, with blanks or commas between; [] for a name."""
    try:
        return [float(each) for each in re.split(r"[\s,]+", spacing.strip())]
    except ValueError:
        return []


def walked_steps(steps: int, strength: float) -> int:
    """Returns how many of the steps an image is taken through: int(steps * strength), as in diffusers.

    A strength outside (0, 1], and one that leaves no step, is a UserError.
    """
    if not 0 < strength <= 1:
        raise UserError(f"strength {strength:g}: give more than 0 and at most 1")
    if int(steps * strength) < 1:
        least = math.ceil(1e4 / steps) / 1e4
        raise UserError(f"strength {strength:g} of {steps} steps leaves none; give at least {least:g}")
    return int(steps * strength)


def times_of(table: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """Returns the times of sigmas, interpolated in log sigma as k-diffusion and diffusers do."""
    return np.interp(np.log(sigmas), np.log(table), np.arange(len(table)))


def check(layout: Layout, spacing: str) -> None:
    """Raises UserError for a spacing that there is not, or that this method cannot walk."""
    if spacing and spacing not in SPACINGS | BENDS and not parse_sigmas(spacing):
        raise UserError(f"spacing {spacing!r} is not one of {', '.join([*SPACINGS, *BENDS])}, nor a list of sigmas")
    other = spacing in SPACINGS and layout.fixed and spacing != layout.spacing
    if other or (spacing in BENDS and not layout.bends):
        raise UserError(f"spacing {spacing!r} is not for this sampler, which walks {layout.spacing}")


def _leading(scheduler: dict, steps: int, rungs: int) -> np.ndarray:
    stride = max(1, scheduler["num_train_timesteps"] // rungs)
    return np.arange(rungs)[::-1][:steps] * stride + scheduler.get("steps_offset", 0)  # absent means 0, as in diffusers


def _linspace(scheduler: dict, steps: int, rungs: int) -> np.ndarray:
    return np.linspace(0, scheduler["num_train_timesteps"] - 1, rungs)[::-1][:steps]


def _trailing(scheduler: dict, steps: int, rungs: int) -> np.ndarray:
    count = scheduler["num_train_timesteps"]
    return np.round(count - np.arange(steps) * (count / steps)) - 1


def _distilled(scheduler: dict, steps: int, rungs: int) -> np.ndarray:
    """Every so many of the times that a consistency model was distilled at (LCMScheduler of diffusers)."""
    distilled = scheduler.get("original_inference_steps", DISTILLED)
    times = np.arange(distilled, 0, -1) * (scheduler["num_train_timesteps"] // distilled) - 1
    return times[np.floor(np.linspace(0, distilled, steps, endpoint=False)).astype(int)]


RHO = 7.0  # of Karras et al.
ENDLESS = 2.0**24  # sigma without signal: what is left of it, 6e-8, is below float32
DISTILLED = 50  # DDIM steps that latent consistency models are distilled from (arXiv 2310.04378)
SPACINGS = {"leading": _leading, "linspace": _linspace, "trailing": _trailing, "distilled": _distilled}
BENDS = {
    "karras": lambda high, low, steps: np.linspace(high ** (1 / RHO), low ** (1 / RHO), steps) ** RHO,
    "exponential": lambda high, low, steps: np.exp(np.linspace(np.log(high), np.log(low), steps)),
}
ROUNDING = {"karras": np.round, "exponential": np.trunc}  # to whole times, as diffusers' DPM-Solver family does
ENDINGS = ("zero", "sigma_min")  # of final_sigmas_type
FOREIGN = ("use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas")  # ladders of diffusers that are not here
