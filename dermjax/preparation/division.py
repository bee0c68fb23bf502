"""Sound images become a manifest: what shows one lesion is in one split, copies of evaluation images are set aside."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from dermjax.data import splits
from dermjax.data.archives.folders import Listing
from dermjax.data.leaks import duplicates, fingerprints
from dermjax.data.records import SPLITS, Manifest, Record
from dermjax.data.splits import SplitSettings
from dermjax.errors import UserError
from dermjax.preparation.examination import Examination

LEAK = "near_duplicate_of_evaluation"  # why a training image is set aside
SYNTHETIC = "synthetic"  # why an archive's image is set aside: real ones are mixed with a generator's by `classify`


def divide(
    listing: Listing,
    examination: Examination,
    settings: SplitSettings,
    previous: Mapping[tuple[str, str], str],
    folds: int,
) -> tuple[Manifest, np.ndarray]:
    """The manifest of sound images, see `splits.assign`, and their near-duplicates int [P, 3].

    UserError where one image has two classes, the splits of a folder share a lesion, a split lacks a class, or there
    are more folds than lesions of a class.
    """
    records = tuple(
        replace(record, split="train", rejected=(SYNTHETIC,)) if record.synthetic else record
        for record in examination.records
    )
    splits.refuse_contradictions(records)
    splits.refuse_leaks(records)
    near = fingerprints.near_duplicates(examination.fingerprints)
    groups = duplicates.group(near, [splits.identities(record) for record in records])
    _refuse_few(records, groups, folds)
    assigned = splits.assign(records, groups, settings, previous)
    manifest = Manifest(labels=listing.labels, root=listing.root, records=_without_copies(assigned, groups))
    _refuse_gaps(manifest)
    return manifest, near


def _without_copies(assigned: tuple[Record, ...], groups: np.ndarray) -> tuple[Record, ...]:
    """The records, those rejected that show what images of a later split do (given splits only)."""
    order = [SPLITS.index(record.split) for record in assigned]
    latest = np.zeros(groups.max(initial=-1) + 1, int)
    np.maximum.at(latest, groups, order)
    return tuple(
        replace(record, rejected=(LEAK,)) if record.kept and split < latest[group] else record
        for record, split, group in zip(assigned, order, groups.tolist(), strict=True)
    )


def _refuse_few(records: tuple[Record, ...], groups: np.ndarray, folds: int) -> None:
    """UserError where two folds would have to test one image of a class."""
    lesions = {(record.label, group) for record, group in zip(records, groups.tolist(), strict=True) if record.kept}
    for label, count in sorted(Counter(label for label, _ in lesions).items()):
        if count < folds:
            raise UserError(f"config.folds = {folds}: class {label!r} has {count} distinct lesions; give no more")


def _refuse_gaps(manifest: Manifest) -> None:
    """UserError for a class that lost all its images of one split, as bad images were skipped."""
    for name in SPLITS:
        present = {record.label for record in manifest.split(name)}
        for label in manifest.labels:
            if present and label not in present:
                raise UserError(f"folder {manifest.root}: class {label!r} has no sound image in {name}; add images")
