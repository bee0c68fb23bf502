"""The denoiser gives back the latents from a perfect prediction, and guides in one pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax.diffusion import denoiser, samplers, schedule
from dermjax.diffusion.denoiser import Guidance
from dermjax.errors import UserError
from dermjax.models.stable_diffusion import SCHEDULER

LADDER = samplers.get_sampler("PLMS").ladder(SCHEDULER, 1000, "")


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("t", [0, 10, 500, 999])
def test_a_perfect_network_denoises(kind, t):
    """What training calls the target is what sampling makes latents of; x_t and t reach the network as in training."""
    rng = np.random.default_rng(t)
    latents, noise = (jnp.asarray(rng.normal(size=(2, 4, 4, 3)), jnp.float32) for _ in range(2))
    alpha_bar = schedule.alphas_cumprod(SCHEDULER)
    seen = {}

    def network(x, t, context):
        seen.update(x=x, t=t)
        return schedule.target(kind, alpha_bar, latents, noise, jnp.round(t).astype(jnp.int32)).astype(jnp.bfloat16)

    denoise = denoiser.denoiser(denoiser.plain(network, jnp.zeros((2, 1, 1))), kind, LADDER)
    sigma = jnp.float32(schedule.sigmas(SCHEDULER)[t])
    denoised = denoise(latents + sigma * noise, sigma)
    assert denoised.dtype == jnp.float32
    # the network answers in bfloat16, which the conversion scales by at most sigma
    np.testing.assert_allclose(denoised, latents, atol=0.02 * max(1, sigma))
    np.testing.assert_allclose(seen["x"], schedule.add_noise(alpha_bar, latents, noise, jnp.array([t, t])), atol=1e-4)
    assert seen["t"].tolist() == [t, t], "integer times arrive exactly"


def test_an_unknown_prediction_is_named():
    with pytest.raises(UserError, match="prediction_type 'flow' is not one of epsilon, v_prediction, sample"):
        denoiser.denoiser(lambda x, t: x, "flow", LADDER)


def linear(x, t, context):
    """A network in which the context counts: x scaled by t, plus the context's mean."""
    assert x.shape[0] == t.shape[0] == context.shape[0]
    return x * t[:, None, None, None] / 1000 + jnp.mean(context, (1, 2))[:, None, None, None]


@pytest.fixture
def given():
    rng = np.random.default_rng(0)
    return (jnp.asarray(rng.normal(size=s), jnp.float32) for s in [(3, 2, 2, 1), (3, 4, 5), (3, 4, 5)])


def counted(calls):
    def network(*inputs):
        calls.append(inputs[0].shape[0])
        return linear(*inputs)

    return network


def test_guidance_is_the_formula_in_one_pass(given):
    x, context, negative = given
    calls, guidance = [], Guidance(jnp.float32(7), None, None)
    steered = denoiser.guided(counted(calls), context, negative, guidance, LADDER)(x, jnp.float32(500))
    without, within = (linear(x, jnp.full(3, 500.0), words) for words in (negative, context))
    np.testing.assert_allclose(steered, without + 7 * (within - without), rtol=1e-5, atol=1e-5)
    assert calls == [6], "one pass of twice the batch"


def test_rescaled_guidance_has_the_spread_of_the_unguided(given):
    """Lin et al. 2023, eq. 15 and 16: the share mixes what is rescaled with what is not."""
    x, context, negative = given
    t, within = jnp.float32(500), linear(x, jnp.full(3, 500.0), context)
    plain, whole, part = (
        denoiser.guided(linear, context, 3 * negative, Guidance(jnp.float32(7), share, None), LADDER)(x, t)
        for share in (None, jnp.float32(1), jnp.float32(0.7))
    )
    np.testing.assert_allclose(whole.std((1, 2, 3)), within.std((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(part, 0.7 * whole + 0.3 * plain, rtol=1e-4, atol=1e-5)


def test_guidance_only_in_its_interval(given):
    """Outside an evaluation is a plain pass, and which it is is decided while the scan runs."""
    x, context, negative = given
    ran = []

    def network(x, t, context):
        jax.debug.callback(lambda t: ran.append(len(t)), t)
        return linear(x, t, context)

    sigmas = np.float32(schedule.sigmas(SCHEDULER))
    guidance = Guidance(jnp.float32(7), None, (sigmas[200], sigmas[600]))
    ask = denoiser.guided(network, context, negative, guidance, LADDER)
    made = jax.jit(lambda x: jax.lax.map(lambda t: ask(x, t), jnp.array([601.0, 600.0, 400.0, 200.0])))(x)
    jax.effects_barrier()
    assert ran == [3, 6, 6, 3]
    everywhere = denoiser.guided(linear, context, negative, Guidance(jnp.float32(7), None, None), LADDER)
    np.testing.assert_allclose(made[1], everywhere(x, jnp.float32(600)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(made[3], linear(x, jnp.full(3, 200.0), context), rtol=1e-5, atol=1e-5)


def test_an_interval_from_zero_holds_the_last_time(given):
    """Sigma is 0.03 at time 0."""
    x, context, negative = given
    for low, batch in ((0.0, 6), (schedule.sigmas(SCHEDULER)[0], 3)):
        ran = []

        def network(x, t, context, ran=ran):
            jax.debug.callback(lambda t: ran.append(len(t)), t)
            return linear(x, t, context)

        guidance = Guidance(jnp.float32(7), None, (jnp.float32(low), jnp.float32(5)))
        denoiser.guided(network, context, negative, guidance, LADDER)(x, jnp.float32(0))
        jax.effects_barrier()
        assert ran == [batch]


def test_no_guidance_costs_one_plain_pass(given):
    x, context, _ = given
    calls = []
    denoiser.denoiser(denoiser.plain(counted(calls), context), "epsilon", LADDER)(x, jnp.float32(1))
    assert calls == [3]


def test_what_is_kept_stays_with_every_prediction(given):
    """And the network sees it under its own noise, but for the first time."""
    x, _, _ = given
    mask = jnp.zeros((3, 2, 2, 1)).at[:, 0].set(1)
    seen = []
    free = denoiser.denoiser(lambda x, t: (seen.append(x), jnp.sin(x))[1], "epsilon", LADDER)
    kept = denoiser.keeping(free, 5 * x, 3 * x, mask, jnp.float32(4))
    sigma = jnp.float32(2)
    np.testing.assert_allclose(kept(x, sigma)[:, 1], 5 * x[:, 1])
    np.testing.assert_allclose(kept(x, sigma)[:, 0], free(x, sigma)[:, 0])
    kept(x, jnp.float32(4))
    for shown, noisy, rest in ((seen[0], sigma, 5 * x + sigma * 3 * x), (seen[-1], 4, x)):
        np.testing.assert_allclose(shown[:, 0], x[:, 0] / np.sqrt(1 + noisy**2), rtol=1e-5)
        np.testing.assert_allclose(shown[:, 1], rest[:, 1] / np.sqrt(1 + noisy**2), rtol=1e-5)


def test_more_channels_reach_the_network_as_they_are(given):
    x, _, _ = given
    seen = []
    ask = denoiser.beside(lambda x, t: (seen.append(x), x[..., :1])[1], 5 * x)
    denoiser.denoiser(ask, "epsilon", LADDER)(x, jnp.float32(1))
    np.testing.assert_allclose(seen[0][..., 0], x[..., 0] / np.sqrt(2), rtol=1e-6)
    np.testing.assert_allclose(seen[0][..., 1], 5 * x[..., 0])
