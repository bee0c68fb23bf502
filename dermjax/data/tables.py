"""Folders of images with a table of diagnoses, as the public archives come, to Records.

A layout says which columns hold what and which diagnoses are malignant. The rules: melanoma, basal and squamous cell
carcinoma are malignant, and so is HAM10000's akiec, which holds intraepithelial carcinoma; an actinic keratosis on its
own is Indeterminate, as in the ISIC archive. What is Indeterminate or unknown is left out, and counted by the caller.
Layouts: isic-cli (its metadata.csv), HAM10000, ISIC 2020, ISIC 2024, DDI, PAD-UFES-20.
"""

import csv
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dermjax.data.images import SUFFIXES
from dermjax.data.records import Record
from dermjax.data.sources import Listing
from dermjax.errors import UserError

LABELS = ("benign", "malignant")
DROPPED = ""
TARGET = {"0": "benign", "1": "malignant", "0.0": "benign", "1.0": "malignant"}
ATTRIBUTES = ("age", "sex", "site", "fitzpatrick")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which columns name the image and its label, what the values of the label mean, and what else is known."""

    image: str
    label: tuple[str, ...]  # the first that is there and filled
    meanings: Mapping[str, str]  # in lower case; DROPPED for what is neither
    known: Mapping[str, str] = field(default_factory=dict)  # field of a Record, or attribute -> column


ARCHIVE = {"benign": "benign", "malignant": "malignant", "indeterminate": DROPPED}
ISIC_COLUMNS = {"lesion_id": "lesion_id", "patient_id": "patient_id", "age": "age_approx", "sex": "sex"}
LAYOUTS = {
    "ham10000": Layout(
        image="image_id",
        label=("dx",),
        meanings=dict.fromkeys(("mel", "bcc", "akiec"), "malignant")
        | dict.fromkeys(("nv", "bkl", "vasc", "df"), "benign"),
        known={"lesion_id": "lesion_id", "age": "age", "sex": "sex", "site": "localization"},
    ),
    "isic-2024": Layout(image="isic_id", label=("target",), meanings=TARGET, known=ISIC_COLUMNS),
    "isic-cli": Layout(
        image="isic_id",
        label=("diagnosis_1", "benign_malignant"),
        meanings=ARCHIVE,
        known=ISIC_COLUMNS
        | {"site": "anatom_site_general", "licence": "copyright_license", "fitzpatrick": "fitzpatrick_skin_type",
           "image_manipulation": "image_manipulation"},
    ),
    "isic-2020": Layout(image="image_name", label=("target",), meanings=TARGET, known=ISIC_COLUMNS),
    "ddi": Layout(
        image="DDI_file", label=("malignant",), meanings={"true": "malignant", "false": "benign"},
        known={"fitzpatrick": "skin_tone"},
    ),
    "pad-ufes-20": Layout(
        image="img_id",
        label=("diagnostic",),
        meanings=dict.fromkeys(("bcc", "scc", "mel"), "malignant")
        | dict.fromkeys(("nev", "sek"), "benign") | {"ack": DROPPED},
        known={"lesion_id": "lesion_id", "patient_id": "patient_id", "age": "age", "sex": "gender", "site": "region",
               "fitzpatrick": "fitspatrick"},
    ),
}  # fmt: skip


def detect(folder: Path) -> tuple[str, Path] | None:
    """The name of the layout of a folder and its table, or None where no table in it is of a known layout.

    Images sorted into train/class/* are taken as sorted, and a table beside them is not read.
    """
    if not folder.is_dir() or any(path.is_dir() for path in folder.glob("train/*")):
        return None
    for path in sorted(folder.glob("*.csv")):
        columns = set(_rows(path)[0])
        for name, layout in LAYOUTS.items():
            if layout.image in columns and set(layout.label) & columns:
                return name, path
    return None


def scan(folder: Path, name: str, table: Path) -> Listing:
    """The images of a table that lie under the folder; UserError names what is missing, unknown or twice there."""
    root, layout = Path(os.path.realpath(folder)), LAYOUTS[name]
    files = _files(root)
    columns, *rows = _rows(table)
    found, ignored = {}, []
    for number, row in enumerate(rows, start=2):
        told = dict(zip(columns, row, strict=False))
        image = Path(told.get(layout.image, "")).name
        path = files.get(image) or files.get(Path(image).stem)
        if path is None:
            raise UserError(
                f"table {table} line {number}: no image {image!r} under {root}; download it or cut the line"
            )
        if path in found:
            raise UserError(f"table {table} line {number}: {image} stands there twice; keep one line")
        label = _label(told, layout, table, number)
        if label == DROPPED:
            ignored.append(f"{path} (neither benign nor malignant)")
        else:
            found[path] = _record(path, label, told, layout, name)
    if {record.label for record in found.values()} != set(LABELS):
        raise UserError(f"table {table}: images of both classes are needed, benign and malignant")
    return Listing(
        labels=LABELS, root=root, records=tuple(found[path] for path in sorted(found)), ignored=tuple(ignored)
    )


def _label(told: dict, layout: Layout, table: Path, number: int) -> str:
    value = next((told[column].strip().lower() for column in layout.label if told.get(column, "").strip()), "")
    if value not in layout.meanings:
        known = ", ".join(layout.meanings)
        raise UserError(f"table {table} line {number}: {layout.label[0]} is {value!r}; known are {known}")
    return layout.meanings[value]


def _record(path: str, label: str, told: dict, layout: Layout, source: str) -> Record:
    known = {name: told.get(column, "").strip() for name, column in layout.known.items()}
    known = {name: value for name, value in known.items() if value}
    attributes = {name: known.pop(name) for name in ATTRIBUTES if name in known}
    for name in ("lesion_id", "patient_id"):
        if known.get(name, "").isdigit():  # a bare number is another lesion in another archive
            known[name] = f"{source}/{known[name]}"
    known.setdefault("image_manipulation", "none")
    if known["image_manipulation"] not in ("none", "synthetic"):
        known["image_manipulation"] = "none"
    return Record(image=path, sha256="", label=label, split="", source=source, attributes=attributes, **known)


def _files(root: Path) -> dict[str, str]:
    """Every image under a folder, by its name and by its stem, as a path relative to the folder."""
    found = {}
    for folder, below, names in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(names):
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                path = (Path(folder) / name).relative_to(root).as_posix()
                found.setdefault(name, path)
                found.setdefault(Path(name).stem, path)
    return found


def _rows(path: Path) -> list[list[str]]:
    """The rows of a table with its header, in UTF-8 or UTF-16, with or without a mark, whatever ends its lines."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"table {path}: cannot be read ({error}); save it as CSV in UTF-8") from error
    if not rows:
        raise UserError(f"table {path}: is empty")
    return rows
