"""The walk down a ladder, written once: one `lax.scan`, so the network is compiled once however many steps there are.

A sampler knows a model only as `denoised = denoise(x, sigma)` and works on x = latents + sigma noise, where the
probability-flow ODE reads dx/dsigma = (x - denoised) / sigma (Karras et al. 2022, arXiv 2206.00364, eq. 1 and 3).
What a step knows beforehand, its sigmas and its coefficients, is a table made on the host in float64, a rung a row.

Step s of image i draws its noise from fold_in(key_i, s): an image does not depend on the batch it is made in.

B batch, h w latent, C channels.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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


def toward(latents: Array, x: Array, sigma: Array, sigma_next: Array) -> Array:
    """Returns where the straight way from x at sigma to the latents at 0 is at sigma_next: Euler's step.

    It is x + (sigma_next - sigma) slope, written so that float32 loses nothing where sigma is in the thousands.
    """
    left = sigma_next / sigma
    return left * x + (1 - left) * latents


def normal(keys: Array, shape: tuple[int, ...]) -> Array:
    """Returns standard normal noise [B, *shape], one key [B] an image."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def renewed(sigma: np.ndarray, sigma_next: np.ndarray, eta: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sigma to walk down to and the one of fresh noise that together make sigma_next.

    eta 1 is the posterior of DDPM (Ho et al. 2020, arXiv 2006.11239, eq. 7), 0 no fresh noise (Song et al. 2020, arXiv
    2010.02502, eq. 16).
    """
    up = eta * sigma_next * np.sqrt(1 - (sigma_next / sigma) ** 2)
    return np.sqrt(sigma_next**2 - up**2), up
