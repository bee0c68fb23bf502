"""How far a figure can be trusted: 95 % percentile intervals of a bootstrap over lesions.

A resample draws lesions with replacement within each class and is held as weights, one a test image, so that 2000
resamples of a figure are one array expression (weighted.py). The same seed and the same lesions give the same
resamples, which makes differences between two classifiers paired. (Efron & Tibshirani 1993, chapter 13.)

Shapes: R resamples, n images.

One figure of several training seeds: its mean, and an interval for both chances, which images and which training.

The mean over S seeds varies because other lesions could have been drawn (V, the bootstrap variance of the mean; every
seed sees the same draws) and because other seeds could have been. The variance between the figures of the seeds on one
test set holds, besides what seeds differ by on any test set, what seed and images differ by together; the bootstrap has
that part too, so it is taken off before the rest, divided by S, is added to V (a two-way random-effects model, as in
Obuchowski & Rockette 1995). Each of the two variances reaches as far as Student's quantile of its own degrees of
freedom, and the reaches add in squares (Howe 1974), so that three seeds are not taken for many: Satterthwaite's one
quantile for both covers too little here. One seed leaves V alone, and the estimate says so.

Shapes: S seeds, R resamples.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binomtest
from scipy.stats import t as student

from dermjax.evaluation import metrics
from dermjax.evaluation.predictions import Predictions
from dermjax.evaluation.weighted import WEIGHTED

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


def figures(said: Predictions, classes: tuple[str, ...], bootstrap: Bootstrap) -> dict[str, Estimate]:
    """Every figure that exists for these predictions, by name."""
    values = {name: metrics.METRICS[name](said) for name in metrics.names(said)}
    spread = spreads(bootstrap, said.labels, lambda name, weights: WEIGHTED[name](said, weights), values)
    few = bootstrap.too_few(said.labels, classes)
    return {name: _estimate(name, value, said.labels, spread[name], few) for name, value in values.items()}


def differences(
    before: Predictions, after: Predictions, classes: tuple[str, ...], bootstrap: Bootstrap
) -> dict[str, Estimate]:
    """after - before in every figure, resampled together: both must be of the same images."""

    def difference(name: str, weights: np.ndarray) -> np.ndarray:
        return WEIGHTED[name](after, weights) - WEIGHTED[name](before, weights)

    figure_of = metrics.METRICS
    values = {name: figure_of[name](after) - figure_of[name](before) for name in metrics.names(after)}
    spread = spreads(bootstrap, before.labels, difference, values)
    few = bootstrap.too_few(before.labels, classes)
    return {
        name: Estimate(value=value, n=metrics.counted(name, before.labels), **_percentiles(spread[name], few))
        for name, value in values.items()
    }


def share(count: int, n: int) -> Estimate:
    """count of n with the exact interval of Clopper and Pearson, which also stands where all or none count."""
    exact = binomtest(count, n).proportion_ci(LEVEL, method="exact")
    return Estimate(value=count / n, n=n, low=float(exact.low), high=float(exact.high), note="exact interval")


def mcnemar(before: Predictions, after: Predictions) -> dict[str, float]:
    """McNemar's exact test on the images that only one of the two got right; it takes images as independent."""
    only_before, only_after = int((before.right & ~after.right).sum()), int((after.right & ~before.right).sum())
    return mcnemar_of(only_before, only_after)


def mcnemar_of(only_before: int, only_after: int) -> dict[str, float]:
    """McNemar's exact test of two counts: images that only the one, and only the other, got right."""
    changed = only_before + only_after
    p = binomtest(only_after, changed, 0.5).pvalue if changed else 1.0
    return {"only_before_right": only_before, "only_after_right": only_after, "p": float(p)}


def spreads(bootstrap: Bootstrap, labels: np.ndarray, figure, wanted) -> dict[str, np.ndarray]:
    """Each wanted figure, figure(name, weights) -> [R], over all resamples; all figures see the same draws."""
    blocks = [{name: figure(name, weights) for name in wanted} for weights in bootstrap.weights(labels)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in wanted}


def _strata(labels: np.ndarray, unit_of: np.ndarray, units: int) -> list[np.ndarray]:
    """The units of each class, as index arrays."""
    seen = [set() for _ in range(units)]
    for unit, label in zip(unit_of.tolist(), labels.tolist(), strict=True):
        seen[unit].add(label)
    kinds = sorted({tuple(sorted(each)) for each in seen})
    return [np.array([u for u in range(units) if tuple(sorted(seen[u])) == kind]) for kind in kinds]


def _estimate(name: str, value: float, labels: np.ndarray, spread: np.ndarray, few: str) -> Estimate:
    """The figure with its bootstrap interval; where all or none are right, with Clopper and Pearson's exact one."""
    n = metrics.counted(name, labels)
    if not few and name in metrics.PROPORTIONS and value in (0.0, 1.0):
        return share(round(value * n), n)
    if name == "ece":  # drawing again adds noise to every bin, which only ever lifts the error: the lift is taken off
        spread = np.maximum(spread - spread.mean() + value, 0.0)
    return Estimate(value=value, n=n, **_percentiles(spread, few))


def _percentiles(spread: np.ndarray, few: str) -> dict:
    low, high = (float(bound) for bound in np.quantile(spread, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    if few:
        return {"low": None, "high": None, "note": few}
    if low == high:
        return {"low": None, "high": None, "note": "no interval: the resamples do not differ"}
    return {"low": low, "high": high, "note": ""}


SMALLEST = 1e-12  # p-values below it are not told apart


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure of each seed [S], the same under resampling [S, R], over n images and `units` lesions."""

    values: np.ndarray
    resampled: np.ndarray
    n: int
    units: int


def combined(spreads: list[Spread], few: str) -> tuple[Estimate, float]:
    """The mean over folds of the mean over seeds, with its interval, and the p-value of its being zero.

    Folds have test images of their own, so their variances add. `few` says why there can be no interval; p is then nan.
    """
    value = float(np.mean([each.values.mean() for each in spreads]))
    n = sum(each.n for each in spreads)
    if few:
        return Estimate(value=value, n=n, low=None, high=None, note=few), float("nan")
    parts = [part for each in spreads for part in _variances(each)]
    variance = sum(v for v, _ in parts) / len(spreads) ** 2
    if not variance:
        return Estimate(value=value, n=n, low=None, high=None, note="no interval: the resamples do not differ"), 1.0
    reach = _reach(1 - LEVEL, parts) / len(spreads)
    seeds = {len(each.values) for each in spreads}
    note = "" if seeds != {1} else "one seed: the interval does not cover the chance in training"
    return Estimate(value=value, n=n, low=value - reach, high=value + reach, note=note), _p(value * len(spreads), parts)


def _reach(alpha: float, parts: list[tuple[float, float]]) -> float:
    """How far the interval of level 1 - alpha reaches, for variances and their degrees of freedom."""
    return sum(float(student.ppf(1 - alpha / 2, freedom)) ** 2 * variance for variance, freedom in parts) ** 0.5


def _p(value: float, parts: list[tuple[float, float]]) -> float:
    """The alpha whose interval ends at zero."""
    if abs(value) >= _reach(SMALLEST, parts):
        return SMALLEST
    return float(brentq(lambda alpha: _reach(alpha, parts) - abs(value), SMALLEST, 1.0))


def _variances(spread: Spread) -> list[tuple[float, float]]:
    """(variance, degrees of freedom) of the mean over seeds: by the images, then by the seeds."""
    S = len(spread.values)
    mean = spread.resampled.mean(0)
    by_images = float(mean.var(ddof=1)), spread.units - 1
    if S == 1:
        return [by_images]
    together = float((spread.resampled - mean).var(axis=1, ddof=1).mean()) * S / (S - 1)
    between = float(spread.values.var(ddof=1))
    return [by_images, (max(between - together, 0.0) / S, S - 1)]


def holm(p: list[float]) -> list[float]:
    """The p-values of several tests, adjusted by Holm's method (1979); nan stays and does not count."""
    order = [i for i in np.argsort(p) if not np.isnan(p[i])]
    adjusted, highest = list(p), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p[i]))
        adjusted[i] = highest
    return adjusted
