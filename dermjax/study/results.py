"""The predictions of all cells -> findings -> results.json, which has every number of a study for programs.

An arm is the mean over its seeds. It is compared with the baseline of the same classifier and few-shot size, seed by
seed and on the same resamples of the same patients, lesions or images. p-values are adjusted by Holm's method over all
comparisons; those of the arms that validation images alone have chosen, one of each setting, once more among
themselves.
"""

import json
import math
from collections.abc import Collection
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path

import numpy as np

from dermjax.classification.run import predictions_file
from dermjax.data.records import Manifest
from dermjax.evaluation import findings, metrics, predictions
from dermjax.evaluation.findings import PRIMARY, Comparison, Findings, Group
from dermjax.evaluation.intervals import Fold
from dermjax.evaluation.predictions import Predictions
from dermjax.evaluation.report import PAPER
from dermjax.study import arms
from dermjax.study.arms import BASELINE, TESTED_ON_SYNTHETIC
from dermjax.study.cells import Cell, Material


def choose(folders: dict[Cell, Path], materials: list[Material]) -> dict[Group, float]:
    """Returns the arm of each setting with synthetic images that is best on validation images, and its AUROC there.

    It is the mean over seeds and folds. No test image is read.
    """
    scores: dict[tuple[str, int], dict[Group, list[float]]] = {}
    for cell, folder in folders.items():
        if any(phase.fraction for phase in arms.phases(cell.arm)):
            real = materials[cell.fold].real
            validation = predictions.read(folder / "predictions.csv", real.labels, "validation", real.records)
            score = float(metrics.auroc(validation))
            scores.setdefault(cell.group[:2], {}).setdefault(cell.group, []).append(score)
    means = [{group: float(np.mean(each)) for group, each in groups.items()} for groups in scores.values()]
    return dict(max(groups.items(), key=lambda item: item[1]) for groups in means)


def find(
    folders: dict[Cell, Path],
    materials: list[Material],
    baseline: str,
    chosen: Collection[Group],
    bootstrap: dict[str, int],
    *,
    own_generators: bool,
) -> Findings:
    """Compares the arms on the real test images, on their subgroups (of one fold) and on every further test set.

    chosen: the groups of `choose`. bootstrap: the resamples, seed and smallest of `Bootstrap`. own_generators: whether
    each seed has synthetic images of its own.
    """
    groups: dict[Group, dict[int, list[Path]]] = {}
    for cell, folder in folders.items():
        groups.setdefault(cell.group, {}).setdefault(cell.fold, []).append(folder)

    here = {
        group: [
            findings.fold([_read(seed, "", materials[k].real) for seed in seeds], materials[k].real, bootstrap)
            for k, seeds in by_fold.items()
        ]
        for group, by_fold in groups.items()
    }

    def there(test: str) -> dict[Group, list[Fold]]:
        """One fold: whatever they were trained on, all cells are judged on the same images."""
        manifest = materials[0].tests[test]
        cells = {group: chain(*by_fold.values()) for group, by_fold in groups.items()}
        return {
            group: [findings.fold([_read(each, test, manifest) for each in of_group], manifest, bootstrap)]
            for group, of_group in cells.items()
        }

    synthetic = {}
    for group in [group for group in groups if group.arm == BASELINE]:
        several = []  # (fold, classifiers that judge the same images)
        for fold, seeds in groups[group].items():
            paths = [seed / "synthetic_predictions.csv" for seed in seeds]
            judges = [predictions.read(path, materials[0].real.labels, "train") for path in paths if path.is_file()]
            several += [(fold, [one]) for one in judges] if own_generators else [(fold, judges)] * bool(judges)
        if several:
            synthetic[group._replace(arm=TESTED_ON_SYNTHETIC)] = [
                findings.of_synthetic(judges, materials[fold].synthetic, bootstrap) for fold, judges in several
            ]
    subgroups = findings.subgroups(materials[0].real) if len(materials) == 1 else {}
    return replace(
        findings.find(here, baseline, synthetic, pooled=True, chosen=chosen),
        subgroups={key: findings.in_subgroup(here, images) for key, images in subgroups.items()},
        elsewhere={test: findings.elsewhere(there(test), baseline) for test in materials[0].tests},
    )


def as_json(result: Findings) -> str:
    """The findings as JSON text; a number that does not exist is null, with its reason in the note."""
    results = {
        "classes": result.classes,
        "observed_share_of_positives": result.observed,
        "groups": [
            {
                **group._asdict(),
                "chosen_on_validation": group in {each.group for each in result.chosen},
                "figures": figures,
                "auroc_of_each_seed": result.seeds(group),
                "confusion_over_seeds": result.confusion(group).tolist(),
                "confusion_of_the_mean": [metrics.confusion(fold.mean).tolist() for fold in result.folds[group]],
            }
            for group, figures in result.figures.items()
        ],
        "comparisons": [_as_numbers(each) for each in result.comparisons.values()],
        "chosen": [_as_numbers(each) for each in result.chosen],
        "subgroups": [
            {"kind": kind, "group": name, **group._asdict(), PRIMARY: estimate}
            for (kind, name), estimates in result.subgroups.items()
            for group, estimate in estimates.items()
        ],
        "elsewhere": [
            {
                "test": test,
                **group._asdict(),
                "figures": {name: value for name, (value, _) in figures.items()},
                "differences": {name: difference for name, (_, difference) in figures.items()},
            }
            for test, groups in result.elsewhere.items()
            for group, figures in groups.items()
        ],
        "label_fidelity": [{**group._asdict(), **asdict(share)} for group, share in result.fidelity.items()],
        "paper_accuracies_percent": PAPER["accuracies"],
    }
    return json.dumps(results, indent=2, allow_nan=False, default=asdict)


def _as_numbers(each: Comparison) -> dict:
    """A comparison for JSON."""
    return {
        **each.group._asdict(),
        "differences": each.differences,
        "p": None if math.isnan(each.p) else each.p,
        "p_adjusted": None if math.isnan(each.adjusted) else each.adjusted,
        "mcnemar": each.mcnemar,
        "verdict": each.verdict,
    }


def _read(folder: Path, test: str, manifest: Manifest) -> Predictions:
    """A cell's predictions of the test split, or of a further test set; thresholds are of the validation images."""
    if not test:
        return predictions.read_test(folder / "predictions.csv", manifest)
    validation = predictions.read(folder / "predictions.csv", manifest.labels, "validation")
    further = predictions.read(folder / predictions_file(test), manifest.labels, "test", manifest.records)
    return replace(further, thresholds=predictions.thresholds(validation))
