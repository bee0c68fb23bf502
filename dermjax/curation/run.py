"""`curate`: a manifest of images -> the same with scores and reasons on every record, and a page that shows them."""

import hashlib
from pathlib import Path

import jax.numpy as jnp
from ml_collections import ConfigDict

from dermjax import buckets, config_file, parts, progress, run_folder, sharding
from dermjax.curation import calibration, judging, label_score, measurements, report, reviews, rules, scoring
from dermjax.curation.reviews import Verdict
from dermjax.curation.rules import MEANINGS, Thresholds
from dermjax.curation.scoring import Networks
from dermjax.data import digests, records
from dermjax.data.imaging import quality
from dermjax.data.leaks import training_images
from dermjax.data.records import FILE, Manifest
from dermjax.errors import UserError
from dermjax.evaluation import features
from dermjax.models import classifier as network
from dermjax.run_folder import write_atomically

# what these name counts, by its contents; a part's by its records
PATHS = ("manifest", "training", "verdicts", "classifier", "features", "part")
SECONDS_AN_IMAGE, SECONDS_A_REAL_ONE = 0.06, 0.006  # of one core, at 128 px
SECONDS_OF_FEATURES = 0.06  # of one core, by DINOv2 of size S at 224 px


def check(config: ConfigDict) -> None:
    """Raises UserError for options that no images would make right."""
    config_file.check(config)
    if config.size < quality.FINE or config.size % quality.FINE:
        below = max(config.size // quality.FINE, 1) * quality.FINE
        raise UserError(f"config.size = {config.size}: images, whatever their own size, are measured at a multiple of "
                        f"{quality.FINE}; give {below} or {below + quality.FINE}")  # fmt: skip
    if config.phantoms == 1:
        raise UserError("config.phantoms = 1: give 2 or more, one half is held against the other, or 0 for none")


def run(config: ConfigDict, workdir: Path) -> None:
    """Scores every image of a manifest against what is usual among the generator's real images.

    A finished folder is left as it is while all that it follows from is the same; nothing here depends on chance. With
    config.phantoms no image is scored: the rules are measured on so many phantoms.
    """
    check(config)
    thresholds = Thresholds(**config.thresholds.to_dict())
    if config.phantoms:
        calibration.run(config.phantoms, config.size, thresholds, workdir)
        return
    part, given = parts.read(config.part), records.named(config.manifest, "manifest")
    total = records.count(given)
    if part:
        part.check(total, "images")
    places = part.block(total) if part else range(total)
    manifest, real = records.read(given, places), records.read_named(config.training, "training")
    training = real.split("train")
    if not total or not training:
        empty = config.training if total else config.manifest
        raise UserError(f"curate: {empty} has no images to judge by or of")
    if any(record.synthetic for record in training):
        raise UserError(f"config.training {config.training}: holds synthetic images; give the manifest of the real "
                        "images that the generator was tuned on")  # fmt: skip
    unknown = set(config.noted) - set(MEANINGS)
    if unknown:
        raise UserError(f"config.noted: {min(unknown)!r} is no reason; there are: {', '.join(MEANINGS)}")
    verdicts = reviews.read(config.verdicts)
    networks = Networks(label_score.read(config.classifier, manifest.labels), features.read(config.features))
    causes = _causes(config, manifest, real, networks, verdicts)
    if parts.is_finished(workdir, part, FILE, causes):
        progress.say(f"curate: {workdir} is finished; nothing to do")
        return

    size, count = config.size, len(manifest.records)
    reals = len(training) + min(len(real.split(scoring.HELD_OUT)), config.sample)
    seconds = reals * SECONDS_A_REAL_ONE + count * SECONDS_AN_IMAGE
    if networks.likeness:
        seconds += SECONDS_OF_FEATURES * (2 * len(training) + len(real.split(scoring.HELD_OUT)) + count)
    progress.cost("curate", images=reals + count, seconds=seconds)
    with progress.bar(total=reals + count, title="curate", unit="images", done=0) as bar:
        reference = scoring.measure_reference(real, size, config.sample, thresholds, config.noted, networks, bar.update)
        parts.begin(workdir)
        scored, hashes = scoring.score(manifest, size, reference, networks, workdir, bar.update)
    judged = tuple(judging.judge(lambda: scored, hashes, reference.rules, verdicts))
    curated = Manifest(labels=manifest.labels, root=manifest.root, records=judged)
    page = report.page(curated, reference.rules, len(training), config)
    write_atomically(workdir / "report.html", page)
    training_images.write(workdir, [(real, record) for record in training], [Path(config.manifest)])
    records.write(workdir / FILE, curated)
    if part:
        findings = {"rules": [vars(rule) for rule in reference.rules], "training_images": len(training)}
        done = parts.Finished(stage="curate", part=str(part), total=total, places=list(places), left_out=[],
                              causes=causes | {"manifest": digests.sha256(given)}, findings=findings)  # fmt: skip
        parts.finish(workdir, done)
    run_folder.mark_finished(workdir, causes)

    kept = sum(record.kept for record in judged)
    without = len({digest for digest, each in verdicts.items() if each} - {record.sha256 for record in judged})
    stray = f"; {without} verdicts are on images that are not in this manifest" if without and not part else ""
    reasons = report.count_reasons(judged)
    progress.say(
        f"curate: {kept} of {count} images kept, {reasons}{stray}; see {buckets.shown(workdir / 'report.html')}"
    )


def _causes(
    config: ConfigDict, manifest: Manifest, real: Manifest, networks: Networks, verdicts: dict[str, Verdict | None]
) -> dict:
    """What the curated manifest follows from."""

    def digest(value: object) -> str:
        return hashlib.sha256(repr(value).encode()).hexdigest()[:16]

    causes = measurements.causes(config.size) | {
        "config": {name: value for name, value in config.to_dict().items() if name not in PATHS},
        "manifest": digest(manifest.records),
        "training": digest(real.records),
        "verdicts": digest(sorted(verdicts.items())),
    }
    causes[run_folder.NUMERIC_VERSIONS]["rules"] = rules.NUMERIC_VERSION
    for name, judge in (("classifier", networks.label), ("features", networks.likeness)):
        if judge:
            causes[name] = judge.digest
            causes["arithmetic"] = sharding.arithmetic(jnp.float32, sharding.local_mesh())
            causes[run_folder.NUMERIC_VERSIONS]["classifier"] = network.NUMERIC_VERSION
    if networks.label and networks.label.classifier.resize:  # as its folder's processor shows it images
        causes["resize"] = dict(networks.label.classifier.resize)
    return causes
