"""What prompts ask for: every caption of a phantom says what is true of it, and what is not said is not asked."""

import pytest

from dermjax.data.imaging.artefacts import PAINTED
from dermjax.data.phantoms.captions import MANY, parse_prompt
from dermjax.data.phantoms.painting import phantom


@pytest.mark.parametrize("seed", range(40))
def test_captions_ask_for_what_their_phantoms_show(seed):
    made = phantom(seed, 64)
    asked, truth = parse_prompt(made.caption), made.parameters
    assert asked.number_off(truth["number"]) == 0 and asked.number_off(truth["number"] + 2) > 0
    assert asked.size == truth["size_name"]
    assert asked.tone_off(truth["ita"]) == 0
    assert asked.artefacts == {name for name, painter in {**PAINTED, "blur": "blur"}.items() if truth[painter]}


def test_what_is_not_said_is_not_asked_for():
    asked = parse_prompt("dermoscopy of a benign mole")
    assert (asked.number, asked.size, asked.tone, asked.artefacts) == (None, "", None, frozenset())
    assert asked.number_off(7) == 0 and asked.tone_off(-80.0) == 0


@pytest.mark.parametrize(
    "prompt, number",
    [("multiple moles", (2, MANY)), ("Two large moles", (2, 2)), ("malignant moles", (2, MANY)), ("one mole", (1, 1))],
)
def test_numbers_in_words(prompt, number):
    assert parse_prompt(prompt).number == number


@pytest.mark.parametrize(
    "prompt, off", [("a mole on dark skin", 40.0), ("a mole on very light skin", 25.0), ("a light brown mole", 0)]
)
def test_tones_are_those_of_skin(prompt, off):
    assert parse_prompt(prompt).tone_off(30.0) == off


def test_without_does_not_ask():
    assert parse_prompt("a mole without hairs, no ruler, pink").artefacts == frozenset()
    assert parse_prompt("a mole with hair and a pen mark").artefacts == {"hairs", "ink"}
