"""Every image looked at once before anything depends on it: is it whole, is it inside, what are its bytes and its hash.

`Image.verify` passes a truncated JPEG, so every image is decoded in full; that also yields the perceptual hashes and
what the image says of skin and artefacts. What was found is written to a journal as it comes, so that a killed run
does not look again at files that have not changed since.
"""

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from dermjax import progress
from dermjax.data import attributes, duplicates, images
from dermjax.data.records import Record, inside
from dermjax.errors import UserError

JOURNAL = "examined.jsonl"


@dataclass(frozen=True)
class Examination:
    """The sound records with their sha256, their hashes uint64 [N, V, 4], and (image, reason) of those left out."""

    records: tuple[Record, ...]
    views: np.ndarray
    skipped: tuple[tuple[str, str], ...]


def examine(records: Sequence[Record], root: Path, on_bad_image: str, measured: bool, journal: Path) -> Examination:
    """Decodes all images in threads; on_bad_image "fail" raises UserError at the first bad one, "skip" lists it.

    measured: whether skin tone and artefact scores are taken. What stands in the journal is taken from there.
    """
    known = _read(journal)
    sound, views, skipped = [], [np.empty((0, len(duplicates.VIEWS), 4), np.uint64)], []
    with (
        journal.open("ab") as written,
        ThreadPoolExecutor(os.cpu_count()) as pool,
        progress.bar(len(records), "decoding", "images", 0) as bar,
    ):
        look = partial(_look, root, measured, known)
        for record, seen in zip(records, pool.map(look, records), strict=True):
            if seen["reason"] and on_bad_image == "fail":
                pool.shutdown(wait=False, cancel_futures=True)
                raise UserError(f"{seen['reason']}, or give --config.on_bad_image=skip")
            if known.get(record.image) != seen:
                written.write(json.dumps(seen).encode() + b"\n")
                written.flush()  # a killed process loses nothing that it has handed over
            if seen["reason"]:
                skipped.append((record.image, seen["reason"]))
            else:
                sound.append(_known_better(record, seen))
                views.append(np.frombuffer(bytes.fromhex(seen["views"]), np.uint64).reshape(1, -1, 4))
            bar.update()
    return Examination(tuple(sound), np.concatenate(views), tuple(skipped))


def _known_better(record: Record, seen: dict) -> Record:
    """The record with what was seen; what a table said of the patient wins over what the image lets guess."""
    return replace(
        record,
        sha256=seen["sha256"],
        attributes=seen["attributes"] | record.attributes,
        scores=seen["scores"] | record.scores,
    )


def _look(root: Path, measured: bool, known: dict[str, dict], record: Record) -> dict:
    """What the journal says of an unchanged file, else what a look at it says, as a JSON object."""
    path, image = root / record.image, record.image
    seen = {"image": image, "stamp": _stamp(path), "measured": measured, "reason": ""}
    before = known.get(image, {})
    if all(before.get(name) == seen[name] for name in ("stamp", "measured")):
        return before
    try:
        if not inside(root, image):
            raise UserError(f"image {path}: a link that leaves its folder; give the folder it leads to")
        pixels = images.load(path, duplicates.HASHED)
        told, scores = attributes.measure(pixels) if measured else ({}, {})
        views = duplicates.views(pixels[None]).tobytes().hex()
        return seen | {"sha256": duplicates.sha256(path), "views": views, "attributes": told, "scores": scores}
    except UserError as error:
        return seen | {"reason": str(error)}


def _stamp(path: Path) -> list[int]:
    """What changes when somebody writes a file: its size and its time; nothing for what is no file."""
    try:
        state = path.stat()
    except OSError:
        return []
    return [state.st_size, state.st_mtime_ns]


def _read(journal: Path) -> dict[str, dict]:
    """The whole lines of a journal by image; the last one may be torn, and is looked at again."""
    return {line["image"]: line for line in _whole_lines(journal)} if journal.exists() else {}


def _whole_lines(journal: Path) -> Iterator[dict]:
    for line in journal.read_bytes().split(b"\n"):
        try:
            yield json.loads(line)
        except ValueError:
            continue
