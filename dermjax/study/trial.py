"""One cell, trained: the phases of its arm, each by `classify`'s own training, on the same audited manifests."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from dermjax.classification import training
from dermjax.data.records import Manifest
from dermjax.study import arms
from dermjax.study.cells import Cell


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a fold is made of: real images, synthetic ones of a generator that saw their training split only, and
    further test sets by name."""

    real: Manifest
    synthetic: Manifest
    tests: dict[str, Manifest]

    @property
    def digest(self) -> str:
        """Of all images, their labels and their splits, 16 hex digits."""
        found = [
            (record.split, record.label, record.sha256, record.kept)
            for manifest in (self.real, self.synthetic, *(self.tests[name] for name in sorted(self.tests)))
            for record in manifest.records
        ]
        return hashlib.sha256(repr(found).encode()).hexdigest()[:16]


def train(cell: Cell, config: ConfigDict, material: Material, features: Path, folder: Path) -> None:
    """Leaves what `classify` leaves in the cell's folder. config: the classifier's; features: a folder all share."""
    real = arms.few(material.real, cell.shots, ranks(material.real, cell.seed))
    phases = arms.phases(cell.arm)
    start = config.init
    for number, phase in enumerate(phases, start=1):
        last = number == len(phases)
        its = ConfigDict(config.to_dict())
        its.seed, its.init, its.features = cell.seed, start, str(features)
        its.steps = steps(config.steps, phase)
        its.warmup = min(config.warmup, its.steps // 4)
        its.evaluate_every = min(config.evaluate_every, its.steps)
        its.synthetic_fraction, its.augment = phase.fraction, phase.augment or config.augment
        if phase.augment and config.recipe != "full":
            its.views = max(config.views, AUGMENTED_VIEWS)
        synthetic = arms.drawn(material.synthetic, real, phase.ratio) if phase.fraction else None
        judged = material.synthetic if cell.arm == arms.BASELINE else None
        where = folder if last else folder / f"phase{number}"
        training.train(its.lock(), where, real, synthetic, judged, material.tests if last else {})
        start = str(where / "classifier")


def steps(whole: int, phase: arms.Phase) -> int:
    """Returns the optimiser steps of a phase out of those of a whole arm."""
    return max(1, round(whole * phase.steps))


def ranks(manifest: Manifest, seed: int) -> dict[str, float]:
    """Returns a random order of the training images that depends on each image and the seed alone.

    Few-shot sets of one seed are therefore nested, and alike in every arm.
    """
    return {
        record.image: int(hashlib.sha256(f"{seed} {record.sha256}".encode()).hexdigest()[:12], 16)
        for record in manifest.split("train")
    }


AUGMENTED_VIEWS = 4  # of each image where augmentation meets a frozen network
