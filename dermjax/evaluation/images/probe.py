"""Logistic regressions: what synthetic images teach, whether they show their label, whether artefacts tell it.

On a frozen network's features: a probe of real training images judges the synthetic ones: how often does it see the
class that they were made for, and how often that of held-out photographs? A probe of synthetic images alone judges real
ones (the classification accuracy score of Ravuri and Vinyals 2019). How strongly weights are held down is chosen on
validation images.

On artefacts alone, hairs, a ruler, dark corners, ink or gel: a classifier takes the shortest way. Where rulers lie
beside malignant lesions only, it learns rulers, and a generator learns to draw them. So: how well do their scores alone
tell the label, in each set?

Shapes: n images, D features.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from dermjax.data import images
from dermjax.data.imaging import artefacts, skin_tone
from dermjax.data.imaging.artefacts import SCORES
from dermjax.data.records import Manifest, Record
from dermjax.evaluation import findings
from dermjax.evaluation.features import standardisation
from dermjax.evaluation.predictions import Predictions
from dermjax.progress import bar

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # inverse of the penalty
ITERATIONS = 2000
FOLDS = 5


def fit(features: np.ndarray, labels: np.ndarray, held_out: tuple[np.ndarray, np.ndarray]) -> Pipeline:
    """The probe of features [n, D] and classes int [n] whose AUROC on `held_out` ones, (features, classes), is best."""
    unseen, truth = held_out
    scaler = StandardScaler().fit(features)
    scaler.mean_, scaler.scale_ = standardisation(features)

    def probe(strength: float) -> Pipeline:
        classifier = LogisticRegression(C=strength, max_iter=ITERATIONS)
        return make_pipeline(scaler, classifier.fit(scaler.transform(features), labels))

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


def artefact_scores(manifest: Manifest, records: list[Record]) -> np.ndarray:
    """The artefact scores of images, float [n, 5]: those that a stage left in the manifest, else measured."""
    rows = []
    with bar(len(records), "artefacts", "images", 0) as progress:
        for record in records:
            known = record.scores
            if not all(name in known for name in SCORES):
                known = artefacts.measure(images.load(manifest.path(record), skin_tone.SIDE))
            rows.append([known[name] for name in SCORES])
            progress.update()
    return np.array(rows, np.float64).reshape(len(records), len(SCORES))


def predict_by_artefacts(
    scores: np.ndarray, records: list[Record], labels: tuple[str, ...], seed: int
) -> Predictions | None:
    """What the artefacts alone say of each image's label, learnt on other patients and lesions; None where a class has
    too few."""
    classes = np.array([labels.index(record.label) for record in records])
    units = findings.units(records)
    if min(len({unit for unit, each in zip(units, classes, strict=True) if each == label})
           for label in range(len(labels))) < FOLDS:  # fmt: skip
        return None
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    probabilities = cross_val_predict(model, scores, classes, groups=units, cv=folds, method="predict_proba")
    order = np.argsort([record.image for record in records])
    names = tuple(records[at].image for at in order)
    return Predictions(images=names, labels=classes[order], probabilities=probabilities[order])


def artefact_rates(
    scores: np.ndarray, records: list[Record], labels: tuple[str, ...]
) -> dict[str, dict[str, tuple[int, int]]]:
    """By artefact and class: (images that have it, images)."""
    limits = np.array([artefacts.THRESHOLDS[name] for name in SCORES])
    present = scores >= limits
    rows_of = {label: np.array([record.label == label for record in records], bool) for label in labels}
    return {
        name: {label: (int(present[rows, column].sum()), int(rows.sum())) for label, rows in rows_of.items()}
        for column, name in enumerate(SCORES)
    }
