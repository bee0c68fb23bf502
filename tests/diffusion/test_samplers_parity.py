"""Our samplers are diffusers' schedulers: the same x before every evaluation, to 1e-5, in diffusers' own code.

Ours runs in float32. diffusers' side runs in float64: its tables are replaced and its casts to float32 undone, so that
what is measured is our error and not theirs. Both are fed by the same curved function in place of a network, and by the
same noise.

Two places of diffusers are mended as well, whose reasons stand there: `exact_times` and `exact_ends`.
"""

import importlib
import inspect
import itertools
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax.diffusion import denoiser, samplers, schedule
from dermjax.diffusion.schedule import normal
from dermjax.models.stable_diffusion import SCHEDULER as SD15

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

# diffusers' code meets numpy 2 through torch
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

SHAPE = (2, 4, 4, 3)  # B h w C
SPACINGS, PREDICTIONS = ("leading", "linspace", "trailing"), ("epsilon", "v_prediction", "sample")
STEPS = (10, 20, 26, 50)


@dataclass(frozen=True)
class Reference:
    """A scheduler of diffusers; `spacings` and `predictions` are those that it supports."""

    file: str
    name: str
    settings: dict
    spacings: tuple = SPACINGS
    predictions: tuple = PREDICTIONS
    steep: float = 1.3  # of the stand-in network, which amplifies rounding from step to step as it is steep


NO_SAMPLE = ("epsilon", "v_prediction")
REFERENCES = {
    "Euler": Reference("euler_discrete", "EulerDiscreteScheduler", {}),
    "Euler a": Reference("euler_ancestral_discrete", "EulerAncestralDiscreteScheduler", {}, predictions=NO_SAMPLE),
    "Heun": Reference("heun_discrete", "HeunDiscreteScheduler", {}),
    "LMS": Reference("lms_discrete", "LMSDiscreteScheduler", {}),
    "PLMS": Reference("pndm", "PNDMScheduler", {"skip_prk_steps": True}, predictions=NO_SAMPLE),
    "DDIM": Reference("ddim", "DDIMScheduler", {}),
    "DDPM": Reference("ddpm", "DDPMScheduler", {}),
    "DPM2": Reference("k_dpm_2_discrete", "KDPM2DiscreteScheduler", {}, predictions=NO_SAMPLE),
    "DPM2 a": Reference("k_dpm_2_ancestral_discrete", "KDPM2AncestralDiscreteScheduler", {}, predictions=NO_SAMPLE),
    "DPM++ 2S": Reference("dpmsolver_singlestep", "DPMSolverSinglestepScheduler", {}, ("linspace",)),
    "DPM++ 2M": Reference("dpmsolver_multistep", "DPMSolverMultistepScheduler", {}),
    "DPM++ 2M SDE": Reference(
        "dpmsolver_multistep", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}
    ),
    "DPM++ SDE": Reference("dpmsolver_sde", "DPMSolverSDEScheduler", {}, predictions=NO_SAMPLE),
    "UniPC": Reference("unipc_multistep", "UniPCMultistepScheduler", {}),
    "DEIS": Reference("deis_multistep", "DEISMultistepScheduler", {}),
    # every step of it starts anew from a guess at the end
    "LCM": Reference("lcm", "LCMScheduler", {}, ("leading",), steep=0.4),
}
BENT = [name for name in REFERENCES if samplers.SAMPLERS[name].layout.bends and name != "Euler a"]


def network(x, t, steep, xp):
    """A smooth stand-in for a UNet: bounded, not linear in x, different at every t."""
    return xp.sin(steep * x + t / 300) + 0.3 * xp.cos(1.5 * steep * x - t / 150)


def ours(sampler, scheduler, ladder, steep, x, keys):
    """Returns the unit-variance input of every evaluation and the final latents, [K + 1, B, h, w, C].

    x is standard normal noise on the whole ladder and what the network sees first on the lower part of one.
    """
    seen = []

    def ask(x, t):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x, ordered=True)
        return network(x, t, steep, jnp)

    denoise = sampler.bounded(denoiser.denoiser(ask, scheduler["prediction_type"], ladder), scheduler)
    start = np.sqrt(1 + ladder.sigmas[0] ** 2) if ladder.above else ladder.start
    end = jax.jit(lambda x, keys: sampler.sample(denoise, x * start, ladder, keys))(x, keys)
    jax.effects_barrier()
    return np.stack([*seen, end / np.sqrt(1 + ladder.sigmas[-1] ** 2)])


def theirs(module, reference, scheduler, ladder, x, keys, **options):
    """Returns the same of a diffusers scheduler, in float64."""
    them = getattr(module, reference.name).from_config(reference.settings | scheduler)
    table = torch.from_numpy(schedule.alphas_cumprod(scheduler))
    table[them.alphas_cumprod == 0] = 0  # some schedulers end without signal, others at 2^-24
    them.alphas_cumprod = table
    if hasattr(them, "final_alpha_cumprod") and not them.config.set_alpha_to_one:
        them.final_alpha_cumprod = table[0]
    them.set_timesteps(ladder.requested)
    exact_times(them, module, table)
    ends = exact_ends(them)

    drawn = {}

    def draw(number):
        """The noise of our evaluation of that number."""
        if number not in drawn:
            noise = normal(jax.vmap(jax.random.fold_in, (0, None))(keys, number), SHAPE[1:])
            drawn[number] = torch.from_numpy(np.asarray(noise, np.float64))
        return drawn[number]

    def path(sigma, sigma_next):
        """The increment of one Brownian path, over half a step or the whole of it."""
        if len(seen) % 2:
            path.first, path.middle = draw(len(seen) - 1), sigma_next
            return path.first
        early, late = sigma - path.middle, path.middle - sigma_next
        return (early**0.5 * path.first + late**0.5 * draw(len(seen) - 1)) / (early + late) ** 0.5

    module.randn_tensor = lambda *_, **__: draw(len(seen) - 1)
    them.noise_sampler = path
    x = torch.from_numpy(np.asarray(x, np.float64))
    begin = ladder.above * them.order  # as the pipelines of image to image have it
    if begin:
        if hasattr(them, "set_begin_index"):
            them.set_begin_index(begin)
        x = x / them.scale_model_input(torch.ones(()), them.timesteps[begin])
    else:
        x = x * them.init_noise_sigma
    seen = []
    for number, t in enumerate(them.timesteps[begin:], begin):
        seen.append(them.scale_model_input(x, t))
        if ends:
            them.num_inference_steps = 1
            them.register_to_config(num_train_timesteps=ends[number])
        x = them.step(network(seen[-1], t.double(), reference.steep, torch), t, x, **options).prev_sample
    assert x.dtype == torch.float64
    if reference.name == "EulerDiscreteScheduler":
        x = them.scale_model_input(x, t)  # it may end above sigma 0, in its own variable
    return np.stack([*seen, x])


def exact_times(them, module, table):
    """k-diffusion asks at the exact time of a sigma; so do we, where diffusers' KDPM2 rounds its Karras times.

    And a sigma has one time: the midpoint of an ancestral step is the next rung, which in "linspace" diffusers asks at
    two times that are up to 0.003 apart, by straight lines in sigma and in log sigma.
    """
    if module.__name__.endswith(("k_dpm_2_discrete", "k_dpm_2_ancestral_discrete")) and them.config.use_karras_sigmas:
        log_sigmas = np.log(((1 - table) / table) ** 0.5).numpy()
        asked = them.sigmas[0::2][: len(them.timesteps[0::2])]
        them.timesteps[0::2] = torch.from_numpy(np.array([them._sigma_to_t(s.numpy(), log_sigmas) for s in asked]))
    if module.__name__.endswith("k_dpm_2_ancestral_discrete"):
        assert (them.timesteps[1::2] - them.timesteps[2::2]).abs().max() < 0.005
        them.timesteps[1::2] = them.timesteps[2::2].clone()


def exact_ends(them):
    """PNDM and DDIM end every step T // steps below its time, even where they ask next at another time.

    So they do in "linspace", and in "trailing" where the steps do not divide T: the network is told of less noise than
    there is, or of more. Ours end a step where they ask next. Returns for each evaluation how far below its time a step
    of theirs is to end, [] where that is T // steps anyway.
    """
    if them.__class__.__name__ not in ("PNDMScheduler", "DDIMScheduler"):
        return []
    times = list(dict.fromkeys(them.timesteps.tolist()))
    stride = them.config.num_train_timesteps // them.num_inference_steps
    falls = [t - after for t, after in itertools.pairwise(times)]
    if set(falls) == {stride}:
        return []
    twice = falls[:1] if len(times) < len(them.timesteps) else []  # PNDM's first step
    return [*twice, *falls, times[-1] + 1]


@pytest.fixture
def module(request, monkeypatch):
    """Returns what imports a scheduler's module that computes in float64 where it says float32."""

    def load(reference):
        monkeypatch.setitem(sys.modules, "torchsde", ModuleType("torchsde"))  # DPMSolverSDE's noise, which is ours here
        module = importlib.import_module(f"diffusers.schedulers.scheduling_{reference.file}")
        for name, library, kind in (("torch", torch, torch.float64), ("np", np, np.float64)):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, SimpleNamespace(**(vars(library) | {"float32": kind})))
        monkeypatch.setattr(module, "randn_tensor", None, raising=False)
        return module

    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield load
    torch.set_default_dtype(default)


@pytest.fixture
def start():
    keys = jax.vmap(jax.random.key)(jnp.arange(SHAPE[0]))
    return normal(keys, SHAPE[1:]), jax.vmap(jax.random.split)(keys)[:, 0]


def worst(mine, reference):
    """Returns the largest error of any evaluation, relative to the largest value there."""
    assert mine.shape == reference.shape, "another number of evaluations"
    errors = np.abs(mine - reference).reshape(len(mine), -1).max(1)
    return (errors / np.abs(reference).reshape(len(mine), -1).max(1)).max()


def same(name, settings, steps, start, module, sampler=None, strength=1.0, **options):
    reference, scheduler = REFERENCES[name], SD15 | settings
    sampler = sampler or samplers.get_sampler(name)
    ladder = sampler.ladder(scheduler, steps, "").below(strength)
    mine = ours(sampler, scheduler, ladder, reference.steep, *start)
    error = worst(mine, theirs(module(reference), reference, scheduler, ladder, *start, **options))
    print(f"{name} {steps} {settings} {strength}: {error:.1e}")
    assert len(mine) == sampler.count(len(ladder.times)) + 1
    assert error <= 1e-5


PAPER_S = ("Euler", "Euler a", "PLMS", "DPM++ 2M SDE")


@pytest.mark.parametrize("name", [n if n in PAPER_S else pytest.param(n, marks=pytest.mark.slow) for n in REFERENCES])
def test_every_sampler(name, start, module):
    """26 steps, an uneven share of 1000, in the spacing that the scheduler itself takes."""
    same(name, {"prediction_type": "v_prediction"}, 26, start, module)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps", "spacing", "prediction"),
    [
        (name, steps, spacing, prediction)
        for name, reference in REFERENCES.items()
        for steps, spacing, prediction in itertools.product(STEPS, reference.spacings, reference.predictions)
    ],
)
def test_every_spacing_and_prediction(name, steps, spacing, prediction, start, module):
    same(name, {"prediction_type": prediction, "timestep_spacing": spacing}, steps, start, module)


@pytest.mark.slow
@pytest.mark.parametrize("bend", ["karras", "exponential"])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", BENT)
def test_karras_and_exponential(name, steps, bend, start, module):
    same(name, {"prediction_type": "epsilon", f"use_{bend}_sigmas": True}, steps, start, module)


@pytest.mark.slow
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("to_one", [False, True])
@pytest.mark.parametrize("steps", STEPS)
def test_ddim_with_any_eta(eta, to_one, steps, start, module):
    settings = {"prediction_type": "v_prediction", "set_alpha_to_one": to_one}
    same("DDIM", settings, steps, start, module, samplers.get_sampler(f"DDIM eta {eta}"), eta=eta)


@pytest.mark.slow
@pytest.mark.parametrize("betas", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("steps", [10, 20])
def test_other_schedules(name, betas, steps, start, module):
    """Squared cosines begin at a sigma of 20000."""
    settings = {"beta_schedule": betas, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    same(name, settings, steps, start, module)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Euler", "Euler a", "DDIM", "DDPM", "DPM++ 2M", "DPM++ 2M SDE", "UniPC", "LCM"])
@pytest.mark.parametrize("steps", [10, 20])
def test_no_signal_at_the_end(name, steps, start, module):
    """With the schedulers that know `rescale_betas_zero_snr`; for the others see `test_samplers`, on digits."""
    reference, option = REFERENCES[name], "rescale_betas_zero_snr"
    assert option in inspect.signature(getattr(module(reference), reference.name)).parameters
    settings = {option: True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    same(name, settings, steps, start, module)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in REFERENCES if samplers.SAMPLERS[n].layout.ending == "final_sigmas_type"])
@pytest.mark.parametrize("steps", [10, 20])
def test_ladders_that_end_at_the_first_time(name, steps, start, module):
    same(name, {"prediction_type": "v_prediction", "final_sigmas_type": "sigma_min"}, steps, start, module)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [10, 26])
@pytest.mark.parametrize("strength", [0.3, 0.75])
@pytest.mark.parametrize("name", [name for name in REFERENCES if name not in ("PLMS", "LMS")])  # see their docstrings
def test_the_lower_part_of_a_ladder(name, strength, steps, start, module):
    """As image to image walks it."""
    same(name, {"prediction_type": "v_prediction"}, steps, start, module, strength=strength)


THRESHOLDS = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5}
BOUNDS = {"clip_sample": {"clip_sample": True, "clip_sample_range": 0.4}, "thresholding": THRESHOLDS,
          "both": THRESHOLDS | {"clip_sample": True, "clip_sample_range": 0.4}}  # fmt: skip
BOUND = [(name, each) for name in REFERENCES for each in BOUNDS if set(samplers.SAMPLERS[name].bounds) & {each, *(
    samplers.BOUNDS if each == "both" else ())}]  # fmt: skip


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("name", "bounds"), [
    case if case[0] in ("DDIM", "DDPM") else pytest.param(*case, marks=pytest.mark.slow) for case in BOUND
])  # fmt: skip
def test_latents_are_held_within_the_bounds_of_the_file(name, bounds, prediction, start, module):
    same(name, {"prediction_type": prediction} | BOUNDS[bounds], 10, start, module)


@pytest.mark.slow
@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_ddim_with_noise_within_bounds(bounds, eta, start, module):
    settings = {"prediction_type": "v_prediction"} | BOUNDS[bounds]
    same("DDIM", settings, 10, start, module, samplers.get_sampler(f"DDIM eta {eta}"), eta=eta)


@pytest.mark.parametrize("name", ["DDIM", "DDPM"])
def test_their_own_file_clips_where_it_says_nothing(name, start, module):
    silent = {key: value for key, value in SD15.items() if key not in ("clip_sample", "_class_name")}
    scheduler = silent | {"_class_name": f"{name}Scheduler"}
    sampler, reference = samplers.get_sampler(name), REFERENCES[name]
    ladder = sampler.ladder(scheduler, 10, "")
    mine = ours(sampler, scheduler, ladder, reference.steep, *start)
    assert worst(mine, theirs(module(reference), reference, scheduler, ladder, *start)) <= 1e-5
    assert denoiser.bound(silent, samplers.BOUNDS) is None  # a file of another scheduler


def test_a_bound_that_a_sampler_does_not_know_is_said(module):
    """And those that diffusers' class knows are those that ours knows."""
    for name, reference in REFERENCES.items():
        known = inspect.signature(getattr(module(reference), reference.name)).parameters
        assert set(samplers.SAMPLERS[name].bounds) == set(samplers.BOUNDS) & known.keys(), name
        said = samplers.SAMPLERS[name].unheeded(BOUNDS["both"])
        assert len(said) == len(set(samplers.BOUNDS) - known.keys())
        assert all(f"which {name} does not know; it is left out, as in diffusers" in each for each in said)
        assert not samplers.SAMPLERS[name].unheeded(SD15)
