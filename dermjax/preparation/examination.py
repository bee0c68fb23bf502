"""Every image looked at once before anything depends on it: is it whole, is it inside, what are its bytes and its hash.

`Image.verify` passes a truncated JPEG, so every image is decoded in full; that also yields the perceptual hash.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dermjax import progress
from dermjax.data import duplicates, images
from dermjax.data.records import Record, inside
from dermjax.errors import UserError

HASHED = 64  # side in pixels; the hash hardly depends on it


@dataclass(frozen=True)
class Examination:
    """The sound records with their sha256, their hashes uint64 [N, 4], and (image, reason) of those left out."""

    records: tuple[Record, ...]
    hashes: np.ndarray
    skipped: tuple[tuple[str, str], ...]


def examine(records: Sequence[Record], root: Path, on_bad_image: str) -> Examination:
    """Decodes all images in threads; on_bad_image "fail" raises UserError at the first bad one, "skip" lists it."""
    sound, hashes, skipped = [], [np.empty((0, 4), np.uint64)], []
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        progress.bar(len(records), "decoding", "images", 0) as bar,
    ):
        for record, (sha256, hashed, reason) in zip(
            records, pool.map(lambda record: _look(root, record.image), records), strict=True
        ):
            if reason and on_bad_image == "fail":
                raise UserError(f"{reason}, or give --config.on_bad_image=skip")
            if reason:
                skipped.append((record.image, reason))
            else:
                sound.append(replace(record, sha256=sha256))
                hashes.append(hashed)
            bar.update()
    return Examination(tuple(sound), np.concatenate(hashes), tuple(skipped))


def _look(root: Path, image: str) -> tuple[str, np.ndarray, str]:
    """(sha256, hash uint64 [1, 4], "") of a sound image, ("", none, reason) of a bad one."""
    try:
        if not inside(root, image):
            raise UserError(f"image {root / image}: a link that leaves its folder; give the folder it leads to")
        pixels = images.load(root / image, HASHED)
        return duplicates.sha256(root / image), duplicates.hashes(pixels[None]), ""
    except UserError as error:
        return "", np.empty((0, 4), np.uint64), str(error)
