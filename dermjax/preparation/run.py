"""`prepare`: a folder of labelled images, or phantoms -> manifest.jsonl with leak-free splits, and report.html.

The user's images are read where they lie and never copied. The manifest is written last: where it stands, the stage is
finished.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from dermjax import progress
from dermjax.data import duplicates, neighbours, records, sources, splits, tables
from dermjax.data.records import SPLITS, Manifest, Record
from dermjax.errors import UserError
from dermjax.preparation import phantoms, report
from dermjax.preparation.examination import JOURNAL, examine
from dermjax.preparation.report import Findings
from dermjax.run_folder import write_atomically

PHANTOMS_A_SECOND = 90  # one core at 128 px
LEAK = "near_duplicate_of_evaluation"  # why a training image is set aside


def run(config: ConfigDict, workdir: Path) -> None:
    """Writes the manifest and the report of config.images into the workdir."""
    if (workdir / records.FILE).exists():
        progress.say(f"prepare: {workdir / records.FILE} is finished")
        return
    _refuse(config)
    manifest, findings = _phantoms(config, workdir) if config.images == "phantoms" else _folder(config, workdir)
    write_atomically(workdir / "report.html", report.page(manifest, findings, config.to_dict()))
    records.write(workdir / records.FILE, manifest)
    (workdir / JOURNAL).unlink(missing_ok=True)
    _tell(manifest, findings)


def _phantoms(config: ConfigDict, workdir: Path) -> tuple[Manifest, Findings]:
    count = config.phantoms_per_class * 2
    progress.cost("prepare", phantoms=count, seconds=count / PHANTOMS_A_SECOND * (config.size / 128) ** 2)
    manifest, views = phantoms.paint(
        workdir,
        per_class=config.phantoms_per_class,
        size=config.size,
        seed=config.seed,
        validation=config.ratios.validation,
        test=config.ratios.test,
    )
    return manifest, Findings(skipped=(), ignored=(), near=neighbours.near(views))


def _folder(config: ConfigDict, workdir: Path) -> tuple[Manifest, Findings]:
    folder = Path(config.images).expanduser()
    table = tables.detect(folder) if config.layout == "detect" else None
    listing = tables.scan(folder, *table) if table else sources.scan(folder)
    progress.say(f"prepare: {folder} is read as {table[0] if table else 'class folders'}")
    chosen = sources.limited(listing.records, config.limit, config.seed)
    placed = splits.placements(records.read(Path(config.previous)).records) if config.previous else {}
    progress.cost("prepare", images=len(chosen), classes=len(listing.labels))
    try:
        seen = examine(chosen, listing.root, config.on_bad_image, config.attributes, workdir / JOURNAL)
        splits.refuse_contradictions(seen.records)
        near = neighbours.near(seen.views)
        groups = duplicates.groups(near, [splits.identities(record) for record in seen.records])
        ratios = config.ratios
        assigned = splits.assign(
            seen.records, groups, validation=ratios.validation, test=1 / config.folds if config.folds else ratios.test,
            seed=config.seed, turn=config.fold / config.folds if config.folds else 0.0, stratified=config.stratified,
            placed=placed,
        )  # fmt: skip
        splits.refuse_leaks(assigned)
        manifest = Manifest(labels=listing.labels, root=listing.root, records=_without_copies(assigned, groups))
        _refuse_gaps(manifest)
    except UserError:
        (workdir / JOURNAL).unlink(missing_ok=True)  # a run that is refused leaves nothing behind
        raise
    return manifest, Findings(skipped=seen.skipped, ignored=listing.ignored, near=near)


def _without_copies(assigned: tuple[Record, ...], groups: np.ndarray) -> tuple[Record, ...]:
    """The records, those rejected that are near-duplicates of images on a more judged side (given splits only)."""
    sides = [SPLITS.index(record.split) for record in assigned]
    judged = np.zeros(groups.max(initial=-1) + 1, int)
    np.maximum.at(judged, groups, sides)
    return tuple(
        replace(record, rejected=(LEAK,)) if side < judged[group] else record
        for record, side, group in zip(assigned, sides, groups.tolist(), strict=True)
    )


def _refuse(config: ConfigDict) -> None:
    """UserError for settings that cannot be meant."""
    if not config.images:
        raise UserError("config.images is empty; give a folder with class/*.jpg, or phantoms")
    if config.on_bad_image not in ("fail", "skip"):
        raise UserError(f"config.on_bad_image {config.on_bad_image!r}: give fail or skip")
    if config.layout not in ("detect", "folders"):
        raise UserError(f"config.layout {config.layout!r}: give detect, or folders for class/* whatever table is there")
    if config.limit < 0:
        raise UserError(f"config.limit {config.limit}: give the most images a class and split, or 0 for all")
    if config.folds and not (config.folds > 1 and 0 <= config.fold < config.folds):
        raise UserError(f"config.fold {config.fold} of {config.folds}: give 2 folds or more, and a fold from 0 on")
    shares = (config.ratios.validation, config.ratios.test)
    if min(shares) < 0 or sum(shares) >= 1:
        raise UserError(
            f"config.ratios {shares}: give shares of 0 or more for validation and test that leave some to train"
        )


def _refuse_gaps(manifest: Manifest) -> None:
    """UserError for a class that lost all its images of one split, as bad images were skipped."""
    for name in SPLITS:
        held = {record.label for record in manifest.split(name)}
        for label in manifest.labels:
            if held and label not in held:
                raise UserError(f"folder {manifest.root}: class {label!r} has no sound image in {name}; add images")


def _tell(manifest: Manifest, findings: Findings) -> None:
    """Says in plain lines what came of it."""
    for name in SPLITS:
        held = [record.label for record in manifest.split(name)]
        if held:
            told = ", ".join(f"{held.count(label)} {label}" for label in manifest.labels)
            progress.say(f"prepare: {name}: {told}")
    if findings.skipped:
        progress.say(f"prepare: bad images skipped: {len(findings.skipped)}, each with its reason in report.html")
    if findings.ignored:
        progress.say(f"prepare: left out as no images: {len(findings.ignored)}, listed in report.html")
    copies = sum(LEAK in record.rejected for record in manifest.records)
    if copies:
        progress.say(
            f"prepare: set aside, as they are near-duplicates of images that others are judged on: {copies}, "
            "shown in report.html"
        )
