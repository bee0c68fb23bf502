"""The figures that a classifier is judged by, as scikit-learn computes them where it has them.

A decision is the most probable class. The positive class is the last one; sensitivity, specificity and what hangs on a
threshold are of the binary task only. Where a curve is of one class, that of more than two classes is the mean of one
class against the rest.
"""

import math

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    confusion_matrix,
    f1_score,
    recall_score,
    roc_auc_score,
    roc_curve,
)

from dermjax.evaluation.predictions import Predictions

# false-positive rates at which curves of several classes are averaged
GRID = np.linspace(0, 1, 201)
BINS = 15  # of the calibration error, equal in width (Guo et al. 2017, arXiv 1706.04599)
# the specificity that a figure's threshold is chosen for, on validation images
SPECIFICITIES = {"sensitivity_at_90": 0.90, "sensitivity_at_95": 0.95}


def accuracy(said: Predictions) -> float:
    """The share of right decisions."""
    return float(accuracy_score(said.labels, said.called))


def balanced_accuracy(said: Predictions) -> float:
    """The mean over classes of the share of right decisions."""
    return float(balanced_accuracy_score(said.labels, said.called))


def sensitivity(said: Predictions) -> float:
    """The share of positive images that are called positive."""
    return float(recall_score(said.labels, said.called, pos_label=1))


def specificity(said: Predictions) -> float:
    """The share of negative images that are called negative."""
    return float(recall_score(said.labels, said.called, pos_label=0))


def sensitivity_at_90(said: Predictions) -> float:
    """The share of positive images above the threshold that left 90 % of the negative validation images below it."""
    return float(recall_score(said.labels, said.above("sensitivity_at_90"), pos_label=1))


def sensitivity_at_95(said: Predictions) -> float:
    """The same for 95 %."""
    return float(recall_score(said.labels, said.above("sensitivity_at_95"), pos_label=1))


def f1(said: Predictions) -> float:
    """The harmonic mean of precision and sensitivity, of the positive class or averaged over several."""
    average = "binary" if said.classes == 2 else "macro"
    return float(f1_score(said.labels, said.called, average=average, zero_division=0.0))


def auroc(said: Predictions) -> float:
    """The chance that a positive image gets a higher score than a negative one."""
    return float(np.mean([roc_auc_score(said.labels == c, said.probabilities[:, c]) for c in curved(said)]))


def average_precision(said: Predictions) -> float:
    """The area under the curve of precision over sensitivity, in steps."""
    return float(np.mean([average_precision_score(said.labels == c, said.probabilities[:, c]) for c in curved(said)]))


def brier(said: Predictions) -> float:
    """The mean squared error of the probabilities: of the positive class of two, else summed over classes."""
    if said.classes == 2:
        return float(brier_score_loss(said.labels, said.probabilities[:, 1]))
    return float(((said.probabilities - np.eye(said.classes)[said.labels]) ** 2).sum(-1).mean())


def ece(said: Predictions) -> float:
    """The expected calibration error: how far confidence is from accuracy, averaged over BINS of confidence."""
    gaps = [abs((said.confidence[in_bin] - said.right[in_bin]).sum()) for in_bin in bins(said)]
    return float(sum(gaps) / len(said.labels))


def bins(said: Predictions) -> list[np.ndarray]:
    """Which images [n] are in each bin of confidence."""
    place = np.minimum((said.confidence * BINS).astype(int), BINS - 1)
    return [place == each for each in range(BINS)]


def roc(said: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """The ROC curve as false- and true-positive rates [points]; several classes are averaged over GRID."""
    curves = [roc_curve(said.labels == c, said.probabilities[:, c])[:2] for c in curved(said)]
    if len(curves) == 1:
        return curves[0]
    return GRID, np.mean([np.interp(GRID, *curve) for curve in curves], axis=0)


def confusion(said: Predictions) -> np.ndarray:
    """How often each true class (row) was called each class (column), int [classes, classes]."""
    return confusion_matrix(said.labels, said.called, labels=np.arange(said.classes))


def thresholds(validation: Predictions) -> dict[str, float]:
    """The score above which an image is called positive, for each of SPECIFICITIES, chosen on validation images.

    It is the lowest that leaves at least that share of the negative images at or below it. Empty for more classes
    than two, or without a negative image.
    """
    scores = np.sort(validation.probabilities[validation.labels == 0, 1])
    if validation.classes != 2 or not len(scores):
        return {}
    return {name: float(scores[math.ceil(share * len(scores)) - 1]) for name, share in SPECIFICITIES.items()}


def curved(said: Predictions) -> range:
    """The classes that have a curve of their own: the positive one of two, else each."""
    return range(1, 2) if said.classes == 2 else range(said.classes)


def counted(name: str, labels: np.ndarray) -> int:
    """How many images a figure is counted over."""
    if name == "specificity":
        return int((labels == 0).sum())
    return int((labels == 1).sum()) if name.startswith("sensitivity") else len(labels)


def names(said: Predictions) -> tuple[str, ...]:
    """The figures that exist for so many classes, with or without thresholds."""
    absent = {name for name in SPECIFICITIES if name not in said.thresholds}
    absent |= {"sensitivity", "specificity"} if said.classes > 2 else set()
    return tuple(name for name in METRICS if name not in absent)


METRICS = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "sensitivity": sensitivity,
    "specificity": specificity,
    "auroc": auroc,
    "average_precision": average_precision,
    "sensitivity_at_90": sensitivity_at_90,
    "sensitivity_at_95": sensitivity_at_95,
    "f1": f1,
    "ece": ece,
    "brier": brier,
}
PROPORTIONS = ("accuracy", "sensitivity", "specificity", *SPECIFICITIES)  # counts out of n
ERRORS = ("ece", "brier")  # less is better
