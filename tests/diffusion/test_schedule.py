"""The schedule of Stable Diffusion, what training makes of it, and the ladders."""

import jax.numpy as jnp
import numpy as np
import pytest

from dermjax.diffusion import schedule
from dermjax.errors import UserError

SD15 = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


def test_sigmas_of_stable_diffusion():
    """The two ends that everyone who has used Stable Diffusion knows."""
    sigmas = schedule.sigmas(SD15)
    assert sigmas.dtype == np.float64 and (np.diff(sigmas) > 0).all()
    np.testing.assert_allclose(sigmas[[0, -1]], [0.02916716, 14.6146412], rtol=1e-7)


def test_linear_betas():
    alpha_bar = schedule.alphas_cumprod(SD15 | {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02})
    np.testing.assert_allclose(alpha_bar[[0, -1]], [0.9999, 4.0358e-5], rtol=1e-4)


def test_unknown_schedule_is_named():
    with pytest.raises(UserError, match="beta_schedule 'cubic' is not one of linear, scaled_linear"):
        schedule.alphas_cumprod(SD15 | {"beta_schedule": "cubic"})


def test_noise_and_targets_are_one_rotation():
    """x_t and v are (latents, noise) turned by an angle; the three targets give back the same latents."""
    rng = np.random.default_rng(0)
    latents, noise = (jnp.asarray(rng.normal(size=(3, 4, 4, 2)), jnp.float32) for _ in range(2))
    t = jnp.array([0, 500, 999])
    alpha_bar = schedule.alphas_cumprod(SD15)
    x = schedule.add_noise(alpha_bar, latents, noise, t)
    v = schedule.target("v_prediction", alpha_bar, latents, noise, t)
    cos, sin = (np.sqrt(part)[np.asarray(t)][:, None, None, None] for part in (alpha_bar, 1 - alpha_bar))
    assert x.dtype == v.dtype == jnp.float32
    np.testing.assert_allclose(cos * x - sin * v, latents, atol=1e-5)
    np.testing.assert_allclose(sin * x + cos * v, noise, atol=1e-5)
    assert schedule.target("epsilon", alpha_bar, latents, noise, t) is noise
    assert schedule.target("sample", alpha_bar, latents, noise, t) is latents


@pytest.mark.parametrize("steps", [1, 2, 10, 20, 26, 50, 999, 1000])
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_ladders_go_down(spacing, steps):
    ladder = schedule.ladder(SD15, steps, spacing, 0.0)
    begin, end = ladder.rungs
    assert ladder.sigmas.dtype == np.float32 and ladder.start.dtype == np.float32
    assert len(begin) == len(end) == steps and ladder.sigmas[-1] == 0
    assert (np.diff(ladder.sigmas[:-1]) <= 0).all() and (begin > 0).all()


def test_spacings_of_diffusers():
    """20 steps of the two spacings, as diffusers prints them; leading counts the signal in the start."""
    table = schedule.sigmas(SD15)
    leading = schedule.ladder(SD15, 20, "leading", table[0])
    np.testing.assert_allclose(leading.sigmas[[0, 1, 19, 20]], table[[951, 901, 1, 0]], rtol=1e-6)
    np.testing.assert_allclose(leading.start, np.sqrt(table[951] ** 2 + 1), rtol=1e-6)
    linspace = schedule.ladder(SD15, 20, "linspace", 0.0)
    np.testing.assert_allclose(linspace.sigmas[:3], [14.6146, 10.7469, 8.0815], rtol=1e-5)
    np.testing.assert_allclose(linspace.start, table[-1], rtol=1e-6)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_steps_out_of_range(steps):
    with pytest.raises(UserError, match=f"steps {steps}: a sampler takes 1 to 1000"):
        schedule.ladder(SD15, steps, "leading", 0.0)


def test_unknown_spacing_is_named():
    with pytest.raises(UserError, match="timestep_spacing 'zigzag' is not one of leading, linspace"):
        schedule.ladder(SD15, 20, "zigzag", 0.0)
