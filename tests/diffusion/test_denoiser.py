"""The denoiser gives back the latents from a perfect prediction, and guides in one pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax.diffusion import denoiser, schedule

SD15 = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("t", [0, 10, 500, 999])
def test_a_perfect_network_denoises(kind, t):
    """What training calls the target is what sampling makes latents of; x_t and t reach the network as in training."""
    rng = np.random.default_rng(t)
    latents, noise = (jnp.asarray(rng.normal(size=(2, 4, 4, 3)), jnp.float32) for _ in range(2))
    alpha_bar = schedule.alphas_cumprod(SD15)
    seen = {}

    def network(x, t, context):
        seen.update(x=x, t=t)
        return schedule.target(kind, alpha_bar, latents, noise, jnp.round(t).astype(jnp.int32)).astype(jnp.bfloat16)

    denoise = denoiser.denoiser(network, SD15 | {"prediction_type": kind}, jnp.zeros((2, 1, 1)), None, jnp.float32(1))
    sigma = jnp.float32(schedule.sigmas(SD15)[t])
    denoised = denoise(latents + sigma * noise, sigma)
    assert denoised.dtype == jnp.float32
    # the network answers in bfloat16, which the conversion scales by at most sigma
    np.testing.assert_allclose(denoised, latents, atol=0.02 * max(1, sigma))
    np.testing.assert_allclose(seen["x"], schedule.add_noise(alpha_bar, latents, noise, jnp.array([t, t])), atol=1e-4)
    assert seen["t"].tolist() == [t, t], "integer times arrive exactly"


def linear(x, t, context):
    """A network in which the context counts: x scaled by t, plus the context's mean."""
    assert x.shape[0] == t.shape[0] == context.shape[0]
    return x * t[:, None, None, None] / 1000 + jnp.mean(context, (1, 2))[:, None, None, None]


def test_guidance_is_the_formula_in_one_pass():
    rng = np.random.default_rng(0)
    x, context, negative = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in [(3, 2, 2, 1), (3, 4, 5), (3, 4, 5)])
    t = jnp.full(3, 500.0)
    calls = []

    def network(*inputs):
        calls.append(inputs[0].shape[0])
        return linear(*inputs)

    guided = denoiser.guided(network, context, negative, jnp.float32(7))(x, t)
    without, within = linear(x, t, negative), linear(x, t, context)
    np.testing.assert_allclose(guided, without + 7 * (within - without), rtol=1e-5, atol=1e-5)
    assert calls == [6], "one pass of twice the batch"


def test_no_guidance_costs_one_plain_pass():
    calls = []

    def network(x, t, context):
        calls.append(x.shape[0])
        return x

    scheduler = SD15 | {"prediction_type": "epsilon"}
    denoiser.denoiser(network, scheduler, jnp.zeros((3, 4, 5)), None, jnp.float32(1))(jnp.ones((3, 2, 2, 1)), 1.0)
    assert calls == [3]


def test_sigmas_between_training_times_have_times_between():
    table = schedule.sigmas(SD15)
    seen = []

    def network(x, t, context):
        seen.append(float(t[0]))
        return x

    denoise = denoiser.denoiser(network, SD15 | {"prediction_type": "epsilon"}, jnp.zeros((1, 1, 1)), None, 1.0)
    with jax.disable_jit():
        denoise(jnp.ones((1, 2, 2, 1)), jnp.float32(0.25 * table[41] + 0.75 * table[42]))
    np.testing.assert_allclose(seen, [41.75], atol=1e-4)
