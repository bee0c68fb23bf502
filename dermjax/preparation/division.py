"""Sound images become a manifest: what shows one lesion is on one side, copies of judged images are set aside."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from dermjax.data import splits
from dermjax.data.archives.folders import Listing
from dermjax.data.leaks import duplicates, fingerprints
from dermjax.data.records import SPLITS, Manifest, Record
from dermjax.errors import UserError
from dermjax.preparation.examination import Examination

LEAK = "near_duplicate_of_evaluation"  # why a training image is set aside
SYNTHETIC = "synthetic"  # why an archive's image is set aside: real ones are mixed with a generator's by `classify`


def divide(
    listing: Listing,
    seen: Examination,
    *,
    validation: float,
    test: float,
    seed: int,
    turn: float,
    stratified: bool,
    placed: Mapping[tuple[str, str], str],
    folds: int,
) -> tuple[Manifest, np.ndarray]:
    """The manifest of sound images, see `splits.assign`, and their near-duplicates int [P, 3].

    UserError where one image has two classes, the folder's own splits share a lesion, a split lacks a class, or there
    are more folds than lesions of a class.
    """
    found = _without_synthetic(seen.records)
    splits.refuse_contradictions(found)
    splits.refuse_leaks(found)
    near = fingerprints.near_duplicates(seen.fingerprints)
    groups = duplicates.group(near, [splits.identities(record) for record in found])
    _refuse_few(found, groups, folds)
    assigned = splits.assign(
        found, groups, validation=validation, test=test, seed=seed, turn=turn, stratified=stratified,
        placed=placed,
    )  # fmt: skip
    manifest = Manifest(labels=listing.labels, root=listing.root, records=_without_copies(assigned, groups))
    _refuse_gaps(manifest)
    return manifest, near


def _without_synthetic(found: tuple[Record, ...]) -> tuple[Record, ...]:
    """The records, those rejected that a model made."""
    return tuple(
        replace(record, split="train", rejected=(SYNTHETIC,)) if record.synthetic else record for record in found
    )


def _without_copies(assigned: tuple[Record, ...], groups: np.ndarray) -> tuple[Record, ...]:
    """The records, those rejected that show what images on a more judged side do (given splits only)."""
    sides = [SPLITS.index(record.split) for record in assigned]
    judged = np.zeros(groups.max(initial=-1) + 1, int)
    np.maximum.at(judged, groups, sides)
    return tuple(
        replace(record, rejected=(LEAK,)) if record.kept and side < judged[group] else record
        for record, side, group in zip(assigned, sides, groups.tolist(), strict=True)
    )


def _refuse_few(found: tuple[Record, ...], groups: np.ndarray, folds: int) -> None:
    """UserError where two folds would have to test one image of a class."""
    of_class = {(record.label, group) for record, group in zip(found, groups.tolist(), strict=True) if record.kept}
    for label, count in sorted(Counter(label for label, _ in of_class).items()):
        if count < folds:
            raise UserError(f"config.folds = {folds}: class {label!r} has {count} distinct lesions; give no more")


def _refuse_gaps(manifest: Manifest) -> None:
    """UserError for a class that lost all its images of one split, as bad images were skipped."""
    for name in SPLITS:
        held = {record.label for record in manifest.split(name)}
        for label in manifest.labels:
            if held and label not in held:
                raise UserError(f"folder {manifest.root}: class {label!r} has no sound image in {name}; add images")
