"""What synthetic images teach, and whether they show their label: logistic regressions on a frozen network's features.

A probe of real training images judges the synthetic ones: how often does it see the class that they were made for, and
how often that of held-out photographs? A probe of synthetic images alone judges real ones (the classification accuracy
score of Ravuri and Vinyals 2019). How strongly weights are held down is chosen on validation images.

Shapes: n images, D features.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from dermjax.evaluation.predictions import Predictions

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # inverse of the penalty
ITERATIONS = 2000


def fit(features: np.ndarray, labels: np.ndarray, held_out: tuple[np.ndarray, np.ndarray]) -> Pipeline:
    """The probe of features [n, D] and classes int [n] whose AUROC on `held_out` images, (features, classes), is best.

    Where held-out images do not show every class, the strength is the middle one.
    """

    def probe(strength: float) -> Pipeline:
        return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=ITERATIONS)).fit(
            features, labels
        )

    unseen, truth = held_out
    if len(set(truth.tolist())) < len(set(labels.tolist())):
        return probe(STRENGTHS[len(STRENGTHS) // 2])
    return max((probe(strength) for strength in STRENGTHS), key=lambda each: _auroc(each, unseen, truth))


def judge(probe: Pipeline, images: Sequence[str], features: np.ndarray, labels: np.ndarray) -> Predictions:
    """What a probe says of images, in alphabetical order; `labels` are their true classes, or those asked for."""
    order = np.argsort(images)
    probabilities = probe.predict_proba(features[order]).astype(np.float64)
    return Predictions(
        images=tuple(images[at] for at in order), labels=labels[order].astype(int), probabilities=probabilities
    )


def _auroc(probe: Pipeline, features: np.ndarray, labels: np.ndarray) -> float:
    probabilities = probe.predict_proba(features)
    if probabilities.shape[1] == 2:
        return float(roc_auc_score(labels, probabilities[:, 1]))
    return float(roc_auc_score(labels, probabilities, multi_class="ovr", labels=probe.classes_))
