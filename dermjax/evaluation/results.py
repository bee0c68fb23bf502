"""Every number of the page, for programs: results.json."""

import json
from dataclasses import asdict

from dermjax.evaluation import metrics, paper
from dermjax.evaluation.findings import Comparison, Findings, Run
from dermjax.evaluation.intervals import Estimate


def as_json(found: Findings, bootstrap: dict, images: dict, rejections: dict) -> str:
    """The findings and counts as JSON text; an interval that does not exist is null, with its reason in the note."""
    return json.dumps(
        {
            "classes": found.classes,
            "images": images,
            "rejections": rejections,
            "bootstrap": bootstrap,
            "runs": {run.name: _run(run, found.figures[run.name]) for run in found.runs},
            "comparisons": [_comparison(each) for each in found.comparisons],
            "label_fidelity": {name: asdict(estimate) for name, estimate in found.fidelity.items()},
            "paper_accuracies_percent": paper.ACCURACIES,
        },
        indent=2,
        allow_nan=False,
    )


def _run(run: Run, figures: dict[str, Estimate]) -> dict:
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
