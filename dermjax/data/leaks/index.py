"""What a look at an image told, kept by the SHA-256 of its bytes, so that nobody has to decode it twice.

`prepare` writes it beside its manifest, line by line as it goes: a killed run takes up what stands there, and `audit`
takes the hashes of every image whose bytes are still the same.
"""

import json
from base64 import b64decode, b64encode
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dermjax.data import images
from dermjax.data.imaging import skin_tone
from dermjax.data.leaks import duplicates
from dermjax.run_folder import write_atomically

# Of looks, for those that are kept: raise it where `look` says something else of the same bytes
NUMERIC_VERSION = 1
VERSIONS = {"images": images.NUMERIC_VERSION, "looks": NUMERIC_VERSION}
UNSAID = {"images": 1, "looks": 1}  # of lines from before lines said it
FILE = "examined.jsonl"


@dataclass(frozen=True)
class Look:
    """The hashes uint64 [V, 4] and the cells uint8 [C, C, 3] of an image, and what it says of itself.

    told: attributes out of the file's header. measured: what `attributes.measure` says, None where that was not asked.
    versions: numeric ones of the code that looked.
    """

    sha256: str
    views: np.ndarray
    cells: np.ndarray
    told: dict
    measured: tuple[dict, dict] | None
    versions: dict[str, int]

    def line(self) -> bytes:
        """The look as a line of the file."""
        known = {"sha256": self.sha256, "views": _text(self.views), "cells": _text(self.cells)}
        known |= {"told": self.told, "measured": self.measured, "numeric_versions": self.versions}
        return json.dumps(known).encode() + b"\n"


def look(path: Path, sha256: str, measured: bool) -> Look:
    """What the image in a file says; UserError names it where it cannot be decoded."""
    pixels, (camera, changes) = images.load(path, duplicates.HASHED), images.read_header(path)
    told = {"device": camera, "decoded": list(changes)}
    return of(pixels, sha256, {name: each for name, each in told.items() if each}, measured)


def of(pixels: np.ndarray, sha256: str, told: dict, measured: bool) -> Look:
    """What an image uint8 [S, S, 3] says, S a multiple of 16."""
    views, cells = duplicates.views(pixels[None])[0], duplicates.cells(pixels)
    return Look(sha256, views, cells, told, skin_tone.measure(pixels) if measured else None, VERSIONS)


def read(folder: Path) -> dict[str, Look]:
    """The looks kept in a folder by digest; lines that are torn, of another form or other code do not count."""
    return {look.sha256: look for look in _looks(folder) if look.versions == VERSIONS}


def discard_outdated(folder: Path) -> int:
    """Takes the looks of other code out of the file in a folder; returns how many there were."""
    looks = _looks(folder)
    current = [look for look in looks if look.versions == VERSIONS]
    if len(current) < len(looks):
        write_atomically(folder / FILE, b"".join(look.line() for look in current))
    return len(looks) - len(current)


def _looks(folder: Path) -> list[Look]:
    path = folder / FILE
    return [look for look in map(parsed, path.read_bytes().split(b"\n")) if look] if path.is_file() else []


def parsed(line: bytes) -> Look | None:
    """The look on a line, None where it is torn or of another form."""
    try:
        known = json.loads(line)
        views = np.frombuffer(b64decode(known["views"]), np.uint64).reshape(len(duplicates.VIEWS), 4)
        cells = np.frombuffer(b64decode(known["cells"]), np.uint8).reshape(duplicates.CELLS, duplicates.CELLS, 3)
        measured = known["measured"] and tuple(known["measured"])
        return Look(known["sha256"], views, cells, known["told"], measured, known.get("numeric_versions", UNSAID))
    except (ValueError, TypeError, KeyError):
        return None


def _text(array: np.ndarray) -> str:
    return b64encode(array.tobytes()).decode()
