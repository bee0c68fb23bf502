"""Verdicts of people on images: they override every rule and stand on the record.

A verdicts file has one JSON object a line, {"sha256": …, "keep": true or false, "by": who, "why": words}. Whoever shows
images to people appends to it; of several lines on one image the last counts, and "keep": null takes them back.
Images are named by the SHA-256 of their bytes, so that nobody's word reaches an image they have not seen.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dermjax.data.records import DIGEST, Record
from dermjax.errors import UserError

REASON = "person"
FIELDS = {"sha256": str, "keep": bool | None, "by": str, "why": str}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether an image is kept, who says so, and why (may be empty)."""

    keep: bool
    by: str
    why: str


def read(path: str) -> dict[str, Verdict | None]:
    """The verdicts of a file by digest, None for one that was taken back; UserError names the line of what is none."""
    if not path:
        return {}
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")  # splitlines would break a text at U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config.verdicts {path}: cannot be read ({error}); give a verdicts file") from error
    verdicts = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            fields = parse(line, f"config.verdicts {path} line {number}")
            digest = fields.pop("sha256")
            verdicts[digest] = None if fields["keep"] is None else Verdict(**fields)
    return verdicts


def verdict_on(record: Record, verdicts: Mapping[str, Verdict | None]) -> Verdict | None:
    """The verdict on a record's image: the file's, which may take it back, or one that an earlier curation recorded."""
    recorded = record.attributes.get("verdict")
    earlier = Verdict(**{name: recorded[name] for name in ("keep", "by", "why")}) if recorded else None
    return verdicts.get(record.sha256, earlier)


def apply(record: Record, verdict: Verdict | None) -> Record:
    """The record as the person wants it, with the verdict and the reasons that it overrules among its attributes."""
    if verdict is None:
        return replace(record, attributes={key: each for key, each in record.attributes.items() if key != "verdict"})
    overruled = list(record.rejected) if verdict.keep else []
    attributes = record.attributes | {"verdict": {**asdict(verdict), "overrules": overruled}}
    return replace(record, attributes=attributes, rejected=() if verdict.keep else (*record.rejected, REASON))


def parse(line: str | bytes, place: str) -> dict:
    """The fields of a line of a verdicts file; UserError, which begins with its place, for what is none."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not JSON ({error})") from error
    if not isinstance(fields, dict) or fields.keys() != FIELDS.keys():
        raise UserError(f"{place}: a verdict has {', '.join(FIELDS)}, no more and no less")
    misshapen = [name for name, kind in FIELDS.items() if not isinstance(fields[name], kind)]
    misshapen = misshapen or ([] if DIGEST.fullmatch(fields["sha256"]) else ["sha256"])
    if misshapen:
        raise UserError(f"{place}: {misshapen[0]} = {fields[misshapen[0]]!r} does not fit a verdict")
    return fields
