"""The figures of a classifier: on the test images as they are, and under many weightings of them at once.

On the images as they are a figure is scikit-learn's, where it has it. A bootstrap takes weights [R, n] and gets [R] by
one array expression; scikit-learn takes one weighting at a time and rounds otherwise, so most figures stand here twice
and the tests prove both equal.

A decision is the most probable class. The positive class is the last one; sensitivity, specificity and what hangs on a
threshold are of the binary task only. Where a curve is of one class, that of more than two classes is the mean of one
class against the rest.

Shapes: n images, R weightings, U distinct scores.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    confusion_matrix,
    f1_score,
    roc_auc_score,
    roc_curve,
)

from dermjax.evaluation.predictions import SPECIFICITIES, Predictions

GRID = np.linspace(0, 1, 201)  # false-positive rates at which curves of several classes are averaged
BINS = 15  # of the calibration error, equal in width (Guo et al. 2017, arXiv 1706.04599)
PROPORTIONS = ("accuracy", "sensitivity", "specificity", *SPECIFICITIES)  # counts out of n


class Metric(NamedTuple):
    """A figure: its value, and its values [R] under weights [R, n]."""

    value: Callable[[Predictions], float]
    weighted: Callable[[Predictions, np.ndarray], np.ndarray]


def names(predictions: Predictions) -> tuple[str, ...]:
    """The figures that exist for so many classes, with or without thresholds."""
    absent = {name for name in SPECIFICITIES if name not in predictions.thresholds}
    absent |= {"sensitivity", "specificity"} if predictions.classes > 2 else set()
    return tuple(name for name in METRICS if name not in absent)


def counted(name: str, labels: np.ndarray) -> np.ndarray:
    """The images that a figure is counted over, bool [n]."""
    if name == "specificity":
        return labels == 0
    return labels == 1 if name.startswith("sensitivity") else np.ones(len(labels), bool)


def proportion(name: str, predictions: Predictions) -> float:
    """The share of right decisions, or of scores above the figure's threshold, among the images it is counted over."""
    return float(_hits(name, predictions)[counted(name, predictions.labels)].mean())


def weighted_proportion(name: str, predictions: Predictions, weights: np.ndarray) -> np.ndarray:
    """`proportion` under each weighting; the threshold stays that of the validation images."""
    return _mean(_hits(name, predictions), weights * counted(name, predictions.labels))


def balanced_accuracy(predictions: Predictions) -> float:
    """The mean over classes of the share of right decisions."""
    return float(balanced_accuracy_score(predictions.labels, predictions.called))


def weighted_balanced_accuracy(predictions: Predictions, weights: np.ndarray) -> np.ndarray:
    """`balanced_accuracy` under each weighting."""
    classes = range(predictions.classes)
    return np.mean([_mean(predictions.right, weights * (predictions.labels == c)) for c in classes], axis=0)


def auroc(predictions: Predictions) -> float:
    """The chance that a positive image gets a higher score than a negative one."""
    return float(np.mean([roc_auc_score(*_of_class(predictions, c)) for c in curved(predictions)]))


def weighted_auroc(predictions: Predictions, weights: np.ndarray) -> np.ndarray:
    """`auroc` under each weighting: P(score of a positive > of a negative), ties counted half (Mann-Whitney)."""

    def area(c: int) -> np.ndarray:
        positives, negatives = _tallies(predictions, c, weights)
        below = np.cumsum(negatives, axis=-1) - negatives / 2
        return (positives * below).sum(-1) / (positives.sum(-1) * negatives.sum(-1))

    return np.mean([area(c) for c in curved(predictions)], axis=0)


def average_precision(predictions: Predictions) -> float:
    """The area under the curve of precision over sensitivity, in steps."""
    return float(np.mean([average_precision_score(*_of_class(predictions, c)) for c in curved(predictions)]))


def weighted_average_precision(predictions: Predictions, weights: np.ndarray) -> np.ndarray:
    """`average_precision` under each weighting."""

    def area(c: int) -> np.ndarray:
        positives, negatives = (counts[:, ::-1] for counts in _tallies(predictions, c, weights))  # highest score first
        right, wrong = np.cumsum(positives, axis=-1), np.cumsum(negatives, axis=-1)
        precision = np.divide(right, right + wrong, out=np.zeros_like(right), where=right > 0)
        return (positives * precision).sum(-1) / positives.sum(-1)

    return np.mean([area(c) for c in curved(predictions)], axis=0)


def f1(predictions: Predictions) -> float:
    """The harmonic mean of precision and sensitivity, of the positive class or averaged over several."""
    average = "binary" if predictions.classes == 2 else "macro"
    return float(f1_score(predictions.labels, predictions.called, average=average, zero_division=0.0))


def weighted_f1(predictions: Predictions, weights: np.ndarray) -> np.ndarray:
    """`f1` under each weighting."""

    def mean(c: int) -> np.ndarray:
        true, called = predictions.labels == c, predictions.called == c
        both = weights @ true + weights @ called
        return np.divide(2 * (weights @ (true & called)), both, out=np.zeros(len(weights)), where=both > 0)

    return np.mean([mean(c) for c in curved(predictions)], axis=0)


def ece(predictions: Predictions) -> float:
    """The expected calibration error: how far confidence is from accuracy, averaged over BINS of confidence."""
    gaps = [abs((predictions.confidence[b] - predictions.right[b]).sum()) for b in _bins(predictions)]
    return float(sum(gaps) / len(predictions.labels))


def weighted_ece(predictions: Predictions, weights: np.ndarray) -> np.ndarray:
    """`ece` under each weighting."""
    gap = predictions.confidence - predictions.right
    return sum(np.abs(weights[:, b] @ gap[b]) for b in _bins(predictions)) / weights.sum(-1)


def brier(predictions: Predictions) -> float:
    """The mean squared error of the probabilities: of the positive class of two, else summed over classes."""
    if predictions.classes == 2:
        return float(brier_score_loss(predictions.labels, predictions.probabilities[:, 1]))
    return float(_squares(predictions).sum(-1).mean())


def weighted_brier(predictions: Predictions, weights: np.ndarray) -> np.ndarray:
    """`brier` under each weighting."""
    squares = _squares(predictions)
    return _mean(squares[:, 1] if predictions.classes == 2 else squares.sum(-1), weights)


def roc(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """The ROC curve as false- and true-positive rates [points]; several classes are averaged over GRID."""
    curves = [roc_curve(*_of_class(predictions, c))[:2] for c in curved(predictions)]
    if len(curves) == 1:
        return curves[0]
    return GRID, np.mean([np.interp(GRID, *curve) for curve in curves], axis=0)


def confusion(predictions: Predictions) -> np.ndarray:
    """How often each true class (row) was called each class (column), int [classes, classes]."""
    return confusion_matrix(predictions.labels, predictions.called, labels=np.arange(predictions.classes))


def curved(predictions: Predictions) -> range:
    """The classes that have a curve of their own: the positive one of two, else each."""
    return range(1, 2) if predictions.classes == 2 else range(predictions.classes)


def _hits(name: str, predictions: Predictions) -> np.ndarray:
    """Whether each image counts for a proportion, bool [n]."""
    if name in SPECIFICITIES:
        return predictions.probabilities[:, 1] > predictions.thresholds[name]
    return predictions.right


def _mean(value: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean of a value [n] under each weighting."""
    return weights @ value / weights.sum(-1)


def _of_class(predictions: Predictions, c: int) -> tuple[np.ndarray, np.ndarray]:
    """Whether each image is of class c, and its score of that class, both [n]."""
    return predictions.labels == c, predictions.probabilities[:, c]


def _tallies(predictions: Predictions, c: int, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many images of class c and how many others have each distinct score, [R, U], from the lowest score on."""
    positive, scores = _of_class(predictions, c)
    order = np.argsort(scores, kind="stable")
    first_of_score = np.unique(scores[order], return_index=True)[1]
    ordered = weights[:, order]
    return tuple(np.add.reduceat(ordered * chosen[order], first_of_score, axis=-1) for chosen in (positive, ~positive))


def _bins(predictions: Predictions) -> list[np.ndarray]:
    """The images of each bin of confidence, bool [n]."""
    bin_of = np.minimum((predictions.confidence * BINS).astype(int), BINS - 1)
    return [bin_of == each for each in range(BINS)]


def _squares(predictions: Predictions) -> np.ndarray:
    """The squared errors of the probabilities, [n, classes]."""
    return (predictions.probabilities - np.eye(predictions.classes)[predictions.labels]) ** 2


METRICS = {
    "accuracy": Metric(partial(proportion, "accuracy"), partial(weighted_proportion, "accuracy")),
    "balanced_accuracy": Metric(balanced_accuracy, weighted_balanced_accuracy),
    "sensitivity": Metric(partial(proportion, "sensitivity"), partial(weighted_proportion, "sensitivity")),
    "specificity": Metric(partial(proportion, "specificity"), partial(weighted_proportion, "specificity")),
    "auroc": Metric(auroc, weighted_auroc),
    "average_precision": Metric(average_precision, weighted_average_precision),
    **{name: Metric(partial(proportion, name), partial(weighted_proportion, name)) for name in SPECIFICITIES},
    "f1": Metric(f1, weighted_f1),
    "ece": Metric(ece, weighted_ece),
    "brier": Metric(brier, weighted_brier),
}
