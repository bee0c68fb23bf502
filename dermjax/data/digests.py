"""The SHA-256 of image files: the one check that a file still is what its manifest names.

A digest is remembered by the file's size, times and inode, so that a stage that reads an image often hashes it once.
`Manifest.path` asks here whenever a stage is about to read an image.
"""

import hashlib
import os
import stat
import time
from pathlib import Path

from dermjax.data import shards
from dermjax.errors import UserError

FOLDER = "a folder"
SPECIAL = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: FOLDER,
}
RACE = 2 * 10**9  # ns; a file changed so lately may change again within one tick of its clock, and is hashed anew
_known: dict[str, tuple[tuple[int, ...], str]] = {}


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_text(text: str) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a text, to tell what a derived file follows from."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cached_sha256(path: Path) -> str:
    """The SHA-256 of an image file, hashed again only where the file has changed; UserError where it cannot be read."""
    try:
        status = path.stat() if isinstance(path, shards.Member) else os.stat(path)
        if special_kind(status):
            raise UserError(f"image {path}: {special_kind(status)} and no file; remove it")
        state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        known_state, digest = _known.get(str(path), (None, ""))
        if known_state != state:
            settled = time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > RACE
            digest = sha256(path)
            if settled:
                _known[str(path)] = state, digest
        return digest
    except OSError as error:
        raise UserError(f"image {path}: cannot be read ({error.strerror}); mend or remove the file") from error


def verify(path: Path, digest: str) -> Path:
    """The path of an image file whose bytes have this digest; UserError where they are others."""
    if cached_sha256(path) != digest:
        raise UserError(f"image {path}: not the bytes that the manifest names; prepare or generate it again")
    return path


def special_kind(status: os.stat_result) -> str:
    """What a path leads to where that is no file, "" for a file; opening a pipe or a device might never end."""
    return SPECIAL.get(stat.S_IFMT(status.st_mode), "")
