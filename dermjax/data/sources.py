"""Folders of images, as people have them, to Records: `class/*` or `split/class/*`.

A Record leaves here with its path, label and, where the folder names one, its split; nothing is decoded yet. The
licence stays empty: a folder does not tell it.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dermjax.data import layouts
from dermjax.data.images import SUFFIXES
from dermjax.data.records import Record
from dermjax.errors import UserError

SPLIT_FOLDERS = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
LITTER = ("thumbs.db", "desktop.ini", "__macosx")  # left by file managers, like everything that begins with a dot
EXPECTED = "give a folder with class/*.jpg or train/class/*.jpg"


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What a folder holds: Records in order of their paths, without sha256; (path, reason) of what was not taken."""

    labels: tuple[str, ...]
    root: Path
    records: tuple[Record, ...]
    ignored: tuple[tuple[str, str], ...]


def scan(folder: Path) -> Listing:
    """Lists a folder `class/*` (split "") or `split/class/*`; UserError names what is missing or unclear in it."""
    root = Path(os.path.realpath(folder))
    if not root.is_dir():
        raise UserError(f"folder {folder}: no such folder; {EXPECTED}")
    folders = [path for path in _visible(root) if path.is_dir()]
    if any(path.name.lower() in SPLIT_FOLDERS for path in folders):
        classes = [(split, path) for split, inside in _splits(root, folders) for path in inside]
    else:
        classes = [("", path) for path in folders]
    found = {(split, path): _images(path) for split, path in classes}
    _refuse_empty(root, found)
    labels = layouts.ordered({path.name for _, path in classes})
    _refuse_gaps(root, labels, classes)
    around = sorted({root, *(path.parent for _, path in classes)})
    return Listing(
        labels=labels,
        root=root,
        records=tuple(_record(root, image, split) for (split, _), images in found.items() for image in images),
        ignored=tuple(
            (other.relative_to(root).as_posix(), "no image")
            for (_, path), images in found.items()
            for other in sorted(set(_visible(path)) - set(images))
        )
        + tuple(
            (loose.relative_to(root).as_posix(), "outside of the class folders")
            for path in around
            for loose in _images(path)
        ),
    )


def merged(listings: Sequence[Listing], classes: str) -> Listing:
    """Several folders as one, under the folder that holds them all; UserError where they do not belong together.

    classes: "binary" or "diagnoses"; of diagnoses a source need not have all, else the classes must be the same.
    """
    if len(listings) == 1:
        return listings[0]
    names = set().union(*(listing.labels for listing in listings))
    for listing in listings:
        if classes != "diagnoses" and set(listing.labels) != names:
            raise UserError(f"folder {listing.root}: its classes are {', '.join(listing.labels)}, those of all folders "
                            f"{', '.join(sorted(names))}; rename folders, or give config.columns.label")  # fmt: skip
    root = Path(os.path.commonpath([listing.root for listing in listings]))
    records = [replace(record, image=_under(root, listing, record.image)) for listing in listings
               for record in listing.records]  # fmt: skip
    twice = [image for image, times in Counter(record.image for record in records).items() if times > 1]
    if twice:
        raise UserError(f"{root / twice[0]} is in two of the folders; give each image once")
    ignored = [(_under(root, listing, image), why) for listing in listings for image, why in listing.ignored]
    return Listing(labels=layouts.ordered(names), root=root, records=tuple(records), ignored=tuple(ignored))


def _under(root: Path, listing: Listing, image: str) -> str:
    """The path of an image from another folder that holds its own."""
    return (listing.root / image).relative_to(root).as_posix()


def limited(records: tuple[Record, ...], limit: int, seed: int) -> tuple[Record, ...]:
    """At most `limit` records (0 = all) of each class in each split folder, the same for the same seed, in order."""
    if limit == 0:
        return records
    cells = defaultdict(list)
    for record in records:
        cells[record.split, record.label].append(record.image)
    chosen = {image for cell in cells.values() for image in sorted(cell, key=lambda name: _lot(name, seed))[:limit]}
    return tuple(record for record in records if record.image in chosen)


def _lot(name: str, seed: int) -> bytes:
    """A random number that belongs to a name, so that adding files does not redraw the others."""
    return hashlib.sha256(os.fsencode(f"{seed}/{name}")).digest()


def _record(root: Path, image: Path, split: str) -> Record:
    path, label = image.relative_to(root).as_posix(), image.parent.name
    return Record(image=path, sha256="", label=label, split=split, source=root.name, image_manipulation="none")


def _visible(folder: Path) -> list[Path]:
    """What lies in a folder, in order of name, without hidden files and litter."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(f"folder {folder}: cannot be read ({error.strerror})") from error
    return [folder / name for name in names if not name.startswith(".") and name.lower() not in LITTER]


def _images(folder: Path) -> list[Path]:
    """The files named like images; whether they are images is seen when they are decoded."""
    return [path for path in _visible(folder) if path.suffix.lower() in SUFFIXES and not path.is_dir()]


def _splits(root: Path, folders: list[Path]) -> list[tuple[str, list[Path]]]:
    """(split, class folders) of each split folder."""
    unknown = [path.name for path in folders if path.name.lower() not in SPLIT_FOLDERS]
    if unknown:
        raise UserError(f"folder {root}: {', '.join(unknown)} beside a split; splits are train, validation (val), test")
    splits = [SPLIT_FOLDERS[path.name.lower()] for path in folders]
    if len(set(splits)) < len(splits):
        raise UserError(f"folder {root}: one split in two folders, {', '.join(path.name for path in folders)}")
    if "train" not in splits:
        raise UserError(f"folder {root}: no train folder beside {', '.join(path.name for path in folders)}")
    inside = [[each for each in _visible(path) if each.is_dir()] for path in folders]
    for path, classes in zip(folders, inside, strict=True):
        if not classes:
            raise UserError(f"folder {path}: a split without class folders; {EXPECTED}")
    return list(zip(splits, inside, strict=True))


def _refuse_empty(root: Path, found: dict[tuple[str, Path], list[Path]]) -> None:
    """No image at all, or a class folder without one."""
    empty = [path for (_, path), images in found.items() if not images]
    nested = [path.name for path in empty if any(each.is_dir() for each in _visible(path))]
    if nested:
        raise UserError(f"folder {root}: {', '.join(nested)} holds folders but is no split (train, validation, test)")
    if len(empty) == len(found):
        loose = len(_images(root))
        told = f"{loose} images lie outside of class folders" if loose else "no images"
        raise UserError(f"folder {root}: {told}; {EXPECTED}")
    if empty:
        raise UserError(f"folder {empty[0]}: a class without images; add images or remove the folder")


def _refuse_gaps(root: Path, labels: tuple[str, ...], classes: list[tuple[str, Path]]) -> None:
    """One class only, or a class that one split has and another has not."""
    if len(labels) == 1:
        raise UserError(f"folder {root}: only one class, {labels[0]!r}; a classifier needs two or more")
    for split in dict.fromkeys(split for split, _ in classes):
        missing = set(labels) - {path.name for of, path in classes if of == split}
        if missing:
            named = ", ".join(repr(label) for label in sorted(missing))
            raise UserError(f"folder {root}: class {named} is missing in {split}; every split must have every class")
