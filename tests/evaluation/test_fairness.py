"""Subgroups: a classifier that fails one is caught, one that does not is not."""

import numpy as np
import pytest

from dermjax.evaluation import fairness
from dermjax.evaluation.intervals import Bootstrap, Fold
from dermjax.evaluation.predictions import Predictions


def fold(skill, seed=0):
    """400 images, half of each sex by their number; skill: how far apart the classes' scores are in each."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 400)
    score = 1 / (1 + np.exp(-(rng.normal(size=400) + (labels - 0.5) * np.tile(skill, 200))))
    images = tuple(f"{i:03d}" for i in range(400))
    predictions = Predictions(images=images, labels=labels, probabilities=np.stack([1 - score, score], 1))
    drawn = Bootstrap(units=images, kind="images", resamples=50, seed=0, smallest=10)
    return Fold(seeds=[predictions], classes=("benign", "malignant"), bootstrap=drawn, names=fairness.FIGURES)


@pytest.fixture(scope="module")
def subgroups():
    images = [f"{i:03d}" for i in range(400)]
    return {("sex", "female"): set(images[::2]), ("sex", "male"): set(images[1::2]), ("site", "hand"): set(images[:9])}


def test_the_subgroup_that_is_failed_is_the_worst(subgroups):
    found = fairness.compare(fold([2.5, 0.3]), subgroups)
    assert set(found) == {"sex"}  # of one site, with nine images, nothing can be said
    assert found["sex"].worst == "male" and found["sex"].gap > 0.2 > found["sex"].by_chance
    female, male = (found["sex"].figures[name] for name in ("female", "male"))
    assert female["auroc"].low > male["auroc"].high and female["auroc"].n == 200
    assert found["sex"].gap == pytest.approx(female["auroc"].value - male["auroc"].value)
    assert set(female) == set(fairness.FIGURES)


@pytest.mark.slow
def test_without_a_difference_gaps_stay_below_that_of_chance():
    """Of 40 classifiers without a difference between eight subgroups, hardly more than 5 % are beyond it."""
    beyond = []
    for seed in range(40):
        images = [f"{i:03d}" for i in range(400)]
        eight = {("site", str(site)): set(images[site::8]) for site in range(8)}
        found = fairness.compare(fold([1.5, 1.5], seed), eight)["site"]
        beyond.append(found.gap > found.by_chance)
        assert found.gap > 0.05  # of eight, some are better by chance
    assert np.mean(beyond) <= 0.15
