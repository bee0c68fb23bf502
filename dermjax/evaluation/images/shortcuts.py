"""Whether something beside the lesion tells the label: hairs, a ruler, dark corners, ink or gel.

A classifier takes the shortest way. Where rulers lie beside malignant lesions only, it learns rulers, and a generator
learns to draw them. So: how well do the scores of artefacts alone tell the label, in each set?

Shapes: n images.
"""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dermjax.data import images
from dermjax.data.imaging import artefacts, skin_tone
from dermjax.data.imaging.artefacts import SCORES
from dermjax.data.records import Manifest, Record
from dermjax.evaluation.predictions import Predictions
from dermjax.progress import bar

FOLDS = 5


def scores(manifest: Manifest, records: list[Record]) -> np.ndarray:
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


def predict(scores: np.ndarray, records: list[Record], labels: tuple[str, ...], seed: int) -> Predictions | None:
    """What the artefacts alone say of each image's label, learnt on other lesions; None where a class has too few."""
    classes = np.array([labels.index(record.label) for record in records])
    lesions = [record.lesion_id or record.image for record in records]
    if min(len({lesion for lesion, each in zip(lesions, classes, strict=True) if each == label})
           for label in range(len(labels))) < FOLDS:  # fmt: skip
        return None
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    probabilities = cross_val_predict(model, scores, classes, groups=lesions, cv=folds, method="predict_proba")
    order = np.argsort([record.image for record in records])
    names = tuple(records[at].image for at in order)
    return Predictions(images=names, labels=classes[order], probabilities=probabilities[order])


def rates(scores: np.ndarray, records: list[Record], labels: tuple[str, ...]) -> dict[str, dict[str, tuple[int, int]]]:
    """By artefact and class: (images that have it, images)."""
    limits = np.array([artefacts.THRESHOLDS[name] for name in SCORES])
    present = scores >= limits
    of = {label: np.array([record.label == label for record in records], bool) for label in labels}
    return {
        name: {label: (int(present[rows, column].sum()), int(rows.sum())) for label, rows in of.items()}
        for column, name in enumerate(SCORES)
    }
