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

from dermjax import machine, progress
from dermjax.data import digests
from dermjax.data.leaks import fingerprints
from dermjax.data.leaks.fingerprints import Fingerprint
from dermjax.data.records import Record
from dermjax.errors import UserError
from dermjax.run_folder import open_for_append


@dataclass(frozen=True)
class Examination:
    """The sound records with their sha256, the fingerprint of each, and (image, reason) of those left out."""

    records: tuple[Record, ...]
    fingerprints: tuple[Fingerprint, ...]
    skipped: tuple[tuple[str, str], ...]


def examine(records: Sequence[Record], root: Path, on_bad_image: str, measured: bool, folder: Path) -> Examination:
    """Decodes all images in threads; on_bad_image "fail" raises UserError at the first bad one, "skip" lists it.

    measured: whether skin tone and artefact scores are taken. folder: where looks are kept and taken from.
    """
    outdated = fingerprints.discard_outdated(folder)
    if outdated:
        progress.say(f"prepare: looks of another version in {folder / fingerprints.FILE}, taken again: {outdated}")
    known = fingerprints.read(folder)
    known = {digest: look for digest, look in known.items() if (look.measured is not None) == measured}
    kept, sound, prints, skipped = set(known), [], [], []
    with (
        open_for_append(folder / fingerprints.FILE) as written,
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
            prints.append(seen)
    return Examination(tuple(sound), tuple(prints), tuple(skipped))


def _known_better(root: Path, record: Record, seen: Fingerprint) -> Record:
    """The record with what was seen; what a table said of the patient wins over what the image lets guess."""
    attributes, scores = seen.measured or ({}, {})
    attributes = seen.header | attributes | record.attributes
    if "mask" in attributes:
        mask = attributes["mask"]["image"]
        attributes["mask"] = {"image": mask, "sha256": digests.cached_sha256(root / mask)}
    return replace(record, sha256=seen.sha256, attributes=attributes, scores=scores | record.scores)


def _look(root: Path, measured: bool, known: dict[str, Fingerprint], record: Record) -> Fingerprint | str:
    """What is kept of the same bytes, else what a look at the image says; the reason where it is bad."""
    path = root / record.image
    try:
        digest = digests.cached_sha256(path)
        return known.get(digest) or fingerprints.from_file(path, digest, measured)
    except UserError as error:
        return str(error)
