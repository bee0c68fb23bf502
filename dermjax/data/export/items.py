"""What is exported of each image, alike in every form: its bytes, and a flat row of text that says where it is from."""

import json
from collections.abc import Iterator
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
    """An image to export: its place among those of its split, its file, and its record."""

    place: int
    path: Path
    record: Record

    @property
    def key(self) -> str:
        """The name of the image in its split, without a suffix."""
        return f"{self.place:06d}"

    @property
    def name(self) -> str:
        """The name of the image in its split."""
        return self.key + self.path.suffix.lower()

    @property
    def row(self) -> dict[str, str]:
        """COLUMNS of the image."""
        told = {"file_name": self.name}
        for column in list(COLUMNS)[1:]:
            value = getattr(self.record, column)
            told[column] = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        return told

    def content(self) -> bytes:
        """The bytes of the file; UserError where they are not those that the manifest names."""
        return digests.verify(self.path, self.record.sha256).read_bytes()


def splits(manifest: Manifest) -> dict[str, list[Item]]:
    """The kept images of each split that has any, in the manifest's order."""
    found = {name: manifest.split(name) for name in SPLITS}
    return {
        name: [Item(place, manifest.place(record), record) for place, record in enumerate(records)]
        for name, records in found.items()
        if records
    }


def table(items: list[Item]) -> bytes:
    """The rows of a split as JSON lines."""
    return b"".join(json.dumps(item.row).encode() + b"\n" for item in items)


def describe(manifest: Manifest) -> tuple[str, list[str]]:
    """What a data set is, in two sentences that say how many of its images are synthetic; the licences in it."""
    kept = [record for record in manifest.records if record.kept]
    made = sum(record.synthetic for record in kept)
    kind = (
        f"SYNTHETIC: {made} of {len(kept)} images were made by a model and show no patient."
        if made
        else (f"{len(kept)} photographs.")
    )
    licences = sorted({record.licence for record in kept if record.licence})
    return f"Skin lesions ({', '.join(manifest.labels)}). {kind} For research only; not a medical device.", licences


def chunks(items: list[Item], size: int) -> Iterator[list[Item]]:
    """The items in order, at most `size` at a time."""
    yield from (items[first : first + size] for first in range(0, len(items), size))
