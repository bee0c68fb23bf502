"""Our samplers are diffusers' schedulers: the same x before every evaluation, to 1e-5, in diffusers' own code.

Ours runs in float32. diffusers' side runs in float64: its tables are replaced and its casts to float32 undone, so that
what is measured is our error and not theirs. Both are fed by the same curved function in place of a network.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax.diffusion import denoiser, samplers, schedule

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
from diffusers.schedulers import scheduling_euler_ancestral_discrete, scheduling_euler_discrete  # noqa: E402

# diffusers' code meets numpy 2 through torch
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SD15 = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
STEPS = [26, *(pytest.param(steps, marks=pytest.mark.slow) for steps in (10, 20, 50))]
SHAPE = (2, 4, 4, 3)  # B h w C


def network(x, t, xp):
    """A smooth stand-in for a UNet: bounded, not linear in x, different at every t."""
    return xp.sin(1.3 * x + t / 300) + 0.3 * xp.cos(2 * x - t / 150)


def ours(name, scheduler, steps, x, keys):
    """Returns the unit-variance input of every evaluation and the final latents, [K + 1, B, h, w, C]."""
    seen = []

    def spy(x, t, context):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x, ordered=True)
        return network(x, t[:, None, None, None], jnp)

    sampler = samplers.named(name)
    denoise = denoiser.denoiser(spy, scheduler, jnp.zeros((2, 1, 1)), None, jnp.float32(1))
    ladder = sampler.ladder(scheduler, steps)
    end = jax.jit(lambda x, keys: sampler.sample(denoise, x * ladder.start, ladder, keys))(x, keys)
    jax.effects_barrier()
    return np.stack([*seen, end / np.sqrt(1 + ladder.sigmas[-1] ** 2)])


def theirs(kind, scheduler, steps, x):
    """Returns the same of a diffusers scheduler, in float64."""
    them = kind(**scheduler)
    table = torch.from_numpy(schedule.alphas_cumprod(scheduler))
    them.alphas_cumprod = table
    if kind is diffusers.PNDMScheduler:
        them.final_alpha_cumprod = table[0]
    them.set_timesteps(steps)
    if hasattr(them, "sigmas"):
        rungs = np.interp(them.timesteps.double(), np.arange(len(table)), schedule.sigmas(scheduler))
        them.sigmas = torch.from_numpy(np.append(rungs, 0.0))
    x = torch.from_numpy(np.asarray(x, np.float64)) * them.init_noise_sigma
    seen = []
    for t in them.timesteps:
        seen.append(them.scale_model_input(x, t))
        x = them.step(network(seen[-1], t.double(), torch), t, x).prev_sample
    assert x.dtype == torch.float64
    return np.stack([*seen, x])


@pytest.fixture(autouse=True)
def double(monkeypatch):
    """Lets diffusers' Euler schedulers compute in float64, where they say float32."""
    everything = SimpleNamespace(**(vars(torch) | {"float32": torch.float64}))
    for module in (scheduling_euler_discrete, scheduling_euler_ancestral_discrete):
        monkeypatch.setattr(module, "torch", everything)


@pytest.fixture
def start():
    keys = jax.vmap(jax.random.key)(jnp.arange(SHAPE[0]))
    return samplers.normal(keys, SHAPE[1:]), jax.vmap(jax.random.split)(keys)[:, 0]


def worst(mine, reference):
    """Returns the largest error of any evaluation, relative to the largest value there."""
    assert mine.shape == reference.shape, "another number of evaluations"
    errors = np.abs(mine - reference).reshape(len(mine), -1).max(1)
    return (errors / np.abs(reference).reshape(len(mine), -1).max(1)).max()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
@pytest.mark.parametrize("steps", STEPS)
def test_euler(steps, spacing, prediction, start):
    scheduler = SD15 | {"prediction_type": prediction, "timestep_spacing": spacing}
    mine = ours("Euler", scheduler, steps, *start)
    error = worst(mine, theirs(diffusers.EulerDiscreteScheduler, scheduler, steps, start[0]))
    print(f"Euler {steps} {spacing} {prediction}: {error:.1e}")
    assert error <= 1e-5


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
@pytest.mark.parametrize("steps", STEPS)
def test_euler_ancestral(steps, spacing, prediction, start, monkeypatch):
    scheduler = SD15 | {"prediction_type": prediction, "timestep_spacing": spacing}
    x, keys = start
    draws = iter(samplers.normal(jax.vmap(jax.random.fold_in, (0, None))(keys, s), SHAPE[1:]) for s in range(steps))
    monkeypatch.setattr(
        scheduling_euler_ancestral_discrete,
        "randn_tensor",
        lambda *_, **__: torch.from_numpy(np.asarray(next(draws), np.float64)),
    )
    mine = ours("Euler a", scheduler, steps, x, keys)
    error = worst(mine, theirs(diffusers.EulerAncestralDiscreteScheduler, scheduler, steps, x))
    print(f"Euler a {steps} {spacing} {prediction}: {error:.1e}")
    assert error <= 1e-5


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", STEPS)
def test_plms(steps, prediction, start):
    """N + 1 evaluations, the second time repeated; diffusers' ladder is consistent in "leading" spacing only."""
    scheduler = SD15 | {"prediction_type": prediction, "timestep_spacing": "leading"}
    extra = {"skip_prk_steps": True, "set_alpha_to_one": False}
    mine = ours("PLMS", scheduler, steps, *start)
    error = worst(mine, theirs(diffusers.PNDMScheduler, scheduler | extra, steps, start[0]))
    print(f"PLMS {steps} {prediction}: {error:.1e}")
    assert len(mine) == steps + 2
    assert error <= 1e-5
