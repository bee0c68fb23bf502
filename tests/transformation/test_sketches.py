"""Sketches show the change that is asked for, measured by segmentation, and leave the rest as it was."""

from dataclasses import replace

import numpy as np
import pytest

from dermjax.data.phantoms.appearance import ARTEFACTS, TONES
from dermjax.data.phantoms.painting import phantom
from dermjax.errors import UserError
from dermjax.segmentation import segment
from dermjax.transformation import measures, sketches
from dermjax.transformation.measures import UNCHANGED, Measure
from dermjax.transformation.sketches import SKETCHES

CLEAN = dict.fromkeys(ARTEFACTS, False)


@pytest.fixture(scope="module")
def seen():
    """Phantoms with one to three lesions, small and medium, with their segmentation."""
    found = []
    for seed in range(9):
        asked = {"number": 1 + seed % 3, "size_name": ("small", "medium")[seed % 2]}
        image = phantom(seed, 128, **CLEAN, **asked).image
        found.append((image, segment(image)))
    return found


@pytest.mark.parametrize("asked", SKETCHES)
def test_the_change_is_there_and_nothing_else(seen, asked):
    for image, before in seen:
        made = SKETCHES[asked](image, before, 1.5)
        after = segment(made.image)
        assert measures.met(asked, measures.measure(before), measures.measure(after), 5.0)
        assert measures.decibels(image, made.image, ~made.region) > 35 or asked.endswith("skin")
        if asked not in ("more", "larger"):  # enlarged ones may touch
            assert after.count == before.count


def test_lesions_grow_by_the_factor_as_far_as_the_field_allows(seen):
    ratios = [
        segment(sketches.larger(image, before, 1.3).image).areas.sum() / before.areas.sum() for image, before in seen
    ]
    assert np.median(ratios) == pytest.approx(1.69, rel=0.15)
    image = phantom(3, 128, **CLEAN, number=1, size_name="large", diameters=[0.5]).image
    before = segment(image)
    assert segment(sketches.larger(image, before, 3.0).image).areas.sum() < np.pi * 0.3**2


@pytest.mark.parametrize("tone", TONES)
def test_skin_gets_the_middle_of_its_tone(seen, tone):
    for image, before in seen[:3]:
        assert segment(sketches.toned(image, before, tone).image).ita == pytest.approx(np.mean(TONES[tone]), abs=3)


def test_where_there_is_no_room_it_is_said():
    image = phantom(3, 128, **CLEAN, number=1, size_name="large", diameters=[0.5]).image
    seen = segment(image)
    full = replace(seen, mask=np.ones_like(seen.mask), labels=np.ones_like(seen.labels), areas=np.array([1.0]))
    with pytest.raises(UserError, match="no room"):
        sketches.more(image, full)
    with pytest.raises(UserError, match="no skin"):
        sketches.toned(image, full, "dark")


def test_what_is_reached():
    before = Measure(2, 0.05, 40.0)
    told = {
        "larger": (Measure(1, 0.06, 40.0), Measure(2, 0.05, 40.0)),
        "smaller": (Measure(2, 0.04, 40.0), Measure(1, 0.02, 40.0)),  # a lesion that is lost is not smaller
        "more": (Measure(3, 0.05, 40.0), Measure(2, 0.09, 40.0)),
        "dark skin": (Measure(2, 0.05, -6.0), Measure(2, 0.05, 20.0)),
    }
    for asked, (reached, missed) in told.items():
        assert measures.met(asked, before, reached, 5.0) and not measures.met(asked, before, missed, 5.0)
    assert not measures.met("dark skin", before, Measure(2, 0.05, None), 5.0)


def test_measures_have_words():
    assert Measure(2, 2 * np.pi * 0.125**2, 65.0).words() == {"number": "two", "size": "medium", "tone": "pale"}
    assert Measure(7, 0.07, None).words() == {"number": "four", "size": "tiny", "tone": ""}


def test_decibels():
    black, grey = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 51, np.uint8)
    everywhere = np.ones((4, 4), bool)
    assert measures.decibels(black, black, everywhere) == UNCHANGED
    assert measures.decibels(black, grey, everywhere) == pytest.approx(20 * np.log10(5), abs=0.01)
    assert measures.decibels(black, grey, ~everywhere) == UNCHANGED
