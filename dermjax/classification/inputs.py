"""The manifests of one classifier, and what would make its figures untrue, refused before anything is trained."""

from pathlib import Path

from dermjax.data import records
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
    reals = records.read(Path(real))
    synthetics = records.read(Path(synthetic)) if synthetic else None
    check(reals, real)
    if synthetics:
        check_synthetic(synthetics, synthetic, reals)
    refuse_leaks([manifest for manifest in (reals, synthetics) if manifest])
    audit.refuse([manifest for manifest in (reals, synthetics) if manifest])
    return reals, synthetics


def check(real: Manifest, name: str) -> None:
    """Raises UserError unless the manifest holds real images of two classes or more, each in every split."""
    if len(real.labels) < 2:
        raise UserError(f"manifest {name}: one class only, {real.labels[0]}; a classifier needs two or more")
    refuse_absent_classes(real, name)
    if any(record.synthetic for record in real.split("train")):
        raise UserError(f"manifest {name}: holds synthetic images; give it as synthetic and not as the real one")


def check_synthetic(synthetic: Manifest, name: str, real: Manifest) -> None:
    """Raises UserError unless the manifest holds synthetic images of the real one's classes, of each at least one."""
    if synthetic.labels != real.labels:
        theirs, ours = ", ".join(synthetic.labels), ", ".join(real.labels)
        raise UserError(f"manifest {name}: its classes are {theirs}, the real ones are {ours}")
    there = synthetic.split("train")
    if not all(record.synthetic for record in there):
        raise UserError(f"manifest {name}: holds real images; give it as the real one and not as synthetic")
    absent = set(real.labels) - {record.label for record in there}
    if absent:
        raise UserError(f"manifest {name}: no kept synthetic image of {', '.join(sorted(absent))}; generate some")


def read_judged(path: str, real: Manifest) -> Manifest | None:
    """Returns the manifest of synthetic images that are judged and never learned from, or None for no path."""
    if not path:
        return None
    judged = records.read(Path(path))
    if judged.labels != real.labels:
        theirs, ours = ", ".join(judged.labels), ", ".join(real.labels)
        raise UserError(f"config.judged = {path}: its classes are {theirs}, the real ones are {ours}")
    if not judged.split("train"):
        raise UserError(f"config.judged = {path}: no kept image in it; leave it out or give another")
    return judged


def refuse_absent_classes(manifest: Manifest, name: str) -> None:
    """Raises UserError when a split has no image of a class: neither training nor a ROC curve is possible then."""
    there = {(record.split, record.label) for record in manifest.records if record.kept}
    absent = [f"{label} in {split}" for split in SPLITS for label in manifest.labels if (split, label) not in there]
    if absent:
        raise UserError(f"manifest {name}: no image of {', '.join(absent)}; prepare splits with every class")


def refuse_leaks(manifests: list[Manifest]) -> None:
    """Raises UserError when one image file, by its digest, is in two splits, even of different manifests."""
    seen: dict[str, tuple[str, Path]] = {}
    for manifest in manifests:
        for record in filter(lambda record: record.kept, manifest.records):
            split, path = seen.setdefault(record.sha256, (record.split, manifest.place(record)))
            if split != record.split:
                twin = manifest.place(record)
                raise UserError(f"{path} ({split}) and {twin} ({record.split}) are one image; keep one of them")
