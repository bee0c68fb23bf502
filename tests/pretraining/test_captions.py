"""Captions of photographs are true: phantoms, whose truth is known, in the place of photographs."""

import numpy as np
import pytest

from dermjax.data.phantoms.appearance import ARTEFACTS
from dermjax.data.phantoms.captions import VOCABULARY, parse_prompt
from dermjax.data.phantoms.painting import phantom
from dermjax.pretraining import photographs

CLEAN = dict.fromkeys(ARTEFACTS, False)


@pytest.fixture(scope="module")
def described():
    made = [phantom(seed, 128) for seed in range(48)]
    pictures, masks = np.stack([each.image for each in made]), np.stack([each.mask for each in made])
    return made, photographs.describe_all(pictures, masks)


def test_number_size_tone_and_artefacts_are_those_that_were_drawn(described):
    made, found = described
    for name, least in {"number": 0.95, "size_name": 0.7, "tone": 0.9, "hairs": 0.95, "ruler": 0.95}.items():
        same = np.mean([each[name] == truth.parameters[name] for truth, each in zip(made, found, strict=True)])
        assert same >= least, (name, same)


def test_borders_are_ranked_as_they_were_drawn(described):
    made, found = described
    drawn = [each.parameters["irregularity"] for each in made]
    assert np.corrcoef(drawn, [each["irregularity"] for each in found])[0, 1] > 0.5
    assert min(each["irregularity"] for each in found) > 0 and max(each["irregularity"] for each in found) < 1


def test_captions_have_known_words_say_photo_and_never_the_class(described):
    _, found = described
    for text in photographs.write_captions(found, 0):
        words = text.replace(",", " ,").split()
        assert text.startswith("dermoscopy photo of") and set(words) <= set(VOCABULARY)
        assert not {"benign", "malignant"} & set(words)
        assert parse_prompt(text).number is not None


def test_darker_colours_and_a_second_colour_are_named():
    words = {}
    for colour in ("golden", "black"):
        made = phantom(3, 128, **CLEAN, number=1, colour=colour, second_colour="", texture="uniform", tone="light")
        words[colour] = photographs.describe(made.image, made.mask)["colour"]
    order = ("golden", "brown", "chocolate", "black")
    assert order.index(words["golden"]) < order.index(words["black"])


def test_what_cannot_be_told_is_left_out():
    nothing = photographs.describe(np.zeros((128, 128, 3), np.uint8), np.zeros((128, 128), bool))
    assert (nothing["colour"], nothing["tone"], nothing["texture"]) == ("", "", "")
    text = photographs.write_captions([nothing | {"irregularity": 0.2}], 1)[0]
    assert "skin" not in text and "  " not in text


def test_a_sticker_is_not_skin_and_a_disc_is_smooth():
    picture = np.full((128, 128, 3), (200, 150, 130), np.uint8)
    rows, columns = np.mgrid[:128, :128]
    disc = np.hypot(rows - 20, columns - 20) < 30
    assert photographs.sticker(picture) == 0
    picture[disc] = (20, 130, 200)
    assert photographs.sticker(picture) == pytest.approx(disc.mean(), rel=0.1)
    star = disc & ((rows + columns) % 16 < 8)
    assert photographs.ragged(disc) < 0.05 < photographs.ragged(star)
    assert photographs.ragged(np.zeros((8, 8), bool)) == 0
