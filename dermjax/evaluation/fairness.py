"""Whether a classifier is as good for everybody: its figures in each subgroup, the worst one, and the gap.

A subgroup counts where both classes have enough lesions in it for an interval. The gap between the best and the worst
is never below zero, so that chance alone opens one: its interval, by a bootstrap over the lesions of each subgroup,
says how far.
"""

from dataclasses import dataclass

import numpy as np

from dermjax.evaluation import intervals
from dermjax.evaluation.findings import PRIMARY
from dermjax.evaluation.intervals import LEVEL, Estimate, Fold

FIGURES = ("auroc", "sensitivity", "specificity")


@dataclass(frozen=True)
class Kind:
    """The subgroups of one kind, such as sex: figures by name, which is worst by AUROC, and how far from the best."""

    figures: dict[str, dict[str, Estimate]]
    worst: str
    gap: Estimate


def compare(fold: Fold, subgroups: dict[tuple[str, str], set[str]]) -> dict[str, Kind]:
    """The subgroups of each kind that has two or more with enough lesions. subgroups: images by (kind, name)."""
    names = tuple(name for name in FIGURES if name in fold.names)
    within: dict[str, dict[str, Fold]] = {}
    for (kind, name), images in subgroups.items():
        part = fold.only(images, names)
        if len(set(part.seeds[0].labels.tolist())) == len(fold.classes) and not part.too_few:
            within.setdefault(kind, {})[name] = part
    return {kind: _kind(parts) for kind, parts in within.items() if len(parts) > 1}


def _kind(parts: dict[str, Fold]) -> Kind:
    values = {name: float(part.spreads[PRIMARY].values.mean()) for name, part in parts.items()}
    drawn = np.stack([part.spreads[PRIMARY].resampled.mean(0) for part in parts.values()])
    low, high = np.quantile(drawn.max(0) - drawn.min(0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    apart, n = max(values.values()) - min(values.values()), sum(part.spreads[PRIMARY].n for part in parts.values())
    pooled = len(next(iter(parts.values())).seeds) > 1
    return Kind(
        figures={name: intervals.figures([part], pooled=pooled) for name, part in parts.items()},
        worst=min(values, key=values.get),
        gap=Estimate(value=apart, n=n, low=float(low), high=float(high), note="never below zero"),
    )
