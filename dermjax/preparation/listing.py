"""Which layout a folder has, and the images that it lists: the first thing that `prepare` finds out, and says."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from dermjax import progress
from dermjax.data.archives import folders as sources
from dermjax.data.archives import table_records, tables, tfds, tree
from dermjax.data.archives.folders import Listing
from dermjax.data.archives.layouts import KINDS, LABELS, LAYOUTS
from dermjax.data.archives.table_records import TableOptions
from dermjax.data.archives.tables import TableFolder
from dermjax.errors import UserError

CHOICES = ("detect", "folders", "table", "tfds", *LAYOUTS)
CLASSES = ("binary", "diagnoses")


def list_images(
    images: str,
    *,
    layout: str,
    classes: str,
    columns: Mapping[str, str],
    positive: str,
    skip: bool,
    kind: str,
    own_splits: bool,
    workdir: Path,
) -> Listing:
    """One listing of the folders that a setting names, each said with its layout; see `listed`.

    Of several folders, the map of columns is for those that have a table with them.
    """
    given, found = split_paths(images), []
    asked = TableOptions(classes=classes, skip=skip, kind=kind, own_splits=own_splits, into=workdir)
    for folder in given:
        mapped = len(given) == 1 or _is_mapped(folder, columns)
        known = columns if mapped else dict.fromkeys(columns, "")
        name, listing = list_folder(folder, layout=layout, columns=known, asked=asked)
        progress.say(f"prepare: {folder} is read as {name}")
        found.append(listing)
    return with_positive(sources.merge(found, classes), positive)


def split_paths(images: str) -> list[Path]:
    """The folder that a setting names, or several divided by commas."""
    whole = Path(images).expanduser()
    return [whole] if whole.exists() else [Path(each.strip()).expanduser() for each in images.split(",")]


def list_folder(folder: Path, *, layout: str, columns: Mapping[str, str], asked: TableOptions) -> tuple[str, Listing]:
    """The name of the layout, detected or as given, and what the folder lists in it.

    columns, asked: of tables, see `tables.chosen` and `binding`; asked.into is also where images go that are no files
    yet. Detected are, in this order: a data set of tfds, train/class/*, tables of a known layout, other tables by their
    columns, and class folders, with what tables beside them say of each image.
    """
    if layout not in CHOICES:
        raise UserError(f"config.layout {layout!r}: give one of {', '.join(CHOICES)}")
    if asked.classes not in CLASSES:
        raise UserError(f"config.classes {asked.classes!r}: give one of {', '.join(CLASSES)}")
    if asked.kind not in KINDS:
        raise UserError(f"config.image_kind {asked.kind!r}: give one of {', '.join(KINDS)}")
    if layout == "tfds" or (layout == "detect" and tfds.is_builder(folder)):
        return "tfds", tfds.scan(folder, asked.into)
    mapped = bool(columns["image"] or columns["label"] or columns.get("diagnosis"))
    if layout == "folders" or not folder.is_dir():
        return _of_folders(folder, None)
    found = tables.open_folder(folder)
    for path in filter(tables.is_western, found.tables):
        progress.say(f"prepare: table {path} is not UTF-8 and is read as {tables.WESTERN}")
    if layout == "detect" and not mapped and _sorted(folder):
        return _of_folders(folder, found)
    name = layout if layout != "detect" else tables.detect(found) or ("table" if mapped else "")
    if columns["image"] and layout == "detect":
        name = "table"
    if name:
        return name, table_records.scan(found, name, tables.choose_layout(found, name, columns), asked)
    by_columns = tables.detect_columns(found)
    if by_columns:
        told = f"table, its images by {by_columns.image!r} and its classes by {by_columns.label[0]!r}"
        return told, table_records.scan(found, "table", by_columns, asked)
    return _of_folders(folder, found)


def _of_folders(folder: Path, found: TableFolder | None) -> tuple[str, Listing]:
    """A listing of class folders with its name; where there are none, the line also names what tables there are."""
    try:
        listing = sources.scan(folder)
    except UserError as error:
        told = tables.describe_columns(found) if found else ""
        raise UserError(f"{error}; {told}" if told else str(error)) from error
    if found:
        unknown = tables.describe_unknown(found)
        if unknown:
            progress.say(f"prepare: {unknown}")
        listing = table_records.describe(listing, found)
    return _named(listing), listing


def with_positive(listing: Listing, positive: str) -> Listing:
    """The listing with the class of this name as the positive one, which is the last; "" leaves the order."""
    if positive and positive not in listing.labels:
        raise UserError(f"config.positive {positive!r}: the classes are {', '.join(listing.labels)}")
    labels = [label for label in listing.labels if label != positive]
    return replace(listing, labels=(*labels, positive)) if positive else listing


def _is_mapped(folder: Path, columns: Mapping[str, str]) -> bool:
    """Whether a table in a folder has the columns of a map."""
    given = set(filter(None, columns.values()))
    return any(given <= set(names) for names in tables.open_folder(folder).tables.values()) if given else False


def _sorted(folder: Path) -> bool:
    """Whether images are sorted into train/class/*; they are taken so, whatever table lies beside them."""
    inside = (path for path in tree.visible(tree.enter(folder)) if path.name.lower() in ("train", "training"))
    return any(path.is_dir() and any(map(tree.is_image, tree.visible(path))) for each in inside if each.is_dir()
               for path in tree.visible(tree.enter(each)))  # fmt: skip


def _named(listing: Listing) -> str:
    """Kaggle's set of 3,297 moles is told by its folders and numbers; else the kind of folders."""
    splits = {record.split for record in listing.records}
    numbered = all(Path(record.image).stem.isdigit() for record in listing.records)
    if splits == {"train", "test"} and listing.labels == LABELS and numbered:
        return "kaggle-malignant-vs-benign, without lesion ids: near-duplicates are the only guard against leaks"
    return "class folders" if splits == {""} else "split folders"
