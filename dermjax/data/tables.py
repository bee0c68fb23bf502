"""The tables in a folder of images, and which of their columns say what: by a known layout, or by what they hold.

A folder may hold several tables of its layout, one a split of a challenge, and others that only say more of the images.
A table of no known layout is read by the column that names images below and by one of `layouts.CLASS_COLUMNS` or
`layouts.DIAGNOSIS_COLUMNS`. `binding` makes Records of them.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np

from dermjax.data import layouts, masks, spreadsheet, tree
from dermjax.data.layouts import LAYOUTS, Layout
from dermjax.data.masks import Found
from dermjax.data.references import References
from dermjax.data.tree import Tree
from dermjax.errors import UserError

TRIED = 200  # rows that tell which column names images
MOST = 0.5  # share of those rows whose value is an image's


@dataclass(frozen=True)
class Folder:
    """What lies under a folder, and the columns of each of its tables."""

    tree: Tree
    tables: Mapping[Path, list[str]]

    @cached_property
    def images(self) -> Found:
        """Its photographs and their masks."""
        return masks.divided(self.root, self.tree.images)

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


def look(folder: Path) -> Folder:
    """The images and tables under a folder; UserError names a table that cannot be read."""
    found = tree.walk(folder)
    return Folder(found, {path: spreadsheet.columns(path) for path in found.tables})


def detect(folder: Folder) -> str | None:
    """The name of the layout of a folder, None where no table in it is of a known one; UserError where two are."""
    found = [name for name, layout in LAYOUTS.items() if folder.of(layout)]
    if len(found) > 1:
        raise UserError(f"folder {folder.root}: tables of {' and '.join(found)}; give one of them as config.layout")
    return found[0] if found else None


def bound(folder: Folder) -> Layout | None:
    """The layout of a folder whose tables are of no known one, by the images and classes that they name; None where
    none does."""
    for table, columns in folder.tables.items():
        image = naming(folder, table)
        lower = {column.lower(): column for column in columns}
        spelt = (*layouts.CLASS_COLUMNS, *layouts.DIAGNOSIS_COLUMNS)
        label = next((lower[each] for each in spelt if each in lower), "")
        if image and label and label != image:
            values = {told.get(label, "").lower() for _, told in spreadsheet.rows(table)} - {""}
            meanings = None
            if label.lower() in layouts.DIAGNOSIS_COLUMNS:
                meanings = next((each for each in (layouts.TARGETS, layouts.DIAGNOSES) if values <= each.keys()), None)
            return Layout(image=image, label=(label,), meanings=meanings, known=known(columns, (image, label)))
    return None


def naming(folder: Folder, table: Path) -> str:
    """The column of a table that names images below, "" for none."""
    counts: dict[str, list[bool]] = defaultdict(list)
    for _, told in islice(spreadsheet.rows(table), TRIED):
        for column, value in told.items():
            if value:
                counts[column].append(bool(folder.named.find(value, table)))
    shares = {column: float(np.mean(hits)) for column, hits in counts.items()}
    best = max(shares, key=shares.get, default="")
    return best if best and shares[best] >= MOST else ""


def unknown(folder: Folder) -> str:
    """What a line says of tables that name images and nothing of them that is known, "" where there is none."""
    named = {path: naming(folder, path) for path in folder.tables}
    told = [
        f"{path.relative_to(folder.root)} ({', '.join(map(repr, folder.tables[path]))})"
        for path, image in named.items()
        if image and not known(folder.tables[path], (image,))
    ]
    return f"not read, as no column is known: {'; '.join(told)}; config.columns names them" if told else ""


def strange(folder: Folder) -> str:
    """What a line says of tables that nobody could read by their columns, "" where there is none."""
    told = [
        f"{path.relative_to(folder.root)} has the columns {', '.join(map(repr, columns))}"
        for path, columns in folder.tables.items()
    ]
    if not told:
        return "; ".join(folder.tree.unread)
    path = next(iter(folder.tables))
    image = naming(folder, path)
    known = f"its images are in {image!r}; " if image else ""
    return (
        f"{'; '.join(told)}; {known}give the columns of the image and of the class or diagnosis, as "
        f"--config.columns.image={image or 'file'} --config.columns.label=…"
    )


def chosen(folder: Folder, name: str, columns: Mapping[str, str]) -> Layout:
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
        image = next((naming(folder, path) for path in of_label), "")
    if not image or not (layout.label or layout.one_hot):
        told = strange(folder)
        raise UserError(
            "config.columns: give the columns of the image and the label or diagnosis, as --config.columns.image=file"
            + (f"; {told}" if told else "")
        )
    return replace(layout, image=image, known={**layout.known, **given})


def known(columns: Sequence[str], taken: Sequence[str]) -> dict[str, str]:
    """The columns of a table of no layout that say something known, by its field."""
    lower = {column.lower(): column for column in columns if column not in taken}
    found = {name: [lower[each] for each in spelt if each in lower] for name, spelt in layouts.KNOWN_COLUMNS.items()}
    return {name: those[0] for name, those in found.items() if those}
