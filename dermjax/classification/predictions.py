"""What a classifier says of images: logits, probabilities, the CSV of them, and the figures of a split.

A decision is the most probable class (for two classes: a threshold of 0.5); the positive class is the last one.

Shapes: n images, L labels, B batch.

`dermjax classify --predict`: a saved classifier and images -> a CSV of probabilities, calibrated by its training.

    dermjax classify --predict=DIR --classifier=runs/vit_hybrid --out=said.csv
    dermjax classify --predict=runs/prepare --classifier=CHECKPOINTED_RUN --out=runs/other/predictions.csv

For a folder of images the columns are image, called, p_<label> …. For a manifest they are those of predictions.csv, on
its validation and test images, so that `evaluate` takes the folder of the file for a run.
"""

import csv
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from scipy.special import softmax
from sklearn.metrics import accuracy_score, recall_score, roc_auc_score

from dermjax import machine, sharding
from dermjax.classification.networks import restored
from dermjax.classification.recipes import Recipe
from dermjax.data import digests, pipelines, records
from dermjax.data.archives import tree
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.models.classifier import Classifier, Params
from dermjax.progress import say
from dermjax.run_folder import write_atomically

Predict = Callable[[Params, Params, Iterator[dict]], np.ndarray]


def predictor(classifier: Classifier, recipe: Recipe, grid: Mesh) -> Predict:
    """Returns `predict(params, variables, batches) -> logits float64 [n, L]`, compiled once.

    `batches` are of what the recipe trains on, the `sharding.local_rows` of images or features, with the rows of the
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
    for listed, rows in predicted:
        for record, row in zip(listed, rows, strict=True):
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


def predict(predict: str, classifier: str, out: str, batch: int) -> None:
    """Writes `out`: what a classifier says of a folder of images or of a manifest, on all devices there are.

    Raises:
      UserError: there is no classifier or no image, an image cannot be decoded, or the classes are others.
    """
    found, (params, variables) = restored(Path(classifier))
    images = Path(predict)
    manifest = listed_images(images, found.labels)
    if manifest.labels != found.labels:
        theirs, ours = ", ".join(manifest.labels), ", ".join(found.labels)
        raise UserError(f"manifest {images}: its classes are {theirs}, the classifier knows {ours}")
    told = [record for split in ("validation", "test") for record in manifest.split(split)]
    if not told:
        raise UserError(f"{images}: no image to judge; give a folder of images, or a manifest with a test split")
    grid = sharding.mesh(0, 1)
    batch = -(-batch // grid.size) * grid.size
    say_of = predictor(found, Recipe(last=None), grid)
    batches = pipelines.evaluation_batches(
        told, manifest, size=found.config["image_size"], batch=batch, rows=sharding.local_rows(batch, grid)
    )
    said = probabilities(say_of(params, variables, batches))
    is_manifest = (images / records.FILE).is_file() or images.is_file()
    Path(out).absolute().parent.mkdir(parents=True, exist_ok=True)
    write_atomically(
        Path(out), table(manifest, [(told, said)]) if is_manifest else plain_names(told, said, found.labels)
    )
    say(f"{out}: {len(told)} images")


def listed_images(path: Path, labels: tuple[str, ...]) -> Manifest:
    """Returns a manifest, or the images anywhere below a folder as one whose labels mean nothing."""
    if path.is_file() or (path / records.FILE).is_file():
        return records.read(path)
    if not path.is_dir():
        raise UserError(f"images {path}: no such folder; give a folder of images or a manifest")
    told = dict(label=labels[0], split="test", source=path.name, image_manipulation="none")
    names = tree.walk(path).images
    with ThreadPoolExecutor(machine.cores()) as pool:
        digest = pool.map(lambda name: digests.cached_sha256(path / name), names)
    found = tuple(Record(image=name, sha256=each, **told) for name, each in zip(names, digest, strict=True))
    return Manifest(labels=labels, root=path, records=found)


def plain_names(told: list[Record], said, labels: tuple[str, ...]) -> str:
    """Returns the CSV image, called, p_<label> …."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "called", *(f"p_{label}" for label in labels)])
    for record, row in zip(told, said, strict=True):
        writer.writerow([record.image, labels[row.argmax()], *(f"{p:.9f}" for p in row)])
    return text.getvalue()
