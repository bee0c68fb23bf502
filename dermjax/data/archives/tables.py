"""Tables in a folder of images: CSV of any land and encoding, and JSON lines, to rows {column: text}.

`References` finds the file that a table means by what it calls an image. `detect`, `detect_columns` and `choose_layout`
find which columns hold what: by a known layout, by what they hold, or as given. A folder may hold several tables of its
layout, one a split of a challenge, and others that only add something about the images. A table of no known layout is
read by the column that names images below and by one of `layouts.CLASS_COLUMNS` or `layouts.DIAGNOSIS_COLUMNS`.
`table_records` makes Records of them.
"""

import csv
import json
import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice
from pathlib import Path

import numpy as np

from dermjax.data import digests
from dermjax.data.archives import layouts, masks, tree
from dermjax.data.archives.layouts import HEADLESS, LAYOUTS, Layout
from dermjax.data.archives.masks import Separation
from dermjax.data.archives.tree import Tree
from dermjax.data.images import SUFFIXES
from dermjax.data.records import unrepeated
from dermjax.data.splits import ISIC_ID
from dermjax.errors import UserError

DELIMITERS = ",;\t|"
WESTERN = "cp1252"  # what Excel of western Europe writes
WESTERN_NAMES = ("cp1252", "cp850")  # of files out of a zip from Windows
CHUNK = 1 << 20
END = "\x1e"  # a line after the last one: a quotation that is still open takes it in
REDUCED = "_downsampled"  # ISIC 2019 appends it to some names and not to the files, or the other way round
TRIED = 200  # rows that tell which column names images
MOST = 0.5  # share of those rows whose value is an image's
SHOWN = 40  # columns in a message; tables of pixels or radiomics have thousands
# how columns of images are called, and columns of row numbers, pandas' own among them, in their `spelling`
OF_IMAGES = re.compile(r"image|img|photo|picture|file|foto|bild|^path$|^isicid$")
OF_ROWS = ("", "unnamed0", "index", "row", "rowid", "number", "nr", "no")


def read_columns(path: Path) -> list[str]:
    """The columns of a table; UserError where it cannot be read."""
    return next(_lines(path))[1]


def read_rows(path: Path, *, strict: bool = False) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a table below its header, {column: value}, each with the number of its line.

    strict: for a table of which something is taken. A row with more cells than the header names is a UserError, as a
    comma in a text has moved what follows it, and so is a quotation without its end, which takes in all that follows.
    """
    if path.suffix.lower() == ".jsonl":
        yield from ((line, _texts(values)) for line, values in _objects(path))
        return
    lines = _lines(path, strict)
    _, names = next(lines)
    for line, row in lines:
        if strict and any(map(str.strip, row[len(names) :])):
            raise UserError(f"table {path} line {line}: {len(row)} cells, and the header names {len(names)}; set text "
                            "that holds the delimiter in quotation marks")  # fmt: skip
        yield line, dict(zip(names, map(str.strip, row), strict=False))


def is_western(path: Path) -> bool:
    """Whether a table is in no UTF encoding and is read as WESTERN."""
    return path.suffix.lower() != ".jsonl" and _encoding(path) == WESTERN


def parse_number(text: str) -> float:
    """The number that a cell holds, with a decimal point or comma; NaN where it holds none."""
    try:
        return float(text.replace(",", ".") if text.count(",") == 1 and "." not in text else text)
    except ValueError:
        return math.nan


def _lines(path: Path, strict: bool = False) -> Iterator[tuple[int, list[str]]]:
    """The header of a table, then its rows, whatever ends its lines."""
    if path.suffix.lower() == ".jsonl":
        yield 1, list({name: None for _, values in _objects(path) for name in values})
        return
    try:
        with path.open(encoding=_encoding(path), newline="") as file:
            first = file.readline()
            named = first.lower().startswith("sep=")  # Excel names the delimiter in a line of its own
            if not named:
                file.seek(0)
                first = next(filter(str.strip, file), "")
                file.seek(0)
            delimiter = first[4:5] if named else max(DELIMITERS, key=re.sub(r'"[^"]*"', "", first).count)
            # "a", "b" is quoted text as well
            reader = csv.reader(chain(file, [END]), delimiter=delimiter, skipinitialspace=True)
            header = [name.removesuffix(END) for name in next(filter(None, reader)) if name != END]
            if len(header) == 2 and ISIC_ID.fullmatch(header[0]):
                yield 0, list(HEADLESS)
            yield reader.line_num + named, [name.strip() for name in header]
            drawn, above = header[:2] == ["", ""], reader.line_num  # PH2's has || around its cells, its codes below it
            for row in filter(None, reader):
                if row != [END] and row[-1].endswith(END) and strict:
                    raise UserError(f"table {path} line {above + named + 1}: a quotation mark opens there and is not "
                                    "closed; close it or take it out")  # fmt: skip
                if row != [END] and (len(row) > 1 or not drawn):
                    yield reader.line_num + named, row
                above = reader.line_num
    except csv.Error as error:  # a field beyond its limit
        raise UserError(f"table {path}: cannot be read ({error}); is a quotation mark not closed?") from error
    except (OSError, UnicodeError, TypeError, ValueError) as error:  # TypeError: an impossible delimiter
        raise UserError(f"table {path}: cannot be read ({error}); save it as CSV in UTF-8") from error


def _encoding(path: Path) -> str:
    """The encoding of a table: by its byte order mark, else UTF-8 where all of it is, else WESTERN."""
    try:
        with path.open("rb") as file:
            if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
                return "utf-16"
        with path.open(encoding="utf-8") as file:
            while text := file.read(CHUNK):
                if "\0" in text:
                    raise UserError(
                        f"table {path}: holds NUL, as UTF-16 without its mark does; save it as CSV in UTF-8"
                    )
    except UnicodeDecodeError:
        return WESTERN
    except OSError as error:
        raise UserError(f"table {path}: cannot be read ({error.strerror}); make it readable") from error
    return "utf-8-sig"


def _objects(path: Path) -> Iterator[tuple[int, dict]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    values = json.loads(line, object_pairs_hook=unrepeated)
                    if not isinstance(values, dict):
                        raise UserError(f"table {path} line {number}: not a JSON object; give one a line")
                    yield number, values
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"table {path}: cannot be read ({error}); give JSON lines in UTF-8") from error


def _texts(values: dict) -> dict[str, str]:
    filled = {name: value for name, value in values.items() if value is not None}
    return {name: value.strip() if isinstance(value, str) else json.dumps(value) for name, value in filled.items()}


class References:
    """The images below a root, by what a table may call them: a path, a name or a stem, as people and systems spell it.

    The first that fits counts: as it stands, in another case, without REDUCED. Umlauts have two spellings in Unicode,
    and names out of a zip from Windows may be in no Unicode at all.
    """

    def __init__(self, root: Path, images: Iterable[str]):
        self.root = root
        self.folders: dict[Path, str] = {}  # of tables, below the root
        self.levels = [(fold, defaultdict(list)) for fold in (str, str.casefold, _reduced)]
        images = list(images)
        self.holding = {part for image in images for part in _folders(image)}
        for image in images:
            keys = {key for text in _spellings(image) for key in (text, _name(text), _stem(_name(text)))}
            for fold, level in self.levels:
                for key in set(map(fold, keys)):
                    level[key].append(image)

    def find(self, text: str, table: Path) -> list[str]:
        """The images that a table may mean, those of the longest path in common.

        A path's folders may be of another computer, but where they are here, the image lies in them. A table within a
        split is about images of that split.
        """
        text = _spellings(text)[0].removeprefix("./")
        if not text:
            return []
        if table not in self.folders:
            here = table.parent.relative_to(self.root).as_posix()
            self.folders[table] = "" if here == "." else f"{here}/"
        beside = self.levels[0][1].get(self.folders[table] + text)
        if beside:
            return beside
        around = self.holding & (_folders(text) | _folders(self.folders[table]) & tree.SPLIT_FOLDERS.keys())
        for fold, level in self.levels:
            for key in dict.fromkeys((text, _name(text), _stem(_name(text)))):
                images = [image for image in level.get(fold(key), ()) if not around or around <= _folders(image)]
                if images:
                    return [image for image in images if image.endswith(f"/{text}")] or images
        return []

    def find_one(self, text: str, table: Path, where: str) -> str | None:
        """The one file that a table means, None for none; where there are several of its name, they must be copies."""
        paths = self.find(text, table)
        if len(paths) > 1 and len({digests.cached_sha256(self.root / path) for path in paths}) > 1:
            raise UserError(f"{where}: {_name(text)} may be {' or '.join(paths)}, which differ; keep one or write its "
                            "path")  # fmt: skip
        return paths[0] if paths else None


def image_key(text: str) -> str:
    """What is the same of an image in all tables, with or without its suffix."""
    return _reduced(_stem(_name(_spellings(text)[0])))


def _reduced(key: str) -> str:
    return _stem(key).casefold().removesuffix(REDUCED)


def _spellings(text: str) -> list[str]:
    """A name with slashes and composed umlauts; where its bytes are no UTF-8, as Windows reads them."""
    if text.isascii():
        return [text.strip().replace("\\", "/")]
    texts = [text]
    if any("\udc80" <= each <= "\udcff" for each in text):
        raw = text.encode("utf-8", "surrogateescape")
        texts += [raw.decode(encoding, "replace") for encoding in WESTERN_NAMES]
    return [unicodedata.normalize("NFC", each.strip().replace("\\", "/")) for each in texts]


def _name(text: str) -> str:
    return text.rstrip("/").rpartition("/")[2]  # a Path would be five times as slow, for each image and row


def _folders(text: str) -> set[str]:
    """The names of the folders in a path, in lower case."""
    return {part.casefold() for each in _spellings(text)[:1] for part in each.split("/")[:-1]}


def _stem(name: str) -> str:
    """A name without the suffix of an image; other dots belong to it."""
    stem, _, suffix = name.rpartition(".")
    return stem if stem and f".{suffix.lower()}" in SUFFIXES else name


@dataclass(frozen=True)
class TableFolder:
    """A folder of images with tables, and the columns of each."""

    tree: Tree
    tables: Mapping[Path, list[str]]

    @cached_property
    def separation(self) -> Separation:
        """Its photographs and their masks."""
        return masks.separate(self.root, self.tree.images)

    @cached_property
    def references(self) -> References:
        """Its photographs, by what tables may call them."""
        return References(self.root, self.separation.photographs)

    @property
    def root(self) -> Path:
        """The folder, resolved."""
        return self.tree.root

    def tables_of(self, layout: Layout) -> list[Path]:
        """The tables of a layout."""
        return [path for path, columns in self.tables.items() if layout.fits(set(columns))]


def open_folder(folder: Path) -> TableFolder:
    """The images and tables under a folder; UserError names a table that cannot be read."""
    walked = tree.walk(folder)
    return TableFolder(walked, {path: read_columns(path) for path in walked.tables})


def detect(folder: TableFolder) -> str | None:
    """The name of the layout of a folder, None where no table in it is of a known one; UserError where two are."""
    names = [name for name, layout in LAYOUTS.items() if folder.tables_of(layout)]
    if len(names) > 1:
        raise UserError(f"folder {folder.root}: tables of {' and '.join(names)}; give one of them as config.layout")
    return names[0] if names else None


def detect_columns(folder: TableFolder, given: Mapping[str, str]) -> Layout | None:
    """The layout of a folder whose tables are of no known one, by the images and classes that they name; None where
    none does. UserError where tables of other columns name the classes of further images.

    given: columns of images and of what else is known, by the field, which count before those that are found.
    """
    found = {table: layout for table in folder.tables if (layout := _columns_of(folder, table, given))}
    if not found:
        return None
    first, layout = next(iter(found.items()))
    read = {image for table in folder.tables_of(layout) for image in _named(folder, table, layout)}
    for table, other in found.items():
        more = set() if table in folder.tables_of(layout) else _named(folder, table, other) - read
        if more:
            names = [path.relative_to(folder.root).as_posix() for path in (first, table)]
            raise UserError(
                f"folder {folder.root}: {names[0]} names classes in {layout.label[0]!r} and images in {layout.image!r}"
                f", {names[1]} in {other.label[0]!r} and {other.image!r}, {len(more)} of them its own; give the "
                "columns one name in both, or those of one table as --config.columns.image=… --config.columns.label=…"
            )
    return layout


def _columns_of(folder: TableFolder, table: Path, given: Mapping[str, str]) -> Layout | None:
    """The layout of one table, by the images and classes that it names."""
    columns = folder.tables[table]
    image = image_column(folder, table, given.get("image", ""))
    spelled = {spelling(column): column for column in columns}
    names = map(spelling, (*layouts.CLASS_COLUMNS, *layouts.DIAGNOSIS_COLUMNS))
    label = next((spelled[name] for name in names if name in spelled), "")
    if not image or not label or label == image:
        return None
    values = {row.get(label, "").lower() for _, row in read_rows(table)} - set(layouts.NOTHING)
    meanings = None
    if spelling(label) in map(spelling, layouts.DIAGNOSIS_COLUMNS):
        meanings = next((each for each in (layouts.TARGETS, layouts.DIAGNOSES) if values <= each.keys()), None)
    more = {field: column for field, column in given.items() if field != "image"}
    return Layout(image=image, label=(label,), meanings=meanings, known=known_columns(columns, (image, label)) | more)


def _named(folder: TableFolder, table: Path, layout: Layout) -> set[str]:
    """The images whose class a table of a layout says."""
    rows = (row for _, row in read_rows(table) if row.get(layout.label[0], "").lower() not in layouts.NOTHING)
    return {image for row in rows for image in folder.references.find(row.get(layout.image, ""), table)}


def image_column(folder: TableFolder, table: Path, given: str = "", *, partly: bool = False) -> str:
    """The column of a table that names images below, `given` where the table has it, "" for none.

    Most of its first rows name one, and of several such columns it is called so. partly: or they name most of the
    images, as in the table of a whole archive beside a part of it.
    """
    if given and given in folder.tables[table]:
        return given
    first = [row for _, row in islice(read_rows(table), TRIED)]
    hits = {column: [tuple(folder.references.find(row[column], table)) for row in first if row.get(column)]
            for column in folder.tables[table]}  # fmt: skip
    naming = {column: len(set(images)) for column, images in hits.items()
              if images and np.mean([bool(each) for each in images]) >= MOST}  # fmt: skip
    if partly and not naming:
        naming = _naming_most(folder, table, first)
    suffixed = {column for column in naming if any(_stem(row.get(column, "")) != row.get(column, "") for row in first)}
    names = (*layouts.CLASS_COLUMNS, *layouts.DIAGNOSIS_COLUMNS, *sum(layouts.KNOWN_COLUMNS.values(), ()))
    taken = set(map(spelling, names))

    def rank(column: str) -> tuple[bool, bool, bool, bool, bool, int]:
        """Ages, grades and numbers of rows may be names of images by chance."""
        name, many = spelling(column), naming[column] >= MOST * max(naming.values())
        called = bool(OF_IMAGES.search(name)), name not in OF_ROWS
        return column in suffixed, name not in taken, many, *called, naming[column]

    return max(naming, key=rank, default="")


def _naming_most(folder: TableFolder, table: Path, first: Sequence[Mapping[str, str]]) -> dict[str, int]:
    """How many images each column names, of those whose values name MOST images; numbers would do so by chance."""
    columns = []
    for column in folder.tables[table]:
        values = [row[column] for row in first if row.get(column)]
        if values and all(map(math.isnan, map(parse_number, values))):
            columns.append(column)
    named = {column: set() for column in columns}
    for _, row in read_rows(table) if columns else ():
        for column in columns:
            images = folder.references.find(row.get(column, ""), table)
            named[column] |= set(images) if len(images) == 1 else set()
    least = MOST * max(len(folder.separation.photographs), 1)
    return {column: len(images) for column, images in named.items() if len(images) >= least}


def known_columns(columns: Sequence[str], taken: Sequence[str]) -> dict[str, str]:
    """The columns of a table of no layout whose names are known, by the field of a Record that they fill."""
    spelled = {spelling(column): column for column in columns if column not in taken}
    known = {
        field: [spelled[name] for name in map(spelling, names) if name in spelled]
        for field, names in layouts.KNOWN_COLUMNS.items()
    }
    return {field: fitting[0] for field, fitting in known.items() if fitting}


def spelling(column: str) -> str:
    """What is the same of a column's name however it is written: "Lesion ID", "lesion_id" and "LesionId" are one."""
    return re.sub(r"[\W_]+", "", column).casefold()


def choose_layout(folder: TableFolder, name: str, columns: Mapping[str, str]) -> Layout:
    """The layout of a name, with given columns in place of its columns; that of images may be left to `image_column`.

    What a given `label` holds is the class; what a given `diagnosis` holds goes by `layouts.RULES`.
    """
    layout = LAYOUTS.get(name, Layout(image=""))
    given = {field: column for field, column in columns.items() if column}
    refuse_unknown(folder, given)
    if "label" in given:
        layout = replace(layout, label=(given.pop("label"),), meanings=None, one_hot={}, by="")
    if "diagnosis" in given:
        layout = replace(layout, label=(given.pop("diagnosis"),), meanings=layouts.DIAGNOSES, one_hot={}, by="")
    image = given.pop("image", layout.image)
    if not image and layout.label:
        labelled = [path for path, there in folder.tables.items() if set(layout.label) <= set(there)]
        image = next((image_column(folder, path) for path in labelled), "")
    if not image or not (layout.label or layout.one_hot):
        there = describe_columns(folder)
        raise UserError("config.columns: give the columns of the image and the label or diagnosis, as "
                        "--config.columns.image=file" + (f"; {there}" if there else ""))  # fmt: skip
    return replace(layout, image=image, known={**layout.known, **given})


def refuse_unknown(folder: TableFolder, given: Mapping[str, str]) -> None:
    """UserError for a given column {field: column} that no table has."""
    for field, column in given.items():
        if not any(column in there for there in folder.tables.values()):
            raise UserError(
                f"config.columns.{field} = {column!r}: no table has this column; {describe_columns(folder)}"
            )


def describe_unread(folder: TableFolder, layout: Layout) -> str:
    """What a message says of tables that add nothing and might: those that name images and have no known column
    besides, and those that know lesions or patients and name no image here; "" where there is none.

    layout: of the tables that are read; its known columns are looked for in the others too.
    """
    without_columns, without_images = [], []
    for path, columns in folder.tables.items():
        if path in folder.tables_of(layout) or set(layouts.DUPLICATES) <= set(columns):
            continue
        image = image_column(folder, path, layout.image, partly=True)
        known = known_columns(columns, (image,)).keys() | {f for f, column in layout.known.items() if column in columns}
        name = f"{path.relative_to(folder.root)} ({listed(columns)})"
        without_columns += [name] if image and not known else []
        without_images += [name] if not image and known & {"lesion_id", "patient_id"} else []
    lines = []
    if without_columns:
        lines.append(f"not read, as no column is known: {'; '.join(without_columns)}; config.columns names them")
    if without_images:
        lines.append(f"not read, as no column names most of the images: {'; '.join(without_images)}; "
                     "config.columns.image names it")  # fmt: skip
    return "; ".join(lines)


def listed(columns: Sequence[str]) -> str:
    """Columns as a message shows them, the first of very many."""
    more = f" and {len(columns) - SHOWN} more" if len(columns) > SHOWN else ""
    return ", ".join(map(repr, columns[:SHOWN])) + more


def describe_columns(folder: TableFolder) -> str:
    """What a message says of tables whose columns are of no known layout, "" where there is none."""
    if not folder.tables:
        return "; ".join(folder.tree.unread)
    tables = "; ".join(
        f"{path.relative_to(folder.root)} has the columns {listed(columns)}" for path, columns in folder.tables.items()
    )
    image = image_column(folder, next(iter(folder.tables)))
    known = f"its images are in {image!r}; " if image else ""
    return (
        f"{tables}; {known}give the columns of the image and of the class or diagnosis, as "
        f"--config.columns.image={image or 'file'} --config.columns.label=…"
    )
