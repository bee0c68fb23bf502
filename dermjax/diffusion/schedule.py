"""Noise schedules, what training makes of them, and the ladders that samplers walk down.

A schedule is the table alpha_bar [T] (`alphas_cumprod` in diffusers): at time t the network sees

    x_t = sqrt(alpha_bar_t) latents + sqrt(1 - alpha_bar_t) noise                     (Ho et al. 2020, eq. 4)

Samplers work on x = x_t / sqrt(alpha_bar_t) = latents + sigma noise, where sigma = sqrt((1 - alpha_bar) / alpha_bar)
(Song et al. 2021, Karras et al. 2022): there the schedule is nothing but a decreasing list of sigmas, the ladder.

Tables are made on the host in float64 and meet the device as float32: half-precision sigmas turn images black.
A `scheduler` is the dictionary of a diffusers scheduler_config.json.

B batch, T training times, h w latent, C channels.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from dermjax.errors import UserError


def alphas_cumprod(scheduler: dict) -> np.ndarray:
    """Returns alpha_bar, the share of signal variance left at each time: float64 [T], decreasing, within (0, 1)."""
    kind, first, last = scheduler["beta_schedule"], scheduler["beta_start"], scheduler["beta_end"]
    if kind not in BETAS:
        raise UserError(f"scheduler: beta_schedule {kind!r} is not one of {', '.join(BETAS)}")
    return np.cumprod(1.0 - BETAS[kind](first, last, scheduler["num_train_timesteps"]))


def sigmas(scheduler: dict) -> np.ndarray:
    """Returns the noise in units of the signal at each time, sqrt((1 - alpha_bar) / alpha_bar): float64 [T], rising."""
    alpha_bar = alphas_cumprod(scheduler)
    return np.sqrt((1.0 - alpha_bar) / alpha_bar)


def add_noise(alpha_bar: np.ndarray, latents: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """Returns x_t, the latents [B, h, w, C] with as much of the noise as the times t int [B] ask for."""
    signal, spread = _signal_and_spread(alpha_bar, t)
    return signal * latents + spread * noise


def target(kind: str, alpha_bar: np.ndarray, latents: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """Returns what the network learns to predict at x_t, [B, h, w, C].

    kind is diffusers' prediction_type: "epsilon" (the noise), "v_prediction" (Salimans and Ho 2022, appendix D) or
    "sample" (the latents).
    """
    signal, spread = _signal_and_spread(alpha_bar, t)
    return {"epsilon": noise, "v_prediction": signal * noise - spread * latents, "sample": latents}[kind]


def _signal_and_spread(alpha_bar: np.ndarray, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns sqrt(alpha_bar) and sqrt(1 - alpha_bar) at the times t, each float32 [B, 1, 1, 1]."""
    at = jnp.asarray(alpha_bar, jnp.float32)[t][:, None, None, None]
    return jnp.sqrt(at), jnp.sqrt(1.0 - at)


@dataclass(frozen=True)
class Ladder:
    """The sigmas that a sampler walks down and the standard deviation of the noise it starts from.

    sigmas: float32 [steps + 1], decreasing; the network is asked at all of them but the last, where the image is.
    """

    sigmas: np.ndarray
    start: np.float32

    @property
    def rungs(self) -> tuple[np.ndarray, np.ndarray]:
        """The sigmas at the beginning and at the end of every step, each [steps]."""
        return self.sigmas[:-1], self.sigmas[1:]


def ladder(scheduler: dict, steps: int, spacing: str, end: float) -> Ladder:
    """Returns the ladder of `steps` rungs through the times of a spacing, down to sigma `end`.

    The spacings are those of Lin et al. 2023 (arXiv 2305.08891, table 2) as diffusers computes them. A ladder that
    starts below the last training time starts from noise at that time, whose signal share diffusers counts in.
    """
    table = sigmas(scheduler)
    last = len(table) - 1
    if not 1 <= steps <= len(table):
        raise UserError(f"steps {steps}: a sampler takes 1 to {len(table)} steps")
    if spacing not in SPACINGS:
        raise UserError(f"scheduler: timestep_spacing {spacing!r} is not one of {', '.join(SPACINGS)}")
    t = np.clip(SPACINGS[spacing](scheduler, steps), 0, last)  # "leading" with an offset passes the end at 1000 steps
    rungs = np.interp(t, np.arange(last + 1), table)
    start = np.sqrt(rungs[0] ** 2 + 1.0) if spacing == "leading" else rungs[0]
    return Ladder(np.append(rungs, end).astype(np.float32), np.float32(start))


def _linspace(scheduler: dict, steps: int) -> np.ndarray:
    return np.linspace(scheduler["num_train_timesteps"] - 1, 0, steps)


def _leading(scheduler: dict, steps: int) -> np.ndarray:
    stride = scheduler["num_train_timesteps"] // steps
    return np.arange(steps)[::-1] * stride + scheduler.get("steps_offset", 0)  # absent means 0, as in diffusers


BETAS = {
    "linear": np.linspace,
    "scaled_linear": lambda first, last, count: np.linspace(first**0.5, last**0.5, count) ** 2,
}
SPACINGS = {"leading": _leading, "linspace": _linspace}
