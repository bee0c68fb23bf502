"""Skin tone of phantoms is theirs, and none is told of colours that skin has not; every artefact has a score."""

import numpy as np
import pytest

from dermjax.data.imaging import artefacts, skin_tone
from dermjax.data.phantoms.painting import phantom
from dermjax.segmentation import segment


def tone(image):
    return skin_tone.measure(segment(image)) or None


def test_the_tone_of_phantoms_is_near_their_own():
    apart = []
    for seed in range(8):
        made = phantom(seed, skin_tone.SIDE)
        found = tone(made.image)
        apart.append(abs(found["ita"] - made.parameters["ita"]))
        assert found["between"][0] <= found["ita"] <= found["between"][1] and "not calibrated" in found["obtained"]
        assert found.get("group") in (None, skin_tone.tone_group(made.parameters["ita"]))
    assert np.median(apart) < 3


def test_a_picture_with_a_cast_of_blue_and_one_without_skin_have_no_tone():
    image = phantom(1, skin_tone.SIDE).image
    assert tone(image) is not None
    for blue in (1.4, 1.6):
        assert tone(np.clip(image * np.array([0.8, 0.9, blue]), 0, 255).astype(np.uint8)) is None
    assert tone(np.zeros_like(image)) is None


def test_a_group_is_told_only_where_another_camera_would_tell_it_too():
    told = {}
    for name, skin in {"inside": (222, 190, 165), "at the limit": (225, 186, 163), "dark": (70, 45, 35)}.items():
        found = tone(np.full((skin_tone.SIDE, skin_tone.SIDE, 3), skin, np.uint8))
        low, high = map(skin_tone.tone_group, found["between"])
        assert ("group" in found) == (low == high)
        told[name] = found.get("group")
    assert told["dark"] == "dark" and None in told.values()


@pytest.mark.parametrize(
    "angle, group", [(80, "very light"), (55, "light"), (41, "intermediate"), (28, "tan"), (10, "brown"), (-30, "dark")]
)
def test_groups_begin_above_their_limit(angle, group):
    assert skin_tone.tone_group(angle) == group


def test_every_artefact_has_a_score_from_0_to_1():
    scores = artefacts.measure(phantom(2, skin_tone.SIDE).image)
    assert scores.keys() == artefacts.SCORES.keys()
    assert all(0 <= score <= 1 for score in scores.values())
