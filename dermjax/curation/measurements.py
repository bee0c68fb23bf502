"""A look at every image, kept as it comes: its hashes and all that is measured on it by itself.

Looks are kept in the run folder by the digest of the bytes and with their causes, so that neither a killed run nor one
with new verdicts looks again, and one of another size or other code does. Images are looked at in threads.
"""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dermjax import machine
from dermjax.data import images
from dermjax.data.imaging import artefacts, quality, segmentation
from dermjax.data.imaging.segmentation import segment
from dermjax.data.leaks import copies
from dermjax.data.records import Manifest, Record
from dermjax.progress import say
from dermjax.run_folder import NUMERIC_VERSIONS, differences, open_for_append, write_atomically

# Of hashes and scores, for whatever is kept of them: raise it where `at` gives others of the same pixels
NUMERIC_VERSION = 1
FILE = "looks.jsonl"
DIGITS = 5  # of a score that are kept; sums of one image may differ in their last bits from run to run


@dataclass(frozen=True)
class Measurement:
    """The hashes of the eight orientations of an image, uint64 [8, 4], and its scores."""

    hashes: np.ndarray
    scores: dict[str, float]


def measure_all(
    manifest: Manifest, records: Sequence[Record], size: int, folder: Path, tick: Callable[[], None]
) -> list[Measurement]:
    """The looks at records' images at `size` pixels; those kept in the folder are taken from there.

    Looks of other causes are told in a line and thrown away.
    """
    of = causes(size)
    known, outdated = _read(folder / FILE, of)
    if outdated:
        say(f"looks in {folder / FILE} are taken again: {len(outdated)} ({differences(outdated[0], of)})")
        write_atomically(folder / FILE, b"".join(_line(digest, seen, of) for digest, seen in known.items()))
    found = []
    with open_for_append(folder / FILE) as written, ThreadPoolExecutor(machine.cores()) as pool:

        def look(record: Record) -> tuple[str, Measurement]:
            path, digest = manifest.path(record), record.sha256
            return digest, known.get(digest) or measure(images.load(path, size))

        for digest, seen in pool.map(look, records):
            if digest not in known:
                known[digest] = seen
                written.write(_line(digest, seen, of))
                written.flush()  # a killed process loses nothing that it has handed over
            found.append(seen)
            tick()
    return found


def measure_real(
    manifest: Manifest, records: Sequence[Record], size: int, tick: Callable[[], None]
) -> list[Measurement]:
    """Looks at real images: their hashes, and of the scores only those that say what is usual."""

    def look(record: Record) -> Measurement:
        image = images.load(manifest.path(record), size)
        return Measurement(copies.orientation_hashes(image), rounded(quality.measure(image)))

    found = []
    with ThreadPoolExecutor(machine.cores()) as pool:
        for seen in pool.map(look, records):
            found.append(seen)
            tick()
    return found


def measure(image: np.ndarray) -> Measurement:
    """A look at uint8 [S, S, 3]: what `detectors` and `artefact_scores` say, and how many `lesions` of which `area` (a
    share of the field) on skin of which `ita` (degrees, absent where no skin is seen)."""
    seen = segment(image)
    scores = quality.measure(image) | artefacts.measure(image)
    scores |= {"lesions": seen.count, "area": float(seen.areas.sum())}
    if np.isfinite(seen.ita):
        scores["ita"] = seen.ita
    return Measurement(copies.orientation_hashes(image), rounded(scores))


def rounded(scores: dict[str, float]) -> dict[str, float]:
    """The scores to DIGITS."""
    return {name: round(float(each), DIGITS) for name, each in scores.items()}


def causes(size: int) -> dict:
    """What a look at an image follows from besides its bytes."""
    versions = {
        "images": images.NUMERIC_VERSION, "looks": NUMERIC_VERSION, "segmentation": segmentation.NUMERIC_VERSION,
    }  # fmt: skip
    return {"size": size, NUMERIC_VERSIONS: versions}


def _line(digest: str, seen: Measurement, of: dict) -> bytes:
    told = {"sha256": digest, "hashes": seen.hashes.tobytes().hex(), "scores": seen.scores, "causes": of}
    return json.dumps(told).encode() + b"\n"


def _read(path: Path, of: dict) -> tuple[dict[str, Measurement], list[dict]]:
    """The looks of these causes in a file, by digest, and the causes of the others; torn lines do not count."""
    found, others = {}, []
    for line in path.read_bytes().split(b"\n") if path.is_file() else ():
        try:
            told = json.loads(line)
            hashes = np.frombuffer(bytes.fromhex(told["hashes"]), np.uint64).reshape(copies.ORIENTATIONS, 4)
            made = told.get("causes", {})
            if made == of:
                found[told["sha256"]] = Measurement(hashes, told["scores"])
            else:
                others.append(made)
        except (ValueError, TypeError, KeyError):
            continue
    return found, others
