"""Data sets of tensorflow-datasets on disk (array_record) to files and Records, without TensorFlow.

The images are inside of record files, and a manifest names files: they are written beside the manifest, each byte as it
was encoded.
"""

import os
import shutil
from pathlib import Path

from dermjax import progress
from dermjax.data import images
from dermjax.data.archives import layouts
from dermjax.data.archives.folders import Listing
from dermjax.data.archives.tree import SPLIT_FOLDERS
from dermjax.data.records import Record
from dermjax.errors import UserError

FIELDS = ("lesion_id", "patient_id", "licence", "image_manipulation")
FOLDER = "data_set_images"  # where images of data sets are written, below the run's folder, and nothing else
LONGEST = 160  # characters of a message of tfds, which may be pages
SUFFIXES = {b"\xff\xd8": "jpg", b"\x89P": "png"}  # by the first bytes of a file


def is_builder(folder: Path) -> bool:
    """Whether a folder holds a prepared data set."""
    return all((folder / name).is_file() for name in ("dataset_info.json", "features.json"))


def scan(folder: Path, into: Path) -> Listing:
    """Writes the images under `into`/FOLDER and lists them; their splits are those of the data set.

    It needs the features "image" and "label"; lesion_id, patient_id, licence and image_manipulation are kept where they
    are there. Raises UserError for a data set that is not so, or of which a file is damaged.
    """
    import tensorflow_datasets as tfds  # here, as it takes seconds

    try:
        builder = tfds.builder_from_directory(folder)
        features, splits = builder.info.features, sorted(builder.info.splits)
        labels = tuple(features["label"].names)
        decoders = {"image": tfds.decode.SkipDecoding()}
        sources = {name: builder.as_data_source(name, decoders=decoders) for name in splits}
        if not set(splits) <= set(SPLIT_FOLDERS) or len(labels) < 2:
            raise ValueError(
                f"splits {', '.join(splits)} and labels {', '.join(labels)} are no train and test of classes"
            )
        if not builder.name.isidentifier():  # it names the folder of the images
            raise ValueError(f"its name is {builder.name[:40]!r}")
        records, ignored = [], []
        with progress.bar(sum(map(len, sources.values())), "writing", "images", 0) as bar:
            for split, source in sources.items():
                for number in range(len(source)):
                    example = source[number]
                    suffix = SUFFIXES.get(example["image"][:2], "png")
                    image = f"{FOLDER}/{builder.name}/{split}/{number:06d}.{suffix}"
                    bar.update()
                    if example["label"] < 0:  # as test sets have it whose answers are kept back
                        ignored.append((image, "without a label"))
                        continue
                    images.write_if_changed(into / image, example["image"])
                    known = {"image_manipulation": "none"}
                    known |= {name: example[name].decode() for name in FIELDS if example.get(name)}
                    known |= {"label": labels[example["label"]], "split": SPLIT_FOLDERS[split], "source": builder.name}
                    records.append(Record(image=image, sha256="", **known))
    except UserError:
        raise
    except Exception as error:  # tfds raises anything, from KeyError to protobuf's own
        message = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST]
        raise UserError(f"folder {folder}: not a data set of images with labels in array_record ({message})") from error
    return Listing(
        labels=layouts.ordered(set(labels)), root=Path(os.path.realpath(into)), records=tuple(records),
        ignored=tuple(ignored),
    )  # fmt: skip


def discard(into: Path) -> None:
    """Removes what `scan` wrote under a folder."""
    shutil.rmtree(into / FOLDER, ignore_errors=True)
