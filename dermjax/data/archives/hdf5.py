"""Images inside of HDF5 files, as ISIC 2024 comes, to files, each byte as it was encoded."""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from dermjax import progress
from dermjax.data import images
from dermjax.data.archives import tables
from dermjax.data.archives.tfds import PLACE
from dermjax.data.images import EXTRA
from dermjax.errors import UserError


class Store:
    """The images in HDF5 files, opened only where a table names an image that is no file."""

    def __init__(self, files: Sequence[Path], into: Path):
        self.files, self.into = files, Path(os.path.realpath(into))
        self.places: dict[str, tuple[Path, str]] | None = None
        self.taken: dict[str, tuple[Path, str]] = {}

    def image(self, name: str) -> str | None:
        """Where an image will lie once it is `unpack`ed, an absolute path; None where no file holds it."""
        if not self.files:
            return None
        if self.places is None:
            self.places = {tables.image_key(key): (file, key) for file in self.files for key in _keys(file)}
        held = self.places.get(tables.image_key(name))
        if held is None:
            return None
        path = str(self.into / PLACE / held[0].stem / f"{Path(held[1]).name}.jpg")
        self.taken[path] = held
        return path


def unpack(root: Path, packed: Mapping[str, tuple[Path, str]], chosen: Collection[str]) -> None:
    """Writes the chosen ones of packed images, {path below the root: (file, key)}, each where its path says."""
    wanted = [image for image in chosen if image in packed]
    if not wanted:
        return
    by_file: dict[Path, list[str]] = {}
    for image in wanted:
        by_file.setdefault(packed[image][0], []).append(image)
    with progress.bar(len(wanted), "unpacking", "images", 0) as bar:
        for file, own in by_file.items():
            with _opened(file) as held:
                for image in own:
                    images.write_if_changed(root / image, _bytes(held[packed[image][1]], file))
                    bar.update()


def _keys(file: Path) -> list[str]:
    with _opened(file) as held:
        return list(held)


def _opened(file: Path):
    try:
        import h5py  # an extra
    except ImportError as error:
        raise UserError(f"{file}: HDF5 is read by h5py, which is not installed; {EXTRA}, or unpack the images as "
                        "files") from error  # fmt: skip
    try:
        return h5py.File(file, "r")
    except OSError as error:
        raise UserError(f"{file}: no whole HDF5 file ({error}); download it again") from error


def _bytes(value, file: Path) -> bytes:
    """The encoded image that a data set of an HDF5 file holds: one string of bytes, or an array of them."""
    try:
        content = value[()]
        return content if isinstance(content, bytes) else content.tobytes()
    except (AttributeError, TypeError, OSError) as error:
        raise UserError(f"{file}: {value.name} is no encoded image ({error}); unpack the images as files") from error
