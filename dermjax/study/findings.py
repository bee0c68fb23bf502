"""From the predictions of all cells to what may be said.

An arm is the mean over its seeds, with an interval for both chances (evaluation/seeds.py). It is compared with the
baseline of the same classifier and few-shot size, seed by seed and on the same resamples of the same lesions. The
verdict looks at AUROC, named beforehand, and its p-values are adjusted by Holm's method over all comparisons.

Every number of a study, for programs: results.json.
"""

import json
import math
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from dermjax.data.records import Manifest
from dermjax.evaluation import findings, intervals, metrics, predictions
from dermjax.evaluation import findings as evaluated
from dermjax.evaluation.findings import GAIN, LOSS, NONE, PRIMARY, UNKNOWN
from dermjax.evaluation.intervals import Bootstrap, Estimate, Spread
from dermjax.evaluation.predictions import Predictions
from dermjax.evaluation.weighted import WEIGHTED
from dermjax.study.arms import BASELINE, JUDGED
from dermjax.study.cells import Cell, Material

ALPHA = 1 - intervals.LEVEL
Group = tuple[str, int, str]  # classifier, few-shot size, arm


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """An arm against the baseline: differences by figure, p of the primary one, adjusted, and McNemar's test.

    McNemar's test is on the decisions of the mean probability over the seeds.
    """

    group: Group
    differences: dict[str, Estimate]
    p: float
    adjusted: float
    mcnemar: dict[str, float]

    @property
    def verdict(self) -> str:
        """GAIN or LOSS where the adjusted p-value of the primary difference says so, else what cannot be said."""
        difference = self.differences[PRIMARY]
        if math.isnan(self.p):
            return UNKNOWN
        if self.adjusted >= ALPHA:
            return NONE
        return GAIN if difference.value > 0 else LOSS


@dataclass(frozen=True, kw_only=True)
class Found:
    """All that a study says. mean: predictions averaged over seeds, by group and fold; alone: AUROC seed by seed."""

    classes: tuple[str, ...]
    figures: dict[Group, dict[str, Estimate]]
    alone: dict[Group, list[float]]
    mean: dict[Group, list[Predictions]]
    comparisons: list[Comparison]
    subgroups: dict[tuple[str, str], dict[Group, Estimate]]
    elsewhere: dict[str, dict[Group, dict[str, tuple[Estimate, Estimate]]]]  # figures, differences, by test set
    fidelity: dict[Group, Estimate]


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """What the cells of a group said of a test set in one fold, seed by seed."""

    said: list[Predictions]
    bootstrap: Bootstrap
    names: tuple[str, ...]

    @cached_property
    def spreads(self) -> dict[str, Spread]:
        """The named figures of every seed with their resamples; all seeds and arms see the same draws."""
        labels = self.said[0].labels
        resampled = [
            intervals.spreads(self.bootstrap, labels, lambda name, w, s=s: WEIGHTED[name](s, w), self.names)
            for s in self.said
        ]
        return {
            name: Spread(
                values=np.array([metrics.METRICS[name](s) for s in self.said]),
                resampled=np.array([each[name] for each in resampled]),
                n=metrics.counted(name, labels),
                units=len(set(self.bootstrap.lesions)),
            )
            for name in self.names
        }

    def few(self, classes: tuple[str, ...]) -> str:
        """Why there are too few lesions for an interval, or nothing."""
        return self.bootstrap.too_few(self.said[0].labels, classes)

    def only(self, images: set[str]) -> "Judged":
        """The same on some of the images, by the primary figure alone."""
        kept = [lesion for image, lesion in zip(self.said[0].images, self.bootstrap.lesions, strict=True)
                if image in images]  # fmt: skip
        said = [s.only(images) for s in self.said]
        return Judged(said=said, bootstrap=replace(self.bootstrap, lesions=tuple(kept)), names=(PRIMARY,))

    @property
    def mean(self) -> Predictions:
        """The mean probability over the seeds."""
        return replace(self.said[0], probabilities=np.mean([s.probabilities for s in self.said], axis=0))


def find(
    folders: dict[Cell, Path], materials: list[Material], baseline: str, *, resamples: int, seed: int, smallest: int
) -> Found:
    """Judges every group on the real test images, on its subgroups and on every further test set."""
    classes = materials[0].real.labels
    drawn = {"resamples": resamples, "seed": seed, "smallest": smallest}
    tests = {"": [material.real for material in materials]}
    tests |= {name: [material.tests[name] for material in materials] for name in materials[0].tests}
    judged = {name: _read(folders, manifests, name, classes, drawn) for name, manifests in tests.items()}
    here = judged[""]
    comparisons = [_compare(group, here, baseline, classes) for group in here if group[2] != baseline]
    adjusted = intervals.holm([each.p for each in comparisons])
    groups = findings.split(materials[0].real) if len(materials) == 1 else {}
    return Found(
        classes=classes,
        figures={group: _figures(folds, classes) for group, folds in here.items()},
        alone={group: np.mean([f.spreads[PRIMARY].values for f in folds], axis=0).tolist()
               for group, folds in here.items()},
        mean={group: [fold.mean for fold in folds] for group, folds in here.items()},
        comparisons=[replace(each, adjusted=p) for each, p in zip(comparisons, adjusted, strict=True)],
        subgroups={key: _in_subgroup(here, images, classes) for key, images in groups.items()},
        elsewhere={name: _elsewhere(judged[name], baseline, classes) for name in tests if name},
        fidelity=_fidelity(folders, materials, classes),
    )  # fmt: skip


def _read(folders: dict[Cell, Path], manifests: list[Manifest], name: str, classes: tuple[str, ...], drawn: dict):
    """{group: [what was said in each fold]} of the test split, or of a further test set by its name."""
    cells: dict[Group, dict[int, list[Path]]] = {}
    for cell, folder in folders.items():
        cells.setdefault((cell.classifier, cell.shots, cell.arm), {}).setdefault(cell.fold, []).append(folder)
    return {group: [_fold(cells[group][fold], manifests[fold], name, classes, drawn) for fold in cells[group]]
            for group in cells}  # fmt: skip


def _fold(folders: list[Path], manifest: Manifest, name: str, classes: tuple[str, ...], drawn: dict) -> Judged:
    if not name:
        said = [evaluated.judged(folder / "predictions.csv", manifest) for folder in folders]
    else:
        said = [_elsewhere_said(folder, name, classes) for folder in folders]
    lesion_of = {record.image: record.lesion_id or record.image for record in manifest.split("test")}
    bootstrap = Bootstrap(lesions=tuple(lesion_of[i] for i in said[0].images), **drawn)
    return Judged(said=said, bootstrap=bootstrap, names=metrics.names(said[0]))


def _elsewhere_said(folder: Path, name: str, classes: tuple[str, ...]) -> Predictions:
    """What a cell said of a further test set; the thresholds are those of the validation images of this study."""
    said = predictions.read(folder / f"predictions_{name}.csv", classes, "test")
    validation = predictions.read(folder / "predictions.csv", classes, "validation")
    return replace(said, thresholds=metrics.thresholds(validation))


def _figures(folds: list[Judged], classes: tuple[str, ...]) -> dict[str, Estimate]:
    few = next((reason for fold in folds if (reason := fold.few(classes))), "")
    return {
        name: _bounded(intervals.combined([fold.spreads[name] for fold in folds], few)[0]) for name in folds[0].names
    }


def _bounded(estimate: Estimate) -> Estimate:
    """The interval of a share or an area, which lies between 0 and 1 whatever Student's quantile says."""
    if estimate.low is None:
        return estimate
    return replace(estimate, low=max(estimate.low, 0.0), high=min(estimate.high, 1.0))


def _difference(name: str, before: list[Judged], after: list[Judged], classes: tuple[str, ...]):
    """(the combined difference, p), seeds and resamples paired."""
    few = next((reason for fold in before if (reason := fold.few(classes))), "")
    pairs = [(a.spreads[name], b.spreads[name]) for b, a in zip(before, after, strict=True)]
    spreads = [replace(a, values=a.values - b.values, resampled=a.resampled - b.resampled) for a, b in pairs]
    return intervals.combined(spreads, few)


def _compare(group: Group, judged: dict, baseline: str, classes: tuple[str, ...]) -> Comparison:
    before, after = judged[(*group[:2], baseline)], judged[group]
    found = {name: _difference(name, before, after, classes) for name in after[0].names}
    tests = [intervals.mcnemar(b.mean, a.mean) for b, a in zip(before, after, strict=True)]
    return Comparison(
        group=group,
        differences={name: estimate for name, (estimate, _) in found.items()},
        p=found[PRIMARY][1],
        adjusted=found[PRIMARY][1],
        mcnemar=intervals.mcnemar_of(
            *(sum(t[key] for t in tests) for key in ("only_before_right", "only_after_right"))
        ),
    )


def _in_subgroup(judged: dict, images: set[str], classes: tuple[str, ...]) -> dict[Group, Estimate]:
    """AUROC on some of the images, where every class is among them."""
    found = {}
    for group, folds in judged.items():
        part = [fold.only(images) for fold in folds]
        if len(set(part[0].said[0].labels)) == len(classes):
            few = part[0].few(classes)
            found[group] = _bounded(intervals.combined([each.spreads[PRIMARY] for each in part], few)[0])
    return found


def _elsewhere(judged: dict, baseline: str, classes: tuple[str, ...]) -> dict:
    found = {}
    for group, folds in judged.items():
        figures, before = _figures(folds, classes), judged[(*group[:2], baseline)]
        found[group] = {name: (figures[name], _difference(name, before, folds, classes)[0]) for name in folds[0].names}
    return found


def _fidelity(folders: dict[Cell, Path], materials: list[Material], classes: tuple[str, ...]) -> dict[Group, Estimate]:
    """How often the seeds' mean probability of a classifier that saw real images only gives a synthetic image its
    class (the arm real_tested_on_synthetic)."""
    said: dict[Group, dict[int, list[Predictions]]] = {}
    for cell, folder in folders.items():
        path = folder / "synthetic_predictions.csv"
        if cell.arm == BASELINE and path.is_file():
            group = (cell.classifier, cell.shots, JUDGED)
            said.setdefault(group, {}).setdefault(cell.fold, []).append(predictions.read(path, classes, "train"))
    found = {}
    for group, folds in said.items():
        means = [
            np.mean([s.probabilities for s in each], axis=0).argmax(-1) == each[0].labels for each in folds.values()
        ]
        found[group] = intervals.share(int(sum(right.sum() for right in means)), sum(len(right) for right in means))
    return found


def as_json(found: Found) -> str:
    """The findings as JSON text; a number that does not exist is null, with its reason in the note."""
    return json.dumps(
        {
            "classes": found.classes,
            "groups": [_group(group, found) for group in found.figures],
            "comparisons": [_comparison(each) for each in found.comparisons],
            "subgroups": [
                {"kind": kind, "group": name, **_named(group), "auroc": asdict(estimate)}
                for (kind, name), estimates in found.subgroups.items()
                for group, estimate in estimates.items()
            ],
            "elsewhere": [
                {
                    "test": test,
                    **_named(group),
                    "figures": _figures_json({name: value for name, (value, _) in figures.items()}),
                    "differences": _figures_json({name: difference for name, (_, difference) in figures.items()}),
                }
                for test, groups in found.elsewhere.items()
                for group, figures in groups.items()
            ],
            "label_fidelity": [{**_named(group), **asdict(estimate)} for group, estimate in found.fidelity.items()],
            "paper_accuracies_percent": findings.ACCURACIES,
        },
        indent=2,
        allow_nan=False,
    )


def _named(group: Group) -> dict:
    return dict(zip(("classifier", "shots", "arm"), group, strict=True))


def _group(group: Group, found: Found) -> dict:
    return {
        **_named(group),
        "figures": _figures_json(found.figures[group]),
        "auroc_of_each_seed": found.alone[group],
        "confusion_of_the_mean": [metrics.confusion(said).tolist() for said in found.mean[group]],
    }


def _comparison(each: Comparison) -> dict:
    return {
        **_named(each.group),
        "differences": _figures_json(each.differences),
        "p": None if math.isnan(each.p) else each.p,
        "p_adjusted": None if math.isnan(each.adjusted) else each.adjusted,
        "mcnemar": each.mcnemar,
        "verdict": each.verdict,
    }


def _figures_json(figures: dict[str, Estimate]) -> dict:
    return {name: asdict(estimate) for name, estimate in figures.items()}
