"""`curate`: a manifest of images -> the same with scores and reasons on every record, and a page that shows them."""

from pathlib import Path

from ml_collections import ConfigDict

from dermjax import progress
from dermjax.curation import judging, report
from dermjax.curation.rules import Thresholds
from dermjax.data import records, seen
from dermjax.data.records import FILE, Manifest
from dermjax.errors import UserError
from dermjax.run_folder import write_atomically

SECONDS_AN_IMAGE = 0.008  # measured on one core at 128 px


def run(config: ConfigDict, workdir: Path) -> None:
    """Judges every image of a manifest by what is usual among the generator's training images.

    A finished folder is left as it is while its images are those of the manifest; nothing here depends on chance.
    """
    manifest = _read(config.manifest, "manifest")
    training = _read(config.training, "training")
    taken = training.split("train")
    if not manifest.records or not taken:
        raise UserError(f"curate: {config.training if not taken else config.manifest} has no images to judge by or of")
    if _finished(workdir, manifest):
        progress.say(f"curate: {workdir} is finished; nothing to do")
        return
    images = len(taken) + len(manifest.records)
    progress.cost("curate", images=images, seconds=images * SECONDS_AN_IMAGE)
    with progress.bar(total=images, title="curate", unit="images", done=0) as steps:
        by = judging.yardstick(
            training, taken, config.size, config.sample, Thresholds(**config.thresholds.to_dict()), steps.update
        )
        judged = judging.judge(manifest, config.size, by, steps.update)
    curated = Manifest(labels=manifest.labels, root=manifest.root, records=judged)
    write_atomically(workdir / "report.html", report.page(curated, by.rules, len(taken), config.gallery))
    seen.write(workdir, [(training, record) for record in taken], [Path(config.manifest)])
    records.write(workdir / FILE, curated)  # last: a folder with a manifest is finished
    kept = sum(record.kept for record in judged)
    progress.say(f"curate: {kept} of {len(judged)} images kept, {report.told(judged)}; see {workdir / 'report.html'}")


def _read(path: str, key: str) -> Manifest:
    if not path:
        raise UserError(f"config.{key}: no manifest; give one, as --config.{key}=DIR/{FILE}")
    return records.read(Path(path))


def _finished(workdir: Path, manifest: Manifest) -> bool:
    """Whether the folder holds verdicts on exactly these images."""
    if not (workdir / FILE).is_file():
        return False
    before = records.read(workdir / FILE)
    return [(r.image, r.sha256) for r in before.records] == [(r.image, r.sha256) for r in manifest.records]
