"""What a classifier predicts of images: logits, probabilities, their CSV, and the figures of a split.

A decision is the most probable class (for two classes: a threshold of 0.5); the positive class is the last one.

`dermjax classify --predict` writes the CSV of a saved classifier, calibrated by its training as if all classes were
equally frequent:

    dermjax classify --predict=DIR --classifier=runs/vit_hybrid --out=predictions.csv
    dermjax classify --predict=runs/prepare --classifier=CHECKPOINTED_RUN --out=runs/other/predictions.csv

For a folder of images the columns are image, called, p_<label> …. For a manifest they are image, label, split, sha256,
p_<label> … on its validation and test images, so that `evaluate` takes the folder of the file for a run. What a run of
`classify` has learnt from is refused there, as far as its manifests are at hand.

Shapes: n images, L labels, B batch.
"""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image
from scipy.special import softmax
from sklearn.metrics import accuracy_score, recall_score, roc_auc_score

from dermjax import machine, sharding
from dermjax.classification import inputs, networks
from dermjax.classification.recipes import Recipe
from dermjax.data import digests, pipelines, records
from dermjax.data.archives import tree
from dermjax.data.images import ImageLike, filled, load_any, to_model
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.models.classifier import Classifier, Params
from dermjax.progress import say
from dermjax.run_folder import write_atomically
from dermjax.weights import classifiers

Predict = Callable[[Params, Params, Iterator[dict]], np.ndarray]


def predictor(classifier: Classifier, recipe: Recipe, grid: Mesh) -> Predict:
    """Returns `predict(params, variables, batches) -> logits float64 [n, L]`, compiled once.

    `batches` are of what the recipe trains on, the `sharding.local_rows` rows of images or features, with the rows of
    the full batch that count as "valid"; they are divided over the mesh `grid`. Every process gets all logits, in the
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


def manifest_table(manifest: Manifest, predicted: Iterable[tuple[list[Record], np.ndarray]]) -> str:
    """Returns the CSV image, label, split, sha256, p_<label> … of records and their probabilities."""
    rows = [
        (record.image, record.label, record.split, record.sha256, each)
        for chosen, values in predicted
        for record, each in zip(chosen, values, strict=True)
    ]
    return table(("image", "label", "split", "sha256"), manifest.labels, rows)


def table(columns: Sequence[str], labels: Sequence[str], rows: Iterable[tuple]) -> str:
    """Returns the CSV of rows, each with the values of the columns and, last, its probabilities [L]."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, *(f"p_{label}" for label in labels)])
    for *values, row in rows:
        writer.writerow([*values, *row.tolist()])  # every digit: rounded, confident images would be tied
    return text.getvalue()


def label_indices(manifest: Manifest, records: list[Record]) -> np.ndarray:
    """Returns the class indices int [n] of records."""
    return np.array([manifest.labels.index(record.label) for record in records])


def figures(manifest: Manifest, records: list[Record], predicted: np.ndarray) -> dict[str, float]:
    """Returns n, accuracy and AUROC (one class against the rest, averaged), and for two classes both recalls.

    predicted: probabilities [n, L].
    """
    labels, called = label_indices(manifest, records), predicted.argmax(-1)
    positive = range(len(manifest.labels)) if len(manifest.labels) > 2 else [1]
    values = {
        "n": len(records),
        "accuracy": float(accuracy_score(labels, called)),
        "auroc": float(np.mean([roc_auc_score(labels == c, predicted[:, c]) for c in positive])),
    }
    if len(manifest.labels) == 2:
        values["sensitivity"] = float(recall_score(labels, called, pos_label=1))
        values["specificity"] = float(recall_score(labels, called, pos_label=0))
    return values


def predict(predict: str, classifier: str, out: str, batch: int) -> None:
    """Writes `out`: what a classifier predicts of a folder of images or of a manifest, on all devices there are.

    Raises:
      UserError: there is no classifier or no image, an image cannot be decoded, or the classes are others; a batch of
        less than 1.
    """
    if batch < 1:
        raise UserError(f"--batch={batch}: give 1 or more")
    network, (params, variables) = networks.load(Path(classifier))
    source, labels = Path(predict), network.labels
    is_manifest = (source / records.FILE).is_file() or source.is_file()
    manifest = records.read(source).in_order(labels) if is_manifest else read_folder(source, labels)
    if manifest.labels != labels:
        raise UserError(
            f"manifest {source}: its classes are {', '.join(manifest.labels)}, the classifier knows {', '.join(labels)}"
        )
    chosen = [record for split in ("validation", "test") for record in manifest.split(split)]
    if not chosen:
        raise UserError(f"{source}: no image to judge; give a folder of images, or a manifest with a test split")
    if is_manifest:
        refuse_learnt(Path(classifier), replace(manifest, records=tuple(chosen)))
    grid = sharding.mesh(0, 1)
    batch = -(-batch // grid.size) * grid.size
    batches = pipelines.evaluation_batches(
        chosen, manifest, size=network.config["image_size"], batch=batch, rows=sharding.local_rows(batch, grid),
        resize=network.resize,
    )  # fmt: skip
    predicted = probabilities(predictor(network, Recipe(last=None), grid)(params, variables, batches))
    if is_manifest:
        text = manifest_table(manifest, [(chosen, predicted)])
    else:
        rows = [(record.image, labels[row.argmax()], row) for record, row in zip(chosen, predicted, strict=True)]
        text = table(("image", "called"), labels, rows)
    Path(out).absolute().parent.mkdir(parents=True, exist_ok=True)
    write_atomically(Path(out), text)
    say(f"{out}: {len(chosen)} images")


def refuse_learnt(classifier: Path, judged: Manifest) -> None:
    """Raises UserError where a run of `classify` has learnt, or was stopped or calibrated, by what it is to judge."""
    config, learnt = classifiers.config_of_run(classifier), []
    paths = [Path(config[key]) for key in ("manifest", "synthetic") if config.get(key)]
    if gone := [path for path in paths if not path.exists()]:
        say(f"classify: {gone[0]} is not there, so that nobody can tell whether {classifier} has learnt from what it "
            "is to judge")  # fmt: skip
        return
    for path in paths:
        manifest = records.read(path)
        if {(r.sha256, r.split) for r in judged.records} <= {(r.sha256, r.split) for r in manifest.records}:
            return  # its own, which were audited before it was trained
        learnt.append(replace(manifest, records=tuple(r for r in manifest.records if r.split != "test")))
    try:
        inputs.refuse_leaks([*learnt, judged] if learnt else [])
    except UserError as error:
        raise UserError(f"{classifier} has learnt from what it is to judge: {error}") from error


def read_folder(path: Path, labels: tuple[str, ...]) -> Manifest:
    """Returns the images anywhere below a folder as a manifest whose records' labels mean nothing."""
    if not path.is_dir():
        raise UserError(f"images {path}: no such folder; give a folder of images or a manifest")
    names = tree.walk(path).images
    with ThreadPoolExecutor(machine.cores()) as pool:
        sha256 = pool.map(lambda name: digests.cached_sha256(path / name), names)
    fields = {"label": labels[0], "split": "test", "source": path.name, "image_manipulation": "none"}
    images = tuple(Record(image=name, sha256=each, **fields) for name, each in zip(names, sha256, strict=True))
    return Manifest(labels=labels, root=path, records=images)


class Prediction(NamedTuple):
    """The most probable class of each of n images, and the probabilities float64 [n, L] of all classes."""

    labels: list[str]
    probabilities: np.ndarray


class LesionClassifier:
    """A saved classifier that is called from Python; what `dermjax.load_classifier` returns. Research use only.

    labels: its classes, in the order of the probabilities, which are calibrated by its training as if all classes were
    equally frequent.
    """

    def __init__(self, folder: str | PathLike):
        self.classifier, (self.params, self.variables) = networks.load(Path(folder).expanduser())
        self.labels = self.classifier.labels
        self._grid = sharding.local_mesh()
        self._logits = predictor(self.classifier, Recipe(last=None), self._grid)

    def predict(self, images: ImageLike | Iterable[ImageLike], batch: int = 32) -> Prediction:
        """Returns what the classifier predicts of one image or several: files, PIL images, or uint8 [H, W, 3].

        Raises:
          UserError: there is no image, or one of them cannot be decoded.
        """
        single = isinstance(images, str | PathLike | Image.Image) or getattr(images, "ndim", 4) in (0, 2, 3)
        several = [images] if single or not isinstance(images, Iterable) else list(images)
        if not several or batch < 1:
            raise UserError("no image to classify; give at least one, and a batch of 1 or more")
        size, resize = self.classifier.config["image_size"], self.classifier.resize
        return self.predict_pixels(np.stack([load_any(image, size, resize) for image in several]), batch)

    def predict_pixels(self, pixels: np.ndarray, batch: int) -> Prediction:
        """Returns what the classifier predicts of uint8 [n, S, S, 3] that are cut to its size already."""
        batch = -(-batch // self._grid.size) * self._grid.size

        def batches() -> Iterator[dict[str, np.ndarray]]:
            for first in range(0, len(pixels), batch):
                chosen = to_model(pixels[first : first + batch])
                yield {"image": filled(chosen, batch), "valid": np.arange(batch) < len(chosen)}

        rows = probabilities(self._logits(self.params, self.variables, batches()))
        return Prediction([self.labels[row.argmax()] for row in rows], rows)
