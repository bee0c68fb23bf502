"""Prompt templates: `dermoscopy of a {label} mole[ on {skin_tone.group} skin][, {site}]`.

A gap is filled with what is known by its name: the label, the source or an attribute of a record (a dot goes into it),
or a word that is requested. A clause in brackets is left out where nothing fills one of its gaps. Captions for tuning
and prompts for sampling are read here, and nowhere else.
"""

import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

from dermjax.data.records import Record
from dermjax.errors import UserError

GAP, CLAUSE = re.compile(r"\{([\w.]*)\}"), re.compile(r"\[([^\[\]]*)\]")
BRACKET = re.compile(r"[\[\]{}]")
LABEL = "label"
ONE = ("one", "a", "single", "1")  # numbers that need no plural


@dataclass(frozen=True)
class PromptWords:
    """The words for an image to be generated: its label, words by gap ("" for none), and a record to be like."""

    label: str
    words: Mapping[str, str]
    like: Record | None

    def word(self, gap: str) -> str | None:
        """Returns what fills a gap, None for nothing."""
        if gap == LABEL:
            return in_words(self.label)
        if gap in self.words:
            return self.words[gap] or None
        value = _value(self.like, gap) if self.like else None
        return None if value is None else str(value)

    def used(self, template: str) -> tuple[tuple[str, str], ...]:
        """Returns (gap, word) of every gap of a template that is filled, besides the label."""
        others = sorted(set(gaps(template)) - {LABEL})
        return tuple((gap, word) for gap in others if (word := self.word(gap)))


def in_words(label: str) -> str:
    """Returns a label as prompts say it, to tune with and to ask for."""
    return label.replace("_", " ")


def gaps(template: str) -> list[str]:
    """Returns the names of the gaps of a template, in order."""
    return GAP.findall(template)


def check(template: str) -> None:
    """Raises UserError for a bracket that would be drawn as text: one that is open, or around what is no name."""
    if BRACKET.search(GAP.sub("", CLAUSE.sub(r"\1", template))):
        raise UserError(
            f"prompt {template!r}: a bracket is open; close it, or leave it out; a gap is {{name}}, a clause [text]"
        )


def same_prompts(asked: Iterable[tuple[str, Hashable]]) -> str:
    """Returns the warning for two classes that have the same prompts, "" where none have; asked: (label, prompt)."""
    by_label: dict[str, set] = {}
    for label, prompt in asked:
        by_label.setdefault(label, set()).add(prompt)
    for one, other in combinations(sorted(by_label), 2):
        if by_label[one] == by_label[other]:
            return f"warning: {one} and {other} have the same prompts; nothing in a prompt tells which class is meant"
    return ""


def fill(template: str, words: PromptWords) -> str:
    """Returns a template filled, `(s)` in it by its {number}; a gap outside of brackets that nothing fills is a
    UserError."""
    return _fill_prompt(template, words, template)


def check_filled(prompt: str, template: str) -> str:
    """Returns a prompt of a class that was filled; one without a word is a UserError."""
    if not prompt.strip():
        raise UserError(f"prompt {template!r}: is without a word where it is filled; give words for the class")
    return prompt


def fill_contrast(template: str, words: PromptWords) -> str:
    """Returns the template of another class without the clauses that set images of a class apart.

    Guidance away from it leads to the words of these clauses and to the class.
    """
    bare = CLAUSE.sub(lambda match: "" if set(gaps(match[1])) - {LABEL} else match[0], template)
    return _fill_prompt(bare, words, template)


def fill_from_record(template: str, record: Record) -> str:
    """Returns a template filled with what is known of a record; a UserError names what it does not have."""
    check(template)
    try:
        return _fill(template, lambda gap: _value(record, gap))
    except KeyError as error:
        raise UserError(
            f"prompt {template!r}: {record.image} has no {error.args[0]!r}; put the clause in brackets, or fill it in"
        ) from error


def _fill_prompt(text: str, words: PromptWords, template: str) -> str:
    check(template)
    number = words.word("number") if "number" in gaps(text) else None
    try:
        filled = _fill(text, words.word)
    except KeyError as error:
        hint = f"; {words.like.image} has none" if words.like else ""
        message = f"prompt {template!r}: nothing fills {{{error.args[0]}}}{hint}; put its clause in brackets"
        raise UserError(message) from error
    return filled.replace("(s)", "s" if number and number not in ONE else "")


def _fill(template: str, value_of: Callable[[str], object]) -> str:
    """Returns a template filled with values by gap, None for what is not known: a KeyError outside of a clause."""

    def clause(match: re.Match) -> str:
        return "" if any(value_of(gap) is None for gap in gaps(match[1])) else match[1]

    def word(match: re.Match) -> str:
        value = value_of(match[1])
        if value is None:
            raise KeyError(match[1])
        return str(value)

    return GAP.sub(word, CLAUSE.sub(clause, template))


def _value(record: Record, name: str) -> object:
    """Returns the label in words, the source or an attribute of a record, a dot going into it; None for none."""
    value = {**record.attributes, LABEL: in_words(record.label), "source": record.source}
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return None if value == "" else value
