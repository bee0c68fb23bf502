"""Which layout a folder has, and the images that it lists: the first thing that `prepare` finds out and reports."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from dermjax import progress
from dermjax.data.archives import folders, table_records, tables, tfds, tree
from dermjax.data.archives.folders import Listing
from dermjax.data.archives.layouts import KINDS, LABELS, LAYOUTS, Layout
from dermjax.data.archives.table_records import TableOptions
from dermjax.data.archives.tables import TableFolder
from dermjax.errors import UserError

CHOICES = ("detect", "folders", "table", "tfds", *LAYOUTS)
CLASSES = ("binary", "diagnoses")
IDENTITIES = {"lesions": "lesion_id", "patients": "patient_id"}  # what ties images together, by its field


def list_images(
    images: str, *, layout: str, columns: Mapping[str, str], positive: str, options: TableOptions
) -> Listing:
    """One listing of the folders that a setting names, each reported with its layout; see `list_folder`.

    Of several folders, the map of columns is for those whose tables have them. positive: the class that is to be
    the last one, which is the positive one; "" leaves the order.
    """
    paths, listings = split_paths(images), []
    given = ", ".join(filter(None, columns.values()))
    if given and len(paths) > 1 and not any(_has_columns(folder, columns) for folder in paths):
        raise UserError(f"config.columns: none of the folders has tables with all of {given}; mend their names")
    for folder in paths:
        known = columns if len(paths) == 1 or _has_columns(folder, columns) else dict.fromkeys(columns, "")
        name, listing = list_folder(folder, layout=layout, columns=known, options=options)
        progress.say(f"prepare: {folder} is read as {name}")
        listings.append(listing)
    return with_positive(folders.merge(listings, options.classes), positive)


def split_paths(images: str) -> list[Path]:
    """The folder that a setting names, or several divided by commas."""
    path = Path(images).expanduser()
    if path.exists():
        return [path]
    named = [each.strip() for each in images.split(",")]
    if not all(named):  # "" would be the folder that the command runs in
        raise UserError(f"config.images {images!r}: a comma with no folder beside it; take it away")
    return [Path(each).expanduser() for each in named]


def list_folder(folder: Path, *, layout: str, columns: Mapping[str, str], options: TableOptions) -> tuple[str, Listing]:
    """The name of the layout, detected or as given, and what the folder lists in it.

    columns, options: of tables, see `tables.choose_layout` and `table_records`; options.into is also where images go
    that are no files yet. Detected are, in this order: a data set of tfds, train/class/*, tables of a known layout,
    other tables by their columns, and class folders, with what tables beside them hold about each image. Columns that
    are given count in each of them: those of the class decide for a table, others name what it holds besides.
    """
    choices = {"layout": (layout, CHOICES), "classes": (options.classes, CLASSES), "image_kind": (options.kind, KINDS)}
    for key, (given, known) in choices.items():
        if given not in known:
            raise UserError(f"config.{key} {given!r}: give one of {', '.join(known)}")
    name, listing, chosen = _list_folder(folder, layout, columns, options)
    if options.own_splits and not chosen.numbered:
        progress.say(f"prepare: {folder} is no archive with splits of its own for config.own_splits")
    if options.kind != KINDS[0] and not (chosen.kind or chosen.images):
        progress.say(f"prepare: {folder} does not say how its images were taken for config.image_kind; all are taken")
    return name, listing


def _list_folder(
    folder: Path, layout: str, columns: Mapping[str, str], options: TableOptions
) -> tuple[str, Listing, Layout]:
    """As `list_folder`, and the layout of the tables that were read, an empty one where there are none."""
    none, given = Layout(image=""), {field: column for field, column in columns.items() if column}
    is_tfds = layout == "tfds" or (layout == "detect" and tfds.is_builder(folder))
    if given and (is_tfds or layout == "folders"):
        field, column = next(iter(given.items()))
        raise UserError(f"config.columns.{field} = {column!r}: as {'tfds' if is_tfds else 'folders'} no table is read; "
                        "leave config.columns or config.layout out")  # fmt: skip
    if is_tfds:
        return "tfds", tfds.scan(folder, options.into), none
    if layout == "folders" or not folder.is_dir():
        if found := [str(path) for path in tree.walk(folder).tables] if folder.is_dir() else ():
            progress.say(f"prepare: not read, as config.layout is folders: {', '.join(found)}; lesions and patients in "
                         "them are not kept on one side")  # fmt: skip
        return *_class_folders(folder, None, {}), none
    opened = tables.open_folder(folder)
    for path in filter(tables.is_western, opened.tables):
        progress.say(f"prepare: table {path} is not UTF-8 and is read as {tables.WESTERN}")
    for line in opened.tree.unread:
        progress.say(f"prepare: not read: {line}")
    tables.refuse_unknown(opened, given)
    of_class = given.keys() & {"label", "diagnosis"}
    if layout == "detect" and not of_class and _has_split_folders(folder):
        return *_class_folders(folder, opened, given), none
    name = layout if layout != "detect" else tables.detect(opened) or ("table" if of_class else "")
    if of_class and "image" in given and layout == "detect":
        name = "table"
    by_columns = None if name else tables.detect_columns(opened, given)
    if not name and not by_columns:
        return *_class_folders(folder, opened, given), none
    chosen = by_columns or tables.choose_layout(opened, name, columns)
    listing = table_records.scan(opened, name or "table", chosen, options)
    if unread := tables.describe_unread(opened, chosen):
        progress.say(f"prepare: {unread}")
    if by_columns:
        _refuse_other_folders(folder, listing)
        name = _describe(by_columns, opened)
    return name, listing, chosen


def with_positive(listing: Listing, positive: str) -> Listing:
    """The listing with the class of this name as the positive one, which is the last; "" leaves the order."""
    if positive and positive not in listing.labels:
        raise UserError(f"config.positive {positive!r}: the classes are {', '.join(listing.labels)}")
    labels = [label for label in listing.labels if label != positive]
    return replace(listing, labels=(*labels, positive)) if positive else listing


def _class_folders(folder: Path, opened: TableFolder | None, given: Mapping[str, str]) -> tuple[str, Listing]:
    """A listing of class folders with its name; where there are none, the error also names what tables there are."""
    try:
        listing = folders.scan(folder)
    except UserError as error:
        there = tables.describe_columns(opened) if opened else ""
        raise UserError(f"{error}; {there}" if there else str(error)) from error
    if opened:
        if unread := tables.describe_unread(opened, Layout(image=given.get("image", ""), known=given)):
            progress.say(f"prepare: {unread}")
        listing = table_records.describe(listing, opened, given)
    splits = {record.split for record in listing.records}
    numbered = all(Path(record.image).stem.isdigit() for record in listing.records)
    if splits == {"train", "test"} and listing.labels == LABELS and numbered:  # Kaggle's set of 3,297 moles
        name = "kaggle-malignant-vs-benign, without lesion ids: near-duplicates are the only guard against leaks"
        return name, listing
    return "class folders" if splits == {""} else "split folders", listing


def _describe(layout: Layout, folder: TableFolder) -> str:
    """What is read of tables of no archive, and what is not: a column of patients that nobody knows would leak."""
    read = {"images": layout.image, "classes": layout.label[0]}
    read |= {what: layout.known[field] for what, field in IDENTITIES.items() if field in layout.known}
    used = {*read.values(), *layout.known.values()}
    there = dict.fromkeys(column for table in folder.tables_of(layout) for column in folder.tables[table])
    unread = tables.listed([column for column in there if column not in used])
    name = "table, its " + ", its ".join(f"{what} by {column!r}" for what, column in read.items())
    return name + (f"; not read: {unread}" if unread else "")


def _refuse_other_folders(folder: Path, listing: Listing) -> None:
    """UserError where a table's class of an image is another than that of the class folder that it lies in."""
    classes = {label.casefold() for label in listing.labels}
    for record in listing.records:
        around = [part for part in Path(record.image).parts[:-1] if part.casefold() in classes]
        if around and record.label.casefold() not in map(str.casefold, around):
            raise UserError(
                f"folder {folder}: {record.image} is {record.label!r} by a table, and lies in {around[-1]!r}; give "
                "--config.layout=folders, or config.columns.image and .label where the table is right"
            )


def _has_columns(folder: Path, columns: Mapping[str, str]) -> bool:
    """Whether the tables in a folder have the columns of a map."""
    given = set(filter(None, columns.values()))
    return bool(given) and given <= set().union(*tables.open_folder(folder).tables.values())


def _has_split_folders(folder: Path) -> bool:
    """Whether images are sorted into train/class/*; they are taken so, whatever table lies beside them."""
    training = [path for path in tree.folders_in(tree.unwrap(folder)) if path.name.lower() in ("train", "training")]
    return any(tree.images_in(path) for each in training for path in tree.folders_in(tree.unwrap(each)))
