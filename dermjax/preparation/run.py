"""`prepare`: a folder of labelled images, or phantoms -> manifest.jsonl with leak-free splits, and report.html.

The user's images are read where they lie and never copied, unless hairs are to be taken out of them. The manifest is
written last: where it stands, the stage is finished.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from dermjax import progress
from dermjax.data import builders, examined, neighbours, packed, records, resemblance, sources, splits
from dermjax.data.records import SPLITS, Manifest
from dermjax.errors import UserError
from dermjax.preparation import listing, phantoms, report, settings
from dermjax.preparation.division import LEAK, SYNTHETIC, divide
from dermjax.preparation.examination import examine
from dermjax.preparation.report import Findings
from dermjax.preparation.shaving import shaved
from dermjax.run_folder import write_atomically

PHANTOMS_A_SECOND = 90  # one core at 128 px


def run(config: ConfigDict, workdir: Path) -> None:
    """Writes the manifest and the report of config.images into the workdir."""
    if (workdir / records.FILE).exists():
        progress.say(f"prepare: {workdir / records.FILE} is finished")
        return
    settings.refuse(config)
    manifest, findings = _phantoms(config, workdir) if config.images == "phantoms" else _folder(config, workdir)
    write_atomically(workdir / "report.html", report.page(replace(manifest, home=workdir), findings, config.to_dict()))
    records.write(workdir / records.FILE, manifest)
    _tell(manifest, findings)


def _phantoms(config: ConfigDict, workdir: Path) -> tuple[Manifest, Findings]:
    count = config.phantoms_per_class * 2
    progress.cost("prepare", phantoms=count, seconds=count / PHANTOMS_A_SECOND * (config.size / 128) ** 2)
    manifest, looks = phantoms.paint(
        workdir,
        per_class=config.phantoms_per_class,
        size=config.size,
        seed=config.seed,
        validation=config.ratios.validation,
        test=config.ratios.test,
    )
    write_atomically(workdir / examined.FILE, b"".join(look.line() for look in looks))
    near = neighbours.near(np.stack([look.views for look in looks]))
    near = resemblance.confirmed(near, np.stack([look.cells for look in looks]))
    return manifest, Findings(skipped=(), ignored=(), near=near)


def _folder(config: ConfigDict, workdir: Path) -> tuple[Manifest, Findings]:
    try:
        whole = listing.whole(
            config.images, layout=config.layout, classes=config.classes, columns=config.columns.to_dict(),
            positive=config.positive, skip=config.on_bad_image == "skip", kind=config.image_kind,
            own_splits=config.own_splits, workdir=workdir,
        )  # fmt: skip
        chosen = sources.limited(whole.records, config.limit, config.seed)
        packed.unpack(whole.root, whole.packed, [record.image for record in chosen])
        placed = splits.placements(records.read(Path(config.previous)).records) if config.previous else {}
        progress.cost("prepare", images=len(chosen), classes=len(whole.labels))
        progress.say(f"prepare: the positive class is {whole.labels[-1]}; config.positive names another")
        seen = examine(chosen, whole.root, config.on_bad_image, config.attributes, workdir)
        manifest, near = divide(
            whole, seen, validation=config.ratios.validation,
            test=1 / config.folds if config.folds else config.ratios.test,
            turn=config.fold / config.folds if config.folds else 0.0,
            seed=config.seed, stratified=config.stratified, placed=placed,
            folds=config.folds,
        )  # fmt: skip
        if config.remove_hairs:
            manifest = shaved(manifest, workdir)
    except UserError:
        (workdir / examined.FILE).unlink(missing_ok=True)  # a run that is refused leaves nothing behind
        builders.discard(workdir)
        raise
    return manifest, Findings(skipped=seen.skipped, ignored=whole.ignored, near=near)


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
        counts = Counter(reason for _, reason in findings.ignored)
        told = ", ".join(f"{count} {reason}" for reason, count in counts.items())
        progress.say(f"prepare: left out: {told}, listed in report.html")
    changes = Counter(change for record in manifest.records for change in record.attributes.get("decoded", ()))
    if changes:
        told = ", ".join(f"{count} {change}" for change, count in sorted(changes.items()))
        progress.say(f"prepare: done to images wherever they are decoded: {told}; each says so in its attributes")
    made = sum(SYNTHETIC in record.rejected for record in manifest.records)
    if made:
        progress.say(f"prepare: set aside, as a model made them: {made}")
    doubtful = len(report.contradictions(manifest, findings.near))
    if doubtful:
        progress.say(
            f"prepare: near-duplicates under two classes, shown in report.html: {doubtful} pairs; mend a label"
        )
    copies = sum(LEAK in record.rejected for record in manifest.records)
    if copies:
        progress.say(
            f"prepare: set aside, as they share an image, a lesion or a patient with what is judged: {copies}; "
            "near-duplicates are shown in report.html"
        )
