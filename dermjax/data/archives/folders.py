"""Masks and other annotations that lie beside images: told from photographs by their names and their two levels.

`ISIC_0000000_segmentation.png` belongs to `ISIC_0000000.jpg`, and so does `masks/ISIC_0000000.png`. What is named so
is never a photograph; a mask of two levels is kept with its image. Endings that photographs may have too (`_lesion`)
count only with two levels.

Folders of images, as people have them, to Records: `class/*` or `split/class/*`.

A Record leaves here with its path, label and, where the folder names one, its split; nothing is decoded yet but masks.
The licence stays empty: a folder does not tell it.
"""

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np

from dermjax import machine
from dermjax.data import digests, images
from dermjax.data.archives import layouts, tree
from dermjax.data.archives.tree import SPLIT_FOLDERS
from dermjax.data.records import Record
from dermjax.errors import UserError

ENDING = re.compile(
    r"^(?P<of>.+?)[ _.-]+(?:(?P<other>superpixels?|attribute_\w+)|(?P<sure>segmentations?|masks?|ground_?truth)"
    r"|(?P<unsure>seg|lesion|gt|contour|border))$",
    re.IGNORECASE,
)
FOLDER = re.compile(r"(?:^|[^a-z])(?:masks?|segmentations?|superpixels?|ground_?truth)(?:$|[^a-z])", re.IGNORECASE)
USED, OTHER = "used as the mask of its image", "superpixels or attributes of an image"
LEVELS, SEVERAL = "a mask of many levels", "a mask that may be of several images"
FAR = 40  # grey levels of 255 from black or white; a JPEG of a mask comes so near with all but few pixels
MOST = 0.97


@dataclass(frozen=True)
class Found:
    """The photographs, their masks {photograph: mask}, and (path, reason) of all that is no photograph."""

    photographs: tuple[str, ...]
    masks: Mapping[str, str]
    left_out: tuple[tuple[str, str], ...]


def divided(root: Path, names: Sequence[str]) -> Found:
    """Tells photographs and annotations among images, paths relative to the root, apart."""
    of = _named(names)
    looked = [name for name, (_, kind) in of.items() if kind != "other"]
    with ThreadPoolExecutor(machine.cores()) as pool:
        levels = dict(zip(looked, pool.map(lambda name: has_two_levels(root / name), looked), strict=True))
    masks, left_out = {}, []
    for name, (photograph, kind) in of.items():
        if not photograph:
            left_out.append((name, SEVERAL))
        elif levels.get(name) and photograph not in masks:
            masks[photograph] = name
            left_out.append((name, USED))
        elif kind == "other" or kind == "sure":
            left_out.append((name, OTHER if kind == "other" or levels[name] else LEVELS))
    out = {name for name, _ in left_out}
    return Found(tuple(name for name in names if name not in out), masks, tuple(left_out))


def has_two_levels(path: Path) -> bool:
    """Whether an image has two levels of grey at most, or nearly so; a damaged one has not."""
    try:
        grey = images.decode(path)[..., 1]
    except UserError:
        return False
    counts = np.bincount(grey.ravel(), minlength=256)
    return np.count_nonzero(counts) <= 2 or counts[:FAR].sum() + counts[256 - FAR :].sum() >= MOST * grey.size


def _named(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """{annotation: (the image that it is of, kind)} as far as names tell; kind is other, sure or unsure."""
    stems: dict[str, list[str]] = {}
    for name in names:
        stems.setdefault(_stem(name).casefold(), []).append(name)
    found = {}
    for name in names:
        ending = ENDING.match(_stem(name))
        beside = [each for each in stems.get(ending["of"].casefold(), ()) if each != name] if ending else []
        if beside:
            found[name] = _nearest(name, beside), ending.lastgroup
        elif _in_folder(_folder(name)):
            of = [each for each in stems[_stem(name).casefold()] if each != name and not _in_folder(_folder(each))]
            if of:
                found[name] = _nearest(name, of), "sure"
    return {name: (of, kind) for name, (of, kind) in found.items() if of not in found}


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _stem(name: str) -> str:
    return os.path.splitext(name.rpartition("/")[2])[0]


@cache
def _in_folder(folder: str) -> bool:
    return any(FOLDER.search(part) for part in folder.split("/"))


def _nearest(name: str, others: list[str]) -> str:
    """The one in the same folder, or in one of the same name, or the only one; "" where it may be of several."""
    own = _folder(name)
    for near in (lambda folder: folder == own, lambda folder: _folder_name(folder) == _folder_name(own)):
        found = [each for each in others if near(_folder(each))]
        if found:
            return found[0]
    return others[0] if len(others) == 1 else ""


def _folder_name(folder: str) -> str:
    return folder.rpartition("/")[2]


EXPECTED = "give a folder with class/*.jpg or train/class/*.jpg"
COPY = "a copy of what lies beside it; config.images may name it instead"


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What a folder holds: Records in order of their paths, without sha256; (path, reason) of what was not taken.

    packed: {image: (file, name in it)} of images that are no files yet.
    """

    labels: tuple[str, ...]
    root: Path
    records: tuple[Record, ...]
    ignored: tuple[tuple[str, str], ...]
    packed: Mapping[str, tuple[Path, str]] = field(default_factory=dict)


def scan(folder: Path) -> Listing:
    """Lists a folder `class/*` (split "") or `split/class/*`; UserError names what is missing or unclear in it."""
    root = Path(os.path.realpath(folder))
    if not root.is_dir():
        raise UserError(f"folder {folder}: no such folder; {EXPECTED}")
    root = tree.enter(root)
    folders = [path for path in tree.visible(root) if path.is_dir()]
    masked = [path for path in folders if FOLDER.search(path.name)]
    folders = [path for path in folders if path not in masked]
    copies = _copies(root, folders)
    folders = [path for path in folders if path not in copies]
    if any(path.name.lower() in SPLIT_FOLDERS for path in folders):
        classes = [(split, path) for split, inside in _splits(root, folders) for path in inside]
    else:
        classes = [("", path) for path in folders]
    every = [image.relative_to(root).as_posix() for _, path in classes for image in _images(path)]
    beside = [f"{path.name}/{image}" for path in masked for image in tree.walk(path).images]
    told = divided(root, [*every, *beside])
    photographs = set(told.photographs)
    found = {
        (split, path): [image for image in _images(path) if image.relative_to(root).as_posix() in photographs]
        for split, path in classes
    }
    _refuse_empty(root, found)
    labels = layouts.ordered({path.name for _, path in classes})
    _refuse_gaps(root, labels, classes)
    around = sorted({root, *(path.parent for _, path in classes)})
    others = [
        (other.relative_to(root).as_posix(), _reason(other))
        for _, path in classes
        for other in sorted(set(tree.visible(path)) - set(_images(path)))
    ]
    loose = [each.relative_to(root).as_posix() for path in around for each in _images(path)]
    loose = [(each, "outside of the class folders") for each in (*loose, *(e for e in beside if e in photographs))]
    listing = Listing(
        labels=labels,
        root=root,
        records=tuple(
            _record(root, image, split, told.masks) for (split, _), images in found.items() for image in images
        ),
        ignored=(*others, *told.left_out, *loose, *((path.relative_to(root).as_posix(), COPY) for path in copies)),
    )
    return resolve_links(listing)


def resolve_links(listing: Listing) -> Listing:
    """The listing with links followed: under a root that holds all files, and each image once.

    A record that a link led to says so (`linked_as`). Raises UserError where links put one image under two classes.
    """
    real = _Real(listing.root)
    masked = [record for record in listing.records if "mask" in record.attributes]
    mask = {record.image: record.attributes["mask"]["image"] for record in masked}
    led = {image: image for image in listing.packed}  # no files yet, and no links
    led |= {record.image: real.path(record.image) for record in listing.records if record.image not in led}
    led |= {image: real.path(image) for image in mask.values()}
    home = str(listing.root)
    if all(path == os.path.join(home, image) for image, path in led.items()) and not listing.packed:
        return listing
    led = {image: Path(path) for image, path in led.items()}
    root = Path(os.path.commonpath([home, *(path.parent for path in led.values())]))
    first, records, twice = {}, [], []
    for record in listing.records:
        path = led[record.image]
        told = dict(record.attributes)
        if path != listing.root / record.image:
            told["linked_as"] = record.image
        if record.image in mask:
            told["mask"] = {"image": led[mask[record.image]].relative_to(root).as_posix()}
        earlier = first.setdefault(path, record)
        if (earlier.label, earlier.split) != (record.label, record.split):
            raise UserError(f"{earlier.image} and {record.image} are links to one image, {path}; keep one of them")
        if earlier is record:
            records.append(replace(record, image=path.relative_to(root).as_posix(), attributes=told))
        else:
            twice.append((record.image, "a link to an image that is listed already"))
    under = listing.root.relative_to(root)
    return replace(
        listing,
        root=root,
        records=tuple(sorted(records, key=lambda record: record.image)),
        ignored=tuple(((under / image).as_posix(), why) for image, why in (*listing.ignored, *twice)),
        packed={Path(image).relative_to(root).as_posix(): where for image, where in listing.packed.items()},
    )


class _Real:
    """Where paths below a root lead once links are followed, a folder looked up once."""

    def __init__(self, root: Path):
        self.root, self.folders = str(root), {}

    def path(self, image: str) -> str:
        path = os.path.join(self.root, image)
        if os.path.islink(path):
            return os.path.realpath(path)
        folder, name = os.path.split(path)
        if folder not in self.folders:
            self.folders[folder] = os.path.realpath(folder)
        return os.path.join(self.folders[folder], name)


def merge(listings: Sequence[Listing], classes: str) -> Listing:
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
    records = [_moved(record, root, listing) for listing in listings for record in listing.records]
    twice = [image for image, times in Counter(record.image for record in records).items() if times > 1]
    if twice:
        raise UserError(f"{root / twice[0]} is in two of the folders; give each image once")
    ignored = [(_under(root, listing, image), why) for listing in listings for image, why in listing.ignored]
    packed = {_under(root, listing, image): where for listing in listings for image, where in listing.packed.items()}
    return Listing(
        labels=layouts.ordered(names), root=root, records=tuple(records), ignored=tuple(ignored), packed=packed
    )


def _moved(record: Record, root: Path, listing: Listing) -> Record:
    """The record with its paths from another folder that holds its own."""
    told = record.attributes
    if "mask" in told:
        told = told | {"mask": told["mask"] | {"image": _under(root, listing, told["mask"]["image"])}}
    return replace(record, image=_under(root, listing, record.image), attributes=told)


def _under(root: Path, listing: Listing, image: str) -> str:
    """The path of an image from another folder that holds its own."""
    return (listing.root / image).relative_to(root).as_posix()


def limit(records: tuple[Record, ...], limit: int, seed: int) -> tuple[Record, ...]:
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


def _record(root: Path, image: Path, split: str, beside: Mapping[str, str]) -> Record:
    path, label = image.relative_to(root).as_posix(), image.parent.name
    told = {"mask": {"image": beside[path]}} if path in beside else {}
    return Record(
        image=path, sha256="", label=label, split=split, source=root.name, image_manipulation="none", attributes=told
    )


def _images(folder: Path) -> list[Path]:
    """The files named like images; whether they are images is seen when they are decoded."""
    return [path for path in tree.visible(folder) if tree.is_image(path)]


def _copies(root: Path, folders: list[Path]) -> list[Path]:
    """The folders beside splits, or beside classes, that hold the same again, file by file; UserError where these
    differ."""
    splits = [path for path in folders if path.name.lower() in SPLIT_FOLDERS]
    own = splits or [path for path in folders if _images(path)]
    names = {path.name for path in own}
    found = []
    for path in (path for path in folders if path not in own):
        inside = tree.enter(path)
        again = [each for each in tree.visible(inside) if each.is_dir() and each.name in names]
        if not again:
            continue
        if not _same(own, again):
            told = f"{path.name} holds {', '.join(each.name for each in again)} again, with other files"
            raise UserError(f"folder {root}: {told}; give --config.images={inside}, or take one of the two away")
        found.append(path)
    return found


def _same(splits: list[Path], again: list[Path]) -> bool:
    """Whether folders hold the same files, by their names and bytes."""
    ours, theirs = ({path.name: tree.walk(path) for path in each} for each in (splits, again))
    if {name: held.images for name, held in ours.items()} != {name: held.images for name, held in theirs.items()}:
        return False
    pairs = [(held.root / image, theirs[name].root / image) for name, held in ours.items() for image in held.images]
    if any(one.stat().st_size != other.stat().st_size for one, other in pairs):
        return False
    return all(digests.cached_sha256(one) == digests.cached_sha256(other) for one, other in pairs)


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
    inside = [[each for each in tree.visible(tree.enter(path)) if each.is_dir()] for path in folders]
    for path, classes in zip(folders, inside, strict=True):
        if not classes:
            raise UserError(f"folder {path}: a split without class folders; {EXPECTED}")
    return list(zip(splits, inside, strict=True))


def _reason(path: Path) -> str:
    """Why something in a class folder is no image."""
    return "no image" if path.is_dir() else tree.special_kind(path) or images.missing_package(path) or "no image"


def _refuse_empty(root: Path, found: dict[tuple[str, Path], list[Path]]) -> None:
    """No image at all, or a class folder without one."""
    empty = [path for (_, path), images in found.items() if not images]
    nested = [path.name for path in empty if any(each.is_dir() for each in tree.visible(path))]
    if nested:
        raise UserError(f"folder {root}: {', '.join(nested)} holds folders but is no split (train, validation, test)")
    if len(empty) == len(found):
        loose = len(_images(root))
        told = f"{loose} images lie outside of class folders" if loose else "no images"
        raise UserError(f"folder {root}: {told}; {EXPECTED}{_instead(path for _, path in found)}")
    if empty:
        raise UserError(f"folder {empty[0]}: a class without images; add images or remove the folder{_instead(empty)}")


def _instead(folders: Iterable[Path]) -> str:
    """What lies in folders in place of images, for the end of a line."""
    reasons = Counter(_reason(path) for folder in folders for path in tree.visible(folder))
    told = [f"{count} {reason}" for reason, count in reasons.items() if reason != "no image"]
    return f"; there are {'; '.join(told)}" if told else ""


def _refuse_gaps(root: Path, labels: tuple[str, ...], classes: list[tuple[str, Path]]) -> None:
    """One class only, or a class that one split has and another has not."""
    if len(labels) == 1:
        raise UserError(f"folder {root}: only one class, {labels[0]!r}; a classifier needs two or more")
    for split in dict.fromkeys(split for split, _ in classes):
        missing = set(labels) - {path.name for of, path in classes if of == split}
        if missing:
            named = ", ".join(repr(label) for label in sorted(missing))
            raise UserError(f"folder {root}: class {named} is missing in {split}; every split must have every class")
