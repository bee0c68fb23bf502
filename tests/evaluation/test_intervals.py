"""Intervals: equal to scikit-learn on every weighting, paired, drawn by lesion, silent where they would mislead."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    recall_score,
    roc_auc_score,
)

from dermjax.evaluation import intervals, metrics
from dermjax.evaluation.intervals import Bootstrap, Fold
from dermjax.evaluation.predictions import Predictions

CLASSES = ("benign", "malignant")


def made(seed, n, separation, classes=2):
    """Predictions of n images whose scores follow the label by `separation`; coarse, so that there are ties."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    scores = rng.normal(size=(n, classes)) + separation * np.eye(classes)[labels]
    probabilities = np.exp(scores).round(1) + 0.1
    probabilities /= probabilities.sum(-1, keepdims=True)
    return Predictions(
        images=tuple(f"{i:04d}.png" for i in range(n)),
        labels=labels,
        probabilities=probabilities.round(2),
        thresholds={"sensitivity_at_90": 0.6} if classes == 2 else {},
    )


def over_images(predictions, resamples=2000, smallest=10):
    return Bootstrap(units=predictions.images, kind="images", resamples=resamples, seed=0, smallest=smallest)


def run(predictions, bootstrap):
    """A fold of one seed."""
    return [Fold(seeds=[predictions], classes=CLASSES, bootstrap=bootstrap, names=metrics.names(predictions))]


def figures(predictions, bootstrap):
    return intervals.figures(run(predictions, bootstrap), pooled=False)


@pytest.mark.parametrize("classes", [2, 3])
def test_weighted_figures_equal_scikit_learns(classes):
    judged = made(1, 90, 0.7, classes)
    labels, probabilities, called = judged.labels, judged.probabilities, judged.called
    weights = next(iter(over_images(judged, resamples=5).weights(labels)))
    for row, w in enumerate(weights):
        drawn = w > 0  # scikit-learn's multi-class AUROC takes no weights: repeat the images instead
        repeated = np.repeat(np.arange(90), w.astype(int))
        average = "binary" if classes == 2 else "macro"
        expected = {
            "accuracy": accuracy_score(labels, called, sample_weight=w),
            "balanced_accuracy": balanced_accuracy_score(labels, called, sample_weight=w),
            "f1": f1_score(labels, called, average=average, sample_weight=w),
            "brier": metrics.brier(judged.at(repeated)),
            "ece": metrics.ece(judged.at(repeated)),
        }
        if classes == 2:
            expected["brier"] = brier_score_loss(labels, probabilities[:, 1], sample_weight=w)
            expected["sensitivity"] = recall_score(labels, called, sample_weight=w)
            expected["specificity"] = recall_score(labels, called, sample_weight=w, pos_label=0)
            expected["sensitivity_at_90"] = recall_score(labels, probabilities[:, 1] > 0.6, sample_weight=w)
            expected["mean_predicted"] = np.average(probabilities[:, 1], weights=w)
            expected["specificity_at_90"] = recall_score(
                labels, probabilities[:, 1] > 0.6, sample_weight=w, pos_label=0
            )
            expected["auroc"] = roc_auc_score(labels[drawn], probabilities[drawn, 1], sample_weight=w[drawn])
            expected["average_precision"] = average_precision_score(labels, probabilities[:, 1], sample_weight=w)
        else:
            each = [roc_auc_score(labels[repeated] == c, probabilities[repeated, c]) for c in range(3)]
            expected["auroc"] = np.mean(each)
        found = {name: metrics.METRICS[name](judged, weights)[row] for name in expected}
        assert found == pytest.approx(expected, abs=1e-12)


def test_resamples_keep_classes_and_lesions_together():
    labels = np.array([0, 0, 0, 1, 1, 1])
    bootstrap = Bootstrap(units=("a", "a", "b", "c", "d", "d"), kind="lesions", resamples=300, seed=0, smallest=1)
    weights = np.concatenate(list(bootstrap.weights(labels)))
    assert weights.shape == (300, 6)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 4] == weights[:, 5]).all()
    assert (weights[:, 1] + weights[:, 2] == 2).all()  # two benign lesions, drawn twice
    assert (weights[:, 3] + weights[:, 4] == 2).all()


def test_a_lesion_with_two_labels_never_empties_a_class():
    labels = np.array([0, 1, 1, 0])
    bootstrap = Bootstrap(units=("mixed", "mixed", "b", "c"), kind="lesions", resamples=200, seed=0, smallest=1)
    for weights in bootstrap.weights(labels):
        assert (weights @ (labels == 0) > 0).all()
        assert (weights @ (labels == 1) > 0).all()


def test_repeated_images_of_a_lesion_do_not_narrow_the_interval():
    once = made(3, 60, 0.8)
    thrice = Predictions(
        images=tuple(f"{name}_{i}" for name in once.images for i in range(3)),
        labels=np.repeat(once.labels, 3),
        probabilities=np.repeat(once.probabilities, 3, axis=0),
    )
    lesions = tuple(name for name in once.images for _ in range(3))
    by_lesion = figures(thrice, Bootstrap(units=lesions, kind="lesions", resamples=2000, seed=0, smallest=10))
    alone = figures(once, over_images(once))
    assert (by_lesion["auroc"].low, by_lesion["auroc"].high) == pytest.approx((alone["auroc"].low, alone["auroc"].high))


def test_the_same_seed_gives_the_same_interval():
    judged = made(4, 50, 0.5)
    assert figures(judged, over_images(judged)) == figures(judged, over_images(judged))


def test_differences_are_paired():
    before = made(5, 80, 0.6)
    shifted = before.probabilities.copy()
    shifted[:, 1] += 0.001  # the same ranks: not a resample in which the AUROC differs
    after = Predictions(images=before.images, labels=before.labels, probabilities=shifted)
    bootstrap = over_images(before)
    difference, p = intervals.differences(run(before, bootstrap), run(after, bootstrap), pooled=False)["auroc"]
    assert p is None
    assert (difference.value, difference.low) == (0.0, None)
    assert "do not differ" in difference.note


def test_mcnemar_counts_who_alone_is_right():
    labels = np.ones(12, int)
    right, wrong = [0.2, 0.8], [0.8, 0.2]
    images = tuple(map(str, range(12)))
    before = Predictions(images=images, labels=labels, probabilities=np.array([right] * 4 + [wrong] * 8))
    after = Predictions(images=images, labels=labels, probabilities=np.array([wrong] + [right] * 11))
    # 1 against 8 discordant: two-sided binomial, 2 * (1 + 9) / 512
    assert intervals.mcnemar([before], [after]) == {"only_before_right": 1, "only_after_right": 8, "p": 20 / 512}
    assert intervals.mcnemar([before], [before])["p"] == 1.0


def test_too_few_images_are_said_not_hidden():
    judged = made(6, 18, 1.0)
    found = figures(judged, over_images(judged))["accuracy"]
    assert (found.low, found.high, found.n) == (None, None, 18)
    assert found.note == "no interval: benign has 9, malignant has 9 images, fewer than 10"


def test_all_right_has_an_exact_interval_and_a_perfect_area_none():
    labels = np.arange(40) % 2
    judged = Predictions(images=tuple(map(str, range(40))), labels=labels, probabilities=np.eye(2)[labels])
    found = figures(judged, over_images(judged))
    assert found["sensitivity"].low == pytest.approx(0.025 ** (1 / 20))  # Clopper and Pearson where all count
    assert found["sensitivity"].high == 1.0
    assert found["auroc"].low is None
    assert "do not differ" in found["auroc"].note


def test_a_brier_score_of_three_classes_may_be_above_one():
    """Of classifiers that are sure and wrong."""
    wrong = np.eye(3)[(np.arange(60) + 1) % 3]
    wrong[:20] = 1 / 3
    judged = made(7, 60, 0.0, classes=3)
    judged = [Predictions(images=judged.images, labels=judged.labels, probabilities=wrong)] * 2
    fold = Fold(seeds=judged, classes=("a", "b", "c"), bootstrap=over_images(judged[0]), names=("brier", "ece"))
    found = intervals.figures([fold], pooled=True)
    assert 1 < found["brier"].low < found["brier"].value < found["brier"].high < 2
    assert found["ece"].high <= 1


def test_the_exact_interval_of_all_right_is_of_units_and_not_of_their_images():
    """Ten lesions of each class with six images each, all right."""
    labels, images = np.repeat([0, 1], 60), tuple(f"{i:03d}" for i in range(120))
    judged = Predictions(images=images, labels=labels, probabilities=np.eye(2)[labels])
    lesions = tuple(str(i // 6) for i in range(120))
    found = figures(judged, Bootstrap(units=lesions, kind="lesions", resamples=20, seed=0, smallest=10))
    assert found["sensitivity"].low == pytest.approx(0.025 ** (1 / 10)) == pytest.approx(0.69, abs=0.005)
    assert found["accuracy"].low == pytest.approx(0.025 ** (1 / 20))
    assert (found["sensitivity"].n, found["accuracy"].n) == (60, 120)


def test_a_share_of_images_has_the_interval_of_their_units():
    counted = np.arange(60) % 3 > 0
    alone, in_tens = (intervals.share_of_units(counted, np.arange(60) // each) for each in (1, 10))
    assert alone == intervals.share(40, 60)
    assert (in_tens.value, in_tens.n) == (alone.value, 60) and in_tens.low < alone.low - 0.2


@pytest.mark.slow
def test_intervals_cover_the_truth_as_often_as_they_say():
    truth = norm.cdf(1 / np.sqrt(2))  # AUROC of two unit normals one apart
    hits = 0
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        labels = np.arange(240) % 2
        score = norm.cdf(rng.normal(size=240) + labels)
        judged = Predictions(
            images=tuple(f"{i:03d}" for i in range(240)),
            labels=labels,
            probabilities=np.stack([1 - score, score], axis=-1),
        )
        bootstrap = over_images(judged, resamples=1000)
        fold = Fold(seeds=[judged], classes=CLASSES, bootstrap=bootstrap, names=("auroc",))
        low, high = np.quantile(fold.spreads["auroc"].resampled[0], [0.025, 0.975])
        hits += low <= truth <= high
    assert 0.93 <= hits / 1000 <= 0.97
