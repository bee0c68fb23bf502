"""The figures on cases that can be counted by hand, and against scikit-learn's and others' definitions."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score

from dermjax.evaluation import metrics, predictions
from dermjax.evaluation.predictions import Predictions

LABELS = np.array([0, 0, 0, 1, 1])
PROBABILITIES = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6], [0.1, 0.9]])


def said(labels, probabilities, **thresholds):
    return Predictions(
        images=tuple(map(str, range(len(labels)))),
        labels=np.array(labels),
        probabilities=np.array(probabilities),
        thresholds=thresholds,
    )


TWO = said(LABELS, PROBABILITIES, sensitivity_at_90=0.7, sensitivity_at_95=0.9)


def test_two_classes_by_hand():
    found = {name: metrics.METRICS[name](TWO) for name in metrics.names(TWO)}
    # one benign image (0.7) is called malignant and ranks above one malignant image (0.6): 5 of 6 pairs in order
    assert found == pytest.approx(
        {
            "accuracy": 4 / 5,
            "balanced_accuracy": (2 / 3 + 1) / 2,
            "sensitivity": 1.0,
            "specificity": 2 / 3,
            "auroc": 5 / 6,
            "average_precision": (1 + 2 / 3) / 2,  # found at ranks 1 and 3
            "sensitivity_at_90": 0.5,  # above 0.7
            "sensitivity_at_95": 0.0,
            "specificity_at_90": 1.0,  # none of 0.1, 0.2 and 0.7
            "specificity_at_95": 1.0,
            "f1": 2 * (2 / 3) / (2 / 3 + 1),
            "ece": (0.1 + 0.2 + 0.7 + abs(0.6 - 1) + abs(0.9 - 1)) / 5,
            "brier": (0.01 + 0.04 + 0.49 + 0.16 + 0.01) / 5,
            "mean_predicted": (0.1 + 0.2 + 0.7 + 0.6 + 0.9) / 5,
        }
    )
    assert metrics.confusion(TWO).tolist() == [[2, 1], [0, 2]]
    assert found["average_precision"] == average_precision_score(LABELS, PROBABILITIES[:, 1])


def test_a_threshold_leaves_its_share_of_validation_negatives_below():
    scores = np.linspace(0.01, 0.99, 40)
    validation = said([0] * 40 + [1], [*np.stack([1 - scores, scores], -1), [0.0, 1.0]])
    chosen = predictions.thresholds(validation)
    for name, share in predictions.SPECIFICITIES.items():
        assert (scores <= chosen[name]).mean() == pytest.approx(share)
    assert predictions.thresholds(said([0, 1, 2], np.eye(3))) == {}
    assert "sensitivity_at_90" not in metrics.names(said(LABELS, PROBABILITIES))


def test_the_specificity_of_other_images_is_not_what_the_threshold_was_chosen_for():
    """Test images whose scores are higher than those of validation images: 0.9 there is 0.5 here."""
    shifted = said([0] * 10 + [1], np.stack([1 - np.linspace(0, 1, 11), np.linspace(0, 1, 11)], -1),
                   sensitivity_at_90=0.45)  # fmt: skip
    assert metrics.proportion("specificity_at_90", shifted) == 0.5
    assert metrics.proportion("sensitivity_at_90", shifted) == 1.0
    assert "specificity_at_95" not in metrics.names(shifted), "it has no threshold"


def test_each_figure_says_what_it_is_counted_over():
    counts = {name: metrics.counted(name, LABELS).sum() for name in metrics.names(TWO)}
    assert counts == {name: 5 for name in counts} | {
        "sensitivity": 2, "specificity": 3, "sensitivity_at_90": 2, "sensitivity_at_95": 2,
        "specificity_at_90": 3, "specificity_at_95": 3,
    }  # fmt: skip


def test_three_classes_are_averaged_one_against_the_rest():
    three = said([0, 1, 2, 2], [[0.8, 0.1, 0.1], [0.1, 0.6, 0.3], [0.1, 0.2, 0.7], [0.5, 0.2, 0.3]])
    assert metrics.names(three) == (
        "accuracy", "balanced_accuracy", "auroc", "average_precision", "f1", "ece", "brier"
    )  # fmt: skip
    assert metrics.proportion("accuracy", three) == 0.75
    # class 0 and 1: every pair in order; class 2: scores .7 and .3 against .1 and .3, one tie
    assert metrics.auroc(three) == pytest.approx((1 + 1 + 3.5 / 4) / 3)
    assert metrics.f1(three) == f1_score(three.labels, three.called, average="macro")
    assert metrics.brier(three) == brier_score_loss(three.labels, three.probabilities)
    rates = metrics.roc(three)
    assert rates[1][0] >= 0
    assert rates[1][-1] == 1


def test_the_area_under_the_curve_is_the_auroc():
    assert np.trapezoid(*metrics.roc(TWO)[::-1]) == pytest.approx(5 / 6)


def test_honest_probabilities_have_no_calibration_error():
    confidence = np.repeat([0.55, 0.75, 0.95], 2000)
    right = np.concatenate([np.arange(2000) < 2000 * c for c in (0.55, 0.75, 0.95)])
    honest = said(np.where(right, 1, 0), np.stack([1 - confidence, confidence], -1))
    assert metrics.ece(honest) == pytest.approx(0, abs=1e-9)


def test_probabilities_of_another_prevalence_are_seen():
    """Scores that are honest where both classes are equally frequent, on images of which 5 % are positive."""
    rng = np.random.default_rng(0)
    labels = (np.arange(20_000) < 1000).astype(int)
    odds = 2 * rng.normal(2 * labels - 1, 1)  # the logarithm, of two normal densities two apart

    def judged(logits):
        positive = 1 / (1 + np.exp(-logits))
        return said(labels, np.stack([1 - positive, positive], -1))

    balanced, honest = judged(odds), judged(odds + np.log(0.05 / 0.95))
    assert abs(balanced.confidence.mean() - balanced.right.mean()) < 0.01, "the confidence does not see it"
    assert metrics.mean_predicted(balanced) > 0.15 and metrics.ece(balanced) > 0.1
    assert metrics.mean_predicted(honest) == pytest.approx(0.05, abs=0.005) and metrics.ece(honest) < 0.01


def test_several_classes_are_forecast_by_what_is_called():
    three = said([0, 1, 2], [[0.8, 0.1, 0.1], [0.1, 0.6, 0.3], [0.1, 0.7, 0.2]])
    predicted, so = metrics.forecasts(three)
    assert predicted.tolist() == [0.8, 0.6, 0.7] and so.tolist() == [True, True, False]
    assert "mean_predicted" not in metrics.names(three)
