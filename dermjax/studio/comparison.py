"""Compare: a grid of images over any two settings, all else equal, from the same noise.

Place in the flow: the settings of Generate and the values of two axes -> requests, row by row -> the same queue.
"""

import re
from typing import Any

from dermjax.diffusion import samplers
from dermjax.studio import generation
from dermjax.studio.calls import Field, Refused
from dermjax.studio.generation import Studio

CELLS = 36
WORD = "prompt word"  # the first value is a word of the prompt, which the other values take the place of
AXES = ("sampler", "steps", "guidance", "seed", "lora_weight", WORD)
SETTINGS = {name: each for name, each in generation.FIELDS.items() if name != "count"}
FIELDS = SETTINGS | {
    "across": Field(kind=str, summary="what differs between columns", choices=AXES),
    "across_values": Field(kind=str, summary="its values, divided by commas", least=1, most=600),
    "down": Field(kind=str, summary="what differs between rows", choices=AXES),
    "down_values": Field(kind=str, summary="its values, divided by commas", least=1, most=600),
}


def submit(studio: Studio, *, client: str, across: str, across_values: str, down: str, down_values: str,
           **settings: Any) -> dict:  # fmt: skip
    """Puts a grid into the queue: the state of its job, with the values of columns and rows.

    The `place` of an image counts row by row. Refused: the same axis twice, a value that does not fit its axis, too
    many cells, a LoRA's weight without a LoRA, a word that the prompt lacks.
    """
    if across == down:
        raise Refused(f"columns and rows both differ in {across}; choose two things")
    columns, rows = _values(across, across_values, settings), _values(down, down_values, settings)
    if len(columns) * len(rows) > CELLS:
        raise Refused(f"{len(columns)} x {len(rows)} images are too many; {CELLS} at most")
    cells = [
        _changed(_changed(settings, down, row, rows), across, column, columns) for row in rows for column in columns
    ]
    return studio.put(client, cells) | {"across": columns, "down": rows}


def _values(axis: str, text: str, settings: dict) -> list:
    """The values of an axis, in their own type."""
    values = [each.strip() for each in text.split(",") if each.strip()]
    if not values or len(set(values)) < len(values):
        raise Refused(f"{axis}: give values that differ, divided by commas")
    if axis == WORD:
        if not _word(values[0]).search(settings["prompt"]):
            raise Refused(f"prompt word: {values[0][:60]!r} is not in the prompt; the first value must be")
        return values
    if axis == "lora_weight" and not settings["lora"]:
        raise Refused("lora_weight: choose a LoRA first")
    read = [SETTINGS[axis].from_text(axis, each) for each in values]
    return [samplers.get_sampler(each).name for each in read] if axis == "sampler" else read


def _changed(settings: dict, axis: str, value: Any, values: list) -> dict:
    if axis == WORD:
        return settings | {"prompt": _word(values[0]).sub(lambda found: value, settings["prompt"])}
    return settings | {axis: value}


def _word(text: str) -> re.Pattern:
    """Finds a word of a prompt, and never inside a longer one, as "regular" is in "irregular"."""
    return re.compile(rf"(?<!\w){re.escape(text)}(?!\w)")
