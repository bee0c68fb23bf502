"""Noise schedules and what training makes of them.

A schedule is the table alpha_bar [T] (`alphas_cumprod` in diffusers): at time t the network sees

    x_t = sqrt(alpha_bar_t) latents + sqrt(1 - alpha_bar_t) noise                     (Ho et al. 2020, eq. 4)

Samplers work on x = x_t / sqrt(alpha_bar_t) = latents + sigma noise, where sigma = sqrt((1 - alpha_bar) / alpha_bar)
(Song et al. 2021, Karras et al. 2022): there the schedule is nothing but a list of sigmas, and `ladders` picks some.

Tables are made on the host in float64 and meet the device as float32: half-precision sigmas turn images black.
A `scheduler` is the dictionary of a diffusers scheduler_config.json.

B batch, T training times, h w latent, C channels.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dermjax.errors import UserError

FAINTEST = 2.0**-24  # alpha_bar where all signal is gone, as diffusers has it: sigma is 4096 rather than infinite


def alphas_cumprod(scheduler: dict) -> np.ndarray:
    """Returns alpha_bar, the share of signal variance left at each time: float64 [T], decreasing, within (0, 1).

    `rescale_betas_zero_snr` shifts it so that the last time is pure noise (Lin et al. 2023, arXiv 2305.08891,
    algorithm 1). An unknown schedule is a UserError.
    """
    alpha_bar = np.cumprod(1.0 - betas(scheduler))
    if not scheduler.get("rescale_betas_zero_snr", False):
        return alpha_bar
    signal = np.sqrt(alpha_bar)
    shifted = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    return np.maximum(shifted**2, FAINTEST)


def betas(scheduler: dict) -> np.ndarray:
    """Returns the share of variance that each training time turns to noise: float64 [T]."""
    if scheduler.get("trained_betas") is not None:
        return np.asarray(scheduler["trained_betas"], np.float64)
    try:
        kind = scheduler["beta_schedule"]
        if kind not in BETAS:
            raise UserError(f"scheduler: beta_schedule {kind!r} is not one of {', '.join(BETAS)}")
        return BETAS[kind](scheduler)
    except KeyError as error:
        raise UserError(f"scheduler: {error} is missing; this model does not turn images to noise by betas") from error


def sigmas(scheduler: dict) -> np.ndarray:
    """Returns the noise in units of the signal at each time, sqrt((1 - alpha_bar) / alpha_bar): float64 [T], rising."""
    alpha_bar = alphas_cumprod(scheduler)
    return np.sqrt((1.0 - alpha_bar) / alpha_bar)


def normal(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns standard normal noise [B, *shape], float32, from one key [B] an image."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def add_noise(alpha_bar: np.ndarray, latents: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """Returns x_t, the latents [B, h, w, C] with as much of the noise as belongs to the times t int [B]."""
    signal, spread = _signal_and_spread(alpha_bar, t)
    return signal * latents + spread * noise


def target(kind: str, alpha_bar: np.ndarray, latents: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """Returns what the network learns to predict at x_t, [B, h, w, C].

    kind is diffusers' prediction_type: "epsilon" (the noise), "v_prediction" (Salimans and Ho 2022, appendix D) or
    "sample" (the latents); another is a UserError.
    """
    check_prediction(kind)
    signal, spread = _signal_and_spread(alpha_bar, t)
    return {"epsilon": noise, "v_prediction": signal * noise - spread * latents, "sample": latents}[kind]


def check_prediction(kind: str) -> None:
    """Raises UserError for a prediction_type that there is not."""
    if kind not in PREDICTIONS:
        raise UserError(f"scheduler: prediction_type {kind!r} is not one of {', '.join(PREDICTIONS)}")


def _signal_and_spread(alpha_bar: np.ndarray, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns sqrt(alpha_bar) and sqrt(1 - alpha_bar) at the times t, each float32 [B, 1, 1, 1]."""
    at = jnp.asarray(alpha_bar, jnp.float32)[t][:, None, None, None]
    return jnp.sqrt(at), jnp.sqrt(1.0 - at)


def _linear(scheduler: dict) -> np.ndarray:
    return np.linspace(scheduler["beta_start"], scheduler["beta_end"], scheduler["num_train_timesteps"])


def _scaled_linear(scheduler: dict) -> np.ndarray:
    first, last = scheduler["beta_start"] ** 0.5, scheduler["beta_end"] ** 0.5
    return np.linspace(first, last, scheduler["num_train_timesteps"]) ** 2


def _squared_cosine(scheduler: dict) -> np.ndarray:
    """Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 17, with their offset and their largest beta."""
    t = np.linspace(0, 1, scheduler["num_train_timesteps"] + 1)
    signal = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - signal[1:] / signal[:-1], 0.999)


PREDICTIONS = ("epsilon", "v_prediction", "sample")
BETAS = {"linear": _linear, "scaled_linear": _scaled_linear, "squaredcos_cap_v2": _squared_cosine}
