"""Classify: what the saved classifiers of the runs say of an image that somebody drops, where they look, and whether
the image is like what they have seen. Research use only.

An image is outside of what a classifier has seen where the distance of its features to the nearest training image is
larger than that of nearly all held-out images (Sun et al. 2022, arXiv 2204.06507: nearest neighbours of features).
"""

import threading
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from dermjax.classification import saliency
from dermjax.classification.predictions import LesionClassifier
from dermjax.data import images
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.evaluation.features import in_batches, nearest
from dermjax.studio import runs
from dermjax.studio.calls import Field, Refused
from dermjax.studio.folder import Folder
from dermjax.studio.uploads import decoded, open_upload, other_text, own_text
from dermjax.weights.tensor_files import weights_in

USE = "Research use only, not a diagnosis."
SAMPLE = 400  # training images, and as many held-out ones, that an image is compared with
HELD_OUT = "validation"
SHARE = 99  # percent of held-out images that are nearer than the limit
FIELDS = {"classifier": Field(kind=str, summary="a name out of /api/classifiers", most=300)}
LIKE = "It is like the images that this classifier learnt."
UNLIKE = "It is outside of what this classifier has seen: do not rely on these probabilities."
UNTOLD = "Whether it is like the images that this classifier learnt cannot be told"


@dataclass(frozen=True)
class Seen:
    """What a classifier has seen: features [N, D] of length 1, and the distance to the nearest of them (1 - cosine)
    that SHARE of held-out images do not reach."""

    features: np.ndarray
    limit: float

    def distance(self, features: np.ndarray) -> np.ndarray:
        """The distance of each image, by its features [n, D], to the nearest training image."""
        return 1 - nearest(_unit(features), self.features)[0]


class Classifiers:
    """The saved classifiers of a folder, one of which is held at a time; one image is classified at a time."""

    def __init__(self, folder: Folder):
        self.folder, self.lock = folder, threading.Lock()
        self.held: tuple[tuple, LesionClassifier, Seen | str] | None = None

    def listed(self) -> dict:
        """The names of the runs that have left a classifier."""
        return {"classifiers": list(self._names()), "use": USE}

    def classify(self, classifier: str, body: bytes) -> dict:
        """The calibrated probability of each class, where the classifier looked (a data URI), whether the image is
        outside of what it has seen (None where that cannot be told), and whether it says that a model made it."""
        if classifier not in self._names():
            raise Refused("there is no such classifier; the list of classifiers has their names", 404)
        text = own_text(body) or other_text(body)
        with self.lock, open_upload(body) as image:
            network, seen = self._held(classifier)
            pixels = decoded(image, network.classifier.config["image_size"], network.classifier.resize)
            labels, rows = network.predict_pixels(pixels[None], batch=1)
            shown = images.to_model(pixels)[None]
            heat = saliency.heat(network.classifier, network.params, network.variables, shown)[0]
            known = isinstance(seen, Seen)
            distance = float(seen.distance(np.asarray(_features(network, shown)))[0]) if known else None
        outside = distance > seen.limit if known else None
        return {
            "classifier": classifier,
            "probabilities": {label: round(float(p), 4) for label, p in zip(network.labels, rows[0], strict=True)},
            "heat": saliency.overlay(pixels, heat, f"where it looked for {labels[0]}", "").uri,
            "called": labels[0],
            "outside": outside,
            "distance": round(distance, 4) if known else None,
            "limit": round(seen.limit, 4) if known else None,
            "told": (UNLIKE if outside else LIKE) if known else seen,
            "synthetic": bool(text and text.get("synthetic")),
            "use": USE,
        }

    def _names(self) -> dict[str, None]:
        names = {}
        for path, inside in self.folder.folders():
            folder = path / "classifier"
            if "classifier" in inside and weights_in(folder) and self._is_inside(folder):
                names[self.folder.name(path)] = None
        return names

    def _is_inside(self, folder: Path) -> bool:
        """Whether no file of a classifier is a link that leaves the root."""
        return all(file.resolve().is_relative_to(self.folder.root) for file in folder.iterdir())

    def _held(self, name: str) -> tuple[LesionClassifier, Seen | str]:
        path = self.folder.path(f"{name}/classifier" if name else "classifier")
        state = (path, *((file.name, file.stat().st_mtime_ns) for file in weights_in(path)))
        if not self.held or self.held[0] != state:
            network = LesionClassifier(path)
            self.held = (state, network, self._learnt(network, runs.config_of(path.parent).get("manifest")))
        return self.held[1:]

    def _learnt(self, network: LesionClassifier, manifest: object) -> Seen | str:
        """What a classifier has seen of the manifest that its config names, or a sentence why that cannot be told."""
        run = self.folder.run_of(manifest)
        try:
            seen = None if run is None else _seen(network, self.folder.manifest(run))
        except UserError as error:  # images that are gone, changed or elsewhere; the classifier is there all the same
            return f"{UNTOLD}: {self.folder.say(str(error))}."
        return seen or f"{UNTOLD}: they are not in this folder."


def _features(network: LesionClassifier, image: np.ndarray) -> jax.Array:
    return network.classifier.lower(network.params, network.variables, image, last=0)


def _seen(network: LesionClassifier, manifest: Manifest) -> Seen | None:
    """What a classifier has seen of the manifest that it was trained on; None where there is next to nothing."""
    training, held_out = (_evenly_spaced(manifest.split(split)) for split in ("train", HELD_OUT))
    if len(training) < 4:
        return None
    lower, classifier = jax.jit(lambda image: _features(network, image)), network.classifier
    how = (classifier.config["image_size"], "features", classifier.resize)
    unit = _unit(in_batches(lower, manifest, training, *how))
    if held_out:
        alike = nearest(_unit(in_batches(lower, manifest, held_out, *how)), unit)[0]
    else:  # training images stand for them: how far each is from the nearest other
        alike = np.where(np.eye(len(unit), dtype=bool), -1, unit @ unit.T).max(1)
    return Seen(unit, float(np.percentile(1 - alike, SHARE)))


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def _evenly_spaced(records: list[Record]) -> list[Record]:
    return (
        [records[n] for n in np.unique(np.linspace(0, len(records) - 1, SAMPLE).round().astype(int))] if records else []
    )
