"""One figure of several training seeds: its mean, and an interval for both chances, which images and which training.

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
from scipy.stats import t as student

from dermjax.evaluation.intervals import LEVEL, Estimate

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
