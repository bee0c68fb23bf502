"""What a generator was shown, by its identities and looks, so that an audit finds it in any evaluation set.

Place in the flow: `tune` writes the list into its run folder, `generate` and `curate` hand it on into theirs, and
`audit` reads it beside every manifest. It holds no picture larger than 16 x 16 cells, and stays in run folders: a model
that is given away does not carry it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dermjax.data.leaks import index
from dermjax.data.leaks.index import Look
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.run_folder import write_atomically

FILE = "seen_by_generator.jsonl"
KEPT = ("image", "label", "source", "lesion_id", "patient_id")


@dataclass(frozen=True)
class Seen:
    """An image that a generator was trained on: its record, always of the training split, and its look."""

    record: Record
    look: Look


def write(folder: Path, sources: Sequence[tuple[Manifest, Record]], before: Sequence[Path]) -> None:
    """Writes the real images of `sources` into a run folder, and what models at the paths `before` had seen already."""
    known = {}
    for home in {manifest.home for manifest, _ in sources if manifest.home}:
        known |= index.read(home)
    lines = {}
    for manifest, record in sources:
        if not record.synthetic:
            look = known.get(record.sha256) or index.look(manifest.path(record), record.sha256, measured=False)
            lines[_line(record, look)] = None
    lines |= dict.fromkeys(_lines(before))
    write_atomically(folder / FILE, b"".join(lines))


def hand_on(paths: Sequence[Path], folder: Path) -> None:
    """Writes into a run folder what lies beside models or manifests, where anything does."""
    lines = dict.fromkeys(_lines(paths))
    if lines:
        write_atomically(folder / FILE, b"".join(lines))


def read(folder: Path) -> list[Seen]:
    """The list in a folder, empty where there is none; UserError for one that is damaged."""
    path = folder / FILE
    return [_parsed(line, path) for line in path.read_bytes().splitlines()] if path.is_file() else []


def _lines(paths: Sequence[Path]) -> list[bytes]:
    """The lines beside files, in folders, and beside those: a model's folder lies in that of its run."""
    places = [place for path in paths for place in (path, path.parent)]
    lists = dict.fromkeys(place / FILE for place in places if (place / FILE).is_file())
    return [line for path in lists for line in path.read_bytes().splitlines(keepends=True)]


def _line(record: Record, look: Look) -> bytes:
    told = json.loads(look.line()) | {name: getattr(record, name) for name in KEPT}
    return json.dumps(told | {"told": {}, "measured": None}, sort_keys=True).encode() + b"\n"


def _parsed(line: bytes, path: Path) -> Seen:
    look = index.parsed(line)
    try:
        told = {name: str(json.loads(line)[name]) for name in KEPT}
    except (ValueError, TypeError, KeyError):
        look = None
    if look is None:
        raise UserError(f"{path}: damaged, so that nobody can tell what the generator saw; tune or generate again")
    return Seen(Record(sha256=look.sha256, split="train", image_manipulation="none", **told), look)
