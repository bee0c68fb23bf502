"""Predictions as the ISIC challenge takes them: a CSV of `image` and one confidence a class, scored at 0.5 by it."""

import csv
import io
from pathlib import PurePosixPath

from dermjax.errors import UserError
from dermjax.evaluation.predictions import Predictions


def table(said: Predictions, classes: tuple[str, ...]) -> str:
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
