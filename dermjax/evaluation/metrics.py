"""The figures of a classifier: on the test images as they are, or under many weightings of them at once.

Without weights a figure is a number, scikit-learn's where it has the figure. With weights [R, n], which a bootstrap
gives, it is an array [R] by one expression, where scikit-learn takes one weighting at a time and rounds otherwise; the
tests prove both equal.

A decision is the most probable class. The positive class is the last one; sensitivity, specificity, the mean predicted
probability and what hangs on a threshold are of the binary task only. Where a curve is of one class, that of more than
two classes is the mean of one class against the rest.

Shapes: n images, R weightings, U distinct scores.
"""

from functools import partial

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
# figures at a threshold, and whose it is: the specificity that it was chosen for is another one on other images
AT_THRESHOLD = {name: name for name in SPECIFICITIES}
AT_THRESHOLD |= {name.replace("sensitivity", "specificity"): name for name in SPECIFICITIES}
PROPORTIONS = ("accuracy", "sensitivity", "specificity", *AT_THRESHOLD)  # counts out of n
BY_IMAGE = ("accuracy", "ece", "brier", "mean_predicted")  # means over all images, whatever their class
Weights = np.ndarray | None


def names(predictions: Predictions) -> tuple[str, ...]:
    """The figures that exist for so many classes, with or without thresholds."""
    absent = {name for name, threshold in AT_THRESHOLD.items() if threshold not in predictions.thresholds}
    absent |= {"sensitivity", "specificity", "mean_predicted"} if predictions.classes > 2 else set()
    return tuple(name for name in METRICS if name not in absent)


def counted(name: str, labels: np.ndarray) -> np.ndarray:
    """The images that a figure is counted over, bool [n]."""
    if name.startswith("specificity"):
        return labels == 0
    return labels == 1 if name.startswith("sensitivity") else np.ones(len(labels), bool)


def proportion(name: str, predictions: Predictions, weights: Weights = None) -> float | np.ndarray:
    """The share of right decisions, by the figure's threshold where it has one, among the images it is counted over."""
    among, hits = counted(name, predictions.labels), predictions.right
    if name in AT_THRESHOLD:
        called = predictions.probabilities[:, 1] > predictions.thresholds[AT_THRESHOLD[name]]
        hits = called == predictions.labels
    return float(hits[among].mean()) if weights is None else _mean(hits, weights * among)


def balanced_accuracy(predictions: Predictions, weights: Weights = None) -> float | np.ndarray:
    """The mean over the classes that there are of the share of right decisions."""
    if weights is None:
        return float(balanced_accuracy_score(predictions.labels, predictions.called))
    shares = [_mean(predictions.right, weights * (predictions.labels == c)) for c in np.unique(predictions.labels)]
    return np.mean(shares, axis=0)


def auroc(predictions: Predictions, weights: Weights = None) -> float | np.ndarray:
    """The chance that a positive image gets a higher score than a negative one, ties counted half (Mann-Whitney)."""
    if weights is None:
        return float(np.mean([roc_auc_score(*_of_class(predictions, c)) for c in _curved(predictions)]))

    def area(c: int) -> np.ndarray:
        positives, negatives = _tallies(predictions, c, weights)
        below = np.cumsum(negatives, axis=-1) - negatives / 2
        return (positives * below).sum(-1) / (positives.sum(-1) * negatives.sum(-1))

    return np.mean([area(c) for c in _curved(predictions)], axis=0)


def average_precision(predictions: Predictions, weights: Weights = None) -> float | np.ndarray:
    """The area under the curve of precision over sensitivity, in steps."""
    if weights is None:
        return float(np.mean([average_precision_score(*_of_class(predictions, c)) for c in _curved(predictions)]))

    def area(c: int) -> np.ndarray:
        positives, negatives = (counts[:, ::-1] for counts in _tallies(predictions, c, weights))  # highest score first
        right, wrong = np.cumsum(positives, axis=-1), np.cumsum(negatives, axis=-1)
        precision = np.divide(right, right + wrong, out=np.zeros_like(right), where=right > 0)
        return (positives * precision).sum(-1) / positives.sum(-1)

    return np.mean([area(c) for c in _curved(predictions)], axis=0)


def f1(predictions: Predictions, weights: Weights = None) -> float | np.ndarray:
    """The harmonic mean of precision and sensitivity, of the positive class or averaged over several."""
    if weights is None:
        average = "binary" if predictions.classes == 2 else "macro"
        return float(f1_score(predictions.labels, predictions.called, average=average, zero_division=0.0))

    def mean(c: int) -> np.ndarray:
        true, called = predictions.labels == c, predictions.called == c
        both = weights @ true + weights @ called
        return np.divide(2 * (weights @ (true & called)), both, out=np.zeros(len(weights)), where=both > 0)

    return np.mean([mean(c) for c in _curved(predictions)], axis=0)


def forecasts(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """What is predicted of each image and whether it is so, [n]: of two classes the probability of the positive one,
    else that of the class that the image is called.

    A classifier of `classify` learns from batches in which classes take turns, so that its probabilities are as if all
    classes were equally frequent. Of two classes the confidence cannot see that, the probability of one of them does.
    """
    if predictions.classes == 2:
        return predictions.probabilities[:, 1], predictions.labels == 1
    return predictions.confidence, predictions.right


def mean_predicted(predictions: Predictions, weights: Weights = None) -> float | np.ndarray:
    """The mean predicted probability of the positive class of two; honest ones are on average its share of images."""
    predicted = predictions.probabilities[:, 1]
    return float(predicted.mean()) if weights is None else _mean(predicted, weights)


def ece(predictions: Predictions, weights: Weights = None) -> float | np.ndarray:
    """The expected calibration error: how far what is predicted is from what is so, averaged over BINS of it."""
    predicted, so = forecasts(predictions)
    bin_of = np.minimum((predicted * BINS).astype(int), BINS - 1)
    bins, gap = [bin_of == each for each in range(BINS)], predicted - so
    if weights is None:
        return float(sum(abs(gap[each].sum()) for each in bins) / len(gap))
    return sum(np.abs(weights[:, each] @ gap[each]) for each in bins) / weights.sum(-1)


def brier(predictions: Predictions, weights: Weights = None) -> float | np.ndarray:
    """The mean squared error of the probabilities: of the positive class of two, else summed over classes."""
    if weights is None and predictions.classes == 2:
        return float(brier_score_loss(predictions.labels, predictions.probabilities[:, 1]))
    squares = (predictions.probabilities - np.eye(predictions.classes)[predictions.labels]) ** 2
    errors = squares[:, 1] if predictions.classes == 2 else squares.sum(-1)
    return float(errors.mean()) if weights is None else _mean(errors, weights)


def roc(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """The ROC curve as false- and true-positive rates [points]; several classes are averaged over GRID."""
    curves = [roc_curve(*_of_class(predictions, c))[:2] for c in _curved(predictions)]
    if len(curves) == 1:
        return curves[0]
    return GRID, np.mean([np.interp(GRID, *curve) for curve in curves], axis=0)


def confusion(predictions: Predictions) -> np.ndarray:
    """How often each true class (row) was called each class (column), int [classes, classes]."""
    return confusion_matrix(predictions.labels, predictions.called, labels=np.arange(predictions.classes))


def _mean(value: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean of a value [n] under each weighting."""
    return weights @ value / weights.sum(-1)


def _curved(predictions: Predictions) -> range:
    """The classes that have a curve: the positive one of two, else each."""
    return range(1, 2) if predictions.classes == 2 else range(predictions.classes)


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


METRICS = {
    "accuracy": partial(proportion, "accuracy"),
    "balanced_accuracy": balanced_accuracy,
    "sensitivity": partial(proportion, "sensitivity"),
    "specificity": partial(proportion, "specificity"),
    "auroc": auroc,
    "average_precision": average_precision,
    **{name: partial(proportion, name) for name in AT_THRESHOLD},
    "f1": f1,
    "ece": ece,
    "brier": brier,
    "mean_predicted": mean_predicted,
}
