"""Room on the disk: asked for before a stage starts, told to people, and how its end is known."""

import contextlib
import errno
import os
import shutil
import tempfile
from pathlib import Path

from dermjax.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a disk, a quota or a limit of file sizes answers
GB = 10**9


def check(folder: Path, needed: int, what: str) -> None:
    """Raises UserError where a folder's disk has not the bytes that `what` needs."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"workdir {folder}: {what} need up to {told(needed)}, {told(free)} are free; make room, or give another "
            "--workdir"
        )


def ask(folder: Path, needed: int) -> None:
    """Takes `needed` bytes of a folder's disk and gives them back; OSError, one of FULL, where it has not got them.

    What a disk says that it has free knows nothing of quotas and limits. Files have 1 GB at most, as some disks ask.
    """
    if not hasattr(os, "posix_fallocate"):  # macOS
        if shutil.disk_usage(folder).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        return
    with contextlib.ExitStack() as held:
        for begin in range(0, needed, GB):
            file = held.enter_context(tempfile.TemporaryFile(dir=folder))
            os.posix_fallocate(file.fileno(), 0, min(GB, needed - begin))


def told(size: float) -> str:
    """Returns bytes for people: `210 MB`."""
    for unit, each in (("GB", GB), ("MB", 1e6)):
        if size >= each:
            return f"{size / each:.3g} {unit}"
    return f"{size / 1e3:.3g} kB"
