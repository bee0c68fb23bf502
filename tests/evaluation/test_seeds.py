"""Several seeds in one interval: equal to the known variance, and covering the truth over simulated studies."""

import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student

from dermjax.evaluation import intervals, metrics
from dermjax.evaluation.intervals import Bootstrap, Fold, Spread
from dermjax.evaluation.predictions import Predictions


def spread(values, resampled, units=101):
    return Spread(values=np.array(values), resampled=np.array(resampled, float), n=100, units=units)


def test_seeds_that_agree_leave_the_variance_of_the_images():
    draws = np.random.default_rng(0).normal(0.8, 0.02, 4000)
    found, _ = intervals.combined([spread([0.8] * 3, [draws] * 3)], "")
    reach = student.ppf(0.975, 100) * draws.std(ddof=1) * np.sqrt(101 / 100)
    assert (found.value, found.low, found.high) == pytest.approx((0.8, 0.8 - reach, 0.8 + reach))


def test_seeds_that_differ_more_than_images_explain_widen_it():
    # every seed moves alike under resampling, so what lies between the seeds is theirs alone
    draws = np.random.default_rng(0).normal(0, 0.02, 4000)
    values = np.array([0.7, 0.8, 0.9])
    found, p = intervals.combined([spread(values, values[:, None] + draws)], "")
    images, training = draws.var(ddof=1) * 101 / 100, values.var(ddof=1) / 3
    reach = np.sqrt(student.ppf(0.975, 100) ** 2 * images + student.ppf(0.975, 2) ** 2 * training)
    assert (found.low, found.high) == pytest.approx((0.8 - reach, 0.8 + reach))
    shifted, p = intervals.combined([spread(values - 0.8 + reach, values[:, None] - 0.8 + reach + draws)], "")
    assert (shifted.low, p) == (pytest.approx(0, abs=1e-12), pytest.approx(0.05))


def test_one_seed_says_what_it_does_not_cover_and_folds_add_up():
    draws = np.random.default_rng(0).normal(0.8, 0.02, 4000)
    one, _ = intervals.combined([spread([0.8], [draws])], "")
    assert "does not cover the chance in training" in one.note
    four, _ = intervals.combined([spread([0.8], [draws])] * 4, "")
    assert four.n == 400
    assert (four.high - four.low) / (one.high - one.low) == pytest.approx(0.5, abs=0.01)


def test_without_an_interval_the_reason_is_said():
    found, p = intervals.combined([spread([0.8, 0.9], [[0.8] * 5, [0.9] * 5])], "no interval: too few")
    assert (found.low, found.note) == (None, "no interval: too few") and np.isnan(p)
    same, p = intervals.combined([spread([0.0], [[0.0] * 5])], "")
    assert "do not differ" in same.note and p == 1.0


def test_holm_by_hand():
    assert intervals.holm([0.01, 0.04, 0.03, float("nan")])[:3] == pytest.approx([0.03, 0.06, 0.06])


def test_intervals_of_a_rare_class_cover_the_truth():
    """10 positive and 300 negative images: what is known of the figure is known by the ten."""
    labels = np.repeat([1, 0], [10, 300])
    images = tuple(f"{i:03d}" for i in range(310))
    bootstrap = Bootstrap(units=images, kind="images", resamples=200, seed=0, smallest=10)
    truth, covered = norm.cdf(1 / np.sqrt(2)), []
    for seed in range(600):
        score = norm.cdf(labels + np.random.default_rng(seed).normal(size=310))
        said = Predictions(images=images, labels=labels, probabilities=np.stack([1 - score, score], -1))
        fold = Fold(seeds=[said], classes=("benign", "malignant"), bootstrap=bootstrap, names=("auroc",))
        found, _ = intervals.combined([fold.spreads["auroc"]], "")
        covered.append(found.low <= truth <= found.high)
    print(f"covered {np.mean(covered):.3f}")
    assert 0.92 <= np.mean(covered) <= 0.97


def test_a_figure_is_carried_by_the_units_of_its_class():
    labels = np.repeat([1, 0], [12, 40])
    units = tuple(f"{i // 2:03d}" for i in range(52))  # two images a lesion
    said = Predictions(images=tuple(map(str, range(52))), labels=labels, probabilities=np.full((52, 2), 0.5))
    bootstrap = Bootstrap(units=units, kind="lesions", resamples=20, seed=0, smallest=10)
    fold = Fold(seeds=[said], classes=("benign", "malignant"), bootstrap=bootstrap, names=metrics.names(said))
    carrying = {name: spread.units for name, spread in fold.spreads.items()}
    assert carrying["auroc"] == carrying["balanced_accuracy"] == carrying["f1"] == carrying["sensitivity"] == 6
    assert carrying["specificity"] == 20 and carrying["accuracy"] == carrying["ece"] == carrying["mean_predicted"] == 26


def study(seed, labels, bootstrap, wander):
    """Three trainings judged on the same images: a share of every score is the image's own, whatever the seed."""
    rng = np.random.default_rng(seed)
    images = np.sqrt(0.7) * rng.normal(size=len(labels))
    separations = 1 + wander * rng.normal(size=3)
    values, resampled = [], []
    for separation in separations:
        score = norm.cdf(separation * labels + images + np.sqrt(0.3) * rng.normal(size=len(labels)))
        said = Predictions(images=bootstrap.units, labels=labels, probabilities=np.stack([1 - score, score], -1))
        fold = Fold(seeds=[said], classes=("benign", "malignant"), bootstrap=bootstrap, names=("auroc",))
        resampled.append(fold.spreads["auroc"].resampled[0])
        values.append(float(metrics.auroc(said, np.ones((1, len(labels))))[0]))
    return intervals.combined([spread(values, resampled, units=len(labels) // 2)], "")[0]


@pytest.mark.slow
@pytest.mark.parametrize("wander", [0.0, 0.15, 0.4])
def test_intervals_of_three_seeds_cover_the_truth_over_1000_studies(wander):
    labels = np.arange(200) % 2
    bootstrap = Bootstrap(
        units=tuple(f"{i:03d}" for i in range(200)), kind="images", resamples=200, seed=0, smallest=10
    )
    truth = norm.cdf(1 / np.sqrt(2 + wander**2))  # the AUROC that seeds have on average
    found = [study(seed, labels, bootstrap, wander) for seed in range(1000)]
    covered = np.mean([each.low <= truth <= each.high for each in found])
    print(f"wander {wander}: covered {covered:.3f}")
    assert 0.93 <= covered <= 0.97
