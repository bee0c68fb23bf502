"""What is exported of each image, alike in every form: its bytes, and a flat row of text that says where it is from."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dermjax.data import digests
from dermjax.data.records import SPLITS, Manifest, Record

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


def splits(manifest: Manifest) -> dict[str, list[Item]]:
    """The kept images of each split that has any, in the manifest's order."""
    return {
        name: [Item(f"{number:06d}", manifest.unchecked_path(record), record) for number, record in enumerate(records)]
        for name in SPLITS
        if (records := manifest.split(name))
    }


def table(folder: Path, split: str) -> Path:
    """Where the rows of a split stand, as JSON lines: beside its images, where these are files in a folder."""
    return folder / split / "metadata.jsonl" if (folder / split).is_dir() else folder / f"{split}.jsonl"


def describe(manifest: Manifest) -> tuple[str, list[str]]:
    """What a data set is, in sentences that say how many of its images are synthetic; the licences in it."""
    kept = [record for record in manifest.records if record.kept]
    synthetic = sum(record.synthetic for record in kept)
    kind = f"{len(kept)} photographs."
    if synthetic:
        kind = f"SYNTHETIC: {synthetic} of {len(kept)} images were made by a model and show no patient."
    licences = sorted({record.licence for record in kept if record.licence})
    return f"Skin lesions ({', '.join(manifest.labels)}). {kind} For research only; not a medical device.", licences
