"""Tables as people save them: CSV of any land and encoding, and JSON lines, to rows {column: text}."""

import codecs
import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path

from dermjax.data.layouts import HEADLESS
from dermjax.data.splits import ISIC_ID
from dermjax.errors import UserError

MARKS = ",;\t|"
WESTERN = "cp1252"  # what Excel of western Europe writes
CHUNK = 1 << 20


def columns(path: Path) -> list[str]:
    """The columns of a table; UserError where it cannot be read."""
    return next(_lines(path))[1]


def is_western(path: Path) -> bool:
    """Whether a table is in no UTF encoding and is read as WESTERN."""
    return path.suffix.lower() != ".jsonl" and _encoding(path) == WESTERN


def rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a table below its header, {column: value}, each with the number of its line."""
    if path.suffix.lower() == ".jsonl":
        yield from ((number, _texts(line)) for number, line in _objects(path))
        return
    lines = _lines(path)
    _, names = next(lines)
    for number, row in lines:
        yield number, dict(zip(names, map(str.strip, row), strict=False))


def number(text: str) -> float:
    """The number that a cell holds, with a decimal point or comma; NaN where it holds none."""
    try:
        return float(text.replace(",", ".") if text.count(",") == 1 and "." not in text else text)
    except ValueError:
        return math.nan


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The header of a table, then its rows, whatever ends its lines."""
    if path.suffix.lower() == ".jsonl":
        names = {name: None for _, line in _objects(path) for name in line}
        yield 1, list(names)
        return
    try:
        with path.open(encoding=_encoding(path), newline="") as file:
            first = file.readline()
            said = first.lower().startswith("sep=")  # Excel's own word for what divides the columns
            mark = first[4:5] if said else max(MARKS, key=first.count)
            if not said:
                file.seek(0)
            found = csv.reader(file, delimiter=mark)
            first = next((row for row in found if row), [])
            if len(first) == 2 and ISIC_ID.fullmatch(first[0]):
                yield 0, list(HEADLESS)
            yield found.line_num + said, [name.strip() for name in first]
            yield from ((found.line_num + said, row) for row in found if row)
    except (OSError, UnicodeError, csv.Error, TypeError, ValueError) as error:  # csv's word for a mark that cannot be
        raise UserError(f"table {path}: cannot be read ({error}); save it as CSV in UTF-8") from error


def _encoding(path: Path) -> str:
    """The encoding of a table: by its mark, else UTF-8 where all of it is, else WESTERN."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as file:
            if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
                return "utf-16"
            file.seek(0)
            while chunk := file.read(CHUNK):
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return WESTERN
    except OSError as error:
        raise UserError(f"table {path}: cannot be read ({error.strerror}); make it readable") from error
    return "utf-8-sig"


def _objects(path: Path) -> Iterator[tuple[int, dict]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for place, line in enumerate(file, start=1):
                if line.strip():
                    told = json.loads(line)
                    if not isinstance(told, dict):
                        raise UserError(f"table {path} line {place}: not a JSON object; give one a line")
                    yield place, told
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"table {path}: cannot be read ({error}); give JSON lines in UTF-8") from error


def _texts(line: dict) -> dict[str, str]:
    told = {name: value for name, value in line.items() if value is not None}
    return {name: value.strip() if isinstance(value, str) else json.dumps(value) for name, value in told.items()}
