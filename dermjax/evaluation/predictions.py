"""The predictions of a classifier: predictions.csv as arrays, checked before any number is made of it.

The columns are image, label, split, sha256 and one p_<label> a class; `classify` writes the file. sha256 tells images
of one name apart and may be left out. The ISIC challenge takes a table of image and one confidence a class, and scores
it at 0.5.

Shapes: n images.
"""

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError

DIGEST = "sha256"
# the specificity that the threshold of a figure is chosen for, on validation images
SPECIFICITIES = {"sensitivity_at_90": 0.90, "sensitivity_at_95": 0.95}


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Images in alphabetical order, their class indices int [n] and probabilities float64 [n, classes].

    `thresholds` are scores of the positive class by figure, chosen on validation images.
    """

    images: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    thresholds: dict[str, float] = field(default_factory=dict)

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return self.probabilities.shape[-1]

    @cached_property
    def called(self) -> np.ndarray:
        """The most probable class of each image, int [n]."""
        return self.probabilities.argmax(-1)

    @cached_property
    def right(self) -> np.ndarray:
        """Whether each decision is right, bool [n]."""
        return self.called == self.labels

    @cached_property
    def confidence(self) -> np.ndarray:
        """The probability of the class that each image is called, [n]."""
        return self.probabilities.max(-1)

    def only(self, images: set[str]) -> "Predictions":
        """The predictions of some images, in the same order."""
        return self.at(np.array([row for row, image in enumerate(self.images) if image in images], int))

    def at(self, rows: np.ndarray) -> "Predictions":
        """The predictions at some rows, int [m]."""
        images = tuple(self.images[row] for row in rows)
        return replace(self, images=images, labels=self.labels[rows], probabilities=self.probabilities[rows])


def read(path: Path, classes: tuple[str, ...], split: str, records: Iterable[Record] = ()) -> Predictions:
    """The rows of one split.

    Raises:
      UserError: it names the line of an unknown label, a repeated image, a value outside 0..1, or an image that was
        another file than that of its name among the records.
    """
    if not path.is_file():
        raise UserError(
            f"predictions {path}: no such file; give the workdir of a finished classify run, or make the file of any "
            f"classifier or checkpoint by dermjax classify --predict=MANIFEST --classifier=FOLDER --out={path}"
        )
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            expected, columns = {"image", "label", "split", *(f"p_{c}" for c in classes)}, set(reader.fieldnames or ())
            if columns - {DIGEST} != expected:
                raise UserError(
                    f"predictions {path}: columns {sorted(columns)} are not {sorted(expected)}; other class names?"
                )
            rows = [(reader.line_num, row) for row in reader if row["split"] == split]
    except csv.Error as error:
        raise UserError(f"predictions {path}: cannot be read ({error}); make it again") from error
    if not rows:
        raise UserError(f"predictions {path}: no row of the {split} split; run classify again with that split")
    rows.sort(key=lambda numbered: numbered[1]["image"] or "")
    digests = {record.image: record.sha256 for record in records}
    images, labels, probabilities = [], [], []
    for line, row in rows:
        image, label, where = row["image"], row["label"], f"predictions {path} line {line}"
        if images[-1:] == [image]:
            raise UserError(f"{where}: {image} stands there twice")
        if label not in classes:
            raise UserError(f"{where}: label {label!r} is not one of {', '.join(classes)}")
        if row.get(DIGEST) and row[DIGEST] != digests.get(image, row[DIGEST]):
            raise UserError(f"{where}: {image} is another file in the manifest; classify with the manifest given here")
        images.append(image)
        labels.append(classes.index(label))
        probabilities.append([_probability(row[f"p_{name}"], where) for name in classes])
    return Predictions(images=tuple(images), labels=np.array(labels), probabilities=np.array(probabilities))


def read_test(path: Path, manifest: Manifest) -> Predictions:
    """The predictions of exactly the manifest's test split, with thresholds from the file's validation rows.

    Raises:
      UserError: a class or an image is missing, or the rows are of other images than the manifest's: figures could not
        be compared.
    """
    predictions = read(path, manifest.labels, "test", manifest.records)
    absent = [name for index, name in enumerate(manifest.labels) if not (predictions.labels == index).any()]
    if absent:  # no AUROC, and no sensitivity or specificity, exists then
        raise UserError(
            f"predictions {path}: no test image of {', '.join(absent)}; prepare a test split with all classes"
        )
    expected = {record.image: record.label for record in manifest.split("test")}
    missing, strange = expected.keys() - set(predictions.images), set(predictions.images) - expected.keys()
    if missing or strange:
        raise UserError(
            f"predictions {path}: {len(missing)} images of the test split are missing, {len(strange)} are not of it; "
            "classify with the manifest that evaluate is given"
        )
    for image, label in zip(predictions.images, predictions.labels, strict=True):
        if expected[image] != manifest.labels[label]:
            raise UserError(f"predictions {path}: {image} has another label than in the manifest; classify again")
    return replace(predictions, thresholds=thresholds(read(path, manifest.labels, "validation", manifest.records)))


def mean(seeds: list[Predictions]) -> Predictions:
    """The mean probability over several trainings, for the same images."""
    return replace(seeds[0], probabilities=np.mean([each.probabilities for each in seeds], axis=0))


def thresholds(validation: Predictions) -> dict[str, float]:
    """The score above which an image is called positive, for each of SPECIFICITIES, chosen on validation images.

    It is the lowest that leaves at least that share of the negative images at or below it. Empty for more classes
    than two, or without a negative image.
    """
    scores = np.sort(validation.probabilities[validation.labels == 0, 1])
    if validation.classes != 2 or not len(scores):
        return {}
    return {name: float(scores[math.ceil(share * len(scores)) - 1]) for name, share in SPECIFICITIES.items()}


def isic_table(predictions: Predictions, classes: tuple[str, ...]) -> str:
    """The CSV for the ISIC challenge; images go by the stem of their file, such as ISIC_0024306.

    Raises:
      UserError: two images have one stem.
    """
    stems = [PurePosixPath(image).stem for image in predictions.images]
    if len(set(stems)) < len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise UserError(f"ISIC export: two images are named {twice}; the challenge knows images by their name")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *classes])
    writer.writerows([stem, *row.tolist()] for stem, row in zip(stems, predictions.probabilities, strict=True))
    return text.getvalue()


def _probability(text: str | None, where: str) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {text!r} is not a number") from error
    if not 0 <= value <= 1:  # nan is neither
        raise UserError(f"{where}: probability {text} is not in 0..1; did the training diverge?")
    return value
