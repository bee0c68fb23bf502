"""Tables and the images that they name, to Records: a table whose column names images that lie below binds them.

They are bound wherever they lie. Tables of a layout, one a split of a challenge, have the split in their names; others
that only add something (who the patient is, which lesion) are joined by the image.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from dermjax import progress
from dermjax.data.archives import layouts, tables
from dermjax.data.archives.folders import Listing, resolve_links
from dermjax.data.archives.hdf5 import Store
from dermjax.data.archives.layouts import DUPLICATES, INDEXES, KINDS, LABELS, NOTHING, Layout
from dermjax.data.archives.tables import TableFolder, image_key, parse_number
from dermjax.data.archives.tree import SPLIT_FOLDERS
from dermjax.data.leaks import duplicates
from dermjax.data.records import Record, age_band
from dermjax.errors import UserError

ATTRIBUTES = ("age", "sex", "site", "device", "fitzpatrick", "attribution", "caption", "skin_tone_class")
BINDING = ("lesion_id", "patient_id", "split", "image_manipulation")  # a wrong one leaks, so tables must agree on them
SHOWN = 80  # characters of a value in a message
OLDEST = 120  # years; an age beyond it, or below 0, is none
WHOLE = re.compile(r"(\d+)(?:[.,]0+)?")  # 7 is 7.0 where a column has gaps, as spreadsheets and pandas write it
# of Fitzpatrick: II in the ISIC archive, 2.0 elsewhere
PHOTOTYPE = re.compile(r"(?:(?:fitzpatrick|skin|photo|type|fst)[\s_-]*)*([iv]+|\d+)(?:[.,]0+)?")
ROMAN = {"i": "1", "ii": "2", "iii": "3", "iv": "4", "v": "5", "vi": "6"}
NAMED_SPLIT = re.compile(r"(?<![a-z])(train|valid|val|validation|test)(?=$|[^a-z]|ing)")


@dataclass(frozen=True)
class TableOptions:
    """How tables are read.

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
    """The values of a line of a table about an image, and its split, "" for none."""

    table: Path
    line: int
    image: str
    values: dict[str, str]
    split: str

    @property
    def where(self) -> str:
        """The table and the line, as messages name them."""
        return f"table {self.table} line {self.line}"


def scan(folder: TableFolder, name: str, layout: Layout, options: TableOptions) -> Listing:
    """The images that the tables of a layout name; UserError names what is missing, unknown or contradicted there."""
    labelled = folder.tables_of(layout)
    if not labelled:
        there = tables.describe_columns(folder)
        raise UserError(f"folder {folder.root}: no table with columns {', '.join([layout.image, *layout.label])}"
                        + (f"; {there}" if there else ""))  # fmt: skip
    for table in labelled:
        _refuse_doubled(table, folder.tables[table], layout)
    others, duplicate_of = _others(folder, layout, labelled), _duplicates(folder)
    store = Store(folder.tree.packed, options.into)
    rows, ignored = {}, []
    for row, unwanted in _rows(folder, layout, labelled, options):
        path = folder.references.find_one(row.image, row.table, row.where) or store.image(row.image)
        if unwanted:
            ignored.append((path or row.image, unwanted))
        elif path is None and not _diagnosis(row, layout, options.classes):
            ignored.append((row.image, "without a diagnosis"))
        elif path is None and options.skip:
            ignored.append((row.image, "not there"))
        elif path is None:
            raise _missing_image(row, folder)
        else:
            row.split = row.split or ("" if path in store.taken else _split_around(path))
            if rows.setdefault(path, row) is not row:
                _merge(rows[path], row, layout)
    kept = {}
    for path, row in rows.items():
        diagnosis = _diagnosis(row, layout, options.classes)
        label = diagnosis if layout.meanings is None else layouts.label(options.classes, diagnosis)
        if label:
            known = _known(row, layout)
            _agree(known, others.get(path, others.get(image_key(row.image), {})), row.image)
            kept[path] = _record(path, label, row, known, name, folder.separation.masks.get(path, ""), duplicate_of)
        else:
            ignored.append((path, diagnosis or "without a diagnosis"))
    mentioned = kept.keys() | {image for image, _ in ignored}
    ignored += [(image, "in no table") for image in folder.separation.photographs if image not in mentioned]
    there = {record.label for record in kept.values()}
    layouts.refuse_twins(there, f"column {' or '.join(layout.label)} of the tables in {folder.root}")
    labels = layouts.ordered(there) if layout.meanings is None else layouts.labels(options.classes, there)
    if len(there) < 2:
        raise UserError(f"folder {folder.root}: its tables name images of {', '.join(sorted(there)) or 'no class'}; "
                        f"needed are {' and '.join(labels) if len(labels) > 1 else 'two classes'}")  # fmt: skip
    return resolve_links(
        Listing(
            labels=labels,
            root=folder.root,
            records=tuple(kept[path] for path in sorted(kept)),
            ignored=(*ignored, *folder.separation.left_out, *folder.tree.left_out),
            packed={path: where for path, where in store.taken.items() if path in kept},
        )
    )


def describe(listing: Listing, folder: TableFolder, given: Mapping[str, str]) -> Listing:
    """A listing of class folders with what tables beside them hold about each image, by the columns that are known and
    those that are given.

    UserError where a row may be about several images that differ. A split is taken only by a column that is given.
    """
    described: dict[str, dict[str, tuple[str, str]]] = {}
    for table, columns in folder.tables.items():
        image = tables.image_column(folder, table, given.get("image", ""), partly=True)
        known = {field: column for field, column in tables.known_columns(columns, (image,)).items() if field != "split"}
        known |= {field: column for field, column in given.items() if field != "image" and column in columns}
        layout = Layout(image=image, known=known)
        _refuse_doubled(table, columns if image and layout.known else (), layout)
        for line, values in tables.read_rows(table, strict=True) if image and layout.known else ():
            row = Row(table, line, values.get(image, ""), values, "")
            _refuse_broken(row, layout, (image,))
            held = _known(row, layout)
            path = folder.references.find_one(row.image, table, row.where) if held else None
            if path:
                _agree(described.setdefault(os.path.realpath(folder.root / path), {}), held, path)

    def join(record: Record) -> Record:
        known = described.get(str(listing.root / record.image))
        if not known:
            return record
        other = _record(record.image, "", None, known, record.source, "", {})
        known = {name: getattr(other, name) for name in ("lesion_id", "patient_id", "licence", "image_manipulation")}
        split = record.split or other.split
        return replace(record, attributes=other.attributes | record.attributes, split=split, **known)

    return replace(listing, records=tuple(map(join, listing.records)))


def _refuse_doubled(table: Path, columns: Sequence[str], layout: Layout) -> None:
    """UserError where a column that is read stands in a table twice, in any spelling: which of the two is meant?"""
    times = Counter(map(tables.spelling, columns))
    for column in (layout.image, layout.by, *layout.label, *layout.one_hot, *layout.known.values()):
        count = times[tables.spelling(column)]
        if column and count > 1:
            raise UserError(f"table {table}: the column {column!r} stands there {count} times; rename all but one")


def _refuse_broken(row: Row, layout: Layout, images: Iterable[str]) -> None:
    """UserError where an image, a class or what is BINDING runs over several lines: a quotation has taken rows in."""
    for column in (*images, *layout.label, *(layout.known.get(field, "") for field in BINDING)):
        if "\n" in row.values.get(column, ""):
            raise UserError(f"{row.where}: {column} runs over several lines; close the quotation mark before it")


def _missing_image(row: Row, folder: TableFolder) -> UserError:
    name, left_out = PurePosixPath(row.image).name, {image_key(image): why for image, why in folder.tree.left_out}
    if image_key(row.image) in left_out:
        return UserError(f"{row.where}: {name!r} is {left_out[image_key(row.image)]}")
    return UserError(f"{row.where}: no image {name!r} under {folder.root}; download it or cut the line, or give "
                     "--config.on_bad_image=skip")  # fmt: skip


def _rows(
    folder: TableFolder, layout: Layout, labelled: Sequence[Path], options: TableOptions
) -> Iterator[tuple[Row, str]]:
    """The rows of the tables, one an image, each with the reason to leave it out, "" for none."""
    numbered = _numbered_splits(folder) if layout.numbered and options.own_splits else {}
    naming, several, labels = labelled, len(labelled) > 1, {}
    if layout.by:
        labels = _labels_by(layout, labelled)
        naming = [path for path, columns in folder.tables.items() if {layout.image, layout.by} <= set(columns)]
    wanted = [kind for kind in KINDS if options.kind in (kind, "both")]
    columns = [column for kind, column in layout.images.items() if kind in wanted] or [layout.image]
    kinds = _kinds(naming, layout.kind) if layout.kind else set()
    several_kinds = len(kinds) > 1
    if len(kinds) == 1 and not kinds & set(wanted):
        progress.say(f"prepare: all images of {folder.root} are {min(kinds)} and taken, as config.image_kind is for "
                     "archives of several kinds")  # fmt: skip
    for table in naming:
        for number, (line, values) in enumerate(tables.read_rows(table, strict=True)):
            by = labels.get(values.get(layout.by, "")) if layout.by else None
            label, split = (by.values, by.split) if by else ({}, "")
            split = split or numbered.get(number, "") or (_split_of(table) if several else "")
            kind = _kind(values.get(layout.kind, "")) or wanted[0]  # what says nothing is as requested
            unwanted = f"{kind}, as config.image_kind is {options.kind}" if several_kinds and kind not in wanted else ""
            if layout.wrong[0] and values.get(layout.wrong[0], "").lower() == layout.wrong[1].lower():
                unwanted = "wrongly labelled, as the archive says"
            _refuse_broken(Row(table, line, "", values, ""), layout, columns)
            for column in columns:
                yield Row(table, line, values.get(column, ""), label | values, split), unwanted


def _labels_by(layout: Layout, labelled: Sequence[Path]) -> dict[str, Row]:
    """The labelled rows by the column that images are joined by; UserError where two of them contradict each other."""
    rows: dict[str, Row] = {}
    for table in labelled:
        for line, values in tables.read_rows(table, strict=True):
            name = values.get(layout.by, "")
            row = Row(table, line, name, values, _split_of(table) if len(labelled) > 1 else "")
            if name and rows.setdefault(name, row) is not row:
                _merge(rows[name], row, layout)
    return rows


def _kinds(naming: Sequence[Path], column: str) -> set[str]:
    """The kinds of images that tables say in a column."""
    rows = (values for table in naming for _, values in tables.read_rows(table))
    return {_kind(values[column]) for values in rows if values.get(column)}


def _kind(taken: str) -> str:
    """Of what kind, of `layouts.KINDS`, an image is that was taken so; of none, confocal microscopy and histopathology
    among them, it is what the table says."""
    text = taken.lower()
    if text.startswith("dermoscop"):
        return "dermoscopic"
    photograph = text.startswith(("clinic", "tbp", "close", "overview")) or "macroscop" in text
    return "clinical" if photograph else taken.partition(":")[0]


def _numbered_splits(folder: TableFolder) -> dict[int, str]:
    """The split of each row number, by tables such as train_indexes.csv; UserError where there are none."""
    splits: dict[int, str] = {}
    for table, columns in folder.tables.items():
        for line, values in tables.read_rows(table) if columns == INDEXES else ():
            number = WHOLE.fullmatch(values[INDEXES[0]])
            if not number:
                raise UserError(f"table {table} line {line}: {values[INDEXES[0]]!r} is no number of a row")
            split = splits.setdefault(int(number[1]), _split_of(table))
            if split != _split_of(table):
                raise UserError(f"table {table} line {line}: row {number[1]} is in {split} as well; keep one")
    if not splits:
        raise UserError(f"folder {folder.root}: config.own_splits asks for train_indexes.csv, valid_indexes.csv and "
                        "test_indexes.csv; there are none")  # fmt: skip
    return splits


def _others(folder: TableFolder, layout: Layout, labelled: Sequence[Path]) -> dict[str, dict[str, tuple[str, str]]]:
    """What the other tables of a folder hold about each image, by its path, or by its `image_key` where it is no file.

    The columns are those of the layout, else those whose names are known.
    """
    others: dict[str, dict[str, tuple[str, str]]] = {}
    for table, columns in folder.tables.items():
        image = "" if table in labelled else tables.image_column(folder, table, layout.image, partly=True)
        if not image:
            continue
        there = {field: column for field, column in layout.known.items() if column in columns}
        other = Layout(image=image, known=tables.known_columns(columns, (image,)) | there)
        _refuse_doubled(table, columns if other.known else (), other)
        for line, values in tables.read_rows(table, strict=True) if other.known else ():
            row = Row(table, line, values.get(image, ""), values, "")
            _refuse_broken(row, other, (image,))
            path = folder.references.find_one(row.image, table, row.where) or image_key(row.image)
            _agree(others.setdefault(path, {}), _known(row, other), row.image)
    return others


def _known(row: Row, layout: Layout) -> dict[str, tuple[str, str]]:
    """What a row holds by the columns that are known: {field: (value, where it stands)}."""
    values = {field: row.values.get(column, "") for field, column in layout.known.items()}
    return {field: (value, row.where) for field, value in values.items() if value.lower() not in NOTHING}


def _agree(known: dict[str, tuple[str, str]], more: Mapping[str, tuple[str, str]], image: str) -> None:
    """Adds to what is known of an image what is not known yet; UserError for two values of a field that is BINDING."""
    for field, (value, where) in more.items():
        ours, earlier = known.setdefault(field, (value, where))
        if field in BINDING and ours != value and not parse_number(ours) == parse_number(value):
            raise UserError(f"{where}: {field} of {image} is {value!r}, and {ours!r} in "
                            f"{earlier.removeprefix('table ')}; keep one")  # fmt: skip


def _duplicates(folder: TableFolder) -> dict[str, str]:
    """The first name of the group of images that publishers list as duplicates, by each name of the group."""
    pairs = [
        [image_key(values.get(column, "")) for column in DUPLICATES]
        for table, columns in folder.tables.items()
        if set(DUPLICATES) <= set(columns)
        for _, values in tables.read_rows(table, strict=True)
    ]
    pairs = [pair for pair in pairs if all(pair)]
    if not pairs:
        return {}
    names, links = np.unique(np.array(pairs, object), return_inverse=True)
    groups, first = duplicates.group(links.reshape(-1, 2), [()] * len(names)).tolist(), {}
    return {name: first.setdefault(group, name) for name, group in zip(names.tolist(), groups, strict=True)}


def _merge(earlier: Row, row: Row, layout: Layout) -> None:
    """Adds what another row holds about the same image; UserError where the two contradict each other."""
    for column in (*layout.label, *layout.one_hot, *layout.known.values()):
        ours, theirs = earlier.values.get(column, ""), row.values.get(column, "")
        if ours and theirs and ours != theirs and not parse_number(ours) == parse_number(theirs):
            raise UserError(f"{row.where}: {column} of {row.image} is {theirs!r}, and {ours!r} in "
                            f"{earlier.where.removeprefix('table ')}; keep one line")  # fmt: skip
    if earlier.split and row.split and earlier.split != row.split:
        raise UserError(f"{row.where}: {row.image} is in {row.split}, and in {earlier.split} by "
                        f"{earlier.where.removeprefix('table ')}; keep one line")  # fmt: skip
    earlier.split = earlier.split or row.split
    earlier.values = row.values | {column: value for column, value in earlier.values.items() if value}


def _split_of(table: Path) -> str:
    """The split in a table's name, "" for none."""
    names = NAMED_SPLIT.findall(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", table.stem).lower())
    return SPLIT_FOLDERS[names[-1]] if names else ""


def _split_around(path: str) -> str:
    """The split whose folder an image lies in, "" for none."""
    splits = [SPLIT_FOLDERS[part.lower()] for part in PurePosixPath(path).parts[:-1] if part.lower() in SPLIT_FOLDERS]
    return splits[-1] if splits else ""


def _diagnosis(row: Row, layout: Layout, classes: str) -> str:
    """The diagnosis of a row in the words of `layouts.RULES`, "" for none; where the layout has no meanings, the value
    itself."""
    if layout.one_hot:
        marks = {column: row.values.get(column, "") for column in layout.one_hot}
        marked = [column for column, mark in marks.items() if parse_number(mark) == 1]
        if not any(marks.values()) or (layout.rest and not marked and "" in marks.values()):
            return ""
        shares = [column for column, mark in marks.items() if mark and parse_number(mark) not in (0, 1)]
        if shares:  # such as a model's probabilities
            raise UserError(f"{row.where}: {shares[0]} is {marks[shares[0]]!r}; it must be 0 or 1")
        if len(marked) > 1 or not (marked or layout.rest):
            raise UserError(f"{row.where}: {len(marked)} of {', '.join(layout.one_hot)} are 1; one must be")
        return layout.one_hot[marked[0]] if marked else layout.rest
    values = [row.values.get(column, "") for column in layout.label]
    values = [value for value in values if value.lower() not in NOTHING or value.lower() in (layout.meanings or ())]
    if len({layout.meanings.get(value.lower(), "") for value in values} & set(LABELS) if layout.meanings else ()) > 1:
        raise UserError(f"{row.where}: {' and '.join(layout.label)} are {' and '.join(map(repr, values))}; mend one")
    value = values[0] if values else ""
    if not value:
        return ""
    if value[0] + value[-1] in ("[]", "{}"):
        raise UserError(f"{row.where}: {layout.label[0]} is {value[:SHOWN]}, several values and no class; give a "
                        "column with one class an image, as --config.columns.label=…")  # fmt: skip
    if layout.meanings is None:
        number = WHOLE.fullmatch(value)
        return number[1] if number else value
    if value.lower() not in layout.meanings:
        raise UserError(f"{row.where}: {layout.label[0]} is {value!r}; known are {', '.join(layout.meanings)}")
    if classes == "diagnoses" and set(layout.meanings.values()) <= set(layouts.UNDIAGNOSED):
        raise UserError(f"{row.where}: this archive has no diagnosis in {layout.label[0]}; give config.classes="
                        "binary, or a column of diagnoses as config.columns.label")  # fmt: skip
    return layout.meanings[value.lower()]


def _record(
    path: str, label: str, row: Row | None, known: Mapping[str, tuple[str, str]], source: str, mask: str,
    duplicate_of: Mapping[str, str],
) -> Record:  # fmt: skip
    """The record of an image, of the row that gives its label and of what is known of it."""
    where = known["split"][1] if "split" in known else ""
    known = {field: value for field, (value, _) in known.items()}
    attributes = {name: known.pop(name) for name in ATTRIBUTES if name in known}
    attributes |= {name: attributes[name].casefold() for name in ("sex", "site") if name in attributes}
    if "sex" in attributes:
        attributes["sex"] = {"f": "female", "m": "male"}.get(attributes["sex"], attributes["sex"])
    if phototype := PHOTOTYPE.fullmatch(attributes.get("fitzpatrick", "").lower()):
        attributes["fitzpatrick"] = ROMAN.get(phototype[1], phototype[1])
    years = parse_number(attributes.get("age", "").removesuffix("+"))  # 85+: publishers hide who is older
    if 0 <= years <= OLDEST:
        attributes |= {"age": attributes["age"].replace(",", "."), "age_band": age_band(years)}
    elif not math.isnan(years):
        del attributes["age"]
    for field in ("lesion_id", "patient_id"):
        number = WHOLE.fullmatch(known.get(field, ""))
        if number:  # a bare number is another lesion in another archive
            known[field] = f"{source}/{int(number[1])}"  # spreadsheets also take the zeros of 007 away
    synthetic = known.pop("image_manipulation", "").lower() == "synthetic"
    split = row.split if row else ""
    if "split" in known:
        named = known.pop("split")
        split = SPLIT_FOLDERS.get(named.lower())
        if not split:
            raise UserError(f"{where}: its split is none of {', '.join(SPLIT_FOLDERS)}, but {named!r}; mend it, or "
                            "give the column another name")  # fmt: skip
    if row and image_key(row.image) in duplicate_of:
        attributes["duplicates"] = f"{source}/{duplicate_of[image_key(row.image)]}"
    if mask:
        attributes["mask"] = {"image": mask}
    return Record(
        image=path, sha256="", label=label, split=split, source=source, attributes=attributes,
        image_manipulation="synthetic" if synthetic else "none", **known,
    )  # fmt: skip
