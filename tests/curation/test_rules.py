"""Limits follow from the training images, and a rule rejects on its own side only."""

import numpy as np
import pytest

from dermjax.curation import rules
from dermjax.curation.rules import Rule, Thresholds

THRESHOLDS = Thresholds(tail=0.0, contrast=0.5, structure=0.25, cast=2.0, blur=0.02, bits=40)


def scores(contrast, structure, a, b):
    return {"contrast": contrast, "structure": structure, "sharpness": 0.0, "chroma_a": a, "chroma_b": b}


TRAINING = [scores(10, 0.8, 15, 10), scores(20, 0.4, 17, 14), scores(30, 0.6, 19, 12)]


def test_a_rule_rejects_on_its_side():
    low = Rule(reason="blank", score="contrast", limit=5.0, high=False)
    high = Rule(reason="colour_cast", score="contrast", limit=5.0, high=True)
    assert [low.speaks_against({"contrast": value}) for value in (4, 5, 6)] == [True, True, False]
    assert [high.speaks_against({"contrast": value}) for value in (4, 5, 6)] == [False, True, True]


def test_limits_are_drawn_from_the_training_images():
    colours = rules.palette(TRAINING)
    found = rules.calibrated(THRESHOLDS, TRAINING, [-1.2, -1.0, -0.9], np.array([60, 80, 90]), colours)
    limits = {rule.reason: rule.limit for rule in found}
    assert limits.keys() == rules.MEANINGS.keys()
    assert limits["blank"] == 5.0
    assert limits["noise"] == pytest.approx(0.1)
    assert limits["blur"] == -1.0
    assert limits["training_copy"] == limits["near_duplicate"] == 40
    assert limits["colour_cast"] == pytest.approx(2 * max(colours.cast(each) for each in TRAINING))


def test_where_training_images_are_alike_a_copy_must_be_closer_still():
    colours = rules.palette(TRAINING)
    for apart, limit in ((25, 24), (0, 0)):
        found = rules.calibrated(THRESHOLDS, TRAINING, [-1.0], np.array([apart, 90]), colours)
        assert {rule.limit for rule in found if "copy" in rule.reason or "duplicate" in rule.reason} == {limit}


def test_one_training_image_is_enough_for_a_palette():
    colours = rules.palette(TRAINING[:1])
    assert colours.cast(TRAINING[0]) == 0
    assert colours.cast(scores(0, 0, 18, 14)) == pytest.approx(5)  # L*a*b* units: (3, 4) from (15, 10)
