"""Which layout a folder has, and the images that it lists: the first thing that `prepare` finds out, and says."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from dermjax import progress
from dermjax.data import builders, sources, tables
from dermjax.data.layouts import LABELS, LAYOUTS
from dermjax.data.sources import Listing
from dermjax.errors import UserError

CHOICES = ("detect", "folders", "table", "tfds", *LAYOUTS)
CLASSES = ("binary", "diagnoses")


def whole(
    images: str, *, layout: str, classes: str, columns: Mapping[str, str], positive: str, skip: bool, workdir: Path
) -> Listing:
    """One listing of the folders that a setting names, each said with its layout; see `listed`.

    Of several folders, the map of columns is for those that have a table with them.
    """
    given, found = folders(images), []
    for folder in given:
        mapped = len(given) == 1 or _is_mapped(folder, columns)
        known = columns if mapped else dict.fromkeys(columns, "")
        name, listing = listed(folder, layout=layout, classes=classes, columns=known, skip=skip, workdir=workdir)
        progress.say(f"prepare: {folder} is read as {name}")
        found.append(listing)
    return headed(sources.merged(found, classes), positive)


def folders(images: str) -> list[Path]:
    """The folder that a setting names, or several divided by commas."""
    whole = Path(images).expanduser()
    return [whole] if whole.exists() else [Path(each.strip()).expanduser() for each in images.split(",")]


def listed(
    folder: Path, *, layout: str, classes: str, columns: Mapping[str, str], skip: bool, workdir: Path
) -> tuple[str, Listing]:
    """The name of the layout, detected or as given, and what the folder lists in it.

    classes and columns: of tables, see `tables`. skip: a listed image that is not there is left out and counted.
    workdir: where images go that are no files yet.
    """
    if layout not in CHOICES:
        raise UserError(f"config.layout {layout!r}: give one of {', '.join(CHOICES)}")
    if classes not in CLASSES:
        raise UserError(f"config.classes {classes!r}: give one of {', '.join(CLASSES)}")
    if layout == "tfds" or (layout == "detect" and builders.is_builder(folder)):
        return "tfds", builders.scan(folder, workdir)
    if layout != "folders" and (columns["image"] or layout != "detect" or not _sorted(folder)):
        found = tables.look(folder)
        name = layout if layout != "detect" else "table" if columns["image"] else tables.detect(found)
        if name:
            return name, tables.scan(found, name, tables.chosen(name, columns), classes=classes, skip=skip)
    listing = sources.scan(folder)
    return _named(listing), listing


def headed(listing: Listing, positive: str) -> Listing:
    """The listing with the class of this name as the positive one, which is the last; "" leaves the order."""
    if positive and positive not in listing.labels:
        raise UserError(f"config.positive {positive!r}: the classes are {', '.join(listing.labels)}")
    labels = [label for label in listing.labels if label != positive]
    return replace(listing, labels=(*labels, positive)) if positive else listing


def _is_mapped(folder: Path, columns: Mapping[str, str]) -> bool:
    """Whether a table in a folder has the columns of a map."""
    given = set(filter(None, columns.values()))
    return any(given <= set(names) for names in tables.look(folder).tables.values())


def _sorted(folder: Path) -> bool:
    """Whether images are sorted into train/class/*; they are taken so, whatever table lies beside them."""
    return any(path.is_dir() for path in folder.glob("train/*"))


def _named(listing: Listing) -> str:
    """Kaggle's set of 3,297 moles is told by its folders and numbers; else the kind of folders."""
    splits = {record.split for record in listing.records}
    numbered = all(Path(record.image).stem.isdigit() for record in listing.records)
    if splits == {"train", "test"} and listing.labels == LABELS and numbered:
        return "kaggle-malignant-vs-benign, without lesion ids: near-duplicates are the only guard against leaks"
    return "class folders" if splits == {""} else "split folders"
