"""Every number of a study, for programs: results.json."""

import json
import math
from dataclasses import asdict

from dermjax.evaluation import metrics, paper
from dermjax.evaluation.intervals import Estimate
from dermjax.study.findings import Comparison, Found, Group


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
                    "figures": _figures({name: value for name, (value, _) in figures.items()}),
                    "differences": _figures({name: difference for name, (_, difference) in figures.items()}),
                }
                for test, groups in found.elsewhere.items()
                for group, figures in groups.items()
            ],
            "label_fidelity": [{**_named(group), **asdict(estimate)} for group, estimate in found.fidelity.items()],
            "paper_accuracies_percent": paper.ACCURACIES,
        },
        indent=2,
        allow_nan=False,
    )


def _named(group: Group) -> dict:
    return dict(zip(("classifier", "shots", "arm"), group, strict=True))


def _group(group: Group, found: Found) -> dict:
    return {
        **_named(group),
        "figures": _figures(found.figures[group]),
        "auroc_of_each_seed": found.alone[group],
        "confusion_of_the_mean": [metrics.confusion(said).tolist() for said in found.mean[group]],
    }


def _comparison(each: Comparison) -> dict:
    return {
        **_named(each.group),
        "differences": _figures(each.differences),
        "p": None if math.isnan(each.p) else each.p,
        "p_adjusted": None if math.isnan(each.adjusted) else each.adjusted,
        "mcnemar": each.mcnemar,
        "verdict": each.verdict,
    }


def _figures(figures: dict[str, Estimate]) -> dict:
    return {name: asdict(estimate) for name, estimate in figures.items()}
