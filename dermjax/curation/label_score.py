"""The probability of each image's own label, by a classifier that was trained on real images only."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from dermjax.data import images
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.models.classifier import Classifier, Params
from dermjax.progress import bar
from dermjax.weights import classifiers
from dermjax.weights.tensor_files import digest, read_json

BATCH = 64
FILES = ("config.json", "model.safetensors", "preprocessor_config.json")  # that probabilities follow from


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
        found = in_batches(lambda image: all_classes(self.trees, image), manifest, records, size, "labels")
        return found[np.arange(len(records)), [labels.index(record.label) for record in records]]


def in_batches(
    network: Callable[[np.ndarray], jax.Array], manifest: Manifest, records: Sequence[Record], size: int, title: str
) -> np.ndarray:
    """What a network makes of images float32 [BATCH, size, size, 3] in [-1, 1], of all records: [N, …]."""
    rows = []
    with bar(len(records), title, "images", 0) as progress:
        for first in range(0, len(records), BATCH):
            paths = [manifest.path(record) for record in records[first : first + BATCH]]
            pixels = np.stack([images.to_model(images.load(path, size)) for path in paths])
            full = np.concatenate([pixels, np.zeros((BATCH - len(pixels), *pixels.shape[1:]), np.float32)])
            rows.append(np.asarray(network(full))[: len(pixels)])
            progress.update(len(pixels))
    return np.concatenate(rows)


def read(folder: str, labels: tuple[str, ...]) -> LabelScorer | None:
    """The classifier in a folder that `classify` left, or in its workdir; None for "".

    Raises:
      UserError: there is none, or it knows other classes.
    """
    if not folder:
        return None
    path = Path(folder) / "classifier" if (Path(folder) / "classifier").is_dir() else Path(folder)
    config = read_json(path / "config.json")
    known = tuple(config.get("id2label", {}).values())
    if set(known) != set(labels):
        raise UserError(
            f"config.classifier {folder}: it knows {', '.join(known) or 'no classes'}, not {', '.join(labels)}"
        )
    files = {name: path / name for name in FILES if (path / name).is_file()}
    return LabelScorer(*classifiers.read(path, known, config["image_size"]), digest=digest(files))
