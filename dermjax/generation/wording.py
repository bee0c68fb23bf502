"""What an image is asked for with: a prompt's template, its gaps filled with dealt words or with a real image's record.

    dermoscopy of [{number} ][{size} ]{label} mole(s)[, {tone} skin]

`(s)` is said where the image's `number` is said and is more than one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dermjax.data import templates
from dermjax.data.records import Record
from dermjax.errors import UserError

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
        found = templates.value(self.like, gap) if self.like else None
        return None if found is None else str(found)

    def said(self, template: str) -> tuple[tuple[str, str], ...]:
        """Returns (gap, word) of every gap of a template that is filled, besides the label."""
        gaps = sorted(set(templates.gaps(template)) - {LABEL})
        return tuple((gap, word) for gap in gaps if (word := self.value(gap)))


def prompt(template: str, known: Known) -> str:
    """Returns a template filled; a gap outside of brackets that nothing fills is a UserError."""
    return _filled(template, known.value, template, known)


def contrast(template: str, known: Known) -> str:
    """Returns the template of another class without the clauses that tell images of a class apart.

    Guidance away from it leads to the words of these clauses and to the class.
    """
    bare = templates.CLAUSE.sub(lambda match: "" if set(templates.gaps(match[1])) - {LABEL} else match[0], template)
    return _filled(bare, known.value, template, known)


def _filled(text: str, value: Callable[[str], str | None], template: str, known: Known) -> str:
    number = value("number") if "number" in templates.gaps(text) else None
    try:
        filled = templates.filled(text, value)
    except KeyError as error:
        gap = error.args[0]
        of = f"; {known.like.image} has none" if known.like else ""
        raise UserError(f"prompt {template!r}: nothing fills {{{gap}}}{of}; put its clause in brackets") from error
    return filled.replace("(s)", "s" if number and number not in ONE else "")
