"""Folders of images with tables of diagnoses, as the public archives come (`layouts`), to Records.

A folder may hold several tables of its layout, one a split of a challenge, whose names then tell the split, and others
that only say more of the images (who the patient is, which lesion), which are joined by the image.
"""

import csv
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dermjax.data import layouts
from dermjax.data.attributes import age_band
from dermjax.data.duplicates import sha256
from dermjax.data.images import SUFFIXES
from dermjax.data.layouts import HEADLESS, LAYOUTS, Layout
from dermjax.data.records import Record
from dermjax.data.sources import SPLIT_FOLDERS, Listing
from dermjax.data.splits import ISIC_ID
from dermjax.errors import UserError

ATTRIBUTES = ("age", "sex", "site", "device", "fitzpatrick", "attribution")
NOTHING = ("", "-1", "nan", "unknown")  # how tables say that they do not know
NAMED_SPLIT = re.compile(r"(?<![a-z])(train|val|validation|test)(?=$|[^a-z]|ing)")
TABLES = (".csv", ".tsv", ".tab")
BARE_TABLE = "HAM10000_metadata"  # the archive that has it gives it without a suffix
NO_TABLES = "sample_submission"  # Kaggle's example answers look like a table of diagnoses


@dataclass(frozen=True)
class Folder:
    """What lies under a folder: images by relative path, name and stem; the columns of each table."""

    root: Path
    images: Mapping[str, list[str]]
    tables: Mapping[Path, list[str]]

    def of(self, layout: Layout) -> list[Path]:
        """The tables of a layout."""
        return [path for path, columns in self.tables.items() if layout.fits(set(columns))]


def look(folder: Path) -> Folder:
    """The images and tables under a folder; UserError names a table that cannot be read."""
    root = Path(os.path.realpath(folder))
    images, tables = defaultdict(list), {}
    for place, below, names in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            path = Path(place) / name
            if path.suffix.lower() in SUFFIXES:
                image = path.relative_to(root).as_posix()
                for key in {image, name, path.stem}:
                    images[key].append(image)
            elif (path.suffix.lower() in TABLES or name == BARE_TABLE) and not path.stem.startswith(NO_TABLES):
                tables[path] = next(_lines(path))[1]
    return Folder(root, images, tables)


def detect(folder: Folder) -> str | None:
    """The name of the layout of a folder, None where no table in it is of a known one; UserError where two are."""
    found = [name for name, layout in LAYOUTS.items() if folder.of(layout)]
    if len(found) > 1:
        raise UserError(f"folder {folder.root}: tables of {' and '.join(found)}; give one of them as config.layout")
    return found[0] if found else None


def chosen(name: str, columns: Mapping[str, str]) -> Layout:
    """The layout of a name, with columns of a map put in place of its own.

    What a given `label` says is the class; what a given `diagnosis` says goes by `layouts.RULES`.
    """
    layout = LAYOUTS.get(name, Layout(image=""))
    given = {key: column for key, column in columns.items() if column}
    if "label" in given:
        layout = replace(layout, label=(given.pop("label"),), meanings=None, one_hot={})
    if "diagnosis" in given:
        layout = replace(layout, label=(given.pop("diagnosis"),), meanings=layouts.DIAGNOSES, one_hot={})
    image = given.pop("image", layout.image)
    if not image or not (layout.label or layout.one_hot):
        raise UserError(
            "config.columns: give the columns of the image and the label or diagnosis, as --config.columns.image=file"
        )
    return replace(layout, image=image, known={**layout.known, **given})


def scan(folder: Folder, name: str, layout: Layout, *, classes: str, skip: bool) -> Listing:
    """The images that the tables of a layout name; UserError says what is missing, unknown or twice there.

    classes: "binary" or "diagnoses", see `layouts`. skip: an image that is not there is counted and left out.
    """
    tables = folder.of(layout)
    if not tables:
        raise UserError(f"folder {folder.root}: no table with columns {', '.join([layout.image, *layout.label])}")
    more = _joined(folder, layout, tables)
    found, ignored = {}, []
    for table in tables:
        split = _split_of(table) if len(tables) > 1 else ""
        for number, told in _rows(table):
            where, image = f"table {table} line {number}", told.get(layout.image, "")
            path = _path(folder, image, where)
            if path is None and not skip:
                raise UserError(f"{where}: no image {Path(image).name!r} under {folder.root}; download it or cut the "
                                "line, or give --config.on_bad_image=skip")  # fmt: skip
            if path in found:
                raise UserError(f"{where}: {Path(image).name} stands there twice; keep one line")
            diagnosis = _diagnosis(told, layout, classes, where)
            label = diagnosis if layout.meanings is None else layouts.label(classes, diagnosis)
            if path is None or not label:
                ignored.append((path, diagnosis or "without a label") if path else (image, "not there"))
            else:
                told = more.get(_key(image), {}) | {column: value for column, value in told.items() if value}
                found[path] = _record(path, label, split, told, layout, name, where)
    mentioned = found.keys() | {image for image, _ in ignored}
    every = {image for paths in folder.images.values() for image in paths}
    ignored += [(image, "in no table") for image in sorted(every - mentioned)]
    there = {record.label for record in found.values()}
    labels = layouts.ordered(there) if layout.meanings is None else layouts.labels(classes, there)
    if len(there) < 2:
        raise UserError(f"folder {folder.root}: its tables name images of {', '.join(sorted(there)) or 'no class'}; "
                        f"needed are {' and '.join(labels) if len(labels) > 1 else 'two classes'}")  # fmt: skip
    records = tuple(found[path] for path in sorted(found))
    return Listing(labels=labels, root=folder.root, records=records, ignored=tuple(ignored))


def _joined(folder: Folder, layout: Layout, taken: Sequence[Path]) -> dict[str, dict[str, str]]:
    """What the other tables of a folder say of each image."""
    more = defaultdict(dict)
    for table, columns in folder.tables.items():
        if table not in taken and layout.image in columns and set(layout.known.values()) & set(columns):
            for _, told in _rows(table):
                more[_key(told.get(layout.image, ""))] |= told
    return more


def _key(image: str) -> str:
    """What is the same of an image in all tables, with or without its suffix."""
    return Path(image).stem if Path(image).suffix.lower() in SUFFIXES else Path(image).name


def _path(folder: Folder, image: str, where: str) -> str | None:
    """The one file that a table means; where there are several of its name, they must be copies."""
    name = Path(image).name
    paths = folder.images.get(image) or folder.images.get(name) or folder.images.get(Path(name).stem) or [None]
    if len(paths) > 1 and len({sha256(folder.root / path) for path in paths}) > 1:
        raise UserError(f"{where}: {name} may be {' or '.join(paths)}, which differ; keep one or write its path")
    return paths[0]


def _split_of(table: Path) -> str:
    """The split that a table's name tells, "" for none."""
    named = NAMED_SPLIT.findall(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", table.stem).lower())
    return SPLIT_FOLDERS[named[-1]] if named else ""


def _diagnosis(told: Mapping[str, str], layout: Layout, classes: str, where: str) -> str:
    """The diagnosis of a row in the words of `layouts.RULES`; where the layout has no meanings, the value itself."""
    if layout.one_hot:
        marked = [column for column in layout.one_hot if _number(told.get(column, "")) == 1]
        if len(marked) > 1 or not (marked or layout.rest):
            raise UserError(f"{where}: {len(marked)} of {', '.join(layout.one_hot)} are 1; one must be")
        return layout.one_hot[marked[0]] if marked else layout.rest
    value = next((told[column] for column in layout.label if told.get(column, "")), "")
    if layout.meanings is None:
        return value
    if value.lower() not in layout.meanings:
        raise UserError(f"{where}: {layout.label[0]} is {value!r}; known are {', '.join(layout.meanings)}")
    if classes == "diagnoses" and set(layout.meanings.values()) <= set(layouts.UNDIAGNOSED):
        raise UserError(f"{where}: this archive tells no diagnosis in {layout.label[0]}; give config.classes=binary, "
                        "or a column of diagnoses as config.columns.label")  # fmt: skip
    return layout.meanings[value.lower()]


def _record(
    path: str, label: str, split: str, told: Mapping[str, str], layout: Layout, source: str, where: str
) -> Record:
    known = {name: told.get(column, "") for name, column in layout.known.items()}
    known = {name: value for name, value in known.items() if value.lower() not in NOTHING}
    attributes = {name: known.pop(name) for name in ATTRIBUTES if name in known}
    if math.isfinite(_number(attributes.get("age", ""))):
        attributes["age_band"] = age_band(_number(attributes["age"]))
    for name in ("lesion_id", "patient_id"):
        if known.get(name, "").isdigit():  # a bare number is another lesion in another archive
            known[name] = f"{source}/{known[name]}"
    if known.get("image_manipulation") != "synthetic":
        known["image_manipulation"] = "none"
    if "split" in known:
        split = SPLIT_FOLDERS.get(known.pop("split").lower())
        if not split:
            raise UserError(f"{where}: its split is none of {', '.join(SPLIT_FOLDERS)}")
    return Record(image=path, sha256="", label=label, split=split, source=source, attributes=attributes, **known)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a table below its header, {column: value}, each with the number of its line."""
    lines = _lines(path)
    _, columns = next(lines)
    for number, row in lines:
        yield number, dict(zip(columns, map(str.strip, row), strict=False))


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The header of a table, then its rows: UTF-8 or UTF-16, with or without a mark, whatever ends its lines."""
    try:
        with path.open("rb") as file:
            encoding = "utf-16" if file.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        with path.open(encoding=encoding, newline="") as file:
            first = file.readline()
            file.seek(0)
            rows = csv.reader(file, delimiter=max(",;\t", key=first.count))  # spreadsheets write what their land uses
            first = next((row for row in rows if row), [])
            if len(first) == 2 and ISIC_ID.fullmatch(first[0]):
                yield 0, list(HEADLESS)
            yield rows.line_num, first
            yield from ((rows.line_num, row) for row in rows if row)
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(f"table {path}: cannot be read ({error}); save it as CSV in UTF-8") from error
