"""The schedule of Stable Diffusion and what training makes of it."""

import jax.numpy as jnp
import numpy as np
import pytest

from dermjax.diffusion import schedule
from dermjax.errors import UserError
from dermjax.models.stable_diffusion import SCHEDULER


def test_sigmas_of_stable_diffusion():
    """The two ends that everyone who has used Stable Diffusion knows."""
    sigmas = schedule.sigmas(SCHEDULER)
    assert sigmas.dtype == np.float64 and (np.diff(sigmas) > 0).all()
    np.testing.assert_allclose(sigmas[[0, -1]], [0.02916716, 14.6146412], rtol=1e-7)


def test_linear_betas():
    alpha_bar = schedule.alphas_cumprod(SCHEDULER | {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02})
    np.testing.assert_allclose(alpha_bar[[0, -1]], [0.9999, 4.0358e-5], rtol=1e-4)


def test_squared_cosine_betas():
    """Nichol and Dhariwal's: alpha_bar is their cosine until the largest beta cuts in."""
    alpha_bar = schedule.alphas_cumprod(SCHEDULER | {"beta_schedule": "squaredcos_cap_v2"})
    t = (np.arange(1, 1000) / 1000 + 0.008) / 1.008 * np.pi / 2
    np.testing.assert_allclose(alpha_bar[:999], np.cos(t) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2, rtol=1e-9)
    assert alpha_bar[999] > 0


def test_zero_terminal_snr():
    """The first time keeps its signal, the last has next to none, and those between are shifted alike."""
    plain, zero = (schedule.alphas_cumprod(SCHEDULER | {"rescale_betas_zero_snr": on}) for on in (False, True))
    np.testing.assert_allclose(zero[0], plain[0], rtol=1e-12)
    assert zero[-1] == 2.0**-24 and (np.diff(zero) < 0).all()
    share = (np.sqrt(plain[1:-1]) - np.sqrt(plain[-1])) / np.sqrt(zero[1:-1])
    np.testing.assert_allclose(share, share[0], rtol=1e-9)


def test_betas_of_the_file():
    betas = [0.1, 0.2, 0.3]
    alpha_bar = schedule.alphas_cumprod(SCHEDULER | {"trained_betas": betas})
    np.testing.assert_allclose(alpha_bar, np.cumprod(1 - np.array(betas)))


def test_unknown_schedule_is_named():
    with pytest.raises(UserError, match="beta_schedule 'cubic' is not one of linear, scaled_linear, squaredcos_cap_v2"):
        schedule.alphas_cumprod(SCHEDULER | {"beta_schedule": "cubic"})


def test_what_is_no_schedule_of_betas_is_named():
    """As a folder of a flow-matching model has it."""
    with pytest.raises(UserError, match="scheduler: 'beta_schedule' is missing; this model does not"):
        schedule.alphas_cumprod({"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000})
    with pytest.raises(UserError, match="prediction_type 'flow' is not one of epsilon, v_prediction, sample"):
        schedule.target("flow", np.array([0.5]), jnp.zeros((1, 1, 1, 1)), jnp.zeros((1, 1, 1, 1)), jnp.array([0]))


def test_noise_and_targets_are_one_rotation():
    """x_t and v are (latents, noise) turned by an angle; the three targets give back the same latents."""
    rng = np.random.default_rng(0)
    latents, noise = (jnp.asarray(rng.normal(size=(3, 4, 4, 2)), jnp.float32) for _ in range(2))
    t = jnp.array([0, 500, 999])
    alpha_bar = schedule.alphas_cumprod(SCHEDULER)
    x = schedule.add_noise(alpha_bar, latents, noise, t)
    v = schedule.target("v_prediction", alpha_bar, latents, noise, t)
    cos, sin = (np.sqrt(part)[np.asarray(t)][:, None, None, None] for part in (alpha_bar, 1 - alpha_bar))
    assert x.dtype == v.dtype == jnp.float32
    np.testing.assert_allclose(cos * x - sin * v, latents, atol=1e-5)
    np.testing.assert_allclose(sin * x + cos * v, noise, atol=1e-5)
    assert schedule.target("epsilon", alpha_bar, latents, noise, t) is noise
    assert schedule.target("sample", alpha_bar, latents, noise, t) is latents
