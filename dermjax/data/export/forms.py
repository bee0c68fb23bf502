"""`dermjax export MANIFEST --to=DIR --form=…`: a manifest's kept images in a form that other programs read.

imagefolder   DIR/train/000000.png … and DIR/train/metadata.jsonl, as Hugging Face datasets load
webdataset    DIR/train-000000.tar …, each image with its .json and the number of its class in .cls
array_record  DIR as a data set of tensorflow-datasets, for builder_from_directory(DIR).as_data_source()

Each has DIR/croissant.json (mlcommons.org/croissant, 1.0), and a table of what is known of every image: that it is
synthetic, and its licence, go wherever it goes.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from dermjax import progress
from dermjax.data import records, shards
from dermjax.data.export import croissant, items
from dermjax.data.export.items import COLUMNS, Item
from dermjax.data.records import Manifest
from dermjax.errors import UserError

NAME, CARD = "dermjax", "README.md"
A_SHARD = 1000  # images


def export(manifest: str, *, to: str, form: str) -> None:
    """Writes a manifest in a form and prints that; UserError as `write`, and for an unknown form."""
    if form not in FORMS:
        raise UserError(f"--form={form}: give one of {', '.join(FORMS)}")
    folder = Path(to).expanduser().absolute()
    write(records.read(Path(manifest)), folder, form, folder.name, "")
    print(f"{to}: {form} of {manifest}, described in {Path(to) / croissant.FILE}")


def write(manifest: Manifest, folder: Path, form: str, name: str, card: str) -> None:
    """Writes a manifest in a form, with its tables, its Croissant description and a card (unless ""): all or nothing.

    UserError for a folder that exists, a manifest without kept images, or a changed image.
    """
    if folder.exists():
        raise UserError(f"{folder}: is there already; give another folder, or delete it")
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    splits = items.splits(manifest)
    if not splits:
        raise UserError(f"manifest {manifest.home}: no kept image to export")
    part.mkdir(parents=True)
    try:
        with progress.bar(sum(map(len, splits.values())), "export", "images", 0) as bar:
            FORMS[form](part, manifest, splits, bar.update)
        for split, of_split in splits.items():
            items.table(part, split).write_bytes(b"".join(json.dumps(item.row).encode() + b"\n" for item in of_split))
        croissant.write(part, name, manifest, splits)
        if card:
            (part / CARD).write_text(card)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def imagefolder(folder: Path, manifest: Manifest, splits: dict[str, list[Item]], tick: Callable[[], None]) -> None:
    """Images in a folder a split."""
    for split, of_split in splits.items():
        (folder / split).mkdir()
        for item in of_split:
            (folder / split / item.name).write_bytes(item.content())
            tick()


def webdataset(folder: Path, manifest: Manifest, splits: dict[str, list[Item]], tick: Callable[[], None]) -> None:
    """Tar files of A_SHARD images; the same bytes whenever they are written."""
    for split, of_split in splits.items():
        for number, shard in enumerate(_shards(of_split)):
            shards.write(folder / f"{split}-{number:06d}{shards.SUFFIX}", _files(manifest, shard, tick))


def array_record(folder: Path, manifest: Manifest, splits: dict[str, list[Item]], tick: Callable[[], None]) -> None:
    """Record files with the metadata of tensorflow-datasets, written without TensorFlow."""
    import tensorflow_datasets as tfds  # here, as it takes seconds
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    texts = {name: tfds.features.Text() for name in COLUMNS if name != "label"}
    label = tfds.features.ClassLabel(names=list(manifest.labels))
    image = tfds.features.Image(shape=(None, None, 3))
    features = tfds.features.FeaturesDict({"image": image, "label": label, **texts})
    serializer = ExampleSerializer(features.get_serialized_info())
    infos = []
    for split, of_split in splits.items():
        size, shards = 0, list(_shards(of_split))
        for number, shard in enumerate(shards):
            name = f"{NAME}-{split}.array_record-{number:05d}-of-{len(shards):05d}"
            writer = ArrayRecordWriter(str(folder / name), "group_size:1")
            for item in shard:
                row = {name: text.encode() for name, text in item.row.items()}
                row |= {"image": item.content(), "label": manifest.labels.index(item.record.label)}
                # features in one order, or equal sets would not be equal files
                example = serializer.get_tf_example(row).SerializeToString(deterministic=True)
                writer.write(example)
                size += len(example)
                tick()
            writer.close()
        template = tfds.core.ShardedFileTemplate(
            dataset_name=NAME, data_dir=folder, split=split, filetype_suffix="array_record",
            template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        )  # fmt: skip
        lengths = list(map(len, shards))
        infos.append(tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size, filename_template=template))
    description, licences = items.describe(manifest)
    tfds.folder_dataset.write_metadata(
        data_dir=folder, features=features, split_infos=infos, description=description,
        license="; ".join(licences), check_data=False,
    )  # fmt: skip


FORMS = {"imagefolder": imagefolder, "webdataset": webdataset, "array_record": array_record}


def _shards(of_split: list[Item]) -> Iterator[list[Item]]:
    return (of_split[first : first + A_SHARD] for first in range(0, len(of_split), A_SHARD))


def _files(manifest: Manifest, shard: list[Item], tick: Callable[[], None]) -> Iterator[tuple[str, bytes]]:
    """The files of a shard's images, one image in memory at a time."""
    for item in shard:
        yield from item.files(item.content(), manifest.labels).items()
        tick()
