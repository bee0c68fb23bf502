"""The most confident right and wrong test cases of a study, with where the classifier looked."""

from pathlib import Path

import numpy as np

from dermjax.classification import networks, saliency
from dermjax.data import images
from dermjax.data.thumbnails import Thumbnail
from dermjax.evaluation import wording
from dermjax.evaluation.findings import judged
from dermjax.evaluation.predictions import Predictions
from dermjax.study import plots
from dermjax.study.cells import Cell, Material


def explained(folders: dict[Cell, Path], material: Material, arms: tuple[str, ...], count: int) -> dict:
    """{heading: pictures} of some arms of every classifier: the first seed and fold, with the most real images."""
    found: dict[str, list[Thumbnail]] = {}
    first = min(cell.seed for cell in folders)
    shots = min((cell.shots for cell in folders), key=lambda size: (size != 0, -size))
    for cell, folder in folders.items():
        if (cell.fold, cell.seed, cell.shots) == (0, first, shots) and cell.arm in arms and count:
            said = judged(folder / "predictions.csv", material.real)
            name = f"{wording.shown(cell.classifier)}, {plots.words(cell.arm)}"
            for kind, right in (("right", True), ("wrong", False)):
                found[f"{name}: confident and {kind}"] = _pictures(folder, said, material, chosen(said, right, count))
    return {heading: pictures for heading, pictures in found.items() if pictures}


def chosen(said: Predictions, right: bool, count: int) -> np.ndarray:
    """The rows of the most confident decisions that are right, or wrong, int [up to count]."""
    rows = np.flatnonzero(said.right == right)
    return rows[np.argsort(-said.confidence[rows], kind="stable")][:count]


def _pictures(folder: Path, said: Predictions, material: Material, rows: np.ndarray) -> list[Thumbnail]:
    if not len(rows):
        return []
    classifier, (params, variables) = networks.load(folder)
    names = [said.images[row] for row in rows]
    of = {record.image: record for record in material.real.records}
    paths = [material.real.path(of[name]) for name in names]
    shown = np.stack([images.load(path, classifier.config["image_size"]) for path in paths])
    warmth = saliency.heat(classifier, params, variables, images.to_model(shown))
    labels = classifier.labels
    captions = [f"{labels[said.labels[row]]}, called {labels[said.called[row]]} at {said.confidence[row]:.0%}"
                for row in rows]  # fmt: skip
    return [
        saliency.overlay(image, each, f"real {labels[said.labels[row]]}, {name}", caption)
        for image, each, name, caption, row in zip(shown, warmth, names, captions, rows, strict=True)
    ]
