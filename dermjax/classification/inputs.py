"""The manifests of one classifier, and what would make its figures untrue, refused before anything is trained."""

from collections.abc import Sequence
from pathlib import Path

from dermjax.data import pipelines, records
from dermjax.data.leaks import audit
from dermjax.data.records import SPLITS, Manifest
from dermjax.errors import UserError


def read(real: str, synthetic: str) -> tuple[Manifest, Manifest | None]:
    """Returns the manifest of real images, and of synthetic ones where a path is given.

    Raises:
      UserError: there is one class only, a split lacks a class, or anything leaks.
    """
    if not real:
        raise UserError("config.manifest: no manifest of real images; give one, as --config.manifest=runs/prepare")
    manifest = records.read(Path(real))
    check(manifest, real)
    made = records.read(Path(synthetic)).in_order(manifest.labels) if synthetic else None
    if made:
        check_synthetic(made, synthetic, manifest)
    refuse_leaks([each for each in (manifest, made) if each])
    return manifest, made


def read_judged(path: str, real: Manifest) -> Manifest | None:
    """Returns the manifest of synthetic images that only get predictions, or None for no path."""
    if not path:
        return None
    manifest = records.read(Path(path)).in_order(real.labels)
    pipelines.check_labels(manifest, f"config.judged = {path}", real)
    pipelines.check_synthetic(manifest, f"config.judged = {path}")
    if not manifest.split("train"):
        raise UserError(f"config.judged = {path}: no kept image in it; leave it out or give another")
    return manifest


def check(real: Manifest, name: str) -> None:
    """Raises UserError unless the manifest holds real images of two classes or more, each in every split.

    Without an image of every class neither training nor a ROC curve is possible.
    """
    if len(real.labels) < 2:
        raise UserError(f"manifest {name}: one class only, {real.labels[0]}; a classifier needs two or more")
    present = {(record.split, record.label) for record in real.records if record.kept}
    absent = [f"{label} in {split}" for split in SPLITS for label in real.labels if (split, label) not in present]
    if absent:
        raise UserError(f"manifest {name}: no image of {', '.join(absent)}; prepare splits with every class")
    pipelines.check_real(real, f"manifest {name}")


def check_synthetic(synthetic: Manifest, name: str, real: Manifest) -> None:
    """Raises UserError unless the manifest holds synthetic images of the real one's classes, of each at least one."""
    pipelines.check_labels(synthetic, f"manifest {name}", real)
    pipelines.check_synthetic(synthetic, f"manifest {name}")
    absent = set(real.labels) - {record.label for record in synthetic.split("train")}
    if absent:
        raise UserError(f"manifest {name}: no kept synthetic image of {', '.join(sorted(absent))}; generate some")


def refuse_leaks(manifests: Sequence[Manifest]) -> None:
    """Raises UserError when one file, by its digest, is in two splits, or anything else leaks in them."""
    first: dict[str, tuple[str, Path]] = {}
    for manifest in manifests:
        for record in filter(lambda record: record.kept, manifest.records):
            split, path = first.setdefault(record.sha256, (record.split, manifest.unchecked_path(record)))
            if split != record.split:
                twin = manifest.unchecked_path(record)
                raise UserError(f"{path} ({split}) and {twin} ({record.split}) are one image; keep one of them")
    audit.refuse(manifests)
