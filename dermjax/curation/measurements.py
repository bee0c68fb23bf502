"""What is measured on every image by itself, its hashes and its scores, kept as it comes.

Measurements are kept in the run folder by the digest of the bytes and with their causes, so that neither a killed run
nor one with new verdicts measures again, and one of another size or other code does. Images are measured in threads.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from dermjax import buckets, machine, segmentation
from dermjax.data import images
from dermjax.data.imaging import artefacts, quality
from dermjax.data.imaging.artefacts import View
from dermjax.data.leaks import copies
from dermjax.data.records import Manifest, Record
from dermjax.progress import say
from dermjax.run_folder import NUMERIC_VERSIONS, differences, open_for_append, write_atomically

# Of hashes and scores, for whatever is kept of them: raise it where `measure` gives others of the same pixels
NUMERIC_VERSION = 3
FILE = "looks.jsonl"
DIGITS = 5  # of a score that are kept; sums of one image may differ in their last bits from run to run


@dataclass(frozen=True)
class Measurement:
    """The hashes of the eight orientations of an image, uint64 [8, 4], and its scores."""

    hashes: np.ndarray
    scores: dict[str, float]


def measure(image: np.ndarray) -> Measurement:
    """Of uint8 [S, S, 3]: the scores of `quality` and `artefacts`, the number of `lesions`, their `area` (a share of
    the field), the `certainty` of both (see `segmentation`), and the `ita` of the skin (degrees, absent where there is
    no skin)."""
    view = View(image)
    lesions = segmentation.segment(view)
    scores = quality.measure(view) | artefacts.measure(view)
    scores |= {"lesions": lesions.count, "area": float(lesions.areas.sum()), "certainty": lesions.certainty}
    if np.isfinite(lesions.ita):
        scores["ita"] = lesions.ita
    return Measurement(copies.orientation_hashes(image), rounded(scores))


def measure_record(root: str, size: int, record: Record) -> tuple[str, Measurement]:
    """The digest and the measurement of a record's image at `size` pixels, in any process of any host.

    root: the folder that its path is relative to, or the URL of one.
    """
    home = buckets.mirror(root) if buckets.is_url(root) else Path(root)
    path = Manifest(labels=(), root=home, records=()).path(record)
    return record.sha256, measure(images.load(path, size))


def measure_all(
    manifest: Manifest,
    records: Sequence[Record],
    size: int,
    folder: Path,
    tick: Callable[[], None],
    map_all: Callable[..., Iterator] = machine.map_in_threads,
) -> list[Measurement]:
    """The measurements of records' images at `size` pixels; those kept in the folder are taken from there.

    Those of other causes are replaced, and a line says why. map_all: as `machine.map_in_threads`, in any order.
    """
    now = causes(size)
    known, outdated = _read(folder / FILE, now)
    if outdated:
        say(f"looks in {folder / FILE} are taken again: {len(outdated)} ({differences(outdated[0], now)})")
        write_atomically(folder / FILE, b"".join(_line(digest, each, now) for digest, each in known.items()))
    new: dict[str, Record] = {}
    for record in records:
        if record.sha256 not in known:
            new.setdefault(record.sha256, record)
    others = [record for record in records if record is not new.get(record.sha256)]
    list(machine.map_in_threads(manifest.path, others, tick))  # whose bytes are to be the manifest's all the same
    measure_each = partial(measure_record, buckets.shown(manifest.root), size)
    with open_for_append(folder / FILE) as file:
        for digest, each in map_all(measure_each, new.values(), tick):
            known[digest] = each
            file.write(_line(digest, each, now))
            file.flush()  # a killed process loses nothing that it has handed over
    return [known[record.sha256] for record in records]


def measure_real(
    manifest: Manifest, records: Sequence[Record], size: int, tick: Callable[[], None]
) -> list[Measurement]:
    """Of real images their hashes, and of the scores only those that say what is usual."""

    def measure_usual(record: Record) -> Measurement:
        image = images.load(manifest.path(record), size)
        return Measurement(copies.orientation_hashes(image), rounded(quality.measure(image)))

    return list(machine.map_in_threads(measure_usual, records, tick))


def rounded(scores: Mapping[str, float]) -> dict[str, float]:
    """The scores to DIGITS."""
    return {name: round(float(each), DIGITS) for name, each in scores.items()}


def causes(size: int) -> dict:
    """What a measurement follows from besides the bytes of its image."""
    versions = {
        "images": images.NUMERIC_VERSION, "looks": NUMERIC_VERSION, "segmentation": segmentation.NUMERIC_VERSION,
    }  # fmt: skip
    return {"size": size, NUMERIC_VERSIONS: versions}


def _line(digest: str, measurement: Measurement, made_of: dict) -> bytes:
    hashes = measurement.hashes.tobytes().hex()
    fields = {"sha256": digest, "hashes": hashes, "scores": measurement.scores, "causes": made_of}
    return json.dumps(fields).encode() + b"\n"


def read_hashes(folder: Path) -> dict[str, np.ndarray]:
    """The hashes uint64 [8, 4] that are kept in a folder, by the digest of their image, read line by line."""
    if not (folder / FILE).is_file():
        return {}
    with (folder / FILE).open("rb") as file:
        return {digest: each.hashes for digest, each, _ in filter(None, map(_parse, file))}


def _read(path: Path, now: dict) -> tuple[dict[str, Measurement], list[dict]]:
    """The measurements of these causes in a file, by digest, and the causes of the others; torn lines do not count."""
    current, outdated = {}, []
    for line in path.read_bytes().split(b"\n") if path.is_file() else ():
        if parsed := _parse(line):
            digest, measurement, made_of = parsed
            if made_of == now:
                current[digest] = measurement
            else:
                outdated.append(made_of)
    return current, outdated


def _parse(line: bytes) -> tuple[str, Measurement, dict] | None:
    """The digest, the measurement and the causes on a line, None where it is torn or of another form."""
    try:
        fields = json.loads(line)
        hashes = np.frombuffer(bytes.fromhex(fields["hashes"]), np.uint64).reshape(copies.ORIENTATIONS, 4)
        return fields["sha256"], Measurement(hashes, fields["scores"]), fields.get("causes", {})
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
