"""`dermjax export MANIFEST --to=DIR --form=…`: a manifest's kept images in a form that other programs read.

imagefolder   DIR/train/000000.png … and DIR/train/metadata.jsonl, as Hugging Face datasets load
webdataset    DIR/train-000000.tar …, each image with its .json and the number of its class in .cls
array_record  DIR as a data set of tensorflow-datasets, for builder_from_directory(DIR).as_data_source()

Each has DIR/croissant.json (mlcommons.org/croissant, 1.0), and a table of what is known of every image: that it is
synthetic, and its licence, go wherever it goes.

Croissant describes a data set to catalogues and loaders: every file with its digest and, for each split, the table of
what is known of every image, by column (Akhtar et al. 2024, arXiv 2403.19546;
docs.mlcommons.org/croissant/docs/croissant-spec.html).
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dermjax import progress
from dermjax.data import digests, records, shards
from dermjax.data.records import SPLITS, Manifest, Record
from dermjax.errors import UserError

NAME, CARD = "dermjax", "README.md"
INPAINTED = "init_mask"  # in the generation of an image that shows, outside of its mask, what it begins at
A_SHARD = 1000  # images
# Every row has every column, as text: readers take the types of a table from its first rows.
COLUMNS = {
    "file_name": "the image, relative to this table",
    "label": "the class",
    "image_manipulation": "none for a photograph, synthetic for an image that a model made",
    "licence": "of the image, empty where its source tells none",
    "source": "the data set, or what made the image",
    "lesion_id": "images of one lesion share it",
    "patient_id": "images of one patient share it",
    "sha256": "of the file's bytes",
    "attributes": "age, sex, site, skin tone, as JSON",
    "generation": "prompt, seed, sampler and model of a synthetic image, as JSON",
    "scores": "artefact and quality scores, as JSON",
}
CROISSANT = "croissant.json"
CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "conformsTo": "dct:conformsTo",
} | {
    term: f"cr:{term}"
    for term in (
        "citeAs", "column", "equivalentProperty", "extract", "field", "fileObject", "fileProperty", "fileSet", "format",
        "includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references",
        "regex", "repeated", "replace", "samplingRate", "separator", "source", "subField", "transform",
    )
}  # fmt: skip
KINDS = {".jsonl": "application/jsonlines", ".json": "application/json", ".tar": "application/x-tar",
         ".txt": "text/plain"}  # fmt: skip
RECORD_FILES = "application/octet-stream"  # array_record has no type of its own


@dataclass(frozen=True)
class Item:
    """An image to export: its key among those of its split, its file, and its record."""

    key: str
    path: Path
    record: Record

    @property
    def name(self) -> str:
        """The file name of the image in its split."""
        return self.key + self.path.suffix.lower()

    @property
    def row(self) -> dict[str, str]:
        """COLUMNS of the image."""
        values = {"file_name": self.name} | {column: getattr(self.record, column) for column in list(COLUMNS)[1:]}
        return {
            column: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
            for column, value in values.items()
        }

    def files(self, image: bytes, labels: Sequence[str]) -> dict[str, bytes]:
        """The image's bytes under its name in a shard, with the number of its class and its row beside it."""
        label, row = str(labels.index(self.record.label)), json.dumps(self.row)
        return {self.name: image, f"{self.key}.cls": label.encode(), f"{self.key}.json": row.encode()}

    def content(self) -> bytes:
        """The bytes of the file; UserError where they are not those that the manifest names."""
        return digests.verify(self.path, self.record.sha256).read_bytes()


def export(manifest: str, *, to: str, form: str) -> None:
    """Writes a manifest in a form and prints that; UserError as `write`, and for an unknown form."""
    if form not in FORMS:
        raise UserError(f"--form={form}: give one of {', '.join(FORMS)}")
    folder = Path(to).expanduser().absolute()
    write(records.read(Path(manifest)), folder, form, folder.name, "")
    print(f"{to}: {form} of {manifest}, described in {Path(to) / CROISSANT}")


def write(manifest: Manifest, folder: Path, form: str, name: str, card: str) -> None:
    """Writes a manifest in a form, with its tables, its Croissant description and a card (unless ""): all or nothing.

    UserError for a folder that exists, a manifest without kept images, or a changed image.
    """
    if folder.exists():
        raise UserError(f"{folder}: is there already; give another folder, or delete it")
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    splits = items_of(manifest)
    if not splits:
        raise UserError(f"manifest {manifest.home}: no kept image to export")
    part.mkdir(parents=True)
    try:
        with progress.bar(sum(map(len, splits.values())), "export", "images", 0) as bar:
            FORMS[form](part, manifest, splits, bar.update)
        for split, of_split in splits.items():
            lines = (json.dumps(item.row).encode() + b"\n" for item in of_split)
            metadata_file(part, split).write_bytes(b"".join(lines))
        write_croissant(part, name, manifest, splits)
        if card:
            (part / CARD).write_bytes(encoded(card))
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def encoded(card: str) -> bytes:
    """The bytes of a card, whatever the locale; names of files in it need not be UTF-8."""
    return card.encode("utf-8", "surrogateescape")


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
    description, licences = describe(manifest)
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


def items_of(manifest: Manifest) -> dict[str, list[Item]]:
    """The kept images of each split that has any, in the manifest's order."""
    return {
        name: [Item(f"{number:06d}", manifest.unchecked_path(record), record) for number, record in enumerate(records)]
        for name in SPLITS
        if (records := manifest.split(name))
    }


def metadata_file(folder: Path, split: str) -> Path:
    """Where the rows of a split stand, as JSON lines: beside its images, where these are files in a folder."""
    return folder / split / "metadata.jsonl" if (folder / split).is_dir() else folder / f"{split}.jsonl"


def describe(manifest: Manifest) -> tuple[str, list[str]]:
    """What a data set is, in sentences that say how many of its images are synthetic; the licences in it."""
    kept = [record for record in manifest.records if record.kept]
    synthetic = sum(record.synthetic for record in kept)
    kind = f"{len(kept)} photographs."
    if synthetic:
        whom = "" if any(INPAINTED in record.generation for record in kept) else " and show no patient"
        kind = f"SYNTHETIC: {synthetic} of {len(kept)} images were made by a model{whom}."
    licences = sorted({record.licence for record in kept if record.licence})
    return f"Skin lesions ({', '.join(manifest.labels)}). {kind} For research only; not a medical device.", licences


def write_croissant(folder: Path, name: str, manifest: Manifest, splits: dict[str, list[Item]]) -> None:
    """Writes CROISSANT into a folder that holds a data set in one of the forms, with its tables."""
    description, licences = describe(manifest)
    images = {item.name for of_split in splits.values() for item in of_split}
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in images]
    sets = [_images(split, of_split) for split, of_split in splits.items() if (folder / split).is_dir()]
    described = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name,
        "description": description,
        "license": licences or ["unknown"],
        "version": "1.0.0",
        "distribution": [_file(path.relative_to(folder).as_posix(), path) for path in files] + sets,
        "recordSet": [_records(split, metadata_file(folder, split).relative_to(folder).as_posix()) for split in splits],
    }
    (folder / CROISSANT).write_text(json.dumps(described, indent=1) + "\n")


def _file(name: str, path: Path) -> dict:
    kind = KINDS.get(path.suffix, RECORD_FILES)
    return _node("FileObject", name, contentUrl=name, encodingFormat=kind, sha256=digests.sha256(path))


def _images(split: str, of_split: list[Item]) -> dict:
    patterns = [f"{split}/*{suffix}" for suffix in sorted({item.path.suffix.lower() for item in of_split})]
    return _node("FileSet", f"{split}-images", encodingFormat="image/*", includes=patterns)


def _records(split: str, table: str) -> dict:
    fields = []
    for column, meaning in COLUMNS.items():
        source = {"fileObject": {"@id": table}, "extract": {"column": column}}
        fields.append(_node("Field", f"{split}/{column}", description=meaning, dataType="sc:Text", source=source))
    return _node("RecordSet", split, key={"@id": f"{split}/file_name"}, field=fields)


def _node(kind: str, name: str, **properties) -> dict:
    return {"@type": f"cr:{kind}", "@id": name, "name": name, **properties}
