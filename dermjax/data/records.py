"""The manifest: one JSON line an image, the only thing that stages hand to each other.

A manifest is a header line (labels, and the root that image paths are relative to) and one Record a line. Every stage
reads one and writes a new one; the images stay where they are. What would make a result untrue is refused when
read: a synthetic image outside the training split, a path that leaves the root, an undefined field.
"""

import json
import math
import os
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from dermjax import buckets
from dermjax.data import digests, shards
from dermjax.errors import UserError
from dermjax.run_folder import writing

if TYPE_CHECKING:
    import pandas

SPLITS = ("train", "validation", "test")
MANIPULATIONS = ("none", "synthetic")  # ISIC's own words for the column image_manipulation
FILE = "manifest.jsonl"
VERSION = 1
DIGEST = re.compile(r"[0-9a-f]{64}")
AGES = (30, 45, 60, 75)  # where a new band begins, in years
NUMBER, WORDS = int | float, str | int | float
# What stages read out of the free fields of a record; nobody computes with anything else there.
SHAPES = {
    "generation": {
        "prompt": str, "negative_prompt": str, "seed": int, "sampler": str, "steps": int, "guidance": NUMBER,
        "size": int, "spacing": str, "guidance_rescale": NUMBER, "guidance_interval": [NUMBER], "deep_cache": int,
        "words": dict, "init_image": str, "transformation": {"of_sha256": str | None},
    },
    "attributes": {
        **dict.fromkeys(("age", "age_band", "sex", "site", "device", "fitzpatrick", "attribution"), WORDS),
        "caption": str, "weight": NUMBER, "decoded": [str], "duplicates": str, "linked_as": str, "copied_from": str,
        "skin_tone": {"group": str | None}, "parameters": {"tone": str | None}, "masks": dict,
        "mask": {"image": str, "sha256": str},
        "verdict": {"keep": bool, "by": str, "why": str},
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is known about one image; `image` is a POSIX path relative to the manifest's root, `sha256` of its bytes."""

    image: str
    sha256: str
    label: str
    split: str
    source: str
    image_manipulation: str
    lesion_id: str = ""
    patient_id: str = ""
    licence: str = ""
    attributes: dict = field(default_factory=dict)
    generation: dict = field(default_factory=dict)
    scores: dict = field(default_factory=dict)
    rejected: tuple[str, ...] = ()

    @property
    def kept(self) -> bool:
        """Whether nothing speaks against the image."""
        return not self.rejected

    @property
    def synthetic(self) -> bool:
        """Whether a model made the image."""
        return self.image_manipulation == "synthetic"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Records with the class names (index = position, the last is the positive class) and the absolute image root.

    home: the folder of the file that it was read from, None for one that is not written yet.
    """

    labels: tuple[str, ...]
    root: Path
    records: tuple[Record, ...]
    home: Path | None = field(default=None, compare=False)

    def path(self, record: Record) -> Path:
        """The image file of a record, to read: its bytes are those that the manifest names, or UserError.

        They are hashed once, see `digests`.
        """
        path = self.unchecked_path(record)
        if not self.root.exists():  # of a disk that is mounted elsewhere, or a folder that was moved
            raise UserError(f"manifest {self.home}: the folder of its images, {self.root}, is not there; bring it "
                            "back, or write where it is now as root into the manifest's first line")  # fmt: skip
        return digests.verify(path, record.sha256)

    def unchecked_path(self, record: Record) -> Path:
        """The image file of a record, whatever its bytes are: for its name, or to be hashed."""
        return shards.locate(self.root / record.image)

    def mask(self, record: Record) -> Path | None:
        """The mask that lay beside the image of a record, white on the lesion, checked as the image is."""
        mask = record.attributes.get("mask")
        return digests.verify(shards.locate(self.root / mask["image"]), mask["sha256"]) if mask else None

    def in_order(self, labels: tuple[str, ...]) -> "Manifest":
        """The manifest with its classes in the order of `labels` where they are the same ones, else as it is.

        Malignant classes are last in manifests made here; older runs and other programs may have another order.
        """
        return replace(self, labels=labels) if set(self.labels) == set(labels) else self

    def to_pandas(self) -> "pandas.DataFrame":
        """The records as a table: a row an image, a column a field, `attributes.age` inside, and its file as `path`."""
        try:
            import pandas  # an extra that nothing else needs
        except ImportError as error:
            raise UserError("Manifest.to_pandas needs pandas; pip install pandas") from error
        return pandas.json_normalize(
            [asdict(record) | {"path": str(self.unchecked_path(record))} for record in self.records]
        )

    def split(self, name: str, label: str | None = None) -> list[Record]:
        """The kept records of one split, in the manifest's order; those of one class where a label is given."""
        return [
            record for record in self.records
            if record.split == name and record.kept and label in (None, record.label)
        ]  # fmt: skip


def read(path: Path, places: range | None = None) -> Manifest:
    """The manifest in a file, or in the folder that holds it; UserError names the file and line of what is wrong.

    places: of the records to read, from 0 on; None for all.
    """
    manifest = read_unaudited(path, places)
    for number, record in enumerate(manifest.records, start=2 + (places.start if places else 0)):
        if misplacement(record):
            raise UserError(f"manifest {_file(path)} line {number}: {misplacement(record)}")
    return manifest


def read_unaudited(path: Path, places: range | None = None) -> Manifest:
    """As `read`, but with synthetic images in any split: for `audit`, which lists them all."""
    path = _file(path)
    labels, root, lines = stream(path, places)
    records = tuple(lines)
    _refuse_repeats(records, path)
    return Manifest(labels=labels, root=root, records=records, home=path.parent)


def stream(path: Path, places: range | None = None) -> tuple[tuple[str, ...], Path, Iterator[Record]]:
    """The labels, the absolute root and the records of a manifest's file one by one, for more than memory holds."""
    lines = _lines(_existing(path))
    labels, root = _header(_object(*next(lines), path), path)

    def records() -> Iterator[Record]:
        for number, line in lines:
            if places is None or number - 2 in places:
                record = _record(_object(number, line, path), number, path)
                fault = _fault(record, labels, root)
                if fault:
                    raise UserError(f"manifest {path} line {number}: {fault}")
                yield record

    return labels, root, records()


def count(path: Path) -> int:
    """How many records a manifest's file has."""
    return sum(1 for _ in _lines(_existing(path))) - 1


def read_named(path: str, key: str) -> Manifest:
    """The manifest that config.KEY names; UserError for "", else as `read`."""
    return read(named(path, key))


def named(path: str, key: str) -> Path:
    """The file of the manifest that config.KEY names; UserError for ""."""
    if not path:
        raise UserError(f"config.{key}: no manifest; give one, as --config.{key}=DIR/{FILE}")
    return _file(Path(path))


def write(path: Path, manifest: Manifest, *, relative: bool = False) -> None:
    """Writes a manifest so that either all of it or nothing is there; refuses what `read` would refuse.

    relative: never name the images' folder from the root of this machine.
    """
    write_stream(Path(path), manifest.labels, manifest.root, manifest.records, relative=relative)


def write_stream(
    path: Path, labels: tuple[str, ...], root: Path, records: Iterable[Record], *, relative: bool = False
) -> None:
    """As `write`, of records that come one by one."""
    header = {"dermjax_manifest": VERSION, "labels": list(labels), "root": _written_root(path, root, relative)}
    root, images = root.resolve(), set()
    with writing(path) as file:
        file.write(json.dumps(header).encode() + b"\n")
        for record in records:
            fault = _fault(record, labels, root) or misplacement(record)
            if fault or record.image in images:
                raise UserError(f"manifest {path}: {fault or f'{record.image} stands there twice'}")
            images.add(record.image)
            file.write(json.dumps(vars(record), allow_nan=False).encode() + b"\n")


def age_band(years: float) -> str:
    """The band of an age, such as "45-59"."""
    band = bisect_right(AGES, years)
    return f"{(0, *AGES)[band]}-{AGES[band] - 1}" if band < len(AGES) else f"{AGES[-1]}+"


def misplacement(record: Record) -> str:
    """The message about a synthetic image outside of the training split, "" for any other."""
    misplaced = record.synthetic and record.split != "train"
    return f"{record.image}: a synthetic image in the {record.split} split; it may only be in train" * misplaced


def _file(path: Path) -> Path:
    path = Path(path)
    return path / FILE if path.is_dir() else path


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"manifest {path}: no such file; give a {FILE} or the folder of the stage that wrote it")
    return path


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines with their numbers; blank lines at the end do not count, and the first one is always there."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            waiting = [(1, "")]  # what stands where all lines are blank
            for number, line in enumerate(file, start=1):
                waiting = [*(waiting if number > 1 else []), (number, line)]
                if line.strip():
                    yield from waiting
                    waiting = []
            yield from waiting[:1] if waiting and waiting[0][0] == 1 else ()
    except OSError as error:
        raise UserError(f"manifest {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"manifest {path}: not UTF-8 text ({error.reason}); is it a manifest?") from error


def _object(number: int, line: str, path: Path) -> dict:
    """The JSON object on a line."""
    try:
        parsed = json.loads(
            line, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_whole, object_pairs_hook=unrepeated
        )
        if "\\ud" in line.lower() and not _can_be_written(parsed):
            raise ValueError("half a surrogate pair, which is no text")
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, and brackets without end
        raise UserError(f"manifest {path} line {number}: not JSON ({error})") from error
    if not isinstance(parsed, dict):
        raise UserError(f"manifest {path} line {number}: not a JSON object")
    return parsed


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


def _finite(text: str) -> float:
    if math.isinf(float(text)):
        raise ValueError(f"{text[:40]} is beyond all numbers")
    return float(text)


def _whole(text: str) -> int:
    _finite(text)
    return int(text)


def unrepeated(pairs: list[tuple[str, Any]]) -> dict:
    """The object of pairs as `json` reads them; ValueError for a name that stands there twice."""
    keys = dict(pairs)
    if len(keys) < len(pairs):
        first = next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number]))
        raise ValueError(f"{first[:40]} stands there twice")
    return keys


def _can_be_written(found: Any) -> bool:
    """Whether what a line holds is text throughout, or a name of a file that is in no Unicode."""
    try:
        return bool(json.dumps(found, ensure_ascii=False).encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return False


def _header(line: dict, path: Path) -> tuple[tuple[str, ...], Path]:
    """The labels and the absolute root from the first line."""
    version = line.get("dermjax_manifest")
    if isinstance(version, int) and version > VERSION:
        raise UserError(
            f"manifest {path} line 1: of version {version}, and this dermjax reads {VERSION}; update dermjax"
        )
    if isinstance(version, bool) or version != VERSION:
        raise UserError(f'manifest {path} line 1: no header; it must begin with {{"dermjax_manifest": {VERSION}, …}}')
    labels, root = line.get("labels"), line.get("root")
    if not (_is(labels, [str]) and labels and len(set(labels)) == len(labels)):
        raise UserError(f"manifest {path} line 1: labels must be a list of distinct class names, not {labels!r}")
    if not isinstance(root, str) or not _can_name_a_file(root):
        raise UserError(f"manifest {path} line 1: root must be a folder, not {root!r}")
    return tuple(labels), buckets.mirror(root) if buckets.is_url(root) else Path(os.path.realpath(path.parent / root))


def _record(line: dict, number: int, path: Path) -> Record:
    """A Record from a JSON object, all its faults named at once."""
    types = {each.name: each.type for each in fields(Record)} | {"rejected": [str]}
    required = {each.name for each in fields(Record) if each.default is MISSING and each.default_factory is MISSING}
    faults = {
        "unknown": line.keys() - types.keys(),
        "missing": required - line.keys(),
        "misshapen": {name for name in types.keys() & line.keys() if not _is(line[name], types[name])},
    }
    if any(faults.values()):
        kinds = ", ".join(f"{kind} {' '.join(sorted(names))}" for kind, names in faults.items() if names)
        raise UserError(f"manifest {path} line {number}: fields do not fit a record: {kinds}")
    return Record(**{**line, "rejected": tuple(line.get("rejected", ()))})


def _fault(record: Record, labels: tuple[str, ...], root: Path) -> str:
    """What makes a record untrue or unsafe, in one line; empty when nothing does. The root is already resolved."""
    misshapen = _misshapen(record)
    if misshapen:
        return f"{record.image}: fields do not fit a record: misshapen {' '.join(misshapen)}"
    if not DIGEST.fullmatch(record.sha256):
        return f"{record.image}: sha256 {record.sha256!r} is no SHA-256 in lower-case hexadecimal"
    if record.split not in SPLITS:
        return f"{record.image}: unknown split {record.split!r}; it must be one of {', '.join(SPLITS)}"
    if record.label not in labels:
        return f"{record.image}: label {record.label!r} is not in the header, which has {', '.join(labels)}"
    if record.image_manipulation not in MANIPULATIONS:
        return f"{record.image}: unknown image_manipulation {record.image_manipulation!r}; 'none' or 'synthetic'"
    mask = record.attributes.get("mask")
    return _stray(record.image, root) or (_stray(mask["image"], root) if mask else "")


def _misshapen(record: Record) -> list[str]:
    """The names of what in a record's free fields is not of the type that stages take it for."""
    misshapen = [
        f"{name}.{key}"
        for name, shapes in SHAPES.items()
        for key, shape in shapes.items()
        if key in getattr(record, name) and not _is(getattr(record, name)[key], shape)
    ]
    return misshapen + [f"scores.{key}" for key, score in record.scores.items() if not _is(score, NUMBER)]


def _is(value: Any, shape: Any) -> bool:
    """Whether a value is of a type, a list of values of one ([type]), or a dict whose keys are so ({key: type}, where a
    key whose type admits None may be absent); True and False are no numbers."""
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(_is(value.get(key), each) for key, each in shape.items())
    if isinstance(shape, list):
        return isinstance(value, list | tuple) and all(_is(each, shape[0]) for each in value)
    return isinstance(value, shape) and isinstance(value, bool) == (shape is bool)


def _stray(image: str, root: Path) -> str:
    """Why a path does not name a file under the root, "" where it does."""
    path = PurePosixPath(image)
    if not path.parts or path.is_absolute() or ".." in path.parts or not _can_name_a_file(image):
        return f"{image!r}: not a path under the image root"
    if str(path) != image:  # or one image could stand there twice
        return f"{image!r}: write it as {str(path)!r}"
    if not Path(os.path.realpath(root / image)).is_relative_to(root):
        return f"{image}: a link that leaves the image root {root}"
    return ""


def _can_name_a_file(text: str) -> bool:
    """Whether the system can be asked for a file of this name."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _refuse_repeats(records: tuple[Record, ...], path: Path) -> None:
    repeated = [image for image, times in Counter(record.image for record in records).items() if times > 1]
    if repeated:
        raise UserError(f"manifest {path}: {repeated[0]} stands there twice")


def _written_root(path: Path, root: Path, relative: bool) -> str:
    """Relative when the images lie beside the manifest's folder, so that a run can be moved whole, where both are in
    buckets, or as asked; else absolute, and a URL of images in a bucket."""
    here, root = path.parent.resolve(), root.resolve()
    if buckets.mirrors(root):
        return Path(os.path.relpath(root, here)).as_posix() if buckets.mirrors(here) else buckets.shown(root)
    relative = relative or root.is_relative_to(here.parent)
    return Path(os.path.relpath(root, here)).as_posix() if relative else str(root)
