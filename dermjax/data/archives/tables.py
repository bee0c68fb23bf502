"""Tables as people save them: CSV of any land and encoding, and JSON lines, to rows {column: text}.

Which file a table means by what it calls an image: a path, a name, or a stem, spelt as people and systems do.

The first of these that fits counts: as it stands, in another case, without the `_downsampled` that ISIC 2019 appends to
some names and not to the files, or the other way round. Umlauts have two spellings in Unicode, and names out of a zip
from Windows may be in no Unicode at all.

The tables in a folder of images, and which of their columns say what: by a known layout, or by what they hold.

A folder may hold several tables of its layout, one a split of a challenge, and others that only say more of the images.
A table of no known layout is read by the column that names images below and by one of `layouts.CLASS_COLUMNS` or
`layouts.DIAGNOSIS_COLUMNS`. `binding` makes Records of them.
"""

import codecs
import csv
import json
import math
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np

from dermjax.data import digests
from dermjax.data.archives import folders, layouts, tree
from dermjax.data.archives.folders import Found
from dermjax.data.archives.layouts import HEADLESS, LAYOUTS, Layout
from dermjax.data.archives.tree import Tree
from dermjax.data.images import SUFFIXES
from dermjax.data.splits import ISIC_ID
from dermjax.errors import UserError

MARKS = ",;\t|"
WESTERN = "cp1252"  # what Excel of western Europe writes
CHUNK = 1 << 20


def read_columns(path: Path) -> list[str]:
    """The columns of a table; UserError where it cannot be read."""
    return next(_lines(path))[1]


def is_western(path: Path) -> bool:
    """Whether a table is in no UTF encoding and is read as WESTERN."""
    return path.suffix.lower() != ".jsonl" and _encoding(path) == WESTERN


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a table below its header, {column: value}, each with the number of its line."""
    if path.suffix.lower() == ".jsonl":
        yield from ((number, _texts(line)) for number, line in _objects(path))
        return
    lines = _lines(path)
    _, names = next(lines)
    for number, row in lines:
        yield number, dict(zip(names, map(str.strip, row), strict=False))


def parse_number(text: str) -> float:
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


REDUCED = "_downsampled"
KNOWN = frozenset(SUFFIXES)
WESTERN_LETTERS = ("cp1252", "cp850")


class References:
    """The images below a root, by what a table may call them."""

    def __init__(self, root: Path, images: Iterable[str]):
        self.root = root
        self.folders: dict[Path, str] = {}  # of tables, below the root
        self.levels = tuple(defaultdict(list) for _ in _spellings(""))
        for image in images:
            keys = {key for each in _reference_texts(image) for key in (each, _name(each), _stem(_name(each)))}
            for level, spelt in zip(self.levels, zip(*map(_spellings, keys), strict=True), strict=True):
                for key in dict.fromkeys(spelt):
                    level[key].append(image)

    def find(self, text: str, table: Path) -> list[str]:
        """The images that a table may mean, those of the longest path in common."""
        text = _reference_texts(text)[0].removeprefix("./")
        if not text:
            return []
        if table not in self.folders:
            here = table.parent.relative_to(self.root).as_posix()
            self.folders[table] = "" if here == "." else f"{here}/"
        beside = self.levels[0].get(self.folders[table] + text)
        if beside:
            return beside
        for of, level in zip((lambda key: key, str.casefold, _reduced), self.levels, strict=True):
            for key in dict.fromkeys((text, _name(text), _stem(_name(text)))):
                found = level.get(of(key))
                if found:
                    return [each for each in found if each.endswith(f"/{text}")] or found
        return []

    def one(self, text: str, table: Path, where: str) -> str | None:
        """The one file that a table means, None for none; where there are several of its name, they must be copies."""
        paths = self.find(text, table)
        if len(paths) > 1 and len({digests.cached_sha256(self.root / path) for path in paths}) > 1:
            raise UserError(f"{where}: {_name(text)} may be {' or '.join(paths)}, which differ; keep one or write its "
                            "path")  # fmt: skip
        return paths[0] if paths else None


def image_key(text: str) -> str:
    """What is the same of an image in all tables, with or without its suffix."""
    return _reduced(_stem(_name(_reference_texts(text)[0])))


def _spellings(key: str) -> tuple[str, str, str]:
    return key, key.casefold(), _reduced(key)


def _reduced(key: str) -> str:
    return _stem(key).casefold().removesuffix(REDUCED)


def _reference_texts(text: str) -> list[str]:
    """A name with slashes and composed umlauts; where its bytes are no UTF-8, as Windows reads them."""
    if text.isascii():
        return [text.strip().replace("\\", "/")]
    texts = [text]
    if any("\udc80" <= each <= "\udcff" for each in text):
        raw = text.encode("utf-8", "surrogateescape")
        texts += [raw.decode(each, "replace") for each in WESTERN_LETTERS]
    return [unicodedata.normalize("NFC", each.strip().replace("\\", "/")) for each in texts]


def _name(text: str) -> str:
    return text.rstrip("/").rpartition("/")[2]  # a Path would be five times as slow, for each image and row


def _stem(name: str) -> str:
    """A name without the suffix of an image; other dots belong to it."""
    stem, _, suffix = name.rpartition(".")
    return stem if stem and f".{suffix.lower()}" in KNOWN else name


TRIED = 200  # rows that tell which column names images
MOST = 0.5  # share of those rows whose value is an image's


@dataclass(frozen=True)
class TableFolder:
    """What lies under a folder, and the columns of each of its tables."""

    tree: Tree
    tables: Mapping[Path, list[str]]

    @cached_property
    def images(self) -> Found:
        """Its photographs and their masks."""
        return folders.divided(self.root, self.tree.images)

    @cached_property
    def named(self) -> References:
        """Its photographs, by what tables may call them."""
        return References(self.root, self.images.photographs)

    @property
    def root(self) -> Path:
        """The folder, resolved."""
        return self.tree.root

    def of(self, layout: Layout) -> list[Path]:
        """The tables of a layout."""
        return [path for path, columns in self.tables.items() if layout.fits(set(columns))]


def open_folder(folder: Path) -> TableFolder:
    """The images and tables under a folder; UserError names a table that cannot be read."""
    found = tree.walk(folder)
    return TableFolder(found, {path: read_columns(path) for path in found.tables})


def detect(folder: TableFolder) -> str | None:
    """The name of the layout of a folder, None where no table in it is of a known one; UserError where two are."""
    found = [name for name, layout in LAYOUTS.items() if folder.of(layout)]
    if len(found) > 1:
        raise UserError(f"folder {folder.root}: tables of {' and '.join(found)}; give one of them as config.layout")
    return found[0] if found else None


def detect_columns(folder: TableFolder) -> Layout | None:
    """The layout of a folder whose tables are of no known one, by the images and classes that they name; None where
    none does."""
    for table, columns in folder.tables.items():
        image = image_column(folder, table)
        lower = {column.lower(): column for column in columns}
        spelt = (*layouts.CLASS_COLUMNS, *layouts.DIAGNOSIS_COLUMNS)
        label = next((lower[each] for each in spelt if each in lower), "")
        if image and label and label != image:
            values = {told.get(label, "").lower() for _, told in read_rows(table)} - {""}
            meanings = None
            if label.lower() in layouts.DIAGNOSIS_COLUMNS:
                meanings = next((each for each in (layouts.TARGETS, layouts.DIAGNOSES) if values <= each.keys()), None)
            return Layout(image=image, label=(label,), meanings=meanings, known=known_columns(columns, (image, label)))
    return None


def image_column(folder: TableFolder, table: Path) -> str:
    """The column of a table that names images below, "" for none."""
    counts: dict[str, list[bool]] = defaultdict(list)
    for _, told in islice(read_rows(table), TRIED):
        for column, value in told.items():
            if value:
                counts[column].append(bool(folder.named.find(value, table)))
    shares = {column: float(np.mean(hits)) for column, hits in counts.items()}
    best = max(shares, key=shares.get, default="")
    return best if best and shares[best] >= MOST else ""


def describe_unknown(folder: TableFolder) -> str:
    """What a line says of tables that name images and nothing of them that is known, "" where there is none."""
    named = {path: image_column(folder, path) for path in folder.tables}
    told = [
        f"{path.relative_to(folder.root)} ({', '.join(map(repr, folder.tables[path]))})"
        for path, image in named.items()
        if image and not known_columns(folder.tables[path], (image,))
    ]
    return f"not read, as no column is known: {'; '.join(told)}; config.columns names them" if told else ""


def describe_columns(folder: TableFolder) -> str:
    """What a line says of tables that nobody could read by their columns, "" where there is none."""
    told = [
        f"{path.relative_to(folder.root)} has the columns {', '.join(map(repr, columns))}"
        for path, columns in folder.tables.items()
    ]
    if not told:
        return "; ".join(folder.tree.unread)
    path = next(iter(folder.tables))
    image = image_column(folder, path)
    known = f"its images are in {image!r}; " if image else ""
    return (
        f"{'; '.join(told)}; {known}give the columns of the image and of the class or diagnosis, as "
        f"--config.columns.image={image or 'file'} --config.columns.label=…"
    )


def choose_layout(folder: TableFolder, name: str, columns: Mapping[str, str]) -> Layout:
    """The layout of a name, with columns of a map put in place of its own; the images' column may be left to `naming`.

    What a given `label` says is the class; what a given `diagnosis` says goes by `layouts.RULES`.
    """
    layout = LAYOUTS.get(name, Layout(image=""))
    given = {key: column for key, column in columns.items() if column}
    if "label" in given:
        layout = replace(layout, label=(given.pop("label"),), meanings=None, one_hot={}, by="")
    if "diagnosis" in given:
        layout = replace(layout, label=(given.pop("diagnosis"),), meanings=layouts.DIAGNOSES, one_hot={}, by="")
    image = given.pop("image", layout.image)
    if not image and layout.label:
        of_label = [path for path, there in folder.tables.items() if set(layout.label) <= set(there)]
        image = next((image_column(folder, path) for path in of_label), "")
    if not image or not (layout.label or layout.one_hot):
        told = describe_columns(folder)
        raise UserError(
            "config.columns: give the columns of the image and the label or diagnosis, as --config.columns.image=file"
            + (f"; {told}" if told else "")
        )
    return replace(layout, image=image, known={**layout.known, **given})


def known_columns(columns: Sequence[str], taken: Sequence[str]) -> dict[str, str]:
    """The columns of a table of no layout that say something known, by its field."""
    lower = {column.lower(): column for column in columns if column not in taken}
    found = {name: [lower[each] for each in spelt if each in lower] for name, spelt in layouts.KNOWN_COLUMNS.items()}
    return {name: those[0] for name, those in found.items() if those}
