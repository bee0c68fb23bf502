"""Every image looked at once before anything depends on it: is it whole, is it inside, what are its bytes and its hash.

`Image.verify` passes a truncated JPEG, so every image is decoded in full; that also yields the perceptual hashes and
what the image says of skin and artefacts. What was found is kept (`data.examined`) as it comes, so that neither a
killed run nor an audit decodes again what has not changed since.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from dermjax import machine, progress
from dermjax.data import digests
from dermjax.data.leaks import duplicates, index
from dermjax.data.leaks.index import Look
from dermjax.data.records import Record
from dermjax.errors import UserError
from dermjax.run_folder import open_for_append


@dataclass(frozen=True)
class Examination:
    """The sound records with their sha256, their hashes uint64 [N, V, 4] and cells uint8 [N, C, C, 3], and (image,
    reason) of those left out."""

    records: tuple[Record, ...]
    views: np.ndarray
    cells: np.ndarray
    skipped: tuple[tuple[str, str], ...]


def examine(records: Sequence[Record], root: Path, on_bad_image: str, measured: bool, folder: Path) -> Examination:
    """Decodes all images in threads; on_bad_image "fail" raises UserError at the first bad one, "skip" lists it.

    measured: whether skin tone and artefact scores are taken. folder: where looks are kept and taken from.
    """
    outdated = index.discard_outdated(folder)
    if outdated:
        progress.say(f"prepare: looks of another version in {folder / index.FILE}, taken again: {outdated}")
    known = index.read(folder)
    known = {digest: look for digest, look in known.items() if (look.measured is not None) == measured}
    kept, sound, skipped = set(known), [], []
    views = [np.empty((0, len(duplicates.VIEWS), 4), np.uint64)]
    cells = [np.empty((0, duplicates.CELLS, duplicates.CELLS, 3), np.uint8)]
    with (
        open_for_append(folder / index.FILE) as written,
        ThreadPoolExecutor(machine.cores()) as pool,
        progress.bar(len(records), "decoding", "images", 0) as bar,
    ):
        for record, seen in zip(records, pool.map(partial(_look, root, measured, known), records), strict=True):
            bar.update()
            if isinstance(seen, str):
                if on_bad_image == "fail":
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise UserError(f"{seen}, or give --config.on_bad_image=skip")
                skipped.append((record.image, seen))
                continue
            if seen.sha256 not in kept:
                kept.add(seen.sha256)
                written.write(seen.line())
                written.flush()  # a killed process loses nothing that it has handed over
            sound.append(_known_better(root, record, seen))
            views.append(seen.views[None])
            cells.append(seen.cells[None])
    return Examination(tuple(sound), np.concatenate(views), np.concatenate(cells), tuple(skipped))


def _known_better(root: Path, record: Record, seen: Look) -> Record:
    """The record with what was seen; what a table said of the patient wins over what the image lets guess."""
    attributes, scores = seen.measured or ({}, {})
    attributes = seen.told | attributes | record.attributes
    if "mask" in attributes:
        mask = attributes["mask"]["image"]
        attributes["mask"] = {"image": mask, "sha256": digests.cached_sha256(root / mask)}
    return replace(record, sha256=seen.sha256, attributes=attributes, scores=scores | record.scores)


def _look(root: Path, measured: bool, known: dict[str, Look], record: Record) -> Look | str:
    """What is kept of the same bytes, else what a look at the image says; the reason where it is bad."""
    path = root / record.image
    try:
        digest = digests.cached_sha256(path)
        return known.get(digest) or index.look(path, digest, measured)
    except UserError as error:
        return str(error)
