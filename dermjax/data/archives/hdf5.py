"""Images inside of HDF5 files, as ISIC 2024 comes, to files, each byte as it was encoded."""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

from dermjax import progress
from dermjax.data import images
from dermjax.data.archives.tables import image_key
from dermjax.data.archives.tfds import FOLDER
from dermjax.data.images import EXTRA
from dermjax.errors import UserError


class Store:
    """The images in HDF5 files, opened only where a table names an image that is no file."""

    def __init__(self, files: Sequence[Path], into: Path):
        self.files, self.into = files, Path(os.path.realpath(into))
        self.taken: dict[str, tuple[Path, str]] = {}

    @cached_property
    def keys(self) -> dict[str, tuple[Path, str]]:
        """(file, key in it) of every image, by what tables call it."""
        keys = {}
        for file in self.files:
            with _open(file) as store:
                keys |= {image_key(key): (file, key) for key in store}
        return keys

    def image(self, name: str) -> str | None:
        """Where an image will lie once it is `unpack`ed, an absolute path; None where no file holds it."""
        if image_key(name) not in self.keys:
            return None
        file, key = self.keys[image_key(name)]
        path = str(self.into / FOLDER / file.stem / f"{Path(key).name}.jpg")
        self.taken[path] = file, key
        return path


def unpack(root: Path, packed: Mapping[str, tuple[Path, str]], chosen: Iterable[str]) -> None:
    """Writes the chosen ones of packed images, {path below the root: (file, key)}, each where its path says."""
    by_file = defaultdict(list)
    for image in chosen:
        if image in packed:
            by_file[packed[image][0]].append(image)
    if not by_file:
        return
    with progress.bar(sum(map(len, by_file.values())), "unpacking", "images", 0) as bar:
        for file, images_in_file in by_file.items():
            with _open(file) as store:
                for image in images_in_file:
                    images.write_if_changed(root / image, _bytes(store[packed[image][1]], file))
                    bar.update()


def _open(file: Path) -> AbstractContextManager:
    try:
        import h5py  # an extra
    except ImportError as error:
        raise UserError(f"{file}: HDF5 is read by h5py, which is not installed; {EXTRA}, or unpack the images as "
                        "files") from error  # fmt: skip
    try:
        return h5py.File(file, "r")
    except OSError as error:
        raise UserError(f"{file}: not a complete HDF5 file ({error}); download it again") from error


def _bytes(value: Any, file: Path) -> bytes:
    """The encoded image that a data set of an HDF5 file holds: one string of bytes, or an array of them."""
    try:
        content = value[()]
        return content if isinstance(content, bytes) else content.tobytes()
    except (AttributeError, TypeError, OSError) as error:
        raise UserError(f"{file}: {value.name} is no encoded image ({error}); unpack the images as files") from error
