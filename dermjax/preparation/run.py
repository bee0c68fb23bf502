"""`prepare`: a folder of labelled images, or phantoms -> manifest.jsonl with leak-free splits, and report.html.

The user's images are read where they lie and never copied. The manifest is written last: where it stands, the stage is
finished.
"""

from pathlib import Path

from ml_collections import ConfigDict

from dermjax import progress
from dermjax.data import duplicates, records, sources, splits
from dermjax.data.records import SPLITS, Manifest
from dermjax.errors import UserError
from dermjax.preparation import phantoms, report
from dermjax.preparation.examination import examine
from dermjax.preparation.report import Findings
from dermjax.run_folder import write_atomically

PHANTOMS_A_SECOND = 90  # one core at 128 px


def run(config: ConfigDict, workdir: Path) -> None:
    """Writes the manifest and the report of config.images into the workdir."""
    if (workdir / records.FILE).exists():
        progress.say(f"prepare: {workdir / records.FILE} is finished")
        return
    _refuse(config)
    manifest, findings = _phantoms(config, workdir) if config.images == "phantoms" else _folder(config)
    write_atomically(workdir / "report.html", report.page(manifest, findings, config.to_dict()))
    records.write(workdir / records.FILE, manifest)
    _tell(manifest, findings)


def _phantoms(config: ConfigDict, workdir: Path) -> tuple[Manifest, Findings]:
    count = config.phantoms_per_class * 2
    progress.cost("prepare", phantoms=count, seconds=count / PHANTOMS_A_SECOND * (config.size / 128) ** 2)
    manifest, hashes = phantoms.paint(
        workdir,
        per_class=config.phantoms_per_class,
        size=config.size,
        seed=config.seed,
        validation=config.ratios.validation,
        test=config.ratios.test,
    )
    return manifest, Findings(skipped=(), ignored=(), near=duplicates.pairs_within(hashes, duplicates.NEAR))


def _folder(config: ConfigDict) -> tuple[Manifest, Findings]:
    listing = sources.scan(Path(config.images).expanduser())
    chosen = sources.limited(listing.records, config.limit, config.seed)
    progress.cost("prepare", images=len(chosen), classes=len(listing.labels))
    seen = examine(chosen, listing.root, config.on_bad_image)
    splits.refuse_contradictions(seen.records)
    near = duplicates.pairs_within(seen.hashes, duplicates.NEAR)
    groups = duplicates.groups(near, [splits.identities(record) for record in seen.records])
    ratios = config.ratios
    assigned = splits.assign(seen.records, groups, validation=ratios.validation, test=ratios.test, seed=config.seed)
    splits.refuse_leaks(assigned)
    manifest = Manifest(labels=listing.labels, root=listing.root, records=assigned)
    _refuse_gaps(manifest)
    return manifest, Findings(skipped=seen.skipped, ignored=listing.ignored, near=near)


def _refuse(config: ConfigDict) -> None:
    """UserError for settings that cannot be meant."""
    if not config.images:
        raise UserError("config.images is empty; give a folder with class/*.jpg, or phantoms")
    if config.on_bad_image not in ("fail", "skip"):
        raise UserError(f"config.on_bad_image {config.on_bad_image!r}: give fail or skip")
    if config.limit < 0:
        raise UserError(f"config.limit {config.limit}: give the most images a class and split, or 0 for all")
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
    leaking = len(report.across_splits(manifest, findings.near))
    if leaking:
        progress.say(
            f"prepare: near-duplicates in two splits: {leaking}, shown in report.html; remove one of each pair"
        )
