"""Numbers of configs that cannot be meant are refused, wherever they stand; those that the configs ship are not."""

import runpy
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from dermjax import config_file
from dermjax.errors import UserError

CONFIGS = Path(__file__).parents[1] / "configs"
VARIANTS = {
    "tune": ("paper", "lora", "full", "best", "tiny", "demo"),
    "generate": ("paper", "released", "balanced_tones", "tiny", "demo"),
    "classify": ("probe", "vit", "mobilenetv2", "demo"),
    "study": ("frozen", "last", "full", "folds"),
    "sweep": ("lora", "full", "tiny"),
}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_what_the_configs_ship_passes(path):
    for variant in (None, *VARIANTS.get(path.stem, ())):
        made = runpy.run_path(str(path))["get_config"]
        config_file.check(made(variant) if variant else made())


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"steps": 0}, r"config\.steps = 0: give 1 or more"),
        ({"log_every": 0}, r"config\.log_every = 0: give 1 or more"),
        ({"watch_every": -1}, r"config\.watch_every = -1: give 0 or more"),
        ({"tune": {"samples": {"images": -4}}}, r"config\.tune\.samples\.images = -4"),
        ({"seeds": (0, 2**32)}, r"config\.seeds = 4294967296: give a seed from 0 to 4294967295"),
        ({"plan": {"seed": -1}}, r"config\.plan\.seed = -1: give 0 or more"),
        ({"space": {"steps": (100, 0)}}, r"config\.space\.steps = 0: give 1 or more"),
    ],
)
def test_what_cannot_be_meant_is_named(config, told):
    with pytest.raises(UserError, match=told):
        config_file.check(ConfigDict(config))


def test_periods_of_0_the_largest_seed_and_words_of_users_pass():
    config_file.check(ConfigDict({"save_every": 0, "seed": 2**32 - 1, "words": {"steps": {"batch": 0}}, "images": "x"}))
