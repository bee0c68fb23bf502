"""Artefacts are found where they are, on every edge and tone, and what looks like them is not taken for them."""

import numpy as np
import pytest

from dermjax.data.imaging.artefacts import PAINTED, SCORES, THRESHOLDS, View, straight_hairs
from dermjax.data.imaging.fields import coordinates
from dermjax.data.phantoms.appearance import ARTEFACTS, TONES
from dermjax.data.phantoms.painting import phantom

CLEAN = dict.fromkeys(ARTEFACTS, False)


def is_there(name, image):
    return SCORES[name](image) >= THRESHOLDS[name]


@pytest.mark.parametrize("name", SCORES)
def test_an_artefact_is_found_on_every_tone_and_only_it(name):
    for seed, tone in enumerate(TONES):
        made = {**CLEAN, "tone": tone, "size_name": "medium", "number": 1}
        assert is_there(name, phantom(seed, 128, **{**made, PAINTED[name]: True}).image), tone
        assert not is_there(name, phantom(seed, 128, **made).image), tone


@pytest.mark.parametrize("name", SCORES)
def test_a_score_hardly_depends_on_how_the_image_is_held(name):
    image = phantom(4, 128, **{**CLEAN, PAINTED[name]: True}).image
    for turned in (np.rot90(image), image[::-1], image[:, ::-1]):
        assert is_there(name, np.ascontiguousarray(turned))


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("level", [20, 90, 255])
def test_an_even_field_has_no_artefact(name, level):
    assert SCORES[name](np.full((128, 128, 3), level, np.uint8)) == 0


def test_the_strip_of_a_ruler_and_dark_corners_are_outside_on_whatever_edge():
    image = phantom(1, 128, **{**CLEAN, "ruler": True}).image
    for quarter in range(4):
        hidden = View(np.ascontiguousarray(np.rot90(image, quarter))).outside
        strip = np.rot90(hidden, -quarter)
        assert strip[-12:].all() and not strip[:-14].any()


def test_a_thin_straight_hair_is_seen_and_a_spot_is_not():
    image = phantom(5, 128, **CLEAN, number=1, size_name="small", texture="uniform").image
    before = straight_hairs(View(image)).sum()
    x, y = coordinates(128)
    thin, spot = image.copy(), image.copy()
    thin[np.abs(y - 0.1 - 0.1 * x) < 0.006] = (60, 45, 40)
    spot[np.hypot(x - 0.15, y - 0.15) < 0.03] = (60, 45, 40)
    assert before == 0 and straight_hairs(View(spot)).sum() == 0
    assert straight_hairs(View(thin)).mean() >= 0.006


def test_blue_in_the_lesion_and_a_blue_lesion_are_no_ink():
    for seed in range(3):
        image = phantom(seed, 128, **CLEAN, number=1, size_name="large", second_colour="blue", veil=True).image
        assert not is_there("ink", image)
    x, y = coordinates(128)
    spot = np.full((128, 128, 3), (215, 180, 165), np.uint8)
    spot[np.hypot(x - 0.5, y - 0.5) < 0.2] = (70, 75, 130)
    assert not is_there("ink", spot)
    stroke = np.full((128, 128, 3), (215, 180, 165), np.uint8)
    stroke[8:13, 20:100] = (70, 75, 150)
    assert is_there("ink", stroke)


def test_a_broken_rim_and_a_bright_disc_are_told_from_a_bubble():
    x, y = coordinates(128)
    away, angle = np.hypot(x - 0.3, y - 0.3), np.arctan2(y - 0.3, x - 0.3)
    field = np.full((128, 128, 3), (200, 160, 140), np.uint8)
    rim, arc = field.copy(), field.copy()
    rim[np.abs(away - 0.035) < 0.01] = 245
    arc[(np.abs(away - 0.035) < 0.01) & (angle > 0)] = 245
    assert is_there("gel", rim) and not is_there("gel", arc)
