"""From predictions to what may be said: each run's figures, each arm against real images only, and a verdict.

A verdict looks at one figure that is named beforehand, AUROC, so that the best of several cannot be picked afterwards.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from dermjax.data.records import Manifest
from dermjax.errors import UserError
from dermjax.evaluation import intervals, metrics, paper, predictions
from dermjax.evaluation.intervals import Bootstrap, Estimate
from dermjax.evaluation.predictions import Predictions

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
    order = [*paper.ACCURACIES, run.classifier]
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
