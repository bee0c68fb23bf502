"""Settings of `prepare` that cannot be meant, refused in one line before anything is read.

The images of a manifest without their dark hairs, written beside it: an ablation, see `data.hair`.

`prepare`: a folder of labelled images, or phantoms -> manifest.jsonl with leak-free splits, and report.html.

The user's images are read where they lie and never copied, unless hairs are to be taken out of them. The manifest is
written last: where it stands, the stage is finished.
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from dermjax import machine, progress
from dermjax.data import digests, images, records, splits
from dermjax.data.archives import folders, hdf5, tfds
from dermjax.data.imaging import hair
from dermjax.data.leaks import fingerprints
from dermjax.data.records import SPLITS, Manifest, Record
from dermjax.errors import UserError
from dermjax.preparation import listing, phantoms, report
from dermjax.preparation.division import LEAK, SYNTHETIC, divide
from dermjax.preparation.examination import examine
from dermjax.preparation.report import Findings
from dermjax.run_folder import write_atomically

SIDES = 16  # pixels, of which images are looked at in cells


def check(config: ConfigDict) -> None:
    """UserError for the first setting that cannot be meant."""
    if not config.images:
        raise UserError("config.images is empty; give a folder with class/*.jpg, or phantoms")
    if config.on_bad_image not in ("fail", "skip"):
        raise UserError(f"config.on_bad_image {config.on_bad_image!r}: give fail or skip")
    if config.images == "phantoms" and (config.size < SIDES or config.size % SIDES):
        raise UserError(f"config.size {config.size}: give the side of phantoms in pixels, a multiple of {SIDES}")
    if config.limit < 0:
        raise UserError(f"config.limit {config.limit}: give the most images a class and split, or 0 for all")
    if config.folds and not (config.folds > 1 and 0 <= config.fold < config.folds):
        raise UserError(f"config.fold {config.fold} of {config.folds}: give 2 folds or more, and a fold from 0 on")
    shares = (config.ratios.validation, config.ratios.test)
    if not (min(shares) >= 0 and sum(shares) < 1):  # NaN is neither
        raise UserError(
            f"config.ratios {shares}: give shares of 0 or more for validation and test that leave some to train"
        )


def shaved(manifest: Manifest, workdir: Path) -> Manifest:
    """Writes images/<image>.png for every record; the manifest of these, which say what was done to them."""
    with (
        ThreadPoolExecutor(machine.cores()) as pool,
        progress.bar(len(manifest.records), "removing hairs", "images", 0) as bar,
    ):
        records = []
        for record in pool.map(partial(_shaved, manifest, workdir), manifest.records):
            records.append(record)
            bar.update()
    return Manifest(labels=manifest.labels, root=workdir, records=tuple(records))


def _shaved(manifest: Manifest, workdir: Path, record: Record) -> Record:
    image = f"images/{record.image}.png"
    images.write_if_changed(workdir / image, images.encode_png(hair.remove_hairs(images.decode(manifest.path(record)))))
    told, mask = record.attributes | {"hairs_removed": "as DullRazor"}, manifest.mask(record)
    if mask:
        kept = f"masks/{record.image}{mask.suffix}"
        images.write_if_changed(workdir / kept, mask.read_bytes())
        told["mask"] = told["mask"] | {"image": kept}
    return replace(record, image=image, sha256=digests.sha256(workdir / image), attributes=told)


PHANTOMS_A_SECOND = 90  # one core at 128 px


def run(config: ConfigDict, workdir: Path) -> None:
    """Writes the manifest and the report of config.images into the workdir."""
    if (workdir / records.FILE).exists():
        progress.say(f"prepare: {workdir / records.FILE} is finished")
        return
    check(config)
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
    write_atomically(workdir / fingerprints.FILE, b"".join(look.line() for look in looks))
    return manifest, Findings(skipped=(), ignored=(), near=fingerprints.near_duplicates(looks))


def _folder(config: ConfigDict, workdir: Path) -> tuple[Manifest, Findings]:
    try:
        whole = listing.list_images(
            config.images, layout=config.layout, classes=config.classes, columns=config.columns.to_dict(),
            positive=config.positive, skip=config.on_bad_image == "skip", kind=config.image_kind,
            own_splits=config.own_splits, workdir=workdir,
        )  # fmt: skip
        chosen = folders.limit(whole.records, config.limit, config.seed)
        hdf5.unpack(whole.root, whole.packed, [record.image for record in chosen])
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
        (workdir / fingerprints.FILE).unlink(missing_ok=True)  # a run that is refused leaves nothing behind
        tfds.discard(workdir)
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
