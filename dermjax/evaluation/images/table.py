"""The DermGenBench table: a JSON line a set of images, which every evaluation that names the file adds its own to."""

import json
from collections.abc import Iterable
from pathlib import Path

from dermjax.data import digests
from dermjax.data.records import Record
from dermjax.errors import UserError
from dermjax.run_folder import write_atomically

NUMERIC_VERSION = 2  # of a line's figures; lines of the first, whose probes divided by any deviation, do not say so
KEY = ("name", "extractor", "tokens", "real", "synthetic")  # what a line is the same by


def digest(records: Iterable[Record]) -> str:
    """The digest of images, with their classes and splits, in whatever order."""
    rows = sorted(f"{record.sha256} {record.label} {record.split}" for record in records)
    return digests.of_text("\n".join(rows))


def read(path: str) -> list[dict]:
    """The lines of a table, [] where there is none yet.

    Raises:
      UserError: a line is none of a table.
    """
    if not path or not Path(path).exists():
        return []
    lines = []
    try:
        rows = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config.table {path}: cannot be read ({error}); give a file of JSON lines") from error
    for number, row in enumerate(rows, start=1):
        try:
            line = json.loads(row)
        except (ValueError, RecursionError):
            line = None
        if not isinstance(line, dict) or not set(KEY) <= line.keys():
            raise UserError(f"config.table {path}: line {number} is not one of evaluate.py:images; give another file")
        lines.append(line)
    return lines


def append(path: str, line: dict) -> list[dict]:
    """The lines of a table and this one, which takes the place of an older one of the same name, images and network.

    They are written where a path is given.
    """
    lines = [each for each in read(path) if any(each[key] != line[key] for key in KEY)] + [line]
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(path), "".join(json.dumps(each) + "\n" for each in lines))
    return lines
