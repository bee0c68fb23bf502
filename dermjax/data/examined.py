"""What a look at an image told, kept by the SHA-256 of its bytes, so that nobody has to decode it twice.

`prepare` writes it beside its manifest, line by line as it goes: a killed run takes up what stands there, and `audit`
takes the hashes of every image whose bytes are still the same.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dermjax.data import attributes, duplicates, images
from dermjax.errors import UserError

FILE = "examined.jsonl"


@dataclass(frozen=True)
class Look:
    """The hashes uint64 [V, 4] of an image and what `attributes.measure` says of it, None where that was not asked."""

    sha256: str
    views: np.ndarray
    measured: tuple[dict, dict] | None

    def line(self) -> bytes:
        """The look as a line of the file."""
        told = {"sha256": self.sha256, "views": self.views.tobytes().hex(), "measured": self.measured}
        return json.dumps(told).encode() + b"\n"


def look(path: Path, sha256: str, measured: bool) -> Look:
    """What the image in a file says; UserError names it where it cannot be decoded."""
    pixels = images.load(path, duplicates.HASHED)
    return Look(sha256, duplicates.views(pixels[None])[0], attributes.measure(pixels) if measured else None)


def read(folder: Path) -> dict[str, Look]:
    """The looks kept in a folder by digest; lines that are torn or of another set of views do not count."""
    path = folder / FILE
    return {look.sha256: look for look in _looks(path)} if path.is_file() else {}


def digest(path: Path) -> str:
    """The SHA-256 of a file; UserError where it cannot be read."""
    try:
        return duplicates.sha256(path)
    except OSError as error:
        raise UserError(f"image {path}: cannot be read ({error.strerror}); mend or remove the file") from error


def _looks(path: Path) -> Iterator[Look]:
    for line in path.read_bytes().split(b"\n"):
        try:
            told = json.loads(line)
            views = np.frombuffer(bytes.fromhex(told["views"]), np.uint64).reshape(len(duplicates.VIEWS), 4)
            yield Look(told["sha256"], views, told["measured"] and tuple(told["measured"]))
        except (ValueError, TypeError, KeyError):
            continue
