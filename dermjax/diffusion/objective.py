"""The denoising loss that pretraining and DreamBooth share.

Place in the flow: latents and a prediction function -> one number; `schedule` gives x_t and its target.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from dermjax.diffusion import schedule

Array = jax.Array
Predict = Callable[[Array, Array], Array]  # x_t [B, h, w, Z], t [B] -> prediction [B, h, w, Z]


def example_keys(key: Array, index: Array) -> Array:
    """Returns one key an example, by its index int32 [B] in the step's batch: the same however the batch is divided."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def times(keys: Array, steps: int, bias: float) -> Array:
    """Returns one timestep in [0, steps) an example, int32, with density growing as t^(bias - 1).

    bias 1 is uniform (Ho et al. 2020). Above 1 the high noise, where number and place are decided, comes more often.
    """
    uniform = jax.vmap(jax.random.uniform)(keys)
    return jnp.minimum(jnp.floor(steps * uniform ** (1.0 / bias)), steps - 1).astype(jnp.int32)


def offset(keys: Array, noise: Array, strength: float) -> Array:
    """Returns the noise [B, h, w, Z] shifted by strength times one normal number a channel and image.

    So the network learns to change mean brightness, which noise without a mean hardly hides (Guttenberg 2023,
    "Diffusion with offset noise").
    """
    shift = jax.vmap(lambda key: jax.random.normal(key, noise.shape[-1:]))(keys)
    return noise + strength * shift[:, None, None, :]


def min_snr(alpha_bar: np.ndarray, prediction: str, gamma: float) -> np.ndarray:
    """Returns the weight of each training time, float64 [T]: min(SNR, gamma) in terms of the latents' error.

    Hang et al. 2023, arXiv 2303.09556: divided by SNR for epsilon and by SNR + 1 for v. gamma 0 weighs all times
    alike. With v it gives high noise, where number and place are decided, little weight: 0.04 at t = 800 of 1000.
    """
    if not gamma:
        return np.ones_like(alpha_bar)
    snr = alpha_bar / (1.0 - alpha_bar)
    return np.minimum(snr, gamma) / {"epsilon": snr, "v_prediction": snr + 1.0, "sample": np.ones_like(snr)}[prediction]


def distance(error: Array, huber: float) -> Array:
    """Returns the square of the error or, with huber = c > 0, 2 c (sqrt(error^2 + c^2) - c), which outliers pull less.

    The pseudo-Huber loss (Khrapov et al. 2024, arXiv 2403.16728), scaled so that small errors count as their square.
    """
    square = jnp.square(error)
    # the difference of the docstring as a quotient, which keeps its digits where the error is small
    return 2 * huber * square / (jnp.sqrt(square + huber**2) + huber) if huber else square


@dataclass(frozen=True)
class Objective:
    """The denoising loss of a network with diffusers' prediction_type `prediction` under a schedule alpha_bar [T].

    snr_gamma: see `min_snr`; huber: see `distance`; 0 is off.
    """

    prediction: str
    alpha_bar: np.ndarray
    snr_gamma: float
    huber: float

    def loss(self, predict: Predict, latents: Array, noise: Array, t: Array, weight: Array) -> Array:
        """Returns the batch's mean of weight times the distance of `predict(x_t, t)` to its target, float32 scalar.

        latents, noise: [B, h, w, Z]; t: int32 [B]; weight: float32 [B]. Instance images and class images differ in
        weight only, so prior preservation (DreamBooth, arXiv 2208.12242, eq. 2) is no second branch; and as a batch is
        not divided by its weights, it may be taken in micro-batches.
        """
        x = schedule.add_noise(self.alpha_bar, latents, noise, t)
        target = schedule.target(self.prediction, self.alpha_bar, latents, noise, t)
        error = distance(predict(x, t) - target, self.huber).mean((1, 2, 3))
        by_time = jnp.asarray(min_snr(self.alpha_bar, self.prediction, self.snr_gamma), jnp.float32)
        return (by_time[t] * weight * error).mean()
