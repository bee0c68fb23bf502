"""The figures of metrics.py under many weightings of the images at once: what a bootstrap asks for.

scikit-learn's functions take one weighting at a time; these take weights [R, n] and return [R], as one array expression
each. The tests prove both equal.

Shapes: R weightings, n images, U distinct scores.
"""

import numpy as np

from dermjax.evaluation import metrics
from dermjax.evaluation.predictions import Predictions


def accuracy(said: Predictions, weights: np.ndarray) -> np.ndarray:
    """metrics.accuracy under each weighting."""
    return share(said.right, weights)


def balanced_accuracy(said: Predictions, weights: np.ndarray) -> np.ndarray:
    """metrics.balanced_accuracy under each weighting."""
    return np.mean([share(said.right, weights * (said.labels == c)) for c in range(said.classes)], axis=0)


def sensitivity(said: Predictions, weights: np.ndarray) -> np.ndarray:
    """metrics.sensitivity under each weighting."""
    return share(said.right, weights * (said.labels == 1))


def specificity(said: Predictions, weights: np.ndarray) -> np.ndarray:
    """metrics.specificity under each weighting."""
    return share(said.right, weights * (said.labels == 0))


def sensitivity_at_90(said: Predictions, weights: np.ndarray) -> np.ndarray:
    """metrics.sensitivity_at_90 under each weighting; the threshold stays that of the validation images."""
    return share(said.above("sensitivity_at_90"), weights * (said.labels == 1))


def sensitivity_at_95(said: Predictions, weights: np.ndarray) -> np.ndarray:
    """metrics.sensitivity_at_95 under each weighting."""
    return share(said.above("sensitivity_at_95"), weights * (said.labels == 1))


def f1(said: Predictions, weights: np.ndarray) -> np.ndarray:
    """metrics.f1 under each weighting."""

    def of(c: int) -> np.ndarray:
        true, called = said.labels == c, said.called == c
        both = weights @ true + weights @ called
        return np.divide(2 * (weights @ (true & called)), both, out=np.zeros(len(weights)), where=both > 0)

    return of(1) if said.classes == 2 else np.mean([of(c) for c in range(said.classes)], axis=0)


def auroc(said: Predictions, weights: np.ndarray) -> np.ndarray:
    """metrics.auroc under each weighting: P(score of a positive > of a negative), ties counted half (Mann-Whitney)."""

    def of(c: int) -> np.ndarray:
        positives, negatives = tallied(said, c, weights)
        below = np.cumsum(negatives, axis=-1) - negatives / 2
        return (positives * below).sum(-1) / (positives.sum(-1) * negatives.sum(-1))

    return np.mean([of(c) for c in metrics.curved(said)], axis=0)


def average_precision(said: Predictions, weights: np.ndarray) -> np.ndarray:
    """metrics.average_precision under each weighting."""

    def of(c: int) -> np.ndarray:
        positives, negatives = (counts[:, ::-1] for counts in tallied(said, c, weights))  # from the highest score on
        found, wrong = np.cumsum(positives, axis=-1), np.cumsum(negatives, axis=-1)
        precision = np.divide(found, found + wrong, out=np.zeros_like(found), where=found > 0)
        return (positives * precision).sum(-1) / positives.sum(-1)

    return np.mean([of(c) for c in metrics.curved(said)], axis=0)


def brier(said: Predictions, weights: np.ndarray) -> np.ndarray:
    """metrics.brier under each weighting."""
    squares = (said.probabilities - np.eye(said.classes)[said.labels]) ** 2
    return share(squares[:, 1] if said.classes == 2 else squares.sum(-1), weights)


def ece(said: Predictions, weights: np.ndarray) -> np.ndarray:
    """metrics.ece under each weighting."""
    gap = said.confidence - said.right
    return sum(np.abs(weights[:, in_bin] @ gap[in_bin]) for in_bin in metrics.bins(said)) / weights.sum(-1)


def share(value: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean of a value [n] under each weighting."""
    return weights @ value / weights.sum(-1)


def tallied(said: Predictions, c: int, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many images of class c and how many others have each distinct score, [R, U], from the lowest score on."""
    scores, positive = said.probabilities[:, c], said.labels == c
    order = np.argsort(scores, kind="stable")
    first_of_score = np.unique(scores[order], return_index=True)[1]
    ordered = weights[:, order]
    return tuple(np.add.reduceat(ordered * chosen[order], first_of_score, axis=-1) for chosen in (positive, ~positive))


WEIGHTED = {
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
