"""The figures on cases that can be counted by hand."""

import numpy as np
import pytest

from dermjax.evaluation import metrics

LABELS = np.array([0, 0, 0, 1, 1])
PROBABILITIES = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6], [0.1, 0.9]])


def test_two_classes_by_hand():
    found = {name: metrics.METRICS[name](LABELS, PROBABILITIES) for name in metrics.names(2)}
    # one benign image (0.7) is called malignant and ranks above one malignant image (0.6): 5 of 6 pairs in order
    assert found == pytest.approx({"accuracy": 4 / 5, "sensitivity": 1.0, "specificity": 2 / 3, "auroc": 5 / 6})
    assert metrics.confusion(LABELS, PROBABILITIES).tolist() == [[2, 1], [0, 2]]


def test_each_figure_says_what_it_is_counted_over():
    assert [metrics.counted(name, LABELS) for name in metrics.names(2)] == [5, 2, 3, 5]


def test_three_classes_have_accuracy_and_a_mean_area():
    labels = np.array([0, 1, 2, 2])
    probabilities = np.array([[0.8, 0.1, 0.1], [0.1, 0.6, 0.3], [0.1, 0.2, 0.7], [0.5, 0.2, 0.3]])
    assert metrics.names(3) == ("accuracy", "auroc")
    assert metrics.accuracy(labels, probabilities) == 0.75
    # class 0 and 1: every pair in order; class 2: scores .7 and .3 against .1 and .3, one tie
    assert metrics.auroc(labels, probabilities) == pytest.approx((1 + 1 + 3.5 / 4) / 3)
    rates = metrics.roc(labels, probabilities)
    assert rates[1][0] >= 0
    assert rates[1][-1] == 1


def test_the_area_under_the_curve_is_the_auroc():
    assert np.trapezoid(*metrics.roc(LABELS, PROBABILITIES)[::-1]) == pytest.approx(5 / 6)
