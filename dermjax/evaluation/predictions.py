"""What a classifier said: predictions.csv as arrays, checked before any number is made of it.

The columns are image, label, split and one p_<label> a class; `classify` writes the file.

Predictions as the ISIC challenge takes them: a CSV of `image` and one confidence a class, scored at 0.5 by it.
"""

import csv
import io
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path, PurePosixPath

import numpy as np

from dermjax.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Images in alphabetical order, their class indices int [n] and probabilities float64 [n, classes].

    `thresholds` are scores of the positive class by figure, chosen on other images, see metrics.thresholds.
    """

    images: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    thresholds: dict[str, float] = field(default_factory=dict)

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return self.probabilities.shape[-1]

    @property
    def called(self) -> np.ndarray:
        """The most probable class of each image, int [n]."""
        return self.probabilities.argmax(-1)

    @property
    def right(self) -> np.ndarray:
        """Whether each decision is right, bool [n]."""
        return self.called == self.labels

    @property
    def confidence(self) -> np.ndarray:
        """The probability of the class that each image is called, [n]."""
        return self.probabilities.max(-1)

    def above(self, name: str) -> np.ndarray:
        """Whether each image's positive score is above the threshold of a figure, bool [n]."""
        return self.probabilities[:, 1] > self.thresholds[name]

    def only(self, images: set[str]) -> "Predictions":
        """The predictions of some images, in the same order."""
        return self.at(np.array([row for row, image in enumerate(self.images) if image in images], int))

    def at(self, rows: np.ndarray) -> "Predictions":
        """The predictions at some rows, int [m]."""
        images = tuple(self.images[row] for row in rows)
        return replace(self, images=images, labels=self.labels[rows], probabilities=self.probabilities[rows])


def read(path: Path, classes: tuple[str, ...], split: str) -> Predictions:
    """The rows of one split; UserError names the line of an unknown label, a repeated image or a value outside 0..1."""
    if not path.is_file():
        raise UserError(
            f"predictions {path}: no such file; give the workdir of a finished classify run, or make the file of any "
            f"classifier or checkpoint by dermjax classify --predict=MANIFEST --classifier=FOLDER --out={path}"
        )
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        wanted = {"image", "label", "split", *(f"p_{name}" for name in classes)}
        columns = set(reader.fieldnames or ())
        if columns != wanted:
            raise UserError(
                f"predictions {path}: columns {sorted(columns)} are not {sorted(wanted)}; other class names?"
            )
        rows = [(reader.line_num, row) for row in reader if row["split"] == split]
    if not rows:
        raise UserError(f"predictions {path}: no row of the {split} split; run classify again with that split")
    rows.sort(key=lambda numbered: numbered[1]["image"])
    _refuse_repeats(rows, path)
    return Predictions(
        images=tuple(row["image"] for _, row in rows),
        labels=np.array([_label(row, classes, path, line) for line, row in rows]),
        probabilities=np.array([[_probability(row[f"p_{c}"], path, line) for c in classes] for line, row in rows]),
    )


def refuse_absent_class(predictions: Predictions, classes: tuple[str, ...], path: Path) -> None:
    """UserError when a class has no image: no AUROC, and no sensitivity or specificity, exists then."""
    absent = [name for index, name in enumerate(classes) if not (predictions.labels == index).any()]
    if absent:
        raise UserError(
            f"predictions {path}: no test image of {', '.join(absent)}; prepare a test split with all classes"
        )


def _refuse_repeats(rows: list, path: Path) -> None:
    for (_, before), (line, row) in pairwise(rows):
        if before["image"] == row["image"]:
            raise UserError(f"predictions {path} line {line}: {row['image']} stands there twice")


def _label(row: dict, classes: tuple[str, ...], path: Path, line: int) -> int:
    if row["label"] not in classes:
        raise UserError(f"predictions {path} line {line}: label {row['label']!r} is not one of {', '.join(classes)}")
    return classes.index(row["label"])


def _probability(text: str | None, path: Path, line: int) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError) as error:
        raise UserError(f"predictions {path} line {line}: {text!r} is not a number") from error
    if not 0 <= value <= 1:  # nan is neither
        raise UserError(f"predictions {path} line {line}: probability {text} is not in 0..1; did the training diverge?")
    return value


def isic_table(said: Predictions, classes: tuple[str, ...]) -> str:
    """Returns the CSV; images go by the stem of their file, such as ISIC_0024306.

    Raises:
      UserError: two images have one stem.
    """
    stems = [PurePosixPath(image).stem for image in said.images]
    if len(set(stems)) < len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise UserError(f"ISIC export: two images are named {twice}; the challenge knows images by their name")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *classes])
    for stem, row in zip(stems, said.probabilities, strict=True):
        writer.writerow([stem, *(f"{p:.9f}" for p in row)])
    return text.getvalue()
