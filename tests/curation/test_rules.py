"""Limits follow from real images or from the config, and a rule speaks on its own side only."""

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dermjax.curation import rules
from dermjax.curation.rules import Rule, Thresholds

CONFIG = runpy.run_path(str(Path(__file__).parents[2] / "configs" / "curate.py"))["get_config"]()
THRESHOLDS = replace(
    Thresholds(**CONFIG.thresholds.to_dict()), tail=0.0, contrast=0.5, structure=0.25, cast=2.0, bits=40
)
NO_OPINION = np.empty(0)


def scores(contrast, structure, a, b):
    return {"contrast": contrast, "structure": structure, "sharpness": 0.0, "chroma_a": a, "chroma_b": b}


TRAINING = [scores(10, 0.8, 15, 10), scores(20, 0.4, 17, 14), scores(30, 0.6, 19, 12)]


def calibrated(apart, opinions=NO_OPINION, noted=(), alike=NO_OPINION):
    found = rules.calibrate(THRESHOLDS, noted, TRAINING, np.array(apart), opinions, alike, rules.palette(TRAINING))
    return {rule.reason: rule for rule in found}


def test_a_rule_speaks_on_its_side_and_of_what_was_measured():
    low = Rule(reason="blank", score="contrast", limit=5.0, high=False, rejects=True)
    high = replace(low, reason="colour_cast", high=True)
    assert [low.speaks_against({"contrast": value}) for value in (4, 5, 6)] == [True, True, False]
    assert [high.speaks_against({"contrast": value}) for value in (4, 5, 6)] == [False, True, True]
    assert not low.speaks_against({}) and not high.speaks_against({})


def test_limits_are_drawn_from_the_real_images():
    found = calibrated([60, 80, 90], np.array([0.1, 0.6, 0.9]), alike=np.array([0.5, 0.9, 0.7]))
    limits = {reason: rule.limit for reason, rule in found.items()}
    assert limits.keys() == rules.MEANINGS.keys() - {"person"}
    assert limits["blank"] == 5.0
    assert limits["training_likeness"] == 0.9 and found["training_likeness"].high
    assert limits["noise"] == pytest.approx(0.1)
    assert limits["training_copy"] == limits["near_duplicate"] == 40
    assert limits["colour_cast"] == pytest.approx(2 * max(rules.palette(TRAINING).cast(each) for each in TRAINING))
    assert limits["other_class"] == pytest.approx(np.quantile([0.1, 0.6, 0.9], THRESHOLDS.label))
    assert (limits["hairs"], limits["blur"]) == (THRESHOLDS.hairs, THRESHOLDS.sharpness)


def test_without_a_classifier_nobody_speaks_of_classes():
    assert not {"other_class", "training_likeness"} & calibrated([60, 80]).keys()


def test_what_is_noted_does_not_reject():
    found = calibrated([60, 80], noted=("hairs", "training_copy"))
    assert {reason for reason, rule in found.items() if not rule.rejects} == {"hairs", "training_copy"}


def test_where_real_images_are_alike_a_copy_must_be_closer_still():
    for apart, limit in ((25, 24), (0, 0)):
        found = calibrated([apart, 90])
        assert found["near_duplicate"].limit == found["training_copy"].limit == limit


def test_one_training_image_is_enough_for_a_palette():
    colours = rules.palette(TRAINING[:1])
    assert colours.cast(TRAINING[0]) == 0
    assert colours.cast(scores(0, 0, 18, 14)) == pytest.approx(5)  # L*a*b* units: (3, 4) from (15, 10)


def test_what_a_judge_is_as_sure_of_as_numbers_go_is_not_doubted():
    """The limit was 1, so that every image was of "another class"."""
    sure = calibrated([60], np.array([0.2, *39 * [1.0]]))["other_class"]
    assert sure.limit == 0.2 and not sure.speaks_against({"label": 1.0}) and sure.speaks_against({"label": 0.1})
    assert "other_class" not in calibrated([60], np.ones(40))
