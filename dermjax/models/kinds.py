"""Kinds of values that an option of a config may have, each with its words and its test."""

import dataclasses
from collections.abc import Callable
from typing import Any

SHOWN = 80  # characters of a value in an error


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a value may be: `said` in words, and the test for it."""

    said: str
    fits: Callable[[Any], bool]


TRUTH = Kind("true or false", lambda value: type(value) is bool)
WORD = Kind("a text", lambda value: type(value) is str)
NOTHING = Kind("null", lambda value: value is None)


def whole(least: int, most: int) -> Kind:
    """Returns the kind of whole numbers within bounds, so that no network is built that no memory holds."""
    return Kind(f"a whole number from {least} to {most}", lambda value: type(value) is int and least <= value <= most)


def number(over: float, most: float) -> Kind:
    """Returns the kind of numbers more than `over` and at most `most`, which NaN is not."""
    said = f"a number more than {over:g} and at most {most:g}"
    return Kind(said, lambda value: type(value) in (int, float) and over < value <= most)


def listed(of: Kind, most: int) -> Kind:
    """Returns the kind of lists with 1 to `most` values of a kind."""
    said = f"a list of 1 to {most}, each {of.said}"
    return Kind(said, lambda value: type(value) is list and 1 <= len(value) <= most and all(map(of.fits, value)))


def either(one: Kind, other: Kind) -> Kind:
    """Returns the kind of what is of one kind or of another."""
    return Kind(f"{one.said}, or {other.said}", lambda value: one.fits(value) or other.fits(value))


def shown(value: Any) -> str:
    """Returns a value as an error says it, in a piece of one line."""
    said = ascii(value)
    return said if len(said) <= SHOWN else f"{said[:SHOWN]}…"
