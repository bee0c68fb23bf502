"""`evaluate`: the predictions of finished classify runs -> results.json and report.html."""

import json
import re
from dataclasses import asdict
from pathlib import Path

from ml_collections import ConfigDict

from dermjax import progress
from dermjax.data import records
from dermjax.data.leaks import audit
from dermjax.data.records import Manifest
from dermjax.errors import UserError
from dermjax.evaluation import findings, metrics, predictions, report
from dermjax.evaluation.findings import Findings, Group
from dermjax.evaluation.images import run as images
from dermjax.evaluation.images.table import digest
from dermjax.evaluation.intervals import Fold
from dermjax.evaluation.report import BASELINE, PAPER
from dermjax.run_folder import write_atomically

# measured on one core: the page, and a classifier's 2000 resamples of a test image
SECONDS_OF_PAGE, SECONDS_OF_RESAMPLES = 4, 0.001


def run(config: ConfigDict, workdir: Path) -> None:
    """Reads what the stages left, compares the runs on the real test split, and writes every number and the page.

    It is cheap and writes the same for the same input, so a second call does it again rather than trust old files.
    With the variant images it is `images.run`.
    """
    if "synthetic" in config:
        images.run(config, workdir)
        return
    prepared = records.read_named(config.prepared, "prepared")
    generated, curated = (
        records.read_named(config[key], key).in_order(prepared.labels) if config[key] else None
        for key in ("generated", "curated")
    )
    for key, manifest in {"generated": generated, "curated": curated}.items():
        if manifest and set(manifest.labels) != set(prepared.labels):
            raise UserError(f"config.{key}: classes {manifest.labels} are not the prepared ones, {prepared.labels}")
    audit.refuse([manifest for manifest in (prepared, curated) if manifest])
    folders = _folders(config.runs.to_dict())
    runs = {group: predictions.read_test(folder / "predictions.csv", prepared) for group, folder in folders.items()}
    tables = {f"{group.classifier}_{group.arm}.csv": predictions.isic_table(each, prepared.labels)
              for group, each in (runs.items() if config.isic else ())}  # fmt: skip
    bootstrap = config.bootstrap.to_dict()
    test_images = len(prepared.split("test"))
    seconds = SECONDS_OF_PAGE + SECONDS_OF_RESAMPLES * test_images * len(runs) * bootstrap["resamples"] / 2000
    progress.cost(
        "evaluate", classifiers=len(runs), test_images=test_images, resamples=bootstrap["resamples"], seconds=seconds
    )
    with progress.bar(total=2, title="evaluate", unit="steps", done=0) as steps:
        result = findings.find(
            {group: [findings.fold([each], prepared, bootstrap)] for group, each in runs.items()},
            BASELINE,
            _synthetic(folders, curated, bootstrap) if curated else {},
            pooled=False,
        )
        steps.update()
        tuning = Path(config.tuning) if config.tuning else None
        page = report.page(config.title, prepared, generated, curated, result, folders, tuning, config.gallery)
        steps.update()
    counts, rejections = report.image_counts(prepared, generated, curated), report.rejection_counts(curated)
    judged = digest(curated.split("train")) if curated else None
    write_atomically(workdir / "results.json", _results(result, bootstrap, counts, rejections, judged))
    write_atomically(workdir / "report.html", page)
    for name, table in tables.items():
        (workdir / "isic").mkdir(exist_ok=True)
        write_atomically(workdir / "isic" / name, table)
    for verdict, numbers in report.summary(result):
        progress.say(f"evaluate: {verdict} {numbers}")
    progress.say(f"evaluate: the report is {workdir / 'report.html'}")


def _folders(runs: dict[str, str]) -> dict[Group, Path]:
    """The folders of finished classify runs: classifiers as in the paper, then others, each one's baseline first.

    A name is `<classifier>_<arm>` (or with a space), and an empty folder leaves its run out.
    """
    folders = {}
    for name, folder in runs.items():
        words = re.split(r"[ _]", name, maxsplit=1)
        if folder and len(words) != 2:
            raise UserError(f"config.runs: the name {name!r} is not of the form <classifier>_<arm>, as vit_real")
        if folder and Group(words[0], 0, words[1]) in folders:
            raise UserError(f"config.runs: {words[0]}_{words[1]} stands there twice, once with a space; name one anew")
        if folder:
            folders[Group(words[0], 0, words[1])] = Path(folder)
    if not folders:
        raise UserError("config.runs: no classify workdir; give at least one, as --config.runs.vit_real=DIR")

    def position(group: Group) -> tuple:
        order = [*PAPER["accuracies"], group.classifier]
        return order.index(group.classifier), group.classifier, group.arm != BASELINE, group.arm

    return {group: folders[group] for group in sorted(folders, key=position)}


def _synthetic(folders: dict[Group, Path], curated: Manifest, bootstrap: dict[str, int]) -> dict[Group, list[Fold]]:
    """The predictions of the kept synthetic images by classifiers of real images only, where there are any."""
    kept, synthetic = {record.image for record in curated.split("train")}, {}
    for group, folder in folders.items():
        path = folder / "synthetic_predictions.csv"
        if group.arm == BASELINE and path.is_file():
            each = predictions.read(path, curated.labels, "train", curated.records).only(kept)
            if not each.images:
                raise UserError(
                    f"predictions {path}: none of its images is kept in the curated manifest; of another run?"
                )
            synthetic[group] = [findings.of_synthetic([each], curated, bootstrap)]
    return synthetic


def _results(result: Findings, bootstrap: dict[str, int], images: dict, rejections: dict, judged: str | None) -> str:
    """Every number as JSON text; an interval that does not exist is null, with its reason in the note.

    judged: the digest of the synthetic images that label fidelity is of.
    """
    runs, comparisons = {}, []
    for group, figures in result.figures.items():
        run = result.folds[group][0].seeds[0]
        runs[f"{group.classifier} {group.arm}"] = {
            "classifier": group.classifier,
            "arm": group.arm,
            "test_images": len(run.images),
            "figures": figures,
            "confusion": metrics.confusion(run).tolist(),
            "roc": {
                f"{name}_positive_rate": rates.tolist()
                for name, rates in zip(("false", "true"), metrics.roc(run), strict=True)
            },
        }
    for group, each in result.comparisons.items():
        comparison = {"classifier": group.classifier, "arm": group.arm, "baseline": each.baseline}
        evidence = {"differences": each.differences, "mcnemar": each.mcnemar, "verdict": each.verdict}
        comparisons.append(comparison | evidence)
    results = {
        "classes": result.classes,
        "images": images,
        "observed_share_of_positives": result.observed,
        "rejections": rejections,
        "bootstrap": bootstrap,
        "runs": runs,
        "comparisons": comparisons,
        "synthetic": judged,
        "label_fidelity": {f"{group.classifier} {group.arm}": share for group, share in result.fidelity.items()},
        "paper_accuracies_percent": PAPER["accuracies"],
    }
    return json.dumps(results, indent=2, allow_nan=False, default=asdict)
