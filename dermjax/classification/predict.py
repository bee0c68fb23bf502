"""`dermjax classify --predict`: a saved classifier and images -> a CSV of probabilities, calibrated by its training.

    dermjax classify --predict=DIR --classifier=runs/vit_hybrid --out=said.csv
    dermjax classify --predict=runs/prepare --classifier=CHECKPOINTED_RUN --out=runs/other/predictions.csv

For a folder of images the columns are image, called, p_<label> …. For a manifest they are those of predictions.csv, on
its validation and test images, so that `evaluate` takes the folder of the file for a run.
"""

import csv
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dermjax import machine, sharding
from dermjax.classification.predictions import predictor, probabilities, table
from dermjax.classification.recipes import Recipe
from dermjax.classification.restoring import restored
from dermjax.data import digests, pipelines, records, tree
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.progress import say
from dermjax.run_folder import write_atomically


def write(predict: str, classifier: str, out: str, batch: int) -> None:
    """Writes `out`: what a classifier says of a folder of images or of a manifest, on all devices there are.

    Raises:
      UserError: there is no classifier or no image, an image cannot be decoded, or the classes are others.
    """
    found, (params, variables) = restored(Path(classifier))
    images = Path(predict)
    manifest = listed(images, found.labels)
    if manifest.labels != found.labels:
        theirs, ours = ", ".join(manifest.labels), ", ".join(found.labels)
        raise UserError(f"manifest {images}: its classes are {theirs}, the classifier knows {ours}")
    told = [record for split in ("validation", "test") for record in manifest.split(split)]
    if not told:
        raise UserError(f"{images}: no image to judge; give a folder of images, or a manifest with a test split")
    grid = sharding.mesh(0, 1)
    batch = -(-batch // grid.size) * grid.size
    say_of = predictor(found, Recipe(last=None), grid)
    batches = pipelines.evaluation(
        told, manifest, size=found.config["image_size"], batch=batch, rows=sharding.own(batch, grid)
    )
    said = probabilities(say_of(params, variables, batches))
    is_manifest = (images / records.FILE).is_file() or images.is_file()
    Path(out).absolute().parent.mkdir(parents=True, exist_ok=True)
    write_atomically(Path(out), table(manifest, [(told, said)]) if is_manifest else plain(told, said, found.labels))
    say(f"{out}: {len(told)} images")


def listed(path: Path, labels: tuple[str, ...]) -> Manifest:
    """Returns a manifest, or the images anywhere below a folder as one whose labels mean nothing."""
    if path.is_file() or (path / records.FILE).is_file():
        return records.read(path)
    if not path.is_dir():
        raise UserError(f"images {path}: no such folder; give a folder of images or a manifest")
    told = dict(label=labels[0], split="test", source=path.name, image_manipulation="none")
    names = tree.walk(path).images
    with ThreadPoolExecutor(machine.cores()) as pool:
        digest = pool.map(lambda name: digests.of(path / name), names)
    found = tuple(Record(image=name, sha256=each, **told) for name, each in zip(names, digest, strict=True))
    return Manifest(labels=labels, root=path, records=found)


def plain(told: list[Record], said, labels: tuple[str, ...]) -> str:
    """Returns the CSV image, called, p_<label> …."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "called", *(f"p_{label}" for label in labels)])
    for record, row in zip(told, said, strict=True):
        writer.writerow([record.image, labels[row.argmax()], *(f"{p:.9f}" for p in row)])
    return text.getvalue()
