"""The probability of each image's own label, by a classifier that was trained on real images only."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.evaluation.features import in_batches
from dermjax.models.classifier import Classifier, Params
from dermjax.weights import classifiers
from dermjax.weights.image_encoders import files
from dermjax.weights.tensor_files import digest, snapshot


@dataclass(frozen=True)
class LabelScorer:
    """A classifier, its (params, variables), and the digest of its files."""

    classifier: Classifier
    trees: tuple[Params, Params]
    digest: str

    def probabilities(self, manifest: Manifest, records: Sequence[Record]) -> np.ndarray:
        """The probabilities [n] of the labels of records."""
        size, labels = self.classifier.config["image_size"], self.classifier.labels

        @jax.jit
        def all_classes(trees: tuple[Params, Params], image: jax.Array) -> jax.Array:
            return jax.nn.softmax(self.classifier.logits(*trees, image, train=False)[0], axis=-1)

        if not records:
            return np.empty(0, np.float32)
        resize = self.classifier.resize
        found = in_batches(lambda image: all_classes(self.trees, image), manifest, records, size, "labels", resize)
        return found[np.arange(len(records)), [labels.index(record.label) for record in records]]


def read(folder: str, labels: tuple[str, ...]) -> LabelScorer | None:
    """The classifier in a folder that `classify` left, or in its workdir; None for "".

    Raises:
      UserError: there is none, it does not know a class, or it was trained on synthetic images.
    """
    if not folder:
        return None
    path = snapshot(Path(folder))
    path = path / "classifier" if (path / "classifier").is_dir() else path
    classifier, trees = classifiers.read_saved(path)
    if synthetic := classifiers.config_of_run(path).get("synthetic"):
        raise UserError(f"config.classifier {folder}: was trained on synthetic images as well, {synthetic}, so that it "
                        "may have learnt their faults; give one of real images alone")  # fmt: skip
    if not set(labels) <= set(classifier.labels):
        raise UserError(f"config.classifier {folder}: it knows {', '.join(classifier.labels)}, not {', '.join(labels)}")
    return LabelScorer(classifier, trees, digest=digest(files(path)))
