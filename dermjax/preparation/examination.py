"""Every image decoded once before anything depends on it: its digest, its fingerprint, or what is wrong with it.

`Image.verify` passes a truncated JPEG, so every image is decoded in full; that also yields the perceptual hashes and
what the image shows of skin and artefacts. Fingerprints are kept as they come (`leaks.fingerprints`), so that neither a
killed run nor an audit decodes again what has not changed since.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dermjax import machine, progress
from dermjax.data import digests
from dermjax.data.imaging import artefacts, skin_tone
from dermjax.data.imaging.artefacts import View
from dermjax.data.leaks import fingerprints
from dermjax.data.leaks.fingerprints import Fingerprint
from dermjax.data.records import Record
from dermjax.errors import UserError
from dermjax.run_folder import open_for_append

DIGITS = 4  # of an artefact score that are kept


@dataclass(frozen=True)
class Examination:
    """The sound records with their sha256, the fingerprint of each, and (image, reason) of those left out."""

    records: tuple[Record, ...]
    fingerprints: tuple[Fingerprint, ...]
    skipped: tuple[tuple[str, str], ...]


def examine(records: Sequence[Record], root: Path, on_bad_image: str, measured: bool, folder: Path) -> Examination:
    """Decodes all images in threads; on_bad_image "fail" raises UserError at the first bad one, "skip" lists it.

    measured: whether skin tone and artefact scores are taken. folder: where fingerprints are kept and taken from.
    """
    outdated = fingerprints.discard_outdated(folder)
    if outdated:
        path = folder / fingerprints.FILE
        progress.say(f"prepare: fingerprints of another version in {path}, taken again: {outdated}")
    known = fingerprints.read(folder)
    known = {digest: each for digest, each in known.items() if (each.measured is not None) == measured}

    def fingerprint(record: Record) -> Fingerprint | str:
        """The fingerprint of the image, or the reason why it is bad."""
        try:
            digest = digests.cached_sha256(root / record.image)
            return known.get(digest) or fingerprints.from_file(root / record.image, digest, requested)
        except UserError as error:
            return str(error)

    requested = measure if measured else None
    kept, sound, prints, skipped = set(known), [], [], []
    with (
        open_for_append(folder / fingerprints.FILE) as file,
        ThreadPoolExecutor(machine.cores()) as pool,
        progress.bar(len(records), "decoding", "images", 0) as bar,
    ):
        for record, result in zip(records, pool.map(fingerprint, records), strict=True):
            bar.update()
            if isinstance(result, Fingerprint):
                if result.sha256 not in kept:
                    kept.add(result.sha256)
                    file.write(result.line())
                    file.flush()  # a killed process loses nothing that it has handed over
                sound.append(_add(record, result, root))
                prints.append(result)
            elif on_bad_image == "fail":
                pool.shutdown(wait=False, cancel_futures=True)
                raise UserError(f"{result}, or give --config.on_bad_image=skip")
            else:
                skipped.append((record.image, result))
    return Examination(tuple(sound), tuple(prints), tuple(skipped))


def measure(pixels: np.ndarray) -> tuple[dict, dict[str, float]]:
    """What an image uint8 [S, S, 3] shows: attributes, the tone of its skin if it has one, and artefact scores."""
    from dermjax.segmentation import segment  # here, since without attributes nobody should wait for JAX

    view = View(pixels)
    tone = skin_tone.measure(segment(view))
    scores = {name: round(score, DIGITS) for name, score in artefacts.measure(view).items()}
    return {"skin_tone": tone} if tone else {}, scores


def _add(record: Record, fingerprint: Fingerprint, root: Path) -> Record:
    """The record with what its image shows; what a table holds about the patient wins over that."""
    attributes, scores = fingerprint.measured or ({}, {})
    attributes = fingerprint.header | attributes | record.attributes
    if "mask" in attributes:
        mask = attributes["mask"]["image"]
        attributes["mask"] = {"image": mask, "sha256": digests.cached_sha256(root / mask)}
    return replace(record, sha256=fingerprint.sha256, attributes=attributes, scores=scores | record.scores)
