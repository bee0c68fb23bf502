"""A look at every image, kept as it comes: its hashes and all that is measured on it by itself.

Looks are kept in the run folder by the digest of the bytes, so that neither a killed run nor one with new verdicts
looks again. Images are looked at in threads.
"""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dermjax import machine
from dermjax.curation import copies, detectors
from dermjax.data import artefact_scores, examined, images
from dermjax.data.records import Manifest, Record
from dermjax.data.segmentation import segment

FILE = "looks.jsonl"
DIGITS = 5  # of a score that are kept


@dataclass(frozen=True)
class Look:
    """The hashes of the eight orientations of an image, uint64 [8, 4], and its scores."""

    hashes: np.ndarray
    scores: dict[str, float]


def looks(
    manifest: Manifest, records: Sequence[Record], size: int, folder: Path, tick: Callable[[], None]
) -> list[Look]:
    """The looks at records' images at `size` pixels; those kept in the folder are taken from there."""
    known = _read(folder / FILE)
    found = []
    with (folder / FILE).open("ab") as written, ThreadPoolExecutor(machine.cores()) as pool:
        written.write(b"\n" * (written.tell() > 0))  # ends a line that a killed run left torn

        def look(record: Record) -> tuple[str, Look]:
            path = manifest.path(record)
            digest = examined.digest(path)
            return digest, known.get(digest) or at(images.load(path, size))

        for digest, seen in pool.map(look, records):
            if digest not in known:
                known[digest] = seen
                written.write(_line(digest, seen))
                written.flush()  # a killed process loses nothing that it has handed over
            found.append(seen)
            tick()
    return found


def hashed(manifest: Manifest, records: Sequence[Record], size: int, tick: Callable[[], None]) -> list[Look]:
    """Looks at real images: their hashes, and of the scores only those that say what is usual."""

    def look(record: Record) -> Look:
        image = images.load(manifest.path(record), size)
        return Look(copies.hash_all_ways(image), detectors.measure(image))

    found = []
    with ThreadPoolExecutor(machine.cores()) as pool:
        for seen in pool.map(look, records):
            found.append(seen)
            tick()
    return found


def at(image: np.ndarray) -> Look:
    """A look at uint8 [S, S, 3]: what `detectors` and `artefact_scores` say, and how many `lesions` of which `area` (a
    share of the field) on skin of which `ita` (degrees, absent where no skin is seen)."""
    seen = segment(image)
    scores = detectors.measure(image) | {name: score(image) for name, score in artefact_scores.SCORES.items()}
    scores |= {"lesions": seen.count, "area": float(seen.areas.sum())}
    if np.isfinite(seen.ita):
        scores["ita"] = seen.ita
    return Look(copies.hash_all_ways(image), {name: round(float(each), DIGITS) for name, each in scores.items()})


def _line(digest: str, seen: Look) -> bytes:
    told = {"sha256": digest, "hashes": seen.hashes.tobytes().hex(), "scores": seen.scores}
    return json.dumps(told).encode() + b"\n"


def _read(path: Path) -> dict[str, Look]:
    """The looks of a file by digest; lines that are torn do not count."""
    found = {}
    for line in path.read_bytes().split(b"\n") if path.is_file() else ():
        try:
            told = json.loads(line)
            hashes = np.frombuffer(bytes.fromhex(told["hashes"]), np.uint64).reshape(copies.ORIENTATIONS, 4)
            found[told["sha256"]] = Look(hashes, told["scores"])
        except (ValueError, TypeError, KeyError):
            continue
    return found
