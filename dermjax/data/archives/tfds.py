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

FACTS = ("lesion_id", "patient_id", "licence", "image_manipulation")
PLACE = "data_set_images"  # where they are written, below the run's folder; nobody else writes there
TOLD = 160  # characters of what tfds says, which may be pages
KINDS = {b"\xff\xd8": "jpg", b"\x89P": "png"}  # by the first bytes of a file


def is_builder(folder: Path) -> bool:
    """Whether a folder holds a prepared data set."""
    return all((folder / name).is_file() for name in ("dataset_info.json", "features.json"))


def scan(folder: Path, into: Path) -> Listing:
    """Writes the images under `into`/PLACE and lists them; their splits are those of the data set.

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
        unknown = [name for name in splits if name not in SPLIT_FOLDERS]
        if unknown or len(labels) < 2:
            raise ValueError(
                f"splits {', '.join(splits)} and labels {', '.join(labels)} are no train and test of classes"
            )
        records = []
        with progress.bar(sum(map(len, sources.values())), "writing", "images", 0) as bar:
            for split, source in sources.items():
                for number in range(len(source)):
                    told = source[number]
                    kind = KINDS.get(told["image"][:2], "png")
                    image = f"{PLACE}/{builder.name}/{split}/{number:06d}.{kind}"
                    images.write_if_changed(into / image, told["image"])
                    records.append(_record(image, SPLIT_FOLDERS[split], labels[told["label"]], builder.name, told))
                    bar.update()
    except UserError:
        raise
    except Exception as error:  # tfds raises anything, from KeyError to protobuf's own
        told = " ".join(f"{type(error).__name__}: {error}".split())[:TOLD]
        raise UserError(f"folder {folder}: not a data set of images with labels in array_record ({told})") from error
    return Listing(
        labels=layouts.ordered(set(labels)), root=Path(os.path.realpath(into)), records=tuple(records), ignored=()
    )


def discard(into: Path) -> None:
    """Takes back what `scan` wrote under a folder."""
    shutil.rmtree(into / PLACE, ignore_errors=True)


def _record(image: str, split: str, label: str, source: str, told: dict) -> Record:
    known = {name: told[name].decode() for name in FACTS if told.get(name)}
    known.setdefault("image_manipulation", "none")
    return Record(image=image, sha256="", label=label, split=split, source=source, **known)
