"""What lies below a folder that a user names: images, tables, packed images, and what is none of these.

Symbolic links are followed, as the user chose the folder; a manifest that came from elsewhere may not (`records`).
Pipes, sockets and devices are never opened.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from dermjax.data import digests
from dermjax.data.images import SUFFIXES, missing_package
from dermjax.errors import UserError

SPLIT_FOLDERS = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
# left by file managers and network disks, like everything that begins with a dot
LITTER = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found",
          "system volume information")  # fmt: skip
TABLES = (".csv", ".tsv", ".tab")
# HAM10000's has no suffix; other JSON lines and other texts are no tables
NAMED_TABLES = ("HAM10000_metadata", "PH2_dataset.txt", "metadata.jsonl")
NO_TABLES = "sample_submission"  # Kaggle's example answers look like a table of diagnoses
MANIFEST = b"dermjax_manifest"  # how a manifest begins, which is a table to `records` only
PACKED = (".hdf5", ".h5")
UNREAD = dict.fromkeys((".xlsx", ".xls", ".ods", ".parquet"), "save it as CSV")
UNREAD |= dict.fromkeys((".zip", ".tar", ".gz", ".7z", ".rar"), "unpack it")


@dataclass(frozen=True)
class Tree:
    """images: paths relative to the root, which is resolved; left_out: (path, reason); unread: what a user may mend."""

    root: Path
    images: tuple[str, ...]
    tables: tuple[Path, ...]
    packed: tuple[Path, ...]
    left_out: tuple[tuple[str, str], ...]
    unread: tuple[str, ...]


def walk(folder: Path) -> Tree:
    """Everything below a folder, in order of its path."""
    root = Path(os.path.realpath(folder))
    images, tables, packed, left_out, unread = [], [], [], [], []

    def visit(inside: Path, prefix: str, ancestors: frozenset[str]) -> None:
        for entry in _entries(inside):
            name, suffix, path = prefix + entry.name, os.path.splitext(entry.name)[1].lower(), inside / entry.name
            special = "" if entry.is_file(follow_symlinks=False) else special_kind(path)
            reason = missing_package(path) or special
            if path.is_dir():  # False for a link to itself, where the entry would raise
                real = os.path.realpath(path)
                if real in ancestors:
                    left_out.append((name, "a link to a folder around it"))
                else:
                    visit(path, f"{name}/", ancestors | {real})
            elif reason:
                left_out.append((name, reason))
            elif suffix in SUFFIXES:
                images.append(name)
            elif suffix in PACKED:
                packed.append(path)
            elif suffix in UNREAD:
                unread.append(f"{path}: {UNREAD[suffix]}")
            elif _is_table(path):
                tables.append(path)

    visit(root, "", frozenset({str(root)}))
    return Tree(root, tuple(images), tuple(tables), tuple(packed), tuple(left_out), tuple(unread))


def visible(folder: Path) -> list[Path]:
    """The files and folders in a folder, in order of name, without hidden files and litter."""
    return [folder / entry.name for entry in _entries(folder)]


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, in order of name."""
    return [path for path in visible(folder) if path.is_dir()]


def images_in(folder: Path) -> list[Path]:
    """The files in a folder that are named like images, in order of name."""
    return [path for path in visible(folder) if is_image(path)]


def is_image(path: Path) -> bool:
    """Whether a file is named like an image; only decoding shows whether it is one."""
    return path.suffix.lower() in SUFFIXES and not (special_kind(path) or missing_package(path) or path.is_dir())


def special_kind(path: Path) -> str:
    """What a path leads to where that is no file and no folder, "" else; a link that leads nowhere is like a file."""
    try:
        kind = digests.special_kind(os.stat(path))
    except OSError:
        return ""
    return "" if kind == digests.FOLDER else kind


def unwrap(folder: Path) -> Path:
    """The folder, or the one inside it where there is nothing else to choose: zips come with one folder too many."""
    while True:
        inside = folders_in(folder)
        # a single folder that holds images is a class, or a split of one class
        if len(inside) != 1 or images_in(folder) or images_in(inside[0]) or not folders_in(inside[0]):
            return folder
        if inside[0].name.lower() in SPLIT_FOLDERS and folder.name.lower() not in SPLIT_FOLDERS:
            return folder
        folder = inside[0]


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as scanned:
            entries = sorted(scanned, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"folder {folder}: cannot be read ({error.strerror})") from error
    return [entry for entry in entries if not entry.name.startswith(".") and entry.name.lower() not in LITTER]


def _is_table(path: Path) -> bool:
    """Whether a file is named like a table and is none of those that are never tables of images."""
    if (path.suffix.lower() not in TABLES and path.name not in NAMED_TABLES) or path.stem.startswith(NO_TABLES):
        return False
    try:
        with path.open("rb") as file:
            return MANIFEST not in file.read(80)
    except OSError as error:
        raise UserError(f"table {path}: cannot be read ({error.strerror}); make it readable") from error
