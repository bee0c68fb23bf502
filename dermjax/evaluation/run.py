"""`evaluate`: the predictions of finished classify runs -> results.json and report.html."""

from pathlib import Path

from ml_collections import ConfigDict

from dermjax import progress
from dermjax.data import records
from dermjax.data.leaks import audit
from dermjax.data.records import Manifest
from dermjax.errors import UserError
from dermjax.evaluation import findings, plots, predictions, report, wording
from dermjax.evaluation.findings import Findings
from dermjax.run_folder import write_atomically

# what the training loop calls them in metrics.jsonl
LOSS, VALIDATION_AUROC = "loss", "validation_auroc"
# measured on one core: the page, and a classifier's 2000 resamples of a test image
SECONDS_OF_PAGE, SECONDS_OF_RESAMPLES = 4, 0.001


def run(config: ConfigDict, workdir: Path) -> None:
    """Reads what the stages left, judges it on the real test split, and writes every number and the page.

    It is cheap and writes the same for the same input, so a second call does it again rather than trust old files.
    """
    prepared = records.read_named(config.prepared, "prepared")
    generated = records.read_named(config.generated, "generated") if config.generated else None
    curated = records.read_named(config.curated, "curated") if config.curated else None
    _refuse_other_classes(prepared, {"generated": generated, "curated": curated})
    audit.refuse([manifest for manifest in (prepared, curated) if manifest])
    runs = findings.read_runs(config.runs.to_dict(), prepared)
    bootstrap = config.bootstrap
    tested = len(runs[0].predictions.images)
    seconds = SECONDS_OF_PAGE + SECONDS_OF_RESAMPLES * tested * len(runs) * bootstrap.resamples / 2000
    progress.cost("evaluate", classifiers=len(runs), test_images=tested, resamples=bootstrap.resamples, seconds=seconds)
    with progress.bar(total=2, title="evaluate", unit="steps", done=0) as steps:
        found = findings.find(runs, prepared, curated, bootstrap.resamples, bootstrap.seed, bootstrap.smallest)
        steps.update()
        page = report.page(config.title, _sections(found, prepared, generated, curated, config))
        steps.update()
    images = report.image_counts(prepared, generated, curated)
    rejections = report.rejection_counts(curated) if curated else {}
    write_atomically(workdir / "results.json", findings.as_json(found, bootstrap.to_dict(), images, rejections))
    write_atomically(workdir / "report.html", page)
    for each in runs if config.isic else []:
        (workdir / "isic").mkdir(exist_ok=True)
        write_atomically(
            workdir / "isic" / f"{each.folder.name}.csv", predictions.isic_table(each.predictions, prepared.labels)
        )
    for verdict, numbers in wording.summary(found):
        progress.say(f"evaluate: {verdict} {numbers}")
    progress.say(f"evaluate: the report is {workdir / 'report.html'}")


def _refuse_other_classes(prepared: Manifest, others: dict[str, Manifest | None]) -> None:
    for key, manifest in others.items():
        if manifest and manifest.labels != prepared.labels:
            raise UserError(f"config.{key}: classes {manifest.labels} are not the prepared ones, {prepared.labels}")


def _sections(
    found: Findings, prepared: Manifest, generated: Manifest | None, curated: Manifest | None, config: ConfigDict
) -> dict:
    """What the template shows; a section whose input was not given is None."""
    count = config.gallery
    trained = [run for run in found.runs if plots.logged(run.folder)]  # of others there are predictions alone
    losses = {run.name: plots.read_curves(run.folder, LOSS) for run in trained}
    aurocs = {run.name: plots.read_curves(run.folder, VALIDATION_AUROC) for run in trained}
    tuning = plots.read_curves(Path(config.tuning), LOSS) if config.tuning else None
    return {
        "summary": wording.summary(found),
        "tiles": report.tiles(report.image_counts(prepared, generated, curated)),
        "sources": report.sources(prepared),
        "phantoms": any(record.source == "phantom" for record in prepared.records),
        "real": report.real_gallery(prepared, count),
        "samplers": report.sampler_gallery(generated, count) if generated else None,
        "beside": report.side_by_side(prepared, curated, count) if curated else None,
        "curation": report.curation(curated, 2 * count) if curated else None,
        "training": report.training_plots(found, tuning, losses, aurocs),
        "plots": report.result_plots(found),
        "tables": report.tables(found),
        "fidelity": [
            (run, found.fidelity[run.name], found.figures[run.name]["accuracy"])
            for run in found.runs
            if run.name in found.fidelity
        ],
        "paper": report.paper_table(found),
        "classes": found.classes,
        "test_images": len(found.runs[0].predictions.images),
        "bootstrap": config.bootstrap,
    }
