"""Whether a classifier is as good for everybody: its figures in each subgroup, the worst one, and the gap.

A subgroup counts where every class has enough patients, lesions or images in it for an interval. The gap between the
best and the worst is never below zero: chance alone opens one, the wider the more and the smaller the subgroups are. So
beside the gap stands the one that 95 % of divisions by chance stay below.
"""

from dataclasses import dataclass

import numpy as np

from dermjax.evaluation import intervals, metrics
from dermjax.evaluation.intervals import LEVEL, Estimate, Fold
from dermjax.evaluation.predictions import Predictions

DIVISIONS = 400
FIGURES = ("auroc", "sensitivity", "specificity")


@dataclass(frozen=True)
class Kind:
    """The subgroups of one kind, such as sex: figures by name, which is worst by AUROC, how far from the best, and
    which gap the patients, lesions or images, divided at random within their class into subgroups of as many, stay
    below in 95 %."""

    figures: dict[str, dict[str, Estimate]]
    worst: str
    gap: float
    by_chance: float


def compare(fold: Fold, subgroups: dict[tuple[str, str], set[str]]) -> dict[str, Kind]:
    """The subgroups of each kind that has two or more with enough units. subgroups: images by (kind, name)."""
    names = tuple(name for name in FIGURES if name in fold.names)
    within: dict[str, dict[str, Fold]] = {}
    for (kind, name), images in subgroups.items():
        part = fold.only(images, names)
        if len(set(part.seeds[0].labels.tolist())) == len(fold.classes) and not part.too_few:
            within.setdefault(kind, {})[name] = part
    return {kind: _kind(parts) for kind, parts in within.items() if len(parts) > 1}


def _kind(parts: dict[str, Fold]) -> Kind:
    values = {name: _auroc(part.seeds) for name, part in parts.items()}
    pooled = len(next(iter(parts.values())).seeds) > 1
    return Kind(
        figures={name: intervals.figures([part], pooled=pooled) for name, part in parts.items()},
        worst=min(values, key=values.get),
        gap=max(values.values()) - min(values.values()),
        by_chance=_gap_by_chance(list(parts.values())),
    )


def _gap_by_chance(parts: list[Fold]) -> float:
    """The gap that LEVEL of DIVISIONS random ones of the units stay below, each with as many of a class as are seen.

    The images of a unit in one subgroup stay together, as they are of one chance; dealt alone they would even out.
    """
    rng = np.random.default_rng(0)
    labels = np.concatenate([part.seeds[0].labels for part in parts])
    scores = [np.concatenate([part.seeds[seed].probabilities for part in parts]) for seed in range(len(parts[0].seeds))]
    subgroup = np.repeat(np.arange(len(parts)), [len(part.seeds[0].labels) for part in parts])
    _, unit = np.unique(np.concatenate([part.bootstrap.units for part in parts]), return_inverse=True)
    _, first, dealt = np.unique(unit * len(parts) + subgroup, return_index=True, return_inverse=True)
    shown = np.zeros((len(first), labels.max() + 1), bool)
    shown[dealt, labels] = True
    strata = [(shown == kind).all(1) for kind in np.unique(shown, axis=0)]  # by the classes of a unit's images
    gaps = []
    for _ in range(DIVISIONS):
        shuffled = subgroup[first]
        for stratum in strata:
            shuffled[stratum] = rng.permutation(shuffled[stratum])
        rows = [np.flatnonzero(shuffled[dealt] == number) for number in range(len(parts))]
        values = [
            _auroc([Predictions(images=(), labels=labels[each], probabilities=score[each]) for score in scores])
            for each in rows
        ]
        gaps.append(max(values) - min(values))
    return float(np.quantile(gaps, LEVEL))


def _auroc(seeds: list[Predictions]) -> float:
    return float(np.mean([metrics.auroc(each) for each in seeds]))
