"""Prompts with gaps: `dermoscopy of a {label} mole[ on {skin_tone.group} skin][, {site}]`.

A gap is filled with what is known by its name. A clause in brackets is left out where one of its gaps has nothing to be
filled with.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dermjax.data.records import Record
from dermjax.errors import UserError

GAP, CLAUSE = re.compile(r"\{([\w.]*)\}"), re.compile(r"\[([^\[\]]*)\]")


def gaps(template: str) -> list[str]:
    """Returns the names of the gaps of a template, in order."""
    return GAP.findall(template)


def filled(template: str, known: Callable[[str], object]) -> str:
    """Returns a template filled with `known(name)`, None for what is not known: a KeyError outside of a clause."""

    def clause(match: re.Match) -> str:
        return match[1] if all(known(name) is not None for name in gaps(match[1])) else ""

    def word(match: re.Match) -> str:
        found = known(match[1])
        if found is None:
            raise KeyError(match[1])
        return str(found)

    return GAP.sub(word, CLAUSE.sub(clause, template))


def value(record: Record, name: str) -> object:
    """Returns the label, the source or an attribute of a record, a dot going into it; None where it knows none."""
    found = {**record.attributes, "label": record.label, "source": record.source}
    for key in name.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return None if found == "" else found


LABEL = "label"
ONE = ("one", "a", "single", "1")  # numbers that need no plural


@dataclass(frozen=True)
class Known:
    """What is known of an image to be made: its label, its words (gap -> word, "" for none), a record to be like."""

    label: str
    words: Mapping[str, str]
    like: Record | None

    def value(self, gap: str) -> str | None:
        """Returns what fills a gap, None for nothing."""
        if gap == LABEL:
            return self.label.replace("_", " ")
        if gap in self.words:
            return self.words[gap] or None
        like = value(self.like, gap) if self.like else None
        return None if like is None else str(like)

    def said(self, template: str) -> tuple[tuple[str, str], ...]:
        """Returns (gap, word) of every gap of a template that is filled, besides the label."""
        others = sorted(set(gaps(template)) - {LABEL})
        return tuple((gap, word) for gap in others if (word := self.value(gap)))


def prompt(template: str, known: Known) -> str:
    """Returns a template filled; a gap outside of brackets that nothing fills is a UserError."""
    return _filled(template, known.value, template, known)


def contrast(template: str, known: Known) -> str:
    """Returns the template of another class without the clauses that tell images of a class apart.

    Guidance away from it leads to the words of these clauses and to the class.
    """
    bare = CLAUSE.sub(lambda match: "" if set(gaps(match[1])) - {LABEL} else match[0], template)
    return _filled(bare, known.value, template, known)


def _filled(text: str, known_value: Callable[[str], str | None], template: str, known: Known) -> str:
    number = known_value("number") if "number" in gaps(text) else None
    try:
        words = filled(text, known_value)
    except KeyError as error:
        gap = error.args[0]
        of = f"; {known.like.image} has none" if known.like else ""
        raise UserError(f"prompt {template!r}: nothing fills {{{gap}}}{of}; put its clause in brackets") from error
    return words.replace("(s)", "s" if number and number not in ONE else "")
