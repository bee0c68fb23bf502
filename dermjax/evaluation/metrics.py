"""The figures that a classifier is judged by, as scikit-learn computes them.

A decision is the most probable class. The positive class is the last one; sensitivity and specificity are of the
binary task only. AUROC is the area under the ROC curve, for more than two classes the mean of one class against the
rest. Labels are class indices int [n], probabilities float [n, classes].
"""

import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix, recall_score, roc_auc_score, roc_curve

# false-positive rates at which curves of several classes are averaged
GRID = np.linspace(0, 1, 201)


def accuracy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The share of right decisions."""
    return float(accuracy_score(labels, probabilities.argmax(-1)))


def sensitivity(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The share of positive images that are called positive."""
    return float(recall_score(labels, probabilities.argmax(-1), pos_label=1))


def specificity(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The share of negative images that are called negative."""
    return float(recall_score(labels, probabilities.argmax(-1), pos_label=0))


def auroc(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The chance that a positive image gets a higher score than a negative one."""
    one_against_rest = [roc_auc_score(labels == c, scores) for c, scores in _scores(probabilities)]
    return float(np.mean(one_against_rest))


def roc(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ROC curve as false- and true-positive rates [points]; several classes are averaged over GRID."""
    curves = [roc_curve(labels == c, scores)[:2] for c, scores in _scores(probabilities)]
    if len(curves) == 1:
        return curves[0]
    return GRID, np.mean([np.interp(GRID, *curve) for curve in curves], axis=0)


def confusion(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """How often each true class (row) was called each class (column), int [classes, classes]."""
    return confusion_matrix(labels, probabilities.argmax(-1), labels=np.arange(probabilities.shape[-1]))


def counted(name: str, labels: np.ndarray) -> int:
    """How many images a figure is counted over."""
    return {"sensitivity": int((labels == 1).sum()), "specificity": int((labels == 0).sum())}.get(name, len(labels))


def names(classes: int) -> tuple[str, ...]:
    """The figures that exist for so many classes."""
    return tuple(METRICS) if classes == 2 else ("accuracy", "auroc")


def _scores(probabilities: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """The classes that have a curve of their own, with their scores: the positive one of two, else each."""
    classes = probabilities.shape[-1]
    return [(c, probabilities[:, c]) for c in ([1] if classes == 2 else range(classes))]


METRICS = {"accuracy": accuracy, "sensitivity": sensitivity, "specificity": specificity, "auroc": auroc}
