"""Samplers against closed forms: data that are a Gaussian, whose score and whose flow are known.

For data N(MEAN, SPREAD^2) the best denoiser is (SPREAD^2 x + sigma^2 MEAN) / (SPREAD^2 + sigma^2), and the flow carries
x - MEAN in proportion to sqrt(SPREAD^2 + sigma^2).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax.diffusion import denoiser, samplers
from dermjax.diffusion.schedule import Ladder
from dermjax.errors import UserError

MEAN, SPREAD = 0.7, 0.5
SD15 = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "prediction_type": "epsilon",
}


def best_noise(x, sigma):
    """The noise that the best denoiser finds in x."""
    return (x - (SPREAD**2 * x + sigma**2 * MEAN) / (SPREAD**2 + sigma**2)) / sigma


BEST = denoiser.Denoiser(best_noise, "epsilon")


def keys(count):
    return jax.vmap(jax.random.key)(jnp.arange(count))


def walked(name, ladder, x, keys):
    return jax.jit(lambda x, keys: samplers.named(name).sample(BEST, x, ladder, keys))(x, keys)


@pytest.mark.parametrize(("name", "least", "most"), [("Euler", 0.9, 1.1), ("PLMS", 2.7, 4.5)])
def test_order_of_convergence(name, least, most):
    """The error falls with the order of the method; PLMS's fourth order is held back by how it starts."""
    x = jnp.full((1, 1, 1, 1), 3.0)
    errors = []
    for steps in (counts := [10, 20, 40, 80] if name == "PLMS" else [10, 20, 40, 80, 160]):
        sigmas = np.linspace(2.0, 0.5, steps + 1, dtype=np.float32)
        truth = MEAN + (3.0 - MEAN) * np.sqrt((SPREAD**2 + 0.5**2) / (SPREAD**2 + 2.0**2))
        errors.append(abs(float(walked(name, Ladder(sigmas, np.float32(2)), x, keys(1))[0, 0, 0, 0]) - truth))
    order = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    print(f"{name}: order {order:.2f}, errors {errors}")
    assert least <= order <= most


def ancestral_moments(ladder):
    """The mean and the variance that Euler a's steps give; each is linear in x, so they are a recursion."""
    mean, variance = 0.0, float(ladder.start) ** 2
    for sigma, after in zip(*(rungs.astype(float) for rungs in ladder.rungs), strict=True):
        factor = 1 + (after**2 / sigma - sigma) * sigma / (SPREAD**2 + sigma**2)
        mean = factor * mean + (1 - factor) * MEAN
        variance = factor**2 * variance + after**2 * (1 - (after / sigma) ** 2)
    return mean, variance


@pytest.mark.parametrize("steps", [20, 100])
def test_ancestral_mean_and_variance(steps):
    """A quarter of a million samples have the moments of the recursion, to four standard errors."""
    ladder = samplers.named("Euler a").ladder(SD15, steps)
    mean, variance = ancestral_moments(ladder)
    x = samplers.normal(keys(16), (128, 128, 1)) * ladder.start
    walk_keys = jax.vmap(jax.random.key)(jnp.arange(100, 116))
    sampled = np.asarray(walked("Euler a", ladder, x, walk_keys), np.float64)
    print(f"{steps} steps: mean {sampled.mean():.4f}, variance {sampled.var():.4f}; exact {mean:.4f}, {variance:.4f}")
    np.testing.assert_allclose(sampled.mean(), mean, atol=4 * np.sqrt(variance / x.size))
    np.testing.assert_allclose(sampled.var(), variance, rtol=4 * np.sqrt(2 / x.size))


def test_ancestral_moments_are_the_data_s_in_the_limit():
    """Few steps shrink the variance (a third at 20); the error halves as the steps double."""
    counts = [250, 500, 1000]
    moments = np.array([ancestral_moments(samplers.named("Euler a").ladder(SD15, steps)) for steps in counts])
    np.testing.assert_allclose(moments[:, 0], MEAN, rtol=2e-3)
    errors = abs(moments[:, 1] / SPREAD**2 - 1)
    print(f"Euler a: variance short by {errors} at {counts} steps")
    assert errors[-1] < 0.02 and (errors[:-1] / errors[1:] > 1.7).all()


@pytest.mark.parametrize(("name", "steps", "evaluations"), [("Euler", 20, 20), ("Euler a", 20, 20), ("PLMS", 20, 21)])
def test_evaluations_are_counted_and_the_network_is_traced_once(name, steps, evaluations):
    traces, calls = [], []

    def predict(x, sigma):
        traces.append(1)
        jax.debug.callback(lambda sigma: calls.append(float(sigma)), sigma, ordered=True)
        return best_noise(x, sigma)

    sampler = samplers.named(name)
    ladder = sampler.ladder(SD15, steps)
    render = jax.jit(lambda x: sampler.sample(denoiser.Denoiser(predict, "epsilon"), x, ladder, keys(1)))
    render(jnp.ones((1, 2, 2, 1))).block_until_ready()
    jax.effects_barrier()
    assert len(calls) == evaluations
    assert len(traces) == 1, "the scan holds one network, however many steps"
    assert (np.diff(calls) <= 0).all() and (np.diff(calls) == 0).sum() == (name == "PLMS")


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_an_image_does_not_depend_on_its_batch(name):
    ladder = samplers.named(name).ladder(SD15, 20)
    x = samplers.normal(keys(16), (4, 4, 2)) * ladder.start
    whole = walked(name, ladder, x, keys(16))
    for batch in (1, 4):
        np.testing.assert_allclose(walked(name, ladder, x[:batch], keys(batch)), whole[:batch], atol=1e-5)


@pytest.mark.parametrize(("kind", "steps"), [("epsilon", 4), ("v_prediction", 1000)])
@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_a_bfloat16_network_gives_no_nan_and_no_black_image(name, kind, steps):
    def network(x, t, context):
        return jnp.tanh(x.astype(jnp.bfloat16))

    scheduler = SD15 | {"prediction_type": kind}
    denoise = denoiser.denoiser(network, scheduler, jnp.zeros((2, 1, 1)), None, jnp.float32(1))
    sampler = samplers.named(name)
    ladder = sampler.ladder(scheduler, steps)
    x = samplers.normal(keys(2), (4, 4, 2)) * ladder.start
    end = jax.jit(lambda x: sampler.sample(denoise, x, ladder, keys(2)))(x)
    assert end.dtype == jnp.float32 and jnp.isfinite(end).all() and jnp.std(end) > 1e-3


def test_ladders_end_where_each_method_ends():
    assert samplers.named("Euler").ladder(SD15, 20).sigmas[-1] == 0
    np.testing.assert_allclose(samplers.named("PLMS").ladder(SD15, 20).sigmas[-1], 0.0291672, rtol=1e-5)
    assert samplers.named("PLMS").ladder(SD15 | {"set_alpha_to_one": True}, 20).sigmas[-1] == 0


def test_the_model_s_own_spacing_goes_before_the_sampler_s():
    """As in diffusers' from_config: Stable Diffusion 1.5's file names no spacing, so Euler walks linspace."""
    np.testing.assert_allclose(samplers.named("Euler").ladder(SD15, 20).sigmas[0], 14.61464, rtol=1e-5)
    leading = samplers.named("Euler").ladder(SD15 | {"timestep_spacing": "leading"}, 20)
    np.testing.assert_allclose(leading.sigmas[0], samplers.named("PLMS").ladder(SD15, 20).sigmas[0])


def test_names():
    assert samplers.named("euler A") is samplers.SAMPLERS["Euler a"]
    with pytest.raises(UserError, match="sampler 'Eular' is not known; did you mean one of: Euler, Euler a"):
        samplers.named("Eular")
    with pytest.raises(UserError, match="did you mean one of: Euler, Euler a, PLMS"):
        samplers.named("xyz")
