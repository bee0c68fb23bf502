"""What the paper printed, to stand beside our numbers: Derm-T2IM (Farooq et al., EMBC 2024, arXiv 2401.05159).

Test accuracies in percent, trained on real images only -> on real and synthetic ones (about 75 % synthetic). Test
sizes are read off its confusion matrices (659 and 227 images).

Which subgroups an image belongs to: by tone, sex, age band, site and source, as far as its record says.

From predictions to what may be said: each run's figures, each arm against real images only, and a verdict.

A verdict looks at one figure that is named beforehand, AUROC, so that the best of several cannot be picked afterwards.

Every number of the page, for programs: results.json.
"""

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dermjax.data.records import Manifest, Record, age_band
from dermjax.errors import UserError
from dermjax.evaluation import intervals, metrics, predictions
from dermjax.evaluation.intervals import Bootstrap, Estimate
from dermjax.evaluation.predictions import Predictions

TITLE = "Derm-T2IM (arXiv 2401.05159)"
TEST_SIZES = {"ISIC": 659, "HAM10000": 227}
ACCURACIES = {
    "vit": {"ISIC": (90.74, 93.03), "HAM10000": (81.50, 85.02)},
    "mobilenetv2": {"ISIC": (78.89, 81.35), "HAM10000": (70.33, 73.58)},
}
NOTES = (
    "One run, an unpublished split, no AUROC and no intervals; none of its four gains is statistically significant at "
    "these test sizes.",
    "On HAM10000 the sensitivity of its ViT fell, from 0.949 to 0.923.",
    "HAM10000 is part of the ISIC archive, which its generator was tuned on, so this test set may overlap the seed "
    "images.",
)


def subgroups_of(record: Record) -> dict[str, str]:
    """Returns {kind: group} of a record; what is not known is not in it."""
    told = record.attributes
    tone = told.get("skin_tone", {}).get("group", "") or told.get("parameters", {}).get("tone", "")
    found = {
        "tone": tone,
        "sex": str(told.get("sex", "")),
        "age": told.get("age_band", "") or _band(told.get("age")),
        "site": str(told.get("site", "")),
        "source": record.source,
    }
    return {kind: group for kind, group in found.items() if group}


def split(manifest: Manifest) -> dict[tuple[str, str], set[str]]:
    """Returns the test images of each (kind, group), in kinds of more than one group."""
    groups: dict[tuple[str, str], set[str]] = {}
    for record in manifest.split("test"):
        for kind, group in subgroups_of(record).items():
            groups.setdefault((kind, group), set()).add(record.image)
    several = {kind for kind, _ in groups if sum(each == kind for each, _ in groups) > 1}
    return {key: groups[key] for key in sorted(groups) if key[0] in several}


def _band(age: object) -> str:
    try:
        return age_band(float(age))
    except (TypeError, ValueError):
        return ""


PRIMARY = "auroc"
BASELINE = "real"
GAIN, LOSS, NONE, UNKNOWN = "gain", "loss", "no gain was shown", "no gain was shown, with too few test images to tell"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One trained classifier: its architecture, what it was trained on (the arm), and its test predictions."""

    name: str
    classifier: str
    arm: str
    folder: Path
    predictions: Predictions


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """An arm against the baseline of the same classifier, on the same test images; differences are arm - baseline."""

    baseline: Run
    arm: Run
    differences: dict[str, Estimate]
    mcnemar: dict[str, float]

    @property
    def verdict(self) -> str:
        """GAIN or LOSS when the interval of the primary difference leaves out zero, else what cannot be said."""
        difference = self.differences[PRIMARY]
        if difference.low is None:
            return UNKNOWN if difference.value else NONE
        return GAIN if difference.low > 0 else LOSS if difference.high < 0 else NONE


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that the runs say: figures by run name and figure, comparisons, label fidelity by run name."""

    classes: tuple[str, ...]
    runs: list[Run]
    figures: dict[str, dict[str, Estimate]]
    comparisons: list[Comparison]
    fidelity: dict[str, Estimate]


def find(
    runs: list[Run], prepared: Manifest, curated: Manifest | None, resamples: int, seed: int, smallest: int
) -> Findings:
    """Judges every run on the real test split, and every arm against its baseline on the same resamples."""
    bootstrap = Bootstrap(lesions=lesions(runs[0], prepared), resamples=resamples, seed=seed, smallest=smallest)
    fidelity = {run.name: label_fidelity(run, curated) for run in runs if run.arm == BASELINE} if curated else {}
    return Findings(
        classes=prepared.labels,
        runs=runs,
        figures={run.name: intervals.figures(run.predictions, prepared.labels, bootstrap) for run in runs},
        comparisons=compare(runs, prepared.labels, bootstrap),
        fidelity={name: estimate for name, estimate in fidelity.items() if estimate},
    )


def read_runs(folders: dict[str, str], manifest: Manifest) -> list[Run]:
    """The finished classify runs, each classifier's baseline first.

    A name is `<classifier>_<arm>` (or with a space), and an empty folder leaves its run out.
    """
    runs = [_run(name, Path(folder), manifest) for name, folder in folders.items() if folder]
    if not runs:
        raise UserError("config.runs: no classify workdir; give at least one, as --config.runs.vit_real=DIR")
    return sorted(runs, key=_place)


def lesions(run: Run, manifest: Manifest) -> tuple[str, ...]:
    """The lesion of each test image, the image itself where the manifest names none."""
    lesion_of = {record.image: record.lesion_id or record.image for record in manifest.records}
    return tuple(lesion_of[image] for image in run.predictions.images)


def compare(runs: list[Run], classes: tuple[str, ...], bootstrap: Bootstrap) -> list[Comparison]:
    """Every arm against its classifier's baseline, where there is one."""
    baselines = {run.classifier: run for run in runs if run.arm == BASELINE}
    return [
        Comparison(
            baseline=baselines[run.classifier],
            arm=run,
            differences=intervals.differences(
                baselines[run.classifier].predictions, run.predictions, classes, bootstrap
            ),
            mcnemar=intervals.mcnemar(baselines[run.classifier].predictions, run.predictions),
        )
        for run in runs
        if run.arm != BASELINE and run.classifier in baselines
    ]


def label_fidelity(run: Run, curated: Manifest) -> Estimate | None:
    """How often a classifier that saw real images only gives a kept synthetic image the class it was made for.

    None where the run left no predictions for synthetic images.
    """
    path = run.folder / "synthetic_predictions.csv"
    if not path.is_file():
        return None
    said = predictions.read(path, curated.labels, "train").only({record.image for record in curated.split("train")})
    if not said.images:
        raise UserError(f"predictions {path}: none of its images is kept in the curated manifest; of another run?")
    return intervals.share(int(said.right.sum()), len(said.images))


def _run(name: str, folder: Path, manifest: Manifest) -> Run:
    words = re.split(r"[ _]", name, maxsplit=1)
    if len(words) != 2:
        raise UserError(f"config.runs: the name {name!r} is not of the form <classifier>_<arm>, as vit_real")
    path = folder / "predictions.csv"
    found = judged(path, manifest)
    return Run(name=" ".join(words), classifier=words[0], arm=words[1], folder=folder, predictions=found)


def judged(path: Path, manifest: Manifest) -> Predictions:
    """What a predictions.csv says of the whole test split, with thresholds from its validation rows.

    Raises:
      UserError: a class or an image is missing, or the rows are of other images than the manifest's.
    """
    found = predictions.read(path, manifest.labels, "test")
    predictions.refuse_absent_class(found, manifest.labels, path)
    _refuse_other_images(found, manifest, path)
    return replace(found, thresholds=metrics.thresholds(predictions.read(path, manifest.labels, "validation")))


def _place(run: Run) -> tuple:
    """Where a run stands on the page: classifiers as in the paper, the baseline before other arms."""
    order = [*ACCURACIES, run.classifier]
    return order.index(run.classifier), run.classifier, run.arm != BASELINE, run.arm


def _refuse_other_images(found: Predictions, manifest: Manifest, path: Path) -> None:
    """Every run must be judged on the whole test split and nothing else, or figures could not be compared."""
    expected = {record.image: record.label for record in manifest.split("test")}
    missing, strange = expected.keys() - set(found.images), set(found.images) - expected.keys()
    if missing or strange:
        raise UserError(
            f"predictions {path}: {len(missing)} images of the test split are missing, {len(strange)} are not of it; "
            "classify with the manifest that evaluate is given"
        )
    wrong = [i for i, c in zip(found.images, found.labels, strict=True) if expected[i] != manifest.labels[c]]
    if wrong:
        raise UserError(f"predictions {path}: {wrong[0]} has another label than in the manifest; classify again")


def as_json(found: Findings, bootstrap: dict, images: dict, rejections: dict) -> str:
    """The findings and counts as JSON text; an interval that does not exist is null, with its reason in the note."""
    return json.dumps(
        {
            "classes": found.classes,
            "images": images,
            "rejections": rejections,
            "bootstrap": bootstrap,
            "runs": {run.name: _run_json(run, found.figures[run.name]) for run in found.runs},
            "comparisons": [_comparison(each) for each in found.comparisons],
            "label_fidelity": {name: asdict(estimate) for name, estimate in found.fidelity.items()},
            "paper_accuracies_percent": ACCURACIES,
        },
        indent=2,
        allow_nan=False,
    )


def _run_json(run: Run, figures: dict[str, Estimate]) -> dict:
    false_positive_rate, true_positive_rate = metrics.roc(run.predictions)
    return {
        "classifier": run.classifier,
        "arm": run.arm,
        "test_images": len(run.predictions.images),
        "figures": {name: asdict(estimate) for name, estimate in figures.items()},
        "confusion": metrics.confusion(run.predictions).tolist(),
        "roc": {
            "false_positive_rate": false_positive_rate.tolist(),
            "true_positive_rate": true_positive_rate.tolist(),
        },
    }


def _comparison(comparison: Comparison) -> dict:
    return {
        "classifier": comparison.arm.classifier,
        "arm": comparison.arm.arm,
        "baseline": comparison.baseline.arm,
        "differences": {name: asdict(estimate) for name, estimate in comparison.differences.items()},
        "mcnemar": comparison.mcnemar,
        "verdict": comparison.verdict,
    }
