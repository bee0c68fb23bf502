"""Fingerprints of images, kept by the SHA-256 of their bytes, so that an image is decoded and compared once.

Place in the flow: `prepare` writes them beside its manifest, line by line as it goes: a killed run goes on from what
stands there, and `audit` and `publish` take them for every image whose bytes are still the same.

Shapes: N images, V views (duplicates.VIEWS), 4 words of 64 bits a hash, C cells a side, P pairs.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dermjax.data import images
from dermjax.data.leaks import duplicates, neighbours
from dermjax.data.records import Manifest, Record
from dermjax.run_folder import EXAMINED, write_atomically

# Of fingerprints, for those that are kept: raise it where the same bytes give another one, or `prepare` measures others
NUMERIC_VERSION = 3
VERSIONS = {"images": images.NUMERIC_VERSION, "looks": NUMERIC_VERSION}
UNRECORDED = {"images": 1, "looks": 1}  # of lines that were written before they had versions
FILE = EXAMINED
Measure = Callable[[np.ndarray], tuple[dict, dict[str, float]]]  # pixels to attributes and scores


@dataclass(frozen=True)
class Fingerprint:
    """The hashes uint64 [V, 4] and the mean colours uint8 [C, C, 3] of an image.

    header: attributes out of the file's header. measured: the attributes and the artefact scores measured on the
    pixels, None where that was not requested. versions: the numeric versions of the code.
    """

    sha256: str
    views: np.ndarray
    cells: np.ndarray
    header: dict
    measured: tuple[dict, dict] | None
    versions: dict[str, int]

    def line(self) -> bytes:
        """The fingerprint as a line of FILE."""
        views, cells = (b64encode(array.tobytes()).decode() for array in (self.views, self.cells))
        fields = {"sha256": self.sha256, "views": views, "cells": cells, "told": self.header}
        return json.dumps(fields | {"measured": self.measured, "numeric_versions": self.versions}).encode() + b"\n"


def from_file(path: Path, sha256: str, measure: Measure | None) -> Fingerprint:
    """The fingerprint of an image file, with what `measure` says; UserError names it where it cannot be decoded."""
    pixels, (camera, changes) = images.load(path, duplicates.HASHED), images.read_header(path)
    header = {"device": camera, "decoded": list(changes)}
    return from_pixels(pixels, sha256, {name: each for name, each in header.items() if each}, measure)


def from_pixels(pixels: np.ndarray, sha256: str, header: dict, measure: Measure | None) -> Fingerprint:
    """The fingerprint of an image uint8 [S, S, 3], S a multiple of 16."""
    views, cells = duplicates.views(pixels[None])[0], duplicates.cells(pixels)
    return Fingerprint(sha256, views, cells, header, measure(pixels) if measure else None, VERSIONS)


def from_record(manifest: Manifest, record: Record, known: Mapping[str, Fingerprint]) -> Fingerprint:
    """The known fingerprint of a record's bytes, else that of its file, without measurements."""
    return known.get(record.sha256) or from_file(manifest.path(record), record.sha256, None)


def near_duplicates(prints: Sequence[Fingerprint]) -> np.ndarray:
    """The pairs of near-duplicates, int64 [P, 3]: row < row and the bits that differ; see `neighbours.near`."""
    if not prints:
        return np.empty((0, 3), np.int64)
    near = neighbours.near(np.stack([each.views for each in prints]))
    return duplicates.confirm(near, np.stack([each.cells for each in prints]))


def read(folder: Path) -> dict[str, Fingerprint]:
    """The fingerprints kept in a folder by digest; lines that are torn, of another form or other code do not count."""
    return {each.sha256: each for each in _read_all(folder) if each.versions == VERSIONS}


def read_beside(manifests: Iterable[Manifest]) -> dict[str, Fingerprint]:
    """The fingerprints kept beside manifests, by digest."""
    homes = {manifest.home for manifest in manifests if manifest.home}
    return {digest: each for home in homes for digest, each in read(home).items()}


def discard_outdated(folder: Path) -> int:
    """Removes the fingerprints of other code from the file in a folder; returns how many there were."""
    prints = _read_all(folder)
    current = [each for each in prints if each.versions == VERSIONS]
    if len(current) < len(prints):
        write_atomically(folder / FILE, b"".join(each.line() for each in current))
    return len(prints) - len(current)


def parse(line: bytes) -> Fingerprint | None:
    """The fingerprint on a line, None where it is torn or of another form."""
    try:
        fields = json.loads(line)
        views = np.frombuffer(b64decode(fields["views"]), np.uint64).reshape(len(duplicates.VIEWS), 4)
        cells = np.frombuffer(b64decode(fields["cells"]), np.uint8).reshape(duplicates.CELLS, duplicates.CELLS, 3)
        measured = fields["measured"] and tuple(fields["measured"])
        versions = fields.get("numeric_versions", UNRECORDED)
        return Fingerprint(fields["sha256"], views, cells, fields["told"], measured, versions)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _read_all(folder: Path) -> list[Fingerprint]:
    path = folder / FILE
    return [each for each in map(parse, path.read_bytes().split(b"\n")) if each] if path.is_file() else []
