"""Folders of images, as people have them, to Records: `class/*` or `split/class/*`.

A Record leaves here with its path, label and, where the folder names one, its split; nothing is decoded yet but masks.
The licence stays empty: a folder does not name it.
"""

import functools
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dermjax.data import digests, images
from dermjax.data.archives import layouts, masks, tree
from dermjax.data.archives.tree import SPLIT_FOLDERS
from dermjax.data.records import Record
from dermjax.errors import UserError

EXPECTED = "give a folder with class/*.jpg or train/class/*.jpg"
COPY = "a copy of what lies beside it; config.images may name it instead"


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What an archive holds: Records in order of their paths, without sha256; (path, reason) of what was not taken.

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
    if root.is_file():
        hint = tree.UNREAD.get(root.suffix.lower(), "give the folder that it lies in")
        raise UserError(f"folder {folder}: is a file; {hint}")
    if not root.is_dir():
        raise UserError(f"folder {folder}: no such folder; {EXPECTED}")
    root = tree.unwrap(root)

    def names(paths: Iterable[Path]) -> list[str]:
        return [path.relative_to(root).as_posix() for path in paths]

    mask_folders = [path for path in tree.folders_in(root) if _is_of_masks(path)]
    folders = [path for path in tree.folders_in(root) if path not in mask_folders]
    copies = _copies(root, folders)
    folders = [path for path in folders if path not in copies]
    classes = [("", path) for path in folders]
    if any(path.name.lower() in SPLIT_FOLDERS for path in folders):
        classes = [(split, path) for split, inside in _splits(root, folders) for path in inside]
    mask_folders += [each for _, path in classes for each in (path, *tree.folders_in(path)) if _is_of_masks(each)]
    classes = [(split, path) for split, path in classes if path not in mask_folders]
    images_of = {path: names(tree.images_in(path)) for _, path in classes}
    beside = [f"{name}/{image}" for name, path in zip(names(mask_folders), mask_folders, strict=True)
              for image in tree.walk(path).images]  # fmt: skip
    separation = masks.separate(root, [*(image for each in images_of.values() for image in each), *beside])
    photographs = set(separation.photographs)
    images_of = {path: [image for image in each if image in photographs] for path, each in images_of.items()}
    _refuse_empty(root, images_of)
    layouts.refuse_twins({path.name for _, path in classes}, f"folder {root}")
    labels = layouts.ordered({path.name for _, path in classes})
    _refuse_gaps(root, labels, classes)
    others = [other for _, path in classes for other in tree.visible(path)
              if not tree.is_image(other) and other not in mask_folders]  # fmt: skip
    within = {path: tree.walk(path).images for path in others
              if path.is_dir() and not root.is_relative_to(os.path.realpath(path))}  # fmt: skip
    nested = [f"{name}/{image}" for name, path in zip(names(within), within, strict=True) for image in within[path]]
    others = [other for other in others if not within.get(other)]
    loose = [image for around in sorted({root, *(path.parent for _, path in classes)})
             for image in names(tree.images_in(around))]  # fmt: skip
    loose += [image for image in beside if image in photographs]
    known = {"source": root.name, "image_manipulation": "none"}
    listing = Listing(
        labels=labels,
        root=root,
        records=tuple(
            Record(image=image, sha256="", label=path.name, split=split, attributes=_mask(image, separation), **known)
            for split, path in classes
            for image in images_of[path]
        ),
        ignored=(
            *zip(names(others), map(_reason, others), strict=True),
            *separation.left_out,
            *((image, "in a folder within a class folder") for image in nested),
            *((image, "outside of the class folders") for image in loose),
            *((path, COPY) for path in names(copies)),
        ),
    )
    return resolve_links(listing)


def resolve_links(listing: Listing) -> Listing:
    """The listing with links followed: under a root that holds all images, and each image once.

    A record that a link led to names the link (`linked_as`). Where all images are packed, the root is the run's own
    folder, which may be moved. Raises UserError where links put one image under two classes.
    """
    home, real_folder = str(listing.root), functools.cache(os.path.realpath)

    def real(image: str) -> str:
        path = os.path.join(home, image)
        if os.path.islink(path):
            return os.path.realpath(path)
        folder, name = os.path.split(path)
        return os.path.join(real_folder(folder), name)

    mask = {record.image: record.attributes["mask"]["image"] for record in listing.records
            if "mask" in record.attributes}  # fmt: skip
    targets = {image: real(image) for image in (*(record.image for record in listing.records), *mask.values())
               if image not in listing.packed}  # fmt: skip
    if not listing.packed and all(path == os.path.join(home, image) for image, path in targets.items()):
        return listing
    targets = {image: Path(path) for image, path in (targets | {image: image for image in listing.packed}).items()}
    here = [] if targets.keys() <= listing.packed.keys() else [home]
    root = Path(os.path.commonpath([*here, *(path.parent for path in targets.values())]))
    first, records, repeated = {}, [], []
    for record in listing.records:
        path, attributes = targets[record.image], dict(record.attributes)
        if path != listing.root / record.image:
            attributes["linked_as"] = record.image
        if record.image in mask:
            attributes["mask"] = {"image": targets[mask[record.image]].relative_to(root).as_posix()}
        earlier = first.setdefault(path, record)
        if (earlier.label, earlier.split) != (record.label, record.split):
            raise UserError(f"{earlier.image} and {record.image} are links to one image, {path}; keep one of them")
        if earlier is record:
            records.append(replace(record, image=path.relative_to(root).as_posix(), attributes=attributes))
        else:
            repeated.append((record.image, "a link to an image that is listed already"))
    under = Path(os.path.relpath(listing.root, root))
    return replace(
        listing,
        root=root,
        records=tuple(sorted(records, key=lambda record: record.image)),
        ignored=tuple(((under / image).as_posix(), why) for image, why in (*listing.ignored, *repeated)),
        packed={Path(image).relative_to(root).as_posix(): where for image, where in listing.packed.items()},
    )


def merge(listings: Sequence[Listing], classes: str) -> Listing:
    """Several folders as one, under the folder that holds them all; UserError where they do not belong together.

    classes: "binary" or "diagnoses"; of diagnoses a source need not have all, else the classes must be the same.
    """
    if len(listings) == 1:
        return listings[0]
    labels = set().union(*(listing.labels for listing in listings))
    layouts.refuse_twins(labels, "config.images")
    for listing in listings:
        if classes != "diagnoses" and set(listing.labels) != labels:
            raise UserError(f"folder {listing.root}: its classes are {', '.join(listing.labels)}, those of all folders "
                            f"{', '.join(sorted(labels))}; rename folders, or give config.columns.label")  # fmt: skip
    root = Path(os.path.commonpath([listing.root for listing in listings]))
    records, ignored, packed = [], [], {}
    for listing in listings:
        under = listing.root.relative_to(root)
        for record in listing.records:
            attributes = record.attributes
            if "mask" in attributes:
                attributes = attributes | {"mask": {"image": (under / attributes["mask"]["image"]).as_posix()}}
            records.append(replace(record, image=(under / record.image).as_posix(), attributes=attributes))
        ignored += [((under / image).as_posix(), why) for image, why in listing.ignored]
        packed |= {(under / image).as_posix(): where for image, where in listing.packed.items()}
    repeated = [image for image, times in Counter(record.image for record in records).items() if times > 1]
    if repeated:
        raise UserError(f"{root / repeated[0]} is in two of the folders; give each image once")
    return Listing(
        labels=layouts.ordered(labels), root=root, records=tuple(records), ignored=tuple(ignored), packed=packed
    )


def limit(records: tuple[Record, ...], count: int, seed: int) -> tuple[Record, ...]:
    """At most `count` records (0 = all) of each class in each split folder, the same for the same seed, in order."""
    if count == 0:
        return records
    cells = defaultdict(list)
    for record in records:
        cells[record.split, record.label].append(record.image)

    def draw(image: str) -> bytes:  # belongs to the name, so that adding files does not redraw the others
        return hashlib.sha256(os.fsencode(f"{seed}/{image}")).digest()

    chosen = {image for cell in cells.values() for image in sorted(sorted(cell), key=draw)[:count]}
    return tuple(record for record in records if record.image in chosen)


def _is_of_masks(folder: Path) -> bool:
    return bool(masks.FOLDER.search(folder.name))


def _mask(image: str, separation: masks.Separation) -> dict:
    return {"mask": {"image": separation.masks[image]}} if image in separation.masks else {}


def _copies(root: Path, folders: list[Path]) -> list[Path]:
    """The folders beside splits, or beside classes, that hold the same again, file by file; UserError where these
    differ."""
    originals = [path for path in folders if path.name.lower() in SPLIT_FOLDERS]
    originals = originals or [path for path in folders if tree.images_in(path)]
    copies = []
    for path in (path for path in folders if path not in originals):
        inside = tree.unwrap(path)
        again = [each for each in tree.folders_in(inside) if each.name in {original.name for original in originals}]
        if again and not _hold_the_same(originals, again):
            names = ", ".join(each.name for each in again)
            raise UserError(f"folder {root}: {path.name} holds {names} again, with other files; give "
                            f"--config.images={inside}, or take one of the two away")  # fmt: skip
        copies += [path] if again else []
    return copies


def _hold_the_same(originals: list[Path], again: list[Path]) -> bool:
    """Whether folders hold the same files, by their names and bytes."""
    ours, theirs = ({path.name: tree.walk(path) for path in each} for each in (originals, again))
    if {name: held.images for name, held in ours.items()} != {name: held.images for name, held in theirs.items()}:
        return False
    pairs = [(held.root / image, theirs[name].root / image) for name, held in ours.items() for image in held.images]
    return all(one.stat().st_size == other.stat().st_size for one, other in pairs) and all(
        digests.cached_sha256(one) == digests.cached_sha256(other) for one, other in pairs
    )


def _splits(root: Path, folders: list[Path]) -> list[tuple[str, list[Path]]]:
    """(split, class folders) of each split folder."""
    unknown = [path.name for path in folders if path.name.lower() not in SPLIT_FOLDERS]
    if unknown:
        raise UserError(f"folder {root}: {', '.join(unknown)} beside a split; splits are train, validation (val), test")
    splits, names = [SPLIT_FOLDERS[path.name.lower()] for path in folders], ", ".join(path.name for path in folders)
    if len(set(splits)) < len(splits):
        raise UserError(f"folder {root}: one split in two folders, {names}")
    if "train" not in splits:
        raise UserError(f"folder {root}: no train folder beside {names}")
    inside = [tree.folders_in(tree.unwrap(path)) for path in folders]
    for path, classes in zip(folders, inside, strict=True):
        if not classes:
            raise UserError(f"folder {path}: a split without class folders; {EXPECTED}")
    return list(zip(splits, inside, strict=True))


def _reason(path: Path) -> str:
    """Why something in a class folder is no image."""
    return "no image" if path.is_dir() else tree.special_kind(path) or images.missing_package(path) or "no image"


def _refuse_empty(root: Path, images_of: dict[Path, list[str]]) -> None:
    """No image at all, or a class folder without one."""
    empty = [path for path, each in images_of.items() if not each]
    nested = [path.name for path in empty if tree.folders_in(path)]
    if nested:
        raise UserError(f"folder {root}: {', '.join(nested)} holds folders but is no split (train, validation, test); "
                        "lay the images of a class right into its folder, or name them in a table")  # fmt: skip
    reasons = Counter(_reason(other) for path in empty for other in tree.visible(path))
    counts = [f"{count} {reason}" for reason, count in reasons.items() if reason != "no image"]
    instead = f"; there are {'; '.join(counts)}" if counts else ""
    if len(empty) == len(images_of):
        loose = len(tree.images_in(root))
        problem = f"{loose} images lie outside of class folders" if loose else "no images"
        raise UserError(f"folder {root}: {problem}; {EXPECTED}{instead}")
    if empty:
        raise UserError(f"folder {empty[0]}: a class without images; add images or remove the folder{instead}")


def _refuse_gaps(root: Path, labels: tuple[str, ...], classes: list[tuple[str, Path]]) -> None:
    """One class only, or a class that one split has and another has not."""
    if len(labels) == 1:
        raise UserError(f"folder {root}: only one class, {labels[0]!r}; a classifier needs two or more")
    for split in dict.fromkeys(split for split, _ in classes):
        missing = sorted(set(labels) - {path.name for place, path in classes if place == split})
        if missing:
            names = ", ".join(map(repr, missing))
            raise UserError(f"folder {root}: class {names} is missing in {split}; every split must have every class")
