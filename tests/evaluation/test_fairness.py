"""Subgroups: a classifier that fails one is caught, one that does not is not."""

from dataclasses import replace

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


def test_more_images_of_a_patient_leave_the_gap_of_chance_as_it_is(subgroups):
    """Eight equal images a patient say no more than one; dealt one by one they would even out between subgroups."""
    once, times = fold([1.5, 1.5]), 8
    images = tuple(f"{image}_{i}" for image in once.seeds[0].images for i in range(times))
    seen = Predictions(
        images=images,
        labels=once.seeds[0].labels.repeat(times),
        probabilities=once.seeds[0].probabilities.repeat(times, axis=0),
    )
    patients = replace(once.bootstrap, units=tuple(image[:3] for image in images), kind="patients")
    several = replace(once, seeds=[seen], bootstrap=patients)
    of = {key: {image for image in images if image[:3] in some} for key, some in subgroups.items()}
    alone, together = (fairness.compare(*each)["sex"].by_chance for each in ((once, subgroups), (several, of)))
    assert together == pytest.approx(alone) and alone > 0.05


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
