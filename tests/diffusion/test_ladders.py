"""The ladders of Stable Diffusion: spacings, Karras and exponential, explicit lists, lower parts, and their times."""

import jax
import numpy as np
import pytest

from dermjax.diffusion import ladders, samplers, schedule
from dermjax.diffusion.ladders import Layout, explicit, ladder, walked_steps
from dermjax.errors import UserError
from dermjax.models.stable_diffusion import SCHEDULER as SD15

TABLE = schedule.sigmas(SD15)
EULER, SOLVER = Layout(spacing="linspace"), Layout(spacing="linspace", whole=True, spare=True)
PLMS = Layout(spacing="leading", whole=True, bends=False, to_zero=False, ending="set_alpha_to_one")


@pytest.mark.parametrize("name", samplers.SAMPLERS)
@pytest.mark.parametrize("spacing", ["", "leading", "linspace", "trailing", "karras", "exponential"])
def test_ladders_go_down(name, spacing):
    """For every sampler and spacing at every number of steps, also where 1001 rungs do not fit into 1000 times."""
    sampler = samplers.SAMPLERS[name]
    for steps in (1, 2, 10, 26, 50, 999, 1000):
        try:
            made = sampler.ladder(SD15, steps, spacing)
        except UserError as error:
            assert "is not for this sampler" in str(error) or (name == "LCM" and steps > 50)
            continue
        begin, end = made.rungs
        assert len(begin) == len(end) == len(made.times) == steps
        assert (np.diff(made.sigmas) <= 0).all() and (begin > 0).all() and made.sigmas[-1] >= 0
        assert (np.diff(made.times) <= 0).all() and made.times[-1] >= 0 and made.times[0] <= 999
        assert made.start.dtype == np.float32


def test_spacings_of_diffusers():
    """20 steps, as diffusers prints them; leading counts the signal in the start."""
    leading = ladder(PLMS, SD15, 20, "")
    assert leading.times.tolist() == list(range(951, 0, -50))
    np.testing.assert_allclose(leading.sigmas, TABLE[[*range(951, 0, -50), 0]], rtol=1e-12)
    np.testing.assert_allclose(leading.start, np.sqrt(TABLE[951] ** 2 + 1), rtol=1e-6)
    linspace = ladder(EULER, SD15, 20, "")
    np.testing.assert_allclose(linspace.sigmas[:3], [14.6146, 10.7469, 8.0815], rtol=1e-5)
    np.testing.assert_allclose(linspace.start, TABLE[-1], rtol=1e-6)
    assert ladder(EULER, SD15, 20, "trailing").times.tolist() == list(range(999, 0, -50))
    assert ladder(SOLVER, SD15, 20, "").times[[0, -1]].tolist() == [999, 50]
    assert ladder(SOLVER, SD15, 20, "leading").times[[0, -1]].tolist() == [941, 48]
    assert samplers.get_sampler("LCM").ladder(SD15, 4, "").times.tolist() == [999, 759, 499, 259]


def test_karras_and_exponential():
    """k-diffusion's `get_sigmas_karras` with rho 7 between the ends of the schedule; its docstring's formula."""
    karras = ladder(EULER, SD15, 10, "karras")
    ramp = np.linspace(0, 1, 10)
    expected = (TABLE[-1] ** (1 / 7) + ramp * (TABLE[0] ** (1 / 7) - TABLE[-1] ** (1 / 7))) ** 7
    np.testing.assert_allclose(karras.sigmas, [*expected, 0], rtol=1e-10)
    assert ladder(EULER, SD15 | {"use_karras_sigmas": True}, 10, "").sigmas.tolist() == karras.sigmas.tolist()
    exponential = ladder(EULER, SD15, 10, "exponential")
    np.testing.assert_allclose(np.diff(np.log(exponential.sigmas[:-1])), np.log(TABLE[0] / TABLE[-1]) / 9, rtol=1e-9)


def test_where_ladders_end():
    assert ladder(EULER, SD15, 20, "").sigmas[-1] == 0
    np.testing.assert_allclose(ladder(PLMS, SD15, 20, "").sigmas[-1], 0.0291672, rtol=1e-5)
    assert ladder(PLMS, SD15 | {"set_alpha_to_one": True}, 20, "").sigmas[-1] == 0
    ending = Layout(spacing="linspace", ending="final_sigmas_type")
    assert ladder(ending, SD15 | {"final_sigmas_type": "sigma_min"}, 20, "").sigmas[-1] == TABLE[0]


def test_the_model_s_own_spacing_goes_before_the_sampler_s():
    """As in diffusers' from_config; what the user asks for goes before both."""
    own = SD15 | {"timestep_spacing": "leading"}
    assert ladder(EULER, own, 20, "").times[0] == 951
    assert ladder(EULER, own, 20, "trailing").times[0] == 999
    assert samplers.get_sampler("DPM++ 2S").ladder(own, 20, "").times[0] == 999, "the reference knows no other"


def test_a_rung_has_its_time_exactly():
    """Karras rungs lie between training times; the solvers of DPM-Solver's authors ask at the nearest whole one."""
    for made in (ladder(SOLVER, SD15, 26, "karras"), ladder(EULER, SD15, 26, ""), ladder(PLMS, SD15, 50, "")):
        told = jax.jit(made.time)(made.sigmas[:-1].astype(np.float32))
        np.testing.assert_array_equal(told, made.times.astype(np.float32))
    between = np.exp(np.interp([0.4, 41.75, 900.5], np.arange(1000), np.log(TABLE)))
    told = jax.vmap(ladder(PLMS, SD15, 10, "").time)(between.astype(np.float32))
    np.testing.assert_allclose(told, [0.4, 41.75, 900.5], atol=2e-4)


def test_explicit_lists():
    made = explicit(SD15, [10.0, 3.0, 0.5, 0.0])
    assert made.start == 10 and len(made.times) == 3
    np.testing.assert_allclose(np.interp(made.times, np.arange(1000), np.log(TABLE)), np.log([10, 3, 0.5]), rtol=1e-9)
    for wrong in ([10.0], [3.0, 10.0], [3.0, 3.0, 0.0], [1.0, -1.0], [np.inf, 1.0], [3.0, np.nan, 0.0]):
        with pytest.raises(UserError, match="give two or more, decreasing to 0 or more"):
            explicit(SD15, wrong)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_a_spacing_may_be_the_sigmas_themselves(name):
    """For any sampler, blanks or commas between them."""
    sampler = samplers.SAMPLERS[name]
    for written in ("10 3 0.5 0", "10, 3,0.5, 0 "):
        sampler.check(written)
        assert sampler.ladder(SD15, 3, written).sigmas.tolist() == [10, 3, 0.5, 0]
    with pytest.raises(UserError, match="steps 20: the spacing's 4 sigmas make 3 steps"):
        sampler.ladder(SD15, 20, "10 3 0.5 0")
    with pytest.raises(UserError, match="sigmas 3, 10, 0: give two or more, decreasing to 0 or more"):
        sampler.ladder(SD15, 2, "3 10 0")


def test_the_end_of_a_schedule_without_signal():
    """As in diffusers: what is written in alpha_bar starts from noise alone, the others from a sigma of 4096."""
    zero = SD15 | {"rescale_betas_zero_snr": True}
    for name, sampler in samplers.SAMPLERS.items():
        top = sampler.ladder(zero, 20, "" if sampler.layout.fixed else "trailing").sigmas[0]
        alone = name in ("PLMS", "DDIM", "DDPM", "LCM")
        np.testing.assert_allclose(top, 2.0**24 if alone else 4096, rtol=1e-6, err_msg=name)


def test_the_lower_part():
    whole = ladder(EULER, SD15, 20, "")
    lower = whole.below(0.57)
    np.testing.assert_array_equal(lower.sigmas, whole.sigmas[-12:])
    assert lower.above == 9 and lower.requested == lower.below(0.5).requested == 20 and whole.below(1).above == 0
    assert len(lower.times) == 11 and whole.below(1).sigmas is not None and len(whole.below(1).times) == 20
    for strength in (0, -0.1, 1.01):
        with pytest.raises(UserError, match="give more than 0 and at most 1"):
            whole.below(strength)
    with pytest.raises(UserError, match=r"strength 0\.04 of 20 steps leaves none; give at least 0\.05"):
        whole.below(0.04)


def test_the_least_strength_that_is_named_leaves_a_step():
    for steps in range(1, 1001):
        with pytest.raises(UserError) as told:
            walked_steps(steps, 0.9 / steps)
        assert walked_steps(steps, float(str(told.value).rpartition(" ")[2])) == 1


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_steps_out_of_range(steps):
    with pytest.raises(UserError, match=f"steps {steps}: this sampler takes 1 to 1000"):
        ladder(EULER, SD15, steps, "")


def test_latent_consistency_takes_the_steps_it_was_distilled_at():
    with pytest.raises(UserError, match="steps 51: this sampler takes 1 to 50"):
        samplers.get_sampler("LCM").ladder(SD15, 51, "")


def test_a_spacing_beside_that_of_a_name_is_refused():
    """Of the two only one could be walked, and records would say both."""
    sampler = samplers.get_sampler("DPM++ 2M Karras")
    for spacing in ("trailing", "exponential", "10 3 0.5 0"):
        for call in (sampler.check, lambda spacing: sampler.ladder(SD15, 3, spacing)):
            with pytest.raises(UserError, match=f"spacing '{spacing}': .*Karras names its own; leave out one"):
                call(spacing)
    sampler.check("karras")


def test_unknown_and_impossible_spacings_are_named():
    with pytest.raises(UserError, match="timestep_spacing 'zigzag' is not one of leading, linspace, trailing"):
        ladder(EULER, SD15 | {"timestep_spacing": "zigzag"}, 20, "")
    with pytest.raises(UserError, match=r"spacing 'zigzag' is not one of leading.* nor a list of sigmas"):
        ladder(EULER, SD15, 20, "zigzag")
    with pytest.raises(UserError, match="spacing 'karras' is not for this sampler, which walks leading"):
        ladder(PLMS, SD15, 20, "karras")


@pytest.mark.parametrize("option", ["use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas"])
@pytest.mark.parametrize("name", ["Euler", "DPM++ 2M Karras", "DDIM"])
def test_ladders_that_a_file_asks_for_and_are_not_here_are_named(option, name):
    """Whatever the sampler; false and none, as diffusers writes them, ask for nothing."""
    sampler = samplers.get_sampler(name)
    plain = sampler.ladder(SD15, 20, "")
    for value in (False, None):
        np.testing.assert_array_equal(sampler.ladder(SD15 | {option: value}, 20, "").sigmas, plain.sigmas)
    with pytest.raises(UserError, match=f"scheduler: {option} is not known here; set it to false"):
        sampler.ladder(SD15 | {option: True}, 20, "")


@pytest.mark.parametrize("name", ["Euler", "Heun"])
def test_an_unknown_end_is_named(name):
    with pytest.raises(UserError, match="final_sigmas_type 'sigma_max' is not one of zero, sigma_min"):
        samplers.get_sampler(name).ladder(SD15 | {"final_sigmas_type": "sigma_max"}, 20, "")


def test_no_spacing_without_a_name():
    assert set(ladders.SPACINGS) & set(ladders.BENDS) == set()
