"""A generator's training images, by their identities and fingerprints, so that an audit finds them in any other set.

Place in the flow: `tune` writes the list into its run folder, `generate`, `transform`, `mask` and `curate` pass it on
into theirs, and `audit` reads it beside every manifest. It holds no image larger than 16 x 16 cells, and stays in run
folders: a model that is given away does not carry it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dermjax import buckets
from dermjax.data.leaks import fingerprints
from dermjax.data.leaks.fingerprints import Fingerprint
from dermjax.data.records import Manifest, Record
from dermjax.data.splits import ORIGINAL
from dermjax.errors import UserError
from dermjax.run_folder import write_atomically

FILE = "seen_by_generator.jsonl"
FIELDS = ("image", "label", "source", "lesion_id", "patient_id")  # of the record
TIES = ("duplicates", "linked_as", ORIGINAL)  # of its attributes; older lists have none


@dataclass(frozen=True)
class TrainingImage:
    """An image that a generator was trained on: its record, always of the training split, and its fingerprint."""

    record: Record
    fingerprint: Fingerprint


def write(folder: Path, sources: Sequence[tuple[Manifest, Record]], bases: Sequence[Path]) -> None:
    """Writes the real images of `sources` into a run folder, and the training images of the models at `bases`."""
    known = fingerprints.read_beside(manifest for manifest, _ in sources)
    real = [(manifest, record) for manifest, record in sources if not record.synthetic]
    lines = [_line(record, fingerprints.from_record(manifest, record, known)) for manifest, record in real]
    write_atomically(folder / FILE, b"".join(dict.fromkeys(lines + _lines(bases))))


def pass_on(paths: Sequence[Path], folder: Path) -> None:
    """Writes the lists that lie beside models or manifests into a run folder, where there are any."""
    if lines := _lines(paths):
        write_atomically(folder / FILE, b"".join(dict.fromkeys(lines)))


def read(folder: Path) -> list[TrainingImage]:
    """The list in a folder, empty where there is none; UserError for one that is damaged."""
    path = folder / FILE
    return [_parse(line, path) for line in path.read_bytes().splitlines()] if path.is_file() else []


def _lines(paths: Sequence[Path]) -> list[bytes]:
    """The lines beside files, in folders, and beside those: a model's folder lies in that of its run."""
    lists = dict.fromkeys(folder / FILE for path in paths for folder in (path, path.parent))
    return [
        line
        for path in map(buckets.fetch, lists)
        if path.is_file()
        for line in path.read_bytes().splitlines(keepends=True)
    ]


def _line(record: Record, fingerprint: Fingerprint) -> bytes:
    fields = json.loads(fingerprint.line()) | {name: getattr(record, name) for name in FIELDS}
    fields["attributes"] = {name: record.attributes[name] for name in TIES if name in record.attributes}
    return json.dumps(fields | {"told": {}, "measured": None}, sort_keys=True).encode() + b"\n"


def _parse(line: bytes, path: Path) -> TrainingImage:
    fingerprint = fingerprints.parse(line)
    try:
        content = json.loads(line)
        fields = {name: str(content[name]) for name in FIELDS}
        attributes = {name: str(value) for name, value in content.get("attributes", {}).items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        fingerprint = None
    if fingerprint is None:
        raise UserError(f"{path}: damaged, so that nobody can tell what the generator saw; tune or generate again")
    record = Record(sha256=fingerprint.sha256, split="train", image_manipulation="none", attributes=attributes,
                    **fields)  # fmt: skip
    return TrainingImage(record, fingerprint)
