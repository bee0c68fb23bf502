"""Prompts with gaps: `dermoscopy of a {label} mole[ on {skin_tone.group} skin][, {site}]`.

A gap is filled with what is known by its name. A clause in brackets is left out where one of its gaps has nothing to be
filled with.
"""

import re
from collections.abc import Callable

from dermjax.data.records import Record

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
