"""What training is said to take: operations as the papers have them, each part of a network once."""

import pytest
from ml_collections import ConfigDict

from dermjax.classification import networks, recipes

LABELS = ("benign", "malignant")
NETWORKS = {"vit": {"name": "Ti/16"}, "mobilenetv2": {"depth_multiplier": 1.0}}


def operations(name, size, recipe):
    config = dict(classifier=name, init="", architecture=NETWORKS, size=size, seed=0, precision="float32")
    classifier, params, _ = networks.build(ConfigDict(config), LABELS)
    return recipes.operations(classifier, recipes.recipe(recipe, 2, params), size)


@pytest.mark.parametrize(
    "name, size, expected",
    [("vit", 224, 2 * 1.26e9), pytest.param("mobilenetv2", 160, 2 * 154e6, marks=pytest.mark.slow)],
)
def test_operations_are_those_of_the_papers(name, size, expected):
    """Two a multiply-add, of which ViT-Ti/16 has 1.26 G at 224 px (DeiT), MobileNetV2 154 M at 160 px (its table 4)."""
    below, above = operations(name, size, "frozen")
    assert below == pytest.approx(expected, rel=0.1) and above < 1e4


def test_the_last_blocks_take_their_share():
    below, above = operations("vit", 224, "last")
    # one layer of twelve, and of the last one the keys and values: its other work is for the class token alone
    assert above / (below + above) == pytest.approx((1 + 1 / 6) / (11 + 1 / 6), abs=0.02)
    nothing, whole = operations("vit", 224, "full")
    assert nothing == 0 and whole == pytest.approx(below + above, rel=0.01)
