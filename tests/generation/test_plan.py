"""Plans: turns, seeds, batches, and what they refuse."""

import runpy
from pathlib import Path

import pytest

from dermjax.errors import UserError
from dermjax.generation import plan

PLAN = {
    "prompts": {"malignant": ("a malignant mole",), "benign": ("a benign mole", "a benign nevus")},
    "negative_prompt": "hair",
    "contrast": False,
    "samplers": ("Euler", "Euler a", "PLMS"),
    "images_per_class": 12,
    "steps": 20,
    "spacing": "",
    "guidance": 2,
    "guidance_rescale": 0,
    "guidance_interval": (),
    "deep_cache": 1,
    "seed": 7,
}
CONFIG = Path(__file__).parents[2] / "configs" / "generate.py"


def test_samplers_and_prompts_take_turns():
    asked = plan.requests(**PLAN)
    assert len(asked) == 24 and [r.label for r in asked] == 12 * ["benign"] + 12 * ["malignant"]
    assert [r.sampler for r in asked[:4]] == ["Euler", "Euler a", "PLMS", "Euler"]
    every = {(r.prompt, r.sampler) for r in asked if r.label == "benign"}
    assert len(every) == 6, "every prompt meets every sampler"
    assert asked[0].image == "images/benign/00000.png" and asked[23].image == "images/malignant/00011.png"


def test_samplers_are_named_as_in_the_table():
    asked = plan.requests(**PLAN | {"samplers": ("EulerAncestralDiscreteScheduler", "dpmpp_2m karras")})
    assert {r.sampler for r in asked} == {"Euler a", "DPM++ 2M Karras"}


def test_with_contrast_each_class_is_led_away_from_the_prompts_of_the_others_in_turns():
    asked = plan.requests(**PLAN | {"contrast": True, "negative_prompt": ""})
    assert {r.negative for r in asked if r.label == "benign"} == {"a malignant mole"}
    of_malignant = [r.negative for r in asked if r.label == "malignant"]
    assert of_malignant == 2 * (3 * ["a benign mole"] + 3 * ["a benign nevus"])


def test_every_image_has_its_seed_also_in_a_larger_plan():
    asked = plan.requests(**PLAN)
    assert sorted(r.seed for r in asked) == list(range(7, 31))
    assert set(asked) < set(plan.requests(**PLAN | {"images_per_class": 40}))


def test_batches_are_divided_by_the_plan_alone():
    asked = plan.requests(**PLAN | {"images_per_class": 7})
    lengths = dict.fromkeys(asked, 77)
    whole = plan.batches(asked, set(asked), 4, lengths)
    assert sorted(r.image for batch in whole for r in batch) == sorted(r.image for r in asked)
    assert all(len(batch) <= 4 and len({(r.sampler, r.steps, r.guidance) for r in batch}) == 1 for batch in whole)
    assert plan.batches(asked, {whole[2][1], whole[0][0]}, 4, lengths) == [whole[0], whole[2]]
    assert plan.batches(asked, set(), 4, lengths) == []


def test_long_prompts_have_batches_of_their_own():
    asked = plan.requests(**PLAN)
    lengths = {request: 154 if request.label == "malignant" else 77 for request in asked}
    assert all(len({lengths[r] for r in batch}) == 1 for batch in plan.batches(asked, set(asked), 24, lengths))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": {}}, "plan asks for nothing"),
        ({"images_per_class": 0}, "plan asks for nothing"),
        ({"samplers": ()}, "plan asks for nothing"),
        ({"prompts": {"benign": ()}}, r"plan\.prompts\.benign: not a list"),
        ({"prompts": {"benign": "a benign mole"}}, r"plan\.prompts\.benign: not a list"),
        ({"prompts": {"../x": ("a mole",)}}, "label '../x' cannot name a folder"),
        ({"samplers": ("Euler b",)}, "sampler 'Euler b' is not known; did you mean one of: Euler, Euler a"),
        ({"steps": 0}, r"plan\.steps = 0"),
        ({"guidance": 0.5}, r"plan\.guidance = 0\.5"),
        ({"samplers": ("Euler", "PLMS"), "spacing": "karras"}, "spacing 'karras' is not for this sampler, which walks"),
        ({"spacing": "zigzag"}, "spacing 'zigzag' is not one of leading"),
        ({"guidance_rescale": 1.5}, r"plan\.guidance_rescale = 1\.5: give 0"),
        ({"guidance_interval": (5, 1)}, r"plan\.guidance_interval = \(5, 1\): give two rising sigmas"),
        ({"deep_cache": 0}, r"plan\.deep_cache = 0: give 1"),
        ({"contrast": True}, r"plan\.contrast takes the other classes' prompts: leave negative_prompt empty"),
        ({"contrast": True, "negative_prompt": "", "prompts": {"benign": ("a mole",)}}, "name two classes"),
        ({"seed": -1}, r"plan\.seed = -1"),
        ({"seed": 2**31 - 5}, r"plan\.seed = 2147483643: the seeds run to"),
    ],
)
def test_refused(change, message):
    with pytest.raises(UserError, match=message):
        plan.requests(**PLAN | change)


@pytest.mark.parametrize(("variant", "images"), [(None, 6000), ("paper", 6000), ("demo", 192)])
def test_the_config_s_plans(variant, images):
    config = runpy.run_path(str(CONFIG))["get_config"](variant)
    settings = config.plan.to_dict()
    assert settings.pop("batch") == 16
    asked = plan.requests(**settings)
    assert len(asked) == images and {r.label for r in asked} == {"benign", "malignant"}


def test_an_unknown_variant_is_named():
    with pytest.raises(ValueError, match="no variant 'big'; take paper or demo"):
        runpy.run_path(str(CONFIG))["get_config"]("big")
