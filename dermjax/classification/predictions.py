"""What a classifier says of images: logits, probabilities, the CSV of them, and the figures of a split.

A decision is the most probable class (for two classes: a threshold of 0.5); the positive class is the last one.

Shapes: n images, L labels, B batch.
"""

import csv
import io
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh
from scipy.special import softmax
from sklearn.metrics import accuracy_score, recall_score, roc_auc_score

from dermjax import sharding
from dermjax.classification.recipes import Recipe
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.models.classifier import Classifier, Params

Predict = Callable[[Params, Params, Iterator[dict]], np.ndarray]


def predictor(classifier: Classifier, recipe: Recipe, grid: Mesh) -> Predict:
    """Returns `predict(params, variables, batches) -> logits float64 [n, L]`, compiled once.

    `batches` are of what the recipe trains on, the `sharding.own` rows of images or features, with the rows of the
    whole batch that count as "valid"; they are divided over the mesh `grid`. Every process gets all logits, in the
    order of the rows. It raises UserError when a logit is not a finite number.
    """

    def forward(params: Params, variables: Params, image: jax.Array) -> jax.Array:
        return recipe.logits(classifier, params, variables, image, train=False)[0]

    compiled = jax.jit(forward, out_shardings=sharding.replicated(grid))

    def logits(params: Params, variables: Params, image: np.ndarray) -> np.ndarray:
        return np.asarray(compiled(params, variables, sharding.place(image, grid)), np.float64)

    def predict(params: Params, variables: Params, batches: Iterator[dict]) -> np.ndarray:
        values = np.concatenate([logits(params, variables, b["image"])[b["valid"]] for b in batches])
        lost = int((~np.isfinite(values)).any(-1).sum())
        if lost:
            raise UserError(f"{lost} of {len(values)} predictions are not finite numbers; lower config.rate")
        return values

    return predict


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Returns the probabilities [n, L] of logits [n, L]."""
    return softmax(logits, axis=-1)


def table(manifest: Manifest, predicted: list[tuple[list[Record], np.ndarray]]) -> str:
    """Returns the CSV image, label, split, p_<label> … of records and their probabilities."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "label", "split", *(f"p_{label}" for label in manifest.labels)])
    for records, rows in predicted:
        for record, row in zip(records, rows, strict=True):
            writer.writerow([record.image, record.label, record.split, *(f"{p:.9f}" for p in row)])
    return text.getvalue()


def truth(manifest: Manifest, records: list[Record]) -> np.ndarray:
    """Returns the class indices int [n] of records."""
    return np.array([manifest.labels.index(record.label) for record in records])


def figures(manifest: Manifest, records: list[Record], said: np.ndarray) -> dict[str, float]:
    """Returns n, accuracy and AUROC (one class against the rest, averaged), and for two classes both recalls.

    said: probabilities [n, L].
    """
    labels, decided = truth(manifest, records), said.argmax(-1)
    positive = range(len(manifest.labels)) if len(manifest.labels) > 2 else [1]
    found = {
        "n": len(records),
        "accuracy": float(accuracy_score(labels, decided)),
        "auroc": float(np.mean([roc_auc_score(labels == c, said[:, c]) for c in positive])),
    }
    if len(manifest.labels) == 2:
        found["sensitivity"] = float(recall_score(labels, decided, pos_label=1))
        found["specificity"] = float(recall_score(labels, decided, pos_label=0))
    return found
