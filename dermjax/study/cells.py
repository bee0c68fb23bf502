"""The cells of the grid: each is one training, once, by one host at a time, on manifests that have been audited.

A cell is finished when its folder has metrics.json. A host claims it by making the file `claim`, which only one host
can; it touches the file while it works, so that a claim that nobody has touched for STALE seconds, by the clock of
the file system, is that of a dead host and is taken over. The training resumes from its checkpoint; each phase of its
arm is one of `classify`.
"""

import hashlib
import os
import shutil
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ml_collections import ConfigDict

from dermjax import run_folder
from dermjax.classification import run as classification
from dermjax.classification.run import DONE
from dermjax.data import digests
from dermjax.data.records import Manifest
from dermjax.evaluation.findings import Group
from dermjax.study import arms

CLAIM = "claim"
LEFT = (*classification.LEFT, "phase1")  # by which it is known that a cell has been begun
BEAT, STALE = 20.0, 300.0  # seconds
AUGMENTED_VIEWS = 4  # of each image where augmentation meets a frozen network
NUMERIC_VERSION = 2  # of which synthetic images a hybrid arm takes; the first version took the first of the manifest


@dataclass(frozen=True, order=True)
class Cell:
    """One training: the images of a fold, a classifier, few-shot size (0 is all), an arm and a seed."""

    fold: int
    classifier: str
    shots: int
    arm: str
    seed: int

    @property
    def group(self) -> Group:
        """What it shares with other seeds and folds."""
        return Group(self.classifier, self.shots, self.arm)

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"fold{self.fold}_{self.classifier}_{self.shots or 'all'}_{self.arm}_seed{self.seed}"


def finished(folder: Path) -> bool:
    """Whether the cell of a folder has been done."""
    return (folder / DONE).exists()


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Yields whether the cell of a folder is now this process's, until the end of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CLAIM
    if not (_make(path) or (_deserted(path) and _clear(path) and _make(path))):
        yield False
        return
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT):
            os.utime(path)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield True
    finally:
        ended.set()
        thread.join()
        path.unlink(missing_ok=True)


def _make(path: Path) -> bool:
    try:
        with path.open("x") as file:
            file.write(f"{_here()} {os.getpid()}\n")
    except FileExistsError:
        return False
    return True


def _here() -> str:
    """What tells the processes that this one can look up by their numbers: of this host, this start of it and this
    container."""
    processes = Path("/proc/self/ns/pid")
    return f"{run_folder.host()} {os.readlink(processes) if processes.exists() else ''}"


def _deserted(path: Path) -> bool:
    """Whether a claim is of a process here that has ended, or has long not been touched: its number may be another's
    by now."""
    try:
        here, _, pid = path.read_text().strip().rpartition(" ")
        touched = path.stat().st_mtime
    except FileNotFoundError:
        return True
    if here == _here() and pid.isdigit():
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # it is another user's, and alive
            pass
    now = path.with_name(f".{uuid.uuid4()}.now")  # by the clock that sets the times of files
    now.touch()
    age = now.stat().st_mtime - touched
    now.unlink()
    return age > STALE


def _clear(path: Path) -> bool:
    """Moves a deserted claim away; False when another process was first, whose new claim is put back."""
    away = path.with_name(f".{uuid.uuid4()}.stale")
    try:
        os.rename(path, away)
    except FileNotFoundError:
        return True
    deserted = _deserted(away)
    if not deserted:
        os.link(away, path)
    away.unlink()
    return deserted


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a fold is made of: real images, synthetic ones of a generator that saw none of their validation and test
    images, further test sets and further sets of synthetic images by name."""

    real: Manifest
    synthetic: Manifest
    tests: dict[str, Manifest]
    sets: dict[str, Manifest] = field(default_factory=dict)

    def of(self, arm: str) -> Manifest:
        """The synthetic images of an arm."""
        return self.sets[arms.synthetic_set(arm)] if arms.synthetic_set(arm) else self.synthetic

    def digest(self, arm: str) -> str:
        """Of all images of an arm, their labels and their splits, 16 hex digits."""
        manifests = (self.real, self.of(arm), *(self.tests[name] for name in sorted(self.tests)))
        images = [(r.split, r.label, r.sha256, r.kept) for manifest in manifests for r in manifest.records]
        return digests.of_text(repr(images))


def train(
    cell: Cell, config: ConfigDict, material: Material, rare: Mapping[str, int], features: Path, folder: Path
) -> None:
    """Leaves what `classify` leaves in the cell's folder. config: the classifier's; features: a folder all share."""
    real = real_images(cell, material.real, rare)
    phases = arms.phases(cell.arm)
    start = config.init
    for number, phase in enumerate(phases, start=1):
        last = number == len(phases)
        settings = settings_of(config, phase)
        settings.seed, settings.init = cell.seed, start
        if settings.recipe != "full":
            settings.features = settings.features or str(features)
        settings.steps = steps(config.steps, phase)
        settings.warmup = min(config.warmup, settings.steps // 4)
        settings.evaluate_every = min(config.evaluate_every, settings.steps)
        settings.synthetic_fraction = phase.fraction
        synthetic = material.of(cell.arm) if phase.fraction else None
        if synthetic and phase.draws:
            synthetic = arms.take_ratio(synthetic, real, phase.ratio, ranks(synthetic, cell.seed))
        judged = material.synthetic if cell.arm == arms.BASELINE else None
        where = folder if last else folder / f"phase{number}"
        classification.train(settings.lock(), where, real, synthetic, judged, material.tests if last else {})
        start = str(where / "classifier")


def settings_of(config: ConfigDict, phase: arms.Phase) -> ConfigDict:
    """Returns a classifier's config with what a phase changes of it."""
    settings = ConfigDict(config.to_dict())
    settings.update(phase.changes)
    if "augment" in phase.changes and config.recipe != "full":
        settings.views = max(config.views, AUGMENTED_VIEWS)
    return settings


def shrink(folder: Path) -> None:
    """Leaves of a finished cell what results are made of: a grid of classifiers takes tens of gigabytes."""
    for name in ("checkpoints", "classifier", *(path.name for path in folder.glob("phase*"))):
        shutil.rmtree(folder / name, ignore_errors=True)  # another host may do the same


def real_images(cell: Cell, real: Manifest, rare: Mapping[str, int]) -> Manifest:
    """Returns the real images of a cell; see `arms.take_shots` for `rare`."""
    return arms.take_shots(real, cell.shots, ranks(real, cell.seed), rare)


def steps(total: int, phase: arms.Phase) -> int:
    """Returns the optimiser steps of a phase, of `total` in its arm."""
    return max(1, round(total * phase.steps))


def ranks(manifest: Manifest, seed: int) -> dict[str, float]:
    """Returns a random order of the training images that depends on each image and the seed alone.

    Few-shot sets of one seed are therefore nested, and alike in every arm; so are the synthetic images of its hybrids.
    """
    return {
        record.image: int(hashlib.sha256(f"{seed} {record.sha256}".encode()).hexdigest()[:12], 16)
        for record in manifest.split("train")
    }
