"""The denoising loss against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax.diffusion import objective, schedule
from dermjax.diffusion.objective import Objective

ALPHA_BAR = np.linspace(0.99, 0.01, 100)
KEYS = jax.random.split(jax.random.key(0), 4)


def loss(predict, *, prediction="epsilon", t=(0, 30, 60, 99), weight=(1.0, 1.0, 1.0, 1.0), **options):
    noise = schedule.normal(KEYS, (4, 4, 2))
    latents = schedule.normal(jax.random.split(jax.random.key(1), 4), (4, 4, 2))
    options = {"snr_gamma": 0.0, "huber": 0.0} | options
    denoising = Objective(prediction, ALPHA_BAR, **options)
    return float(denoising.loss(predict, latents, noise, jnp.array(t), jnp.array(weight)))


def test_a_perfect_prediction_costs_nothing_and_zero_costs_the_noise():
    noise = schedule.normal(KEYS, (4, 4, 2))
    assert loss(lambda x, t: noise) == 0
    assert loss(lambda x, t: jnp.zeros_like(x)) == pytest.approx(float(jnp.square(noise).mean()), rel=1e-6)


def test_weights_are_factors():
    halves = [
        loss(lambda x, t: jnp.zeros_like(x), weight=weight) for weight in ((2.0, 2.0, 0.0, 0.0), (0.0, 0.0, 2.0, 2.0))
    ]
    assert np.mean(halves) == pytest.approx(loss(lambda x, t: jnp.zeros_like(x)), rel=1e-6)


@pytest.mark.parametrize(("prediction", "extra"), [("epsilon", 0.0), ("v_prediction", 1.0)])
def test_min_snr_is_the_papers(prediction, extra):
    snr = ALPHA_BAR / (1 - ALPHA_BAR)
    expected = np.minimum(snr, 5.0) / (snr + extra)
    np.testing.assert_allclose(objective.min_snr(ALPHA_BAR, prediction, 5.0), expected, rtol=1e-12)
    assert (objective.min_snr(ALPHA_BAR, prediction, 0.0) == 1).all()


def test_min_snr_makes_the_error_of_the_latents_weigh_the_same_for_every_prediction():
    """A network that is wrong by the same in terms of latents costs the same, whatever it predicts."""
    alpha = ALPHA_BAR[40]
    of_latents = 0.1
    of_epsilon = of_latents * np.sqrt(alpha / (1 - alpha))
    of_v = of_latents / np.sqrt(1 - alpha)
    costs = [
        objective.min_snr(ALPHA_BAR, kind, 5.0)[40] * error**2
        for kind, error in (("sample", of_latents), ("epsilon", of_epsilon), ("v_prediction", of_v))
    ]
    assert costs == pytest.approx([costs[0]] * 3, rel=1e-9)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_min_snr_is_finite_where_no_signal_is_left(prediction):
    scheduler = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    scheduler |= {"num_train_timesteps": 1000, "rescale_betas_zero_snr": True}
    weights = objective.min_snr(schedule.alphas_cumprod(scheduler), prediction, 5.0)
    assert np.isfinite(weights).all() and (weights >= 0).all() and weights.max() <= 5


def test_huber_is_the_square_for_small_errors_and_a_line_for_large_ones():
    small, large = jnp.array(1e-3), jnp.array(1e3)
    assert float(objective.distance(small, 0.5)) == pytest.approx(1e-6, rel=1e-3)
    assert float(objective.distance(large, 0.5)) == pytest.approx(2 * 0.5 * (1e3 - 0.5), rel=1e-3)
    assert float(objective.distance(large, 0.0)) == 1e6


def test_offset_noise_shifts_every_channel_of_an_image_as_a_whole():
    noise = jnp.zeros((1024, 2, 2, 4))
    shifted = objective.offset(jax.random.split(jax.random.key(2), 1024), noise, 0.1)
    assert (shifted == shifted[:, :1, :1]).all()
    assert float(shifted.std()) == pytest.approx(0.1, rel=0.05)
    assert (objective.offset(KEYS, noise[:4], 0.0) == 0).all()


def test_times_are_uniform_without_bias_and_high_with_it():
    keys = jax.random.split(jax.random.key(3), 4096)
    for bias, mean in ((1.0, 1 / 2), (2.0, 2 / 3)):
        t = np.asarray(objective.times(keys, 1000, bias))
        assert t.min() >= 0 and t.max() <= 999
        assert t.mean() / 1000 == pytest.approx(mean, abs=0.02)


def test_a_key_follows_the_place_in_the_batch():
    key = jax.random.key(4)
    whole = objective.example_keys(key, jnp.arange(8))
    assert (objective.example_keys(key, jnp.arange(4, 8)) == whole[4:]).all()
