"""Classify: what the saved classifiers of the runs say of an image that somebody drops. Research use only."""

import threading

from dermjax.classification.predictions import LesionClassifier
from dermjax.studio.calls import Field, Refused
from dermjax.studio.folder import Folder
from dermjax.studio.uploads import decoded, open_upload, other_text, own_text

USE = "Research use only, not a diagnosis."
FIELDS = {"classifier": Field(kind=str, summary="a name out of /api/classifiers", most=300)}


class Classifiers:
    """The saved classifiers of a folder, one of which is held at a time; one image is classified at a time."""

    def __init__(self, folder: Folder):
        self.folder, self.lock = folder, threading.Lock()
        self.held: tuple[tuple, LesionClassifier] | None = None

    def listed(self) -> dict:
        """The names of the runs that have left a classifier."""
        return {"classifiers": list(self._names()), "use": USE}

    def classify(self, classifier: str, body: bytes) -> dict:
        """The calibrated probability of each class, and whether the image says of itself that a model made it."""
        if classifier not in self._names():
            raise Refused("there is no such classifier; the list of classifiers has their names", 404)
        text = own_text(body) or other_text(body)
        with self.lock, open_upload(body) as image:
            network = self._network(classifier)
            _, rows = network.predict(decoded(image, network.classifier.config["image_size"]), batch=1)
        return {
            "classifier": classifier,
            "probabilities": {label: round(float(p), 4) for label, p in zip(network.labels, rows[0], strict=True)},
            "synthetic": bool(text and text.get("synthetic")),
            "use": USE,
        }

    def _names(self) -> dict[str, None]:
        names = {}
        for path, inside in self.folder.folders():
            weights = path / "classifier" / "model.safetensors"
            if "classifier" in inside and weights.is_file() and weights.resolve().is_relative_to(self.folder.root):
                names[self.folder.name(path)] = None
        return names

    def _network(self, name: str) -> LesionClassifier:
        path = self.folder.path(f"{name}/classifier" if name else "classifier")
        state = (path, (path / "model.safetensors").stat().st_mtime_ns)
        if not self.held or self.held[0] != state:
            self.held = (state, LesionClassifier(path))
        return self.held[1]
