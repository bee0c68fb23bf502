"""Room on the disk: asked for before a stage starts, told to people, and how its end is known."""

import errno
import shutil
from pathlib import Path

from dermjax.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a disk, a quota or a limit of file sizes answers


def check(folder: Path, needed: int, what: str) -> None:
    """Raises UserError where a folder's disk has not the bytes that `what` needs."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"workdir {folder}: {what} need up to {told(needed)}, {told(free)} are free; make room, or give another "
            "--workdir"
        )


def told(size: float) -> str:
    """Returns bytes for people: `210 MB`."""
    for unit, each in (("GB", 1e9), ("MB", 1e6)):
        if size >= each:
            return f"{size / each:.3g} {unit}"
    return f"{size / 1e3:.3g} kB"
