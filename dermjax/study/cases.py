"""The most confident right and wrong test cases of a study, with where the classifier looked."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from dermjax.classification import networks, saliency
from dermjax.data import images
from dermjax.data.thumbnails import Thumbnail
from dermjax.evaluation import predictions, wording
from dermjax.evaluation.predictions import Predictions
from dermjax.study.cells import Cell, Material


def chosen(cells: Iterable[Cell], arms: tuple[str, ...]) -> list[Cell]:
    """Returns the cells that are explained: of these arms the first seed and fold, with the most real images."""
    cells = list(cells)
    seed = min(cell.seed for cell in cells)
    shots = min((cell.shots for cell in cells), key=lambda size: (size != 0, -size))
    return [cell for cell in cells if (cell.fold, cell.seed, cell.shots) == (0, seed, shots) and cell.arm in arms]


def explained(folders: dict[Cell, Path], material: Material, count: int) -> dict[str, list[Thumbnail]]:
    """{heading: count pictures} of some cells, whose folders have classifiers; count 0 is none."""
    cases: dict[str, list[Thumbnail]] = {}
    for cell, folder in folders.items() if count else ():
        test = predictions.read_test(folder / "predictions.csv", material.real)
        name = f"{wording.shown(cell.classifier)}, {wording.arm(cell.arm)}"
        for kind, right in (("right", True), ("wrong", False)):
            rows = np.flatnonzero(test.right == right)
            rows = rows[np.argsort(-test.confidence[rows], kind="stable")][:count]
            if len(rows):
                cases[f"{name}: confident and {kind}"] = _pictures(folder, test.at(rows), material)
    return cases


def _pictures(folder: Path, some: Predictions, material: Material) -> list[Thumbnail]:
    classifier, (params, variables) = networks.load(folder)
    record_of = {record.image: record for record in material.real.records}
    paths = [material.real.path(record_of[image]) for image in some.images]
    pixels = np.stack([images.load(path, classifier.config["image_size"]) for path in paths])
    warmth = saliency.heat(classifier, params, variables, images.to_model(pixels))
    pictures = []
    for row, image in enumerate(some.images):
        label, called = (classifier.labels[c] for c in (some.labels[row], some.called[row]))
        caption = f"{label}, called {called} at {some.confidence[row]:.0%}"
        pictures.append(saliency.overlay(pixels[row], warmth[row], f"real {label}, {image}", caption))
    return pictures
