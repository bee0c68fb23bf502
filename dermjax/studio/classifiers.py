"""Classify: what the saved classifiers of the runs say of an image that somebody drops. Research use only."""

import threading

from PIL import Image

from dermjax.classification.predictions import LesionClassifier
from dermjax.data.images import load_any
from dermjax.studio.calls import Field, Refused
from dermjax.studio.folder import Folder
from dermjax.studio.uploads import open_upload, own_text

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
        text = own_text(body)
        with self.lock, open_upload(body) as image:
            network = self._network(classifier)
            _, rows = network.predict(_decoded(image, network.classifier.config["image_size"]), batch=1)
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


def _decoded(image: Image.Image, size: int):
    """uint8 [size, size, 3]; Refused for an image that is only there in part."""
    try:
        image.draft("RGB", (2 * size, 2 * size))  # lets JPEG skip detail that is not wanted
        return load_any(image, size)
    except Exception:  # Pillow's decoders raise anything
        raise Refused("this image is damaged", 415) from None
