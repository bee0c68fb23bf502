"""Where images go: whether they can be written, and whether there is room, before the first of them is made."""

import os
import tempfile
from collections.abc import Collection
from pathlib import Path

from dermjax import disk
from dermjax.errors import UserError
from dermjax.generation.plan import Request

TEXTS = 4096  # bytes of a file besides its pixels, and of its record


def needed(images: int, size: int) -> int:
    """Returns the bytes that so many images of `size` pixels need at most: PNG makes noise no smaller."""
    return images * (3 * size * size + TEXTS)


def check(workdir: Path, missing: Collection[Request], size: int) -> None:
    """Makes the folders of the images; UserError where there is no room for the missing ones or no way to write."""
    disk.check(workdir, needed(len(missing), size), f"{len(missing)} images of {size} px")
    for folder in sorted({(workdir / request.image).parent for request in missing}):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=".part")
            os.close(file)
            os.unlink(name)
        except OSError as error:
            raise UserError(f"folder {folder}: cannot be written ({error.strerror}); give another --workdir") from error
