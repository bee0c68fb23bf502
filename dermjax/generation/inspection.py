"""`dermjax provenance FILE`: what an image says of how it was made, in every place where it can say so.

These are dermjax's text, A1111's `parameters`, C2PA's manifest, and the record in the manifest.jsonl that lists it.
"""

import json
from pathlib import Path
from typing import Any

from PIL import UnidentifiedImageError

from dermjax.data import formats, origin, records
from dermjax.data.digests import sha256
from dermjax.data.records import Record
from dermjax.errors import UserError
from dermjax.generation import credentials, provenance

FOLDERS = 4  # above a file in which its manifest is looked for


def show(file: str) -> None:
    """Prints what a file says; one that is no image, or says nothing, is a UserError."""
    path = Path(file).expanduser()
    texts = _texts(path)
    lines = _ours(path, texts) + _a1111(texts) + _credentials(path)
    recorded = _record(path)
    if recorded:
        lines += _compared(path, *recorded, origin.read(path))
    if not lines:
        raise UserError(
            f"{file}: says nothing of how it was made: no dermjax or A1111 text, no C2PA manifest, no manifest.jsonl "
            "that lists it; this does not make it a photograph"
        )
    print("\n".join([str(path), *lines]))


def _texts(path: Path) -> dict[str, str]:
    """Returns the texts in an image file, those of a PNG; one that is no whole image is a UserError."""
    try:
        with formats.opened(path) as image:
            image.load()
            return {name: text for name, text in getattr(image, "text", {}).items() if isinstance(text, str)}
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        told = getattr(error, "strerror", None) or "not a whole image"
        raise UserError(f"{path}: cannot be read ({told})") from error


def _ours(path: Path, texts: dict[str, str]) -> list[str]:
    generation = origin.read(path)
    if generation is None:
        return ["dermjax: its text is there but damaged"] if origin.KEY in texts else []
    kind = "synthetic" if generation.get("synthetic") else "not marked as synthetic"
    return [f"dermjax: {kind}", *(f"  {name}: {_value(value)}" for name, value in generation.items())]


def _a1111(texts: dict[str, str]) -> list[str]:
    if provenance.PARAMETERS not in texts:
        return []
    return ["parameters, as A1111 writes them:", *(f"  {line}" for line in texts[provenance.PARAMETERS].splitlines())]


def _credentials(path: Path) -> list[str]:
    if not credentials.installed():
        return ["C2PA: not looked for; install dermjax[c2pa]"] if b"caBX" in path.read_bytes() else []
    told = credentials.read(path)
    if told is None:
        return []
    faults = "".join(f"; {fault}" for fault in told["faults"])
    return [f"C2PA: {told['state'].lower()}, signed by {told['issuer']}{faults}"]


def _record(path: Path) -> tuple[Path, Record] | None:
    """Returns the nearest manifest above a file that lists it, and its record there."""
    for folder in list(path.absolute().parents)[:FOLDERS]:
        if (folder / records.FILE).is_file():
            manifest = records.read(folder)
            for record in manifest.records:
                if manifest.place(record).resolve() == path.resolve():
                    return folder / records.FILE, record
    return None


def _compared(path: Path, manifest: Path, record: Record, generation: dict | None) -> list[str]:
    """Returns what the record says, and whether the file is the one that it means."""
    lines = [f"{manifest}: image_manipulation={record.image_manipulation}, label {record.label}, {record.licence}"]
    if record.rejected:
        lines.append(f"  rejected: {', '.join(record.rejected)}")
    if record.sha256 != sha256(path):
        lines.append("  the file is not the one of the record: its bytes are others")
    elif generation is not None and generation != record.generation:
        other = sorted(
            name
            for name in generation.keys() | record.generation
            if generation.get(name) != record.generation.get(name)
        )
        lines.append(f"  the record says something else of {', '.join(other)}")
    else:
        lines.append("  the bytes are those of the record" + (", and it says the same" if generation else ""))
    return lines


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
