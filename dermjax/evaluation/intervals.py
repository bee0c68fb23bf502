"""How far a figure can be trusted: 95 % intervals from a bootstrap, of one run or of several seeds.

A resample draws units, which are patients, else lesions, else images, with replacement within each class and is held as
weights, one a test image, so that 2000 resamples of a figure are one array expression. The same seed and the same units
give the same resamples, which pairs the differences between two classifiers, and seeds with seeds.

The figure of one run lies between the percentiles of its resamples (Efron & Tibshirani 1993, chapter 13).

The mean over S seeds has an interval for both chances, which images and which training: it varies because other units
could have been drawn (V, the bootstrap variance of the mean; every seed sees the same draws) and because other seeds
could have been. The variance between the figures of the seeds on one test set holds, besides what seeds differ by on
any test set, what seed and images differ by together; the bootstrap has that part too, so it is taken off before the
rest, divided by S, is added to V (a two-way random-effects model, as in Obuchowski & Rockette 1995). Each of the two
variances reaches as far as Student's quantile of its degrees of freedom, and the reaches add in squares (Howe 1974), so
that three seeds are not taken for many: Satterthwaite's one quantile for both covers too little here. One seed leaves V
alone, and the estimate says so.

n units drawn with replacement vary by (n - 1) / n of what n of a population do, so a bootstrap variance is taken times
n / (n - 1), with n - 1 degrees of freedom. n counts the units of the class that carries the figure: of an AUROC, or any
figure that weighs classes alike, that with the fewest. In simulation with 10 positive and 300 negative images and one
seed 94 % of the intervals cover the truth, where those by all images cover 90 %.

Shapes: S seeds, R resamples, n images.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binomtest
from scipy.stats import t as student

from dermjax.evaluation import metrics, predictions
from dermjax.evaluation.predictions import Predictions

LEVEL = 0.95
BLOCK = 200  # resamples at once, so that memory does not grow with their number
SMALLEST = 1e-12  # p-values below it are not told apart
CONSTANT = "no interval: the resamples do not differ"


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
    """The units that are drawn, and how: `units` names one a prediction, in their order, `kind` what they are."""

    units: tuple[str, ...]
    kind: str  # for people: patients, lesions, images, or several of these
    resamples: int
    seed: int
    smallest: int  # fewer units of a class give no interval; of one unit there never is one

    def weights(self, labels: np.ndarray) -> Iterator[np.ndarray]:
        """Yields float64 [BLOCK, n]: how often each image is drawn in each of a block of resamples.

        Strata are classes; a unit whose images carry several labels is of a stratum of its own kind, so that every
        class stands in every resample.
        """
        units, unit_of = np.unique(self.units, return_inverse=True)
        labels_of = [set() for _ in units]
        for unit, label in zip(unit_of.tolist(), labels.tolist(), strict=True):
            labels_of[unit].add(label)
        kinds = [tuple(sorted(each)) for each in labels_of]
        strata = [[unit for unit, each in enumerate(kinds) if each == kind] for kind in sorted(set(kinds))]
        generator = np.random.default_rng(self.seed)
        for start in range(0, self.resamples, BLOCK):
            drawn = np.zeros((min(BLOCK, self.resamples - start), len(units)))
            for stratum in strata:
                size = len(stratum)
                drawn[:, stratum] = generator.multinomial(size, np.full(size, 1 / size), len(drawn))
            yield drawn[:, unit_of]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure of each seed [S], the same under resampling [S, R], over n images, carried by so many `units`."""

    values: np.ndarray
    resampled: np.ndarray
    n: int
    units: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Fold:
    """The predictions of one test set by a training of each seed, the figures of interest, and how units are drawn.

    One run is a fold of one seed.
    """

    seeds: list[Predictions]
    classes: tuple[str, ...]
    bootstrap: Bootstrap
    names: tuple[str, ...]

    @cached_property
    def spreads(self) -> dict[str, Spread]:
        """The figures of every seed with their resamples; all figures, seeds and arms see the same draws."""
        labels = self.seeds[0].labels
        blocks = [
            [[metrics.METRICS[name](each, weights) for each in self.seeds] for name in self.names]
            for weights in self.bootstrap.weights(labels)
        ]
        return {
            name: Spread(
                values=np.array([metrics.METRICS[name](each) for each in self.seeds]),
                resampled=np.concatenate(resampled, axis=-1),
                n=int(metrics.counted(name, labels).sum()),
                units=self._carrying(name),
            )
            for name, *resampled in zip(self.names, *blocks, strict=True)
        }

    @cached_property
    def mean(self) -> Predictions:
        """The mean probability over the seeds."""
        return predictions.mean(self.seeds)

    @cached_property
    def too_few(self) -> str:
        """Why there are too few units for an interval, or nothing."""
        units, labels, smallest = np.array(self.bootstrap.units), self.seeds[0].labels, max(self.bootstrap.smallest, 2)
        counts = {name: len(set(units[labels == c])) for c, name in enumerate(self.classes)}
        short = [f"{name} has {count}" for name, count in counts.items() if count < smallest]
        return f"no interval: {', '.join(short)} {self.bootstrap.kind}, fewer than {smallest}" if short else ""

    def only(self, images: set[str], names: tuple[str, ...]) -> "Fold":
        """Some figures on some of the images."""
        pairs = zip(self.seeds[0].images, self.bootstrap.units, strict=True)
        units = tuple(unit for image, unit in pairs if image in images)
        seeds = [each.only(images) for each in self.seeds]
        return replace(self, seeds=seeds, bootstrap=replace(self.bootstrap, units=units), names=names)

    def _carrying(self, name: str) -> int:
        """The units of the class that carries a figure: of those it weighs alike the rarest, else of all images."""
        labels, units = self.seeds[0].labels, np.array(self.bootstrap.units)
        counted = metrics.counted(name, labels)
        by_class = [counted & (labels == c) for c in np.unique(labels[counted])]
        strata = [counted] if name in metrics.BY_IMAGE else by_class
        return min(len(set(units[stratum])) for stratum in strata)


def figures(folds: list[Fold], *, pooled: bool) -> dict[str, Estimate]:
    """Every figure: the mean over folds and seeds if `pooled`, else that of one run."""
    few = _too_few(folds)
    return {name: _figure(name, [fold.spreads[name] for fold in folds], few, pooled) for name in folds[0].names}


def differences(before: list[Fold], after: list[Fold], *, pooled: bool) -> dict[str, tuple[Estimate, float | None]]:
    """after - before in every figure and its p-value (of one run there is none), seeds and resamples paired."""
    few, estimates = _too_few(before), {}
    for name in after[0].names:
        pairs = [(a.spreads[name], b.spreads[name]) for b, a in zip(before, after, strict=True)]
        spreads = [replace(a, values=a.values - b.values, resampled=a.resampled - b.resampled) for a, b in pairs]
        estimates[name] = combined(spreads, few) if pooled else (_percentiles(spreads[0], few), None)
    return estimates


def jackknife(statistic: Callable[..., float], sets: Sequence[np.ndarray], seed: int, groups: int = 20) -> Estimate:
    """A statistic of sets [n, ...] without its bias of order 1/n, with its interval by Student's quantile.

    The delete-a-group jackknife (Quenouille 1956, Tukey 1958): every set is divided at random, and group j is left out
    of all of them at once. In simulation the Frechet distance of normal samples is covered in 94 to 96 %.
    """
    rng = np.random.default_rng(seed)
    parts = [rng.permutation(len(each)) % groups for each in sets]
    whole = statistic(*sets)
    left = np.array([statistic(*(each[part != j] for each, part in zip(sets, parts, strict=True)))
                     for j in range(groups)])  # fmt: skip
    value = groups * whole - (groups - 1) * left.mean()
    error = ((groups - 1) / groups * np.square(left - left.mean()).sum()) ** 0.5
    reach = float(student.ppf((1 + LEVEL) / 2, groups - 1)) * error
    n = min(map(len, sets))
    return Estimate(value=float(value), n=n, low=float(value - reach), high=float(value + reach), note="jackknife")


def mean(values: np.ndarray) -> Estimate:
    """The mean of values of n images with its interval: exact for those that are 0 or 1, else by Student's quantile."""
    if values.dtype == bool:
        return share(int(values.sum()), len(values))
    reach = float(student.ppf((1 + LEVEL) / 2, len(values) - 1)) * values.std(ddof=1) / len(values) ** 0.5
    value = float(values.mean())
    return Estimate(value=value, n=len(values), low=value - reach, high=value + reach, note="")


def share(count: int, n: int) -> Estimate:
    """count of n with the exact interval of Clopper and Pearson, which also stands where all or none count."""
    exact = binomtest(count, n).proportion_ci(LEVEL, method="exact")
    return Estimate(value=count / n, n=n, low=float(exact.low), high=float(exact.high), note="exact interval")


def share_of_units(counted: np.ndarray, units: np.ndarray) -> Estimate:
    """The share of images that are counted, bool [n], with the exact interval of as many units [n] as there are: what
    they share is one chance."""
    number = len(set(units.tolist()))
    return replace(share(round(counted.mean() * number), number), value=float(counted.mean()), n=len(counted))


def mcnemar(before: list[Predictions], after: list[Predictions]) -> dict[str, float]:
    """McNemar's exact test on the images, of all folds, that only one of the two got right; it takes images as
    independent."""
    only_before = sum(int((b.right & ~a.right).sum()) for b, a in zip(before, after, strict=True))
    only_after = sum(int((a.right & ~b.right).sum()) for b, a in zip(before, after, strict=True))
    changed = only_before + only_after
    p = binomtest(only_after, changed, 0.5).pvalue if changed else 1.0
    return {"only_before_right": only_before, "only_after_right": only_after, "p": float(p)}


def combined(spreads: list[Spread], few: str) -> tuple[Estimate, float]:
    """The mean over folds of the mean over seeds, with its interval, and the p-value of its being zero.

    Folds have test images of their own, so their variances add. `few` says why there can be no interval; p is then nan.
    """
    value = float(np.mean([each.values.mean() for each in spreads]))
    n = sum(each.n for each in spreads)
    if few:
        return Estimate(value=value, n=n, low=None, high=None, note=few), float("nan")
    variances = [each for spread in spreads for each in _variances(spread)]
    if not sum(variance for variance, _ in variances):
        return Estimate(value=value, n=n, low=None, high=None, note=CONSTANT), 1.0
    reach = _reach(1 - LEVEL, variances) / len(spreads)
    one = all(len(each.values) == 1 for each in spreads)
    note = "one seed: the interval does not cover the chance in training" if one else ""
    estimate = Estimate(value=value, n=n, low=value - reach, high=value + reach, note=note)
    distance = abs(value * len(spreads))
    if distance >= _reach(SMALLEST, variances):
        return estimate, SMALLEST
    # the level whose interval ends at zero
    return estimate, float(brentq(lambda alpha: _reach(alpha, variances) - distance, SMALLEST, 1.0))


def holm(p: list[float]) -> list[float]:
    """The p-values of several tests, adjusted by Holm's method (1979); nan stays and does not count."""
    order = [i for i in np.argsort(p) if not np.isnan(p[i])]
    adjusted, highest = list(p), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p[i]))
        adjusted[i] = highest
    return adjusted


def _too_few(folds: list[Fold]) -> str:
    return next((fold.too_few for fold in folds if fold.too_few), "")


def _figure(name: str, spreads: list[Spread], few: str, pooled: bool) -> Estimate:
    if pooled:
        estimate, _ = combined(spreads, few)
        if estimate.low is None:
            return estimate
        # whatever Student's quantile says: shares and areas lie between 0 and 1, Brier scores reach 2
        return replace(estimate, low=max(estimate.low, 0.0), high=min(estimate.high, 2.0 if name == "brier" else 1.0))
    (spread,) = spreads
    value = float(spread.values[0])
    if not few and name in metrics.PROPORTIONS and value in (0.0, 1.0):  # the resamples cannot differ
        # of units, as what they share is one chance
        return replace(share(round(value * spread.units), spread.units), n=spread.n)
    if name == "ece":  # drawing again adds noise to every bin, which only ever lifts the error: the lift is taken off
        spread = replace(spread, resampled=np.maximum(spread.resampled - spread.resampled.mean() + value, 0.0))
    return _percentiles(spread, few)


def bounds(resampled: Sequence[float]) -> tuple[float, float]:
    """What LEVEL of resampled values lie between, as many of the others below as above."""
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _percentiles(spread: Spread, few: str) -> Estimate:
    low, high = bounds(spread.resampled[0])
    note = few or (CONSTANT if low == high else "")
    low, high = (None, None) if note else (low, high)
    return Estimate(value=float(spread.values[0]), n=spread.n, low=low, high=high, note=note)


def _reach(alpha: float, variances: list[tuple[float, float]]) -> float:
    """How far the interval of level 1 - alpha reaches, for variances and their degrees of freedom."""
    return sum(float(student.ppf(1 - alpha / 2, freedom)) ** 2 * variance for variance, freedom in variances) ** 0.5


def _variances(spread: Spread) -> list[tuple[float, float]]:
    """(variance, degrees of freedom) of the mean over seeds: by the images, then by the seeds."""
    S, n = len(spread.values), spread.units
    mean, of_few = spread.resampled.mean(0), n / (n - 1)
    by_images = float(mean.var(ddof=1)) * of_few, n - 1
    if S == 1:
        return [by_images]
    together = float((spread.resampled - mean).var(axis=1, ddof=1).mean()) * of_few * S / (S - 1)
    between = float(spread.values.var(ddof=1))
    return [by_images, (max(between - together, 0.0) / S, S - 1)]
