"""Tables and the images that they name, to Records: a table whose column names images that lie below binds them.

They are bound wherever they lie. Tables of a layout, one a split of a challenge, tell the split by their names; others
that only say more of the images (who the patient is, which lesion) are joined by the image.
"""

import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from dermjax.data.archives import layouts, tables
from dermjax.data.archives.folders import Listing, resolve_links
from dermjax.data.archives.hdf5 import Store
from dermjax.data.archives.layouts import DUPLICATES, INDEXES, LAYOUTS, Layout
from dermjax.data.archives.tables import TableFolder, parse_number
from dermjax.data.archives.tree import SPLIT_FOLDERS
from dermjax.data.leaks import duplicates
from dermjax.data.records import Record, age_band
from dermjax.errors import UserError

ATTRIBUTES = ("age", "sex", "site", "device", "fitzpatrick", "attribution", "caption", "skin_tone_class")
NOTHING = ("", "-1", "nan", "none", "null", "unknown")  # how tables say that they do not know
NAMED_SPLIT = re.compile(r"(?<![a-z])(train|valid|val|validation|test)(?=$|[^a-z]|ing)")


@dataclass(frozen=True)
class TableOptions:
    """What is asked of tables.

    classes: "binary" or "diagnoses", see `layouts`. skip: an image that is not there is counted and left out. kind: of
    layouts.KINDS. own_splits: as the archive divides itself, where that is not in the names of its tables. into: the
    folder of images that are no files yet.
    """

    classes: str
    skip: bool
    kind: str
    own_splits: bool
    into: Path


@dataclass
class Row:
    """What a line of a table says of an image, and its split, "" for none."""

    table: Path
    line: int
    image: str
    told: dict[str, str]
    split: str

    @property
    def where(self) -> str:
        """The table and the line, as messages name them."""
        return f"table {self.table} line {self.line}"


def scan(folder: TableFolder, name: str, layout: Layout, asked: TableOptions) -> Listing:
    """The images that the tables of a layout name; UserError says what is missing, unknown or contradicted there."""
    labelled = folder.of(layout)
    if not labelled:
        told = tables.describe_columns(folder)
        raise UserError(f"folder {folder.root}: no table with columns {', '.join([layout.image, *layout.label])}"
                        + (f"; {told}" if told else ""))  # fmt: skip
    more, tied = _joined(folder, layout, labelled), _tied(folder)
    store = Store(folder.tree.packed, asked.into)
    found, ignored = {}, []
    for row, other in _rows(folder, layout, labelled, asked):
        image = row.image
        path = folder.named.one(image, row.table, row.where) or store.image(image)
        if other:
            ignored.append((path or image, other))
        elif path is None and not _diagnosis(row, layout, asked.classes):
            ignored.append((image, "without a diagnosis"))
        elif path is None and asked.skip:
            ignored.append((image, "not there"))
        elif path is None:
            unread = {tables.image_key(name): why for name, why in folder.tree.left_out}.get(
                tables.image_key(image), ""
            )
            if unread:
                raise UserError(f"{row.where}: {PurePosixPath(image).name!r} is {unread}")
            raise UserError(f"{row.where}: no image {PurePosixPath(image).name!r} under {folder.root}; download it or "
                            "cut the line, or give --config.on_bad_image=skip")  # fmt: skip
        elif path in found:
            row.split = row.split or ("" if name in LAYOUTS else _around(path))
            _merge(found[path], row, layout)
        else:
            row.split = row.split or ("" if name in LAYOUTS else _around(path))
            found[path] = row
    kept = {}
    for path, row in found.items():
        diagnosis = _diagnosis(row, layout, asked.classes)
        label = diagnosis if layout.meanings is None else layouts.label(asked.classes, diagnosis)
        if label:
            row.told = more.get(tables.image_key(row.image), {}) | {
                name: each for name, each in row.told.items() if each
            }
            kept[path] = _record(path, label, row, layout, name, folder.images.masks.get(path, ""), tied)
        else:
            ignored.append((path, diagnosis or "without a diagnosis"))
    mentioned = kept.keys() | {image for image, _ in ignored}
    ignored += [(image, "in no table") for image in folder.images.photographs if image not in mentioned]
    there = {record.label for record in kept.values()}
    labels = layouts.ordered(there) if layout.meanings is None else layouts.labels(asked.classes, there)
    if len(there) < 2:
        raise UserError(f"folder {folder.root}: its tables name images of {', '.join(sorted(there)) or 'no class'}; "
                        f"needed are {' and '.join(labels) if len(labels) > 1 else 'two classes'}")  # fmt: skip
    return resolve_links(
        Listing(
            labels=labels,
            root=folder.root,
            records=tuple(kept[path] for path in sorted(kept)),
            ignored=(*ignored, *folder.images.left_out, *folder.tree.left_out),
            packed={path: where for path, where in store.taken.items() if path in kept},
        )
    )


def describe(listing: Listing, folder: TableFolder) -> Listing:
    """A listing of class folders with what tables beside them say of each image, by the columns that are known.

    A name that several images have binds none of them.
    """
    more = {}
    for table, columns in folder.tables.items():
        image = tables.image_column(folder, table)
        known = tables.known_columns(columns, (image,))
        layout = Layout(image=image, known={name: column for name, column in known.items() if name != "split"})
        for place, told in tables.read_rows(table) if image and layout.known else ():
            paths = folder.named.find(told.get(image, ""), table)
            if len(paths) == 1:  # of several, nobody knows whose patient it is
                path, row = paths[0], Row(table, place, paths[0], told, "")
                more[os.path.realpath(folder.root / path)] = _record(path, "", row, layout, table.stem, "", {})
    records = (_better(record, more.get(str(listing.root / record.image))) for record in listing.records)
    return replace(listing, records=tuple(records))


def _better(record: Record, told: Record | None) -> Record:
    """A record with what a table says of it; its class and split stay."""
    if told is None:
        return record
    known = {name: getattr(told, name) for name in ("lesion_id", "patient_id", "licence", "image_manipulation")}
    return replace(record, attributes=told.attributes | record.attributes, **known)


def _rows(
    folder: TableFolder, layout: Layout, labelled: Sequence[Path], asked: TableOptions
) -> Iterator[tuple[Row, str]]:
    """What the tables say, a row an image, and why it is left out, "" for not."""
    own = _numbered(folder) if layout.numbered and asked.own_splits else {}
    named, several, labels = labelled, len(labelled) > 1, {}
    if layout.by:
        labels = {
            told.get(layout.by, ""): (told, _split_of(table) if several else "")
            for table in labelled
            for _, told in tables.read_rows(table)
        }
        named = [path for path, columns in folder.tables.items() if {layout.image, layout.by} <= set(columns)]
    columns = [column for kind, column in layout.images.items() if asked.kind in (kind, "both")] or [layout.image]
    for table in named:
        for order, (line, told) in enumerate(tables.read_rows(table)):
            label, split = labels.get(told.get(layout.by, ""), ({}, ""))
            split = split or own.get(order, "") or (_split_of(table) if several else "")
            other = _other_kind(told.get(layout.kind, ""), asked.kind) if layout.kind else ""
            for column in columns:
                yield Row(table, line, told.get(column, ""), label | told, split), other


def _other_kind(told: str, wanted: str) -> str:
    """Why an image that was taken so is not wanted, "" where it is."""
    kind = "dermoscopic" if told.lower().startswith("dermoscop") else "clinical"
    return "" if not told or wanted in (kind, "both") else f"{kind}, as config.image_kind is {wanted}"


def _numbered(folder: TableFolder) -> dict[int, str]:
    """The split of each row number, by tables such as train_indexes.csv; UserError where there are none."""
    found = {
        int(told[INDEXES[0]]): _split_of(table)
        for table, columns in folder.tables.items()
        if columns == INDEXES
        for _, told in tables.read_rows(table)
        if told[INDEXES[0]].isdigit()
    }
    if not found:
        raise UserError(f"folder {folder.root}: config.own_splits asks for train_indexes.csv, valid_indexes.csv and "
                        "test_indexes.csv; there are none")  # fmt: skip
    return found


def _joined(folder: TableFolder, layout: Layout, taken: Sequence[Path]) -> dict[str, dict[str, str]]:
    """What the other tables of a folder say of each image."""
    more = defaultdict(dict)
    for table, columns in folder.tables.items():
        if table not in taken and layout.image in columns and set(layout.known.values()) & set(columns):
            for _, told in tables.read_rows(table):
                more[tables.image_key(told.get(layout.image, ""))] |= told
    return more


def _tied(folder: TableFolder) -> dict[str, str]:
    """The name of a group of images that publishers list as duplicates, by each of them."""
    pairs = [
        [tables.image_key(told.get(column, "")) for column in DUPLICATES]
        for table, columns in folder.tables.items()
        if set(DUPLICATES) <= set(columns)
        for _, told in tables.read_rows(table)
    ]
    names = sorted({name for pair in pairs for name in pair})
    row = {name: number for number, name in enumerate(names)}
    links = np.array([[row[name] for name in pair] for pair in pairs], np.int64).reshape(-1, 2)
    groups = duplicates.group(links, [[] for _ in names]).tolist() if names else []
    first = {group: name for name, group in reversed(list(zip(names, groups, strict=True)))}
    return {name: first[group] for name, group in zip(names, groups, strict=True)}


def _merge(earlier: Row, row: Row, layout: Layout) -> None:
    """Adds what another row says of the same image; UserError where the two contradict each other."""
    for column in (*layout.label, *layout.one_hot, *layout.known.values()):
        ours, theirs = earlier.told.get(column, ""), row.told.get(column, "")
        if ours and theirs and ours != theirs and not parse_number(ours) == parse_number(theirs):
            raise UserError(f"{row.where}: {column} of {row.image} is {theirs!r}, and {ours!r} in "
                            f"{earlier.where.removeprefix('table ')}; keep one line")  # fmt: skip
    if earlier.split and row.split and earlier.split != row.split:
        raise UserError(f"{row.where}: {row.image} is in {row.split}, and in {earlier.split} by "
                        f"{earlier.where.removeprefix('table ')}; keep one line")  # fmt: skip
    earlier.split = earlier.split or row.split
    earlier.told = row.told | {column: value for column, value in earlier.told.items() if value}


def _split_of(table: Path) -> str:
    """The split that a table's name tells, "" for none."""
    named = NAMED_SPLIT.findall(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", table.stem).lower())
    return SPLIT_FOLDERS[named[-1]] if named else ""


def _around(path: str) -> str:
    """The split whose folder an image lies in, "" for none."""
    found = [SPLIT_FOLDERS[part.lower()] for part in PurePosixPath(path).parts[:-1] if part.lower() in SPLIT_FOLDERS]
    return found[-1] if found else ""


def _diagnosis(row: Row, layout: Layout, classes: str) -> str:
    """The diagnosis of a row in the words of `layouts.RULES`, "" where it tells none; where the layout has no meanings,
    the value itself."""
    told = row.told
    if layout.one_hot:
        marks = {column: told.get(column, "") for column in layout.one_hot}
        marked = [column for column, mark in marks.items() if parse_number(mark) == 1]
        if not any(marks.values()):
            return ""
        if len(marked) > 1 or not (marked or layout.rest):
            raise UserError(f"{row.where}: {len(marked)} of {', '.join(layout.one_hot)} are 1; one must be")
        return layout.one_hot[marked[0]] if marked else layout.rest
    value = next((told[column] for column in layout.label if told.get(column, "")), "")
    if layout.meanings is None or not value:
        return value
    if value.lower() not in layout.meanings:
        raise UserError(f"{row.where}: {layout.label[0]} is {value!r}; known are {', '.join(layout.meanings)}")
    if classes == "diagnoses" and set(layout.meanings.values()) <= set(layouts.UNDIAGNOSED):
        raise UserError(f"{row.where}: this archive tells no diagnosis in {layout.label[0]}; give config.classes="
                        "binary, or a column of diagnoses as config.columns.label")  # fmt: skip
    return layout.meanings[value.lower()]


def _record(path: str, label: str, row: Row, layout: Layout, source: str, mask: str, tied: Mapping[str, str]) -> Record:
    known = {name: row.told.get(column, "") for name, column in layout.known.items()}
    known = {name: value for name, value in known.items() if value.lower() not in NOTHING}
    attributes = {name: known.pop(name) for name in ATTRIBUTES if name in known}
    age = parse_number(attributes.get("age", ""))
    if math.isfinite(age):
        attributes |= {"age": attributes["age"].replace(",", "."), "age_band": age_band(age)}
    for name in ("lesion_id", "patient_id"):
        if known.get(name, "").isdigit():  # a bare number is another lesion in another archive
            known[name] = f"{source}/{known[name]}"
    if known.get("image_manipulation") != "synthetic":
        known["image_manipulation"] = "none"
    split = row.split
    if "split" in known:
        split = SPLIT_FOLDERS.get(known.pop("split").lower())
        if not split:
            raise UserError(f"{row.where}: its split is none of {', '.join(SPLIT_FOLDERS)}")
    if tables.image_key(row.image) in tied:
        attributes["duplicates"] = f"{source}/{tied[tables.image_key(row.image)]}"
    if mask:
        attributes["mask"] = {"image": mask}
    return Record(image=path, sha256="", label=label, split=split, source=source, attributes=attributes, **known)
