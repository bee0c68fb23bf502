"""Samplers against closed forms: data that are a Gaussian, whose score and whose flow are known.

For data N(MEAN, SPREAD^2) the best denoiser is (SPREAD^2 x + sigma^2 MEAN) / (SPREAD^2 + sigma^2), and the flow carries
x - MEAN in proportion to sqrt(SPREAD^2 + sigma^2).
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax.diffusion import denoiser, ladders, samplers
from dermjax.diffusion.denoiser import DENOISED, Denoiser
from dermjax.diffusion.schedule import normal
from dermjax.errors import UserError
from dermjax.models.stable_diffusion import SCHEDULER as SD15

MEAN, SPREAD = 0.7, 0.5
QUICK = ("Euler a", "Heun", "DPM++ 2M")  # one of each file; the others are as fast, but many


def slowly(names, quick=QUICK):
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


DETERMINISTIC = [name for name, sampler in samplers.SAMPLERS.items() if not sampler.noisy]
NOISY = [name for name, sampler in samplers.SAMPLERS.items() if sampler.noisy]


def best_noise(x, sigma):
    """The noise that the best denoiser finds in x."""
    return (x - (SPREAD**2 * x + sigma**2 * MEAN) / (SPREAD**2 + sigma**2)) / sigma


BEST = Denoiser(best_noise, DENOISED["epsilon"])
SAID = Denoiser(lambda x, sigma: (SPREAD**2 * x + sigma**2 * MEAN) / (SPREAD**2 + sigma**2), DENOISED["sample"])


def keys(count):
    return jax.vmap(jax.random.key)(jnp.arange(count))


def walked(name, ladder, x, keys, denoise=BEST):
    return jax.jit(lambda x, keys: samplers.get_sampler(name).sample(denoise, x, ladder, keys))(x, keys)


# where the fit from 10 steps on is not the order of the table: LMS and PLMS start with steps of order 1 and 2, and
# UniPC nears its order from above; what LMS and UniPC come to is below
FITTED = {"LMS": (3.5, 4.5), "PLMS": (2.7, 4.5), "UniPC": (2.85, 3.8)}


def descent(name, steps):
    """Sigmas from 2 to 0.5, for PLMS at equal steps, of which alone its weights are true.

    For the others the first and the last are short: some of them take those by Euler's method, as diffusers' do.
    """
    ramp = np.linspace(0, 1, steps + 1)
    return 2.0 - 1.5 * (ramp if name == "PLMS" else ramp**2 * (3 - 2 * ramp))


def error(name, sigmas):
    """How far a walk from sigma 2 to 0.5 ends from the flow; in float64, so that rounding does not end its fall."""
    with jax.enable_x64(True):
        end = walked(name, ladders.explicit(SD15, sigmas), jnp.full((1, 1, 1, 1), 3.0), keys(1))
    truth = MEAN + (3.0 - MEAN) * np.sqrt((SPREAD**2 + 0.5**2) / (SPREAD**2 + 2.0**2))
    return abs(float(end[0, 0, 0, 0]) - truth)


@pytest.mark.parametrize("name", slowly(DETERMINISTIC))
def test_order_of_convergence(name):
    order = samplers.get_sampler(name).order
    least, most = FITTED.get(name, (order - 0.15, order + 0.6))
    counts = [10, 20, 40, 80, 160]
    errors = [error(name, descent(name, steps)) for steps in counts]
    fitted = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    print(f"{name}: order {fitted:.2f}, errors {errors}")
    assert least <= fitted <= most


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LMS", "UniPC"])
def test_order_once_it_has_started(name):
    """As the steps double."""
    coarse, fine = (error(name, descent(name, steps)) for steps in (640, 1280))
    print(f"{name}: order {np.log2(coarse / fine):.2f}")
    assert abs(np.log2(coarse / fine) - samplers.get_sampler(name).order) < 0.15


def ancestral_moments(ladder):
    """The mean and the variance that Euler a's steps give; each is linear in x, so they are a recursion."""
    mean, variance = 0.0, float(ladder.start) ** 2
    for sigma, after in zip(*ladder.rungs, strict=True):
        factor = 1 + (after**2 / sigma - sigma) * sigma / (SPREAD**2 + sigma**2)
        mean = factor * mean + (1 - factor) * MEAN
        variance = factor**2 * variance + after**2 * (1 - (after / sigma) ** 2)
    return mean, variance


def sampled_moments(name, ladder, denoise=BEST):
    """The mean and the variance of a quarter of a million samples."""
    x = normal(keys(16), (128, 128, 1)) * ladder.start
    made = np.asarray(walked(name, ladder, x, jax.vmap(jax.random.key)(jnp.arange(100, 116)), denoise), np.float64)
    return made.mean(), made.var(), x.size


@pytest.mark.parametrize("steps", [20, 100])
def test_ancestral_mean_and_variance(steps):
    """The samples have the moments of the recursion, to four standard errors."""
    ladder = samplers.get_sampler("Euler a").ladder(SD15, steps, "")
    mean, variance = ancestral_moments(ladder)
    sampled_mean, sampled_variance, count = sampled_moments("Euler a", ladder)
    print(f"{steps} steps: {sampled_mean:.4f}, {sampled_variance:.4f}; exact {mean:.4f}, {variance:.4f}")
    np.testing.assert_allclose(sampled_mean, mean, atol=4 * np.sqrt(variance / count))
    np.testing.assert_allclose(sampled_variance, variance, rtol=4 * np.sqrt(2 / count))


def test_ancestral_moments_are_the_data_s_in_the_limit():
    """Few steps shrink the variance (a third at 20); the error halves as the steps double."""
    counts = [250, 500, 1000]
    moments = np.array([ancestral_moments(samplers.get_sampler("Euler a").ladder(SD15, steps, "")) for steps in counts])
    np.testing.assert_allclose(moments[:, 0], MEAN, rtol=2e-3)
    errors = abs(moments[:, 1] / SPREAD**2 - 1)
    print(f"Euler a: variance short by {errors} at {counts} steps")
    assert errors[-1] < 0.02 and (errors[:-1] / errors[1:] > 1.7).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NOISY if name != "LCM"])
def test_noisy_samplers_reach_the_data(name):
    """At 250 steps the mean to 1 % and the variance to 10 %, of which Euler a's own recursion lacks 7."""
    ladder = samplers.get_sampler(name).ladder(SD15, 250, "")
    mean, variance, _ = sampled_moments(name, ladder)
    print(f"{name}: mean {mean:.4f} of {MEAN}, variance {variance:.4f} of {SPREAD**2}")
    np.testing.assert_allclose(mean, MEAN, rtol=0.01)
    np.testing.assert_allclose(variance, SPREAD**2, rtol=0.1)


@pytest.mark.slow
def test_latent_consistency_reaches_the_data():
    """Given the end of the flow in place of the denoised, as a consistency model does, any number of steps is exact."""
    flow = Denoiser(
        lambda x, sigma: MEAN + (x - MEAN) * SPREAD / jnp.sqrt(SPREAD**2 + sigma**2), lambda latents, x, sigma: latents
    )
    mean, variance, _ = sampled_moments("LCM", samplers.get_sampler("LCM").ladder(SD15, 4, ""), flow)
    np.testing.assert_allclose(mean, MEAN, atol=0.01)
    np.testing.assert_allclose(variance, SPREAD**2, rtol=0.01)


def dpmpp_2s_ancestral(x, sigmas, noise):
    """k-diffusion's `sample_dpmpp_2s_ancestral` in its own variables, for the best denoiser: t = -log sigma."""
    for number, (sigma, after) in enumerate(itertools.pairwise(sigmas)):
        denoised = x - sigma * best_noise(x, sigma)
        up = np.sqrt(after**2 * (sigma**2 - after**2) / sigma**2)
        down = np.sqrt(after**2 - up**2)
        if down == 0:
            return denoised
        t, t_next = -np.log(sigma), -np.log(down)
        middle = np.exp(-(t + 0.5 * (t_next - t)))
        ahead = middle / sigma * x - np.expm1(-0.5 * (t_next - t)) * denoised
        denoised = ahead - middle * best_noise(ahead, middle)
        x = down / sigma * x - np.expm1(-(t_next - t)) * denoised + up * noise[number]
    return x


def test_the_sampler_that_diffusers_lacks():
    """DPM++ 2S a against k-diffusion's steps in float64; its noise comes with the second evaluation of a step."""
    ladder = samplers.get_sampler("DPM++ 2S a").ladder(SD15, 20, "")
    x = normal(keys(2), (3, 3, 1)) * ladder.start
    noise = [normal(jax.vmap(jax.random.fold_in, (0, None))(keys(2), 2 * s + 1), (3, 3, 1)) for s in range(19)]
    theirs = dpmpp_2s_ancestral(np.float64(x), ladder.sigmas, np.float64(noise))
    np.testing.assert_allclose(walked("DPM++ 2S a", ladder, x, keys(2)), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", slowly(samplers.SAMPLERS))
def test_evaluations_are_counted_and_the_network_is_traced_once(name):
    traces, calls = [], []

    def predict(x, sigma):
        traces.append(1)
        jax.debug.callback(lambda sigma: calls.append(float(sigma)), sigma, ordered=True)
        return best_noise(x, sigma)

    sampler = samplers.get_sampler(name)
    ladder = sampler.ladder(SD15, 20, "")
    counting = Denoiser(predict, DENOISED["epsilon"])
    render = jax.jit(lambda x: sampler.sample(counting, x, ladder, keys(1)))
    render(jnp.ones((1, 2, 2, 1))).block_until_ready()
    jax.effects_barrier()
    assert len(calls) == sampler.count(20)
    assert len(traces) == 1, "the scan holds one network, however many steps"
    assert min(calls) > 0 and (np.diff(calls) <= 0).all()


@pytest.mark.parametrize(
    "settings", [{"beta_schedule": "squaredcos_cap_v2"}, {"rescale_betas_zero_snr": True}], ids=str
)
@pytest.mark.parametrize("name", slowly(samplers.SAMPLERS, quick=("Heun",)))
def test_float32_keeps_its_digits_where_sigma_is_in_the_thousands(name, settings):
    """From 20000 and from 4096 or, for what is written in alpha_bar, 2^24; beside the same walk in float64.

    With a network that says the latents or, as well, v; one that says the noise is itself worth no more digits there.
    """
    sampler = samplers.get_sampler(name)
    ladder = sampler.ladder(SD15 | settings, 10, "" if sampler.layout.fixed else "trailing")
    x, seeds = normal(keys(2), (4, 4, 2)) * ladder.start, keys(2)
    made = walked(name, ladder, x, seeds, SAID)
    with jax.enable_x64(True):
        exact = np.asarray(walked(name, ladder, jnp.asarray(x, jnp.float64), seeds, SAID))
    off = np.abs(made - exact).max() / np.abs(exact).max()
    print(f"{name} from {ladder.sigmas[0]:.0f}: {off:.1e}")
    assert made.dtype == jnp.float32 and exact.dtype == np.float64
    assert off <= 1e-5


@pytest.mark.parametrize("name", slowly(samplers.SAMPLERS))
def test_an_image_does_not_depend_on_its_batch(name):
    ladder = samplers.get_sampler(name).ladder(SD15, 20, "")
    x = normal(keys(16), (4, 4, 2)) * ladder.start
    whole = walked(name, ladder, x, keys(16))
    for batch in (1, 4):
        np.testing.assert_allclose(walked(name, ladder, x[:batch], keys(batch)), whole[:batch], atol=1e-5)


@pytest.mark.parametrize(("kind", "steps"), [("epsilon", 4), ("v_prediction", 50), ("v_prediction", 1000)])
@pytest.mark.parametrize("name", slowly(samplers.SAMPLERS))
def test_a_bfloat16_network_gives_no_nan_and_no_black_image(name, kind, steps):
    if name == "LCM" and steps > 50:
        pytest.skip("it takes at most the 50 steps that it was distilled at")

    def network(x, t, context):
        return jnp.tanh(x.astype(jnp.bfloat16))

    sampler = samplers.get_sampler(name)
    ladder = sampler.ladder(SD15, steps, "")
    denoise = denoiser.denoiser(denoiser.plain(network, jnp.zeros((2, 1, 1))), kind, ladder)
    x = normal(keys(2), (4, 4, 2)) * ladder.start
    end = walked(name, ladder, x, keys(2), denoise)
    assert end.dtype == jnp.float32 and jnp.isfinite(end).all() and jnp.std(end) > 1e-3


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("euler A", "Euler a"),
        ("EulerAncestralDiscreteScheduler", "Euler a"),
        ("DPM++ 2M Karras", "DPM++ 2M Karras"),
        ("dpmpp_2m", "DPM++ 2M"),
        ("k_dpm_2_a", "DPM2 a"),
        ("DPMSolverMultistepScheduler", "DPM++ 2M"),
        ("DPM++ 2M SDE karras", "DPM++ 2M SDE Karras"),
        ("DPM++ 2S a Karras", "DPM++ 2S a Karras"),
        ("uni_pc", "UniPC"),
        ("Heun exponential", "Heun Exponential"),
        ("PNDMScheduler", "PLMS"),
        ("HeunDiscreteScheduler Karras", "Heun Karras"),
        ("ddim eta 0.40", "DDIM eta 0.4"),
        ("Euler a eta .5 Karras", "Euler a eta 0.5 Karras"),
    ],
)
def test_names_of_diffusers_and_of_a1111(written, name):
    sampler = samplers.get_sampler(written)
    again = samplers.get_sampler(name)
    assert sampler.name == again.name == name and (sampler.layout, sampler.spacing) == (again.layout, again.spacing)
    if name.endswith(" Karras"):
        karras = samplers.get_sampler(name.removesuffix(" Karras")).ladder(SD15, 10, "karras")
        np.testing.assert_array_equal(sampler.ladder(SD15, 10, "").sigmas, karras.sigmas)


@pytest.mark.parametrize("steps", [3, 15, 20])
def test_deis_ends_at_0_where_a_list_of_sigmas_does(steps):
    """Sigma 0 has no logarithm; an Euler step there lands on the denoised latents."""
    spacing = " ".join(f"{sigma:.6f}" for sigma in [*np.geomspace(14.6, 0.03, steps), 0.0])
    made = samplers.get_sampler("DEIS").ladder(SD15, steps, spacing)
    end = samplers.deis(lambda x, sigma: jnp.full_like(x, 0.5), jnp.ones((2, 4, 4, 4)), made, keys(2))
    np.testing.assert_allclose(end, 0.5, rtol=1e-6)


def test_no_name_means_two_samplers():
    meant = {}
    for sampler in samplers.SAMPLERS.values():
        for each in (sampler.name, *sampler.aliases):
            assert meant.setdefault(samplers._key(each), sampler.name) == sampler.name


def test_unknown_names():
    with pytest.raises(UserError, match="sampler 'Eular' is not known; did you mean one of: Euler"):
        samplers.get_sampler("Eular")
    with pytest.raises(UserError, match="did you mean one of: Euler, Euler a, Heun, LMS, PLMS"):
        samplers.get_sampler("xyz")
    with pytest.raises(UserError, match="PLMS walks whole training times and has no karras ladder"):
        samplers.get_sampler("PLMS Karras")
    with pytest.raises(UserError, match="Heun has no eta; Euler a, DDIM, DDPM, DPM2, DPM2 a have"):
        samplers.get_sampler("Heun eta 0.5")
    for eta in ("1.5", "-0.4", "- 1"):
        with pytest.raises(UserError, match="give an eta from 0, no fresh noise, to 1"):
            samplers.get_sampler(f"DDIM eta {eta}")


def test_the_table_is_printed(capsys):
    samplers.show()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(samplers.SAMPLERS) + 4
    assert [line.split("  ")[0] for line in lines[1 : 1 + len(samplers.SAMPLERS)]] == list(samplers.SAMPLERS)
    heun = next(line for line in lines if line.startswith("Heun"))
    assert "2N - 1" in heun and "HeunDiscreteScheduler" in heun and "arXiv 2206.00364" in heun
