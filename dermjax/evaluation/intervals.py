"""How far a figure can be trusted: 95 % percentile intervals of a bootstrap over lesions.

A resample draws lesions with replacement within each class and is held as weights, one a test image, so that 2000
resamples of a figure are one array expression (scikit-learn's functions take one weighting at a time; the tests prove
both equal). The same seed and the same lesions give the same resamples, which makes differences between two
classifiers paired. (Efron & Tibshirani 1993, chapter 13.)

Shapes: R resamples, n images, U distinct scores.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from dermjax.evaluation import metrics
from dermjax.evaluation.predictions import Predictions

LEVEL = 0.95
BLOCK = 200  # resamples at once, so that memory does not grow with their number


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure over n images with its interval, or with the reason in `note` why low and high are None."""

    value: float
    n: int
    low: float | None
    high: float | None
    note: str


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """The units (lesions, else images) that are drawn, and how: `lesions` names one a prediction, in their order."""

    lesions: tuple[str, ...]
    resamples: int
    seed: int
    smallest: int

    def weights(self, labels: np.ndarray):
        """Yields float64 [BLOCK, n]: how often each image is drawn in each of a block of resamples.

        Strata are classes; a lesion whose images carry several labels is of a stratum of its own kind, so that every
        class stands in every resample.
        """
        units, unit_of = np.unique(self.lesions, return_inverse=True)
        strata = _strata(labels, unit_of, len(units))
        generator = np.random.default_rng(self.seed)
        for start in range(0, self.resamples, BLOCK):
            drawn = np.zeros((min(BLOCK, self.resamples - start), len(units)))
            for stratum in strata:
                drawn[:, stratum] = generator.multinomial(
                    len(stratum), np.full(len(stratum), 1 / len(stratum)), len(drawn)
                )
            yield drawn[:, unit_of]

    def too_few(self, labels: np.ndarray, classes: tuple[str, ...]) -> str:
        """Why there are too few units for an interval, or nothing."""
        units = {name: len({self.lesions[i] for i in np.flatnonzero(labels == c)}) for c, name in enumerate(classes)}
        short = [f"{name} has {count}" for name, count in units.items() if count < self.smallest]
        return f"no interval: {', '.join(short)} lesions, fewer than {self.smallest}" if short else ""


def figures(predictions: Predictions, classes: tuple[str, ...], bootstrap: Bootstrap) -> dict[str, Estimate]:
    """Every figure that exists for these classes, by name."""
    labels, probabilities = predictions.labels, predictions.probabilities
    values = {name: metrics.METRICS[name](labels, probabilities) for name in metrics.names(len(classes))}
    spread = _spread(bootstrap, labels, lambda name, weights: WEIGHTED[name](labels, probabilities, weights), values)
    few = bootstrap.too_few(labels, classes)
    return {name: _estimate(name, value, labels, spread[name], few) for name, value in values.items()}


def differences(
    before: Predictions, after: Predictions, classes: tuple[str, ...], bootstrap: Bootstrap
) -> dict[str, Estimate]:
    """after - before in every figure, resampled together: both must be of the same images."""
    labels = before.labels

    def difference(name: str, weights: np.ndarray) -> np.ndarray:
        figure = WEIGHTED[name]
        return figure(labels, after.probabilities, weights) - figure(labels, before.probabilities, weights)

    figure_of = metrics.METRICS
    values = {
        name: figure_of[name](labels, after.probabilities) - figure_of[name](labels, before.probabilities)
        for name in metrics.names(len(classes))
    }
    spread = _spread(bootstrap, labels, difference, values)
    few = bootstrap.too_few(labels, classes)
    return {
        name: Estimate(value=value, n=metrics.counted(name, labels), **_percentiles(spread[name], few))
        for name, value in values.items()
    }


def share(count: int, n: int) -> Estimate:
    """count of n with the exact interval of Clopper and Pearson, which also stands where all or none count."""
    exact = binomtest(count, n).proportion_ci(LEVEL, method="exact")
    return Estimate(value=count / n, n=n, low=float(exact.low), high=float(exact.high), note="exact interval")


def mcnemar(before: Predictions, after: Predictions) -> dict[str, float]:
    """McNemar's exact test on the images that only one of the two got right; it takes images as independent."""
    right_before = before.probabilities.argmax(-1) == before.labels
    right_after = after.probabilities.argmax(-1) == after.labels
    only_before, only_after = int((right_before & ~right_after).sum()), int((right_after & ~right_before).sum())
    changed = only_before + only_after
    p = binomtest(only_after, changed, 0.5).pvalue if changed else 1.0
    return {"only_before_right": only_before, "only_after_right": only_after, "p": float(p)}


def weighted_accuracy(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """metrics.accuracy under each weighting, [R, n] -> [R]."""
    return weights @ (probabilities.argmax(-1) == labels) / weights.sum(-1)


def weighted_sensitivity(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """metrics.sensitivity under each weighting, [R, n] -> [R]."""
    return weighted_accuracy(labels, probabilities, weights * (labels == 1))


def weighted_specificity(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """metrics.specificity under each weighting, [R, n] -> [R]."""
    return weighted_accuracy(labels, probabilities, weights * (labels == 0))


def weighted_auroc(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """metrics.auroc under each weighting, [R, n] -> [R]."""
    classes = probabilities.shape[-1]
    areas = [_area(labels == c, probabilities[:, c], weights) for c in ([1] if classes == 2 else range(classes))]
    return np.mean(areas, axis=0)


def _area(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """P(score of a positive > score of a negative), ties counted half (Mann-Whitney), under each weighting [R]."""
    order = np.argsort(scores, kind="stable")
    first_of_score = np.unique(scores[order], return_index=True)[1]
    sorted_weights = weights[:, order]
    positives = np.add.reduceat(sorted_weights * positive[order], first_of_score, axis=-1)  # [R, U]
    negatives = np.add.reduceat(sorted_weights * ~positive[order], first_of_score, axis=-1)
    below = np.cumsum(negatives, axis=-1) - negatives / 2
    return (positives * below).sum(-1) / (positives.sum(-1) * negatives.sum(-1))


def _strata(labels: np.ndarray, unit_of: np.ndarray, units: int) -> list[np.ndarray]:
    """The units of each class, as index arrays."""
    seen = [set() for _ in range(units)]
    for unit, label in zip(unit_of.tolist(), labels.tolist(), strict=True):
        seen[unit].add(label)
    kinds = sorted({tuple(sorted(each)) for each in seen})
    return [np.array([u for u in range(units) if tuple(sorted(seen[u])) == kind]) for kind in kinds]


def _spread(bootstrap: Bootstrap, labels: np.ndarray, figure, wanted) -> dict[str, np.ndarray]:
    """Each wanted figure over all resamples [R]; all figures see the same draws."""
    blocks = [{name: figure(name, weights) for name in wanted} for weights in bootstrap.weights(labels)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in wanted}


def _estimate(name: str, value: float, labels: np.ndarray, spread: np.ndarray, few: str) -> Estimate:
    """The figure with its bootstrap interval; where all or none are right, with Clopper and Pearson's exact one."""
    n = metrics.counted(name, labels)
    if not few and name != "auroc" and value in (0.0, 1.0):
        return share(round(value * n), n)
    return Estimate(value=value, n=n, **_percentiles(spread, few))


def _percentiles(spread: np.ndarray, few: str) -> dict:
    low, high = (float(bound) for bound in np.quantile(spread, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    if few:
        return {"low": None, "high": None, "note": few}
    if low == high:
        return {"low": None, "high": None, "note": "no interval: the resamples do not differ"}
    return {"low": low, "high": high, "note": ""}


WEIGHTED = {
    "accuracy": weighted_accuracy,
    "sensitivity": weighted_sensitivity,
    "specificity": weighted_specificity,
    "auroc": weighted_auroc,
}
