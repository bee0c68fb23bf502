"""What a synthetic image says of itself, in its file and in its record: that it is synthetic, and how it was made.

A PNG file carries two texts: `parameters`, in the form that A1111's tools read and show, and `dermjax`, the same as
JSON. A signed manifest can come on top (`credentials`). `dermjax provenance FILE` shows what an image says in every
place where it can say so: these three, and the record in the manifest.jsonl that lists it.
"""

import hashlib
import io
import json
import re
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from dermjax.data import images, records, shards
from dermjax.data.digests import sha256
from dermjax.data.records import Record
from dermjax.errors import UserError
from dermjax.run_folder import differences
from dermjax.sampling import credentials
from dermjax.sampling.requests import Request

USE = "research use only"
KEY, PARAMETERS = "dermjax", "parameters"  # of the texts
UNUSUAL = {  # what is only named where it is requested, and how `parameters` calls it
    "spacing": "Schedule type",
    "guidance_rescale": "CFG rescale",
    "guidance_interval": "CFG interval",
    "deep_cache": "DeepCache interval",
    "precision": "Precision",
    "numeric_versions": "Numeric versions",
    "lora": "Lora hash",
    "lora_weight": "Lora weight",
    "embeddings": "TI hashes",
    "init_image": "Init image hash",
    "init_mask": "Mask hash",
    "strength": "Denoising strength",
    "words": "Words",
}
SETTING = re.compile(r'(\w[\w /-]*): *("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)')  # of A1111's last line
LORA = re.compile(r"<lora:([^:<>]+):(-?\d*\.?\d+)>")  # in A1111's prompts
LADDERS = ("karras", "exponential")  # of A1111's "Schedule type", those that our samplers' names take
LONGEST = 8000  # characters of a text that is read
FOLDERS = 5  # above a file in which its manifest is looked for: RUN/images/<way>/<transformation>/<label>/


def generation(request: Request, size: int, digests: Mapping[str, Any]) -> dict:
    """Returns all that the image follows from: the request, the side in pixels and the digests of the weights.

    `digests` has those of the `model` and, where they were requested, of a `lora`, with its `lora_weight`, and of the
    words of `embeddings`; the `precision` of the arithmetic; and the `numeric_versions` of the code. Older images
    say no versions, and a precision only where it is not float32.
    """
    unusual = {
        "spacing": request.spacing,
        "guidance_rescale": request.guidance_rescale,
        "guidance_interval": list(request.guidance_interval),  # as JSON gives it back
        "deep_cache": request.deep_cache if request.deep_cache > 1 else None,
        "words": dict(request.words),
    }
    return {
        "synthetic": True,
        "use": USE,
        "prompt": request.prompt,
        "negative_prompt": request.negative,
        "seed": request.seed,
        "sampler": request.sampler,
        "steps": request.steps,
        "guidance": request.guidance,
        "size": size,
        **digests,
        **{name: value for name, value in unusual.items() if value},
    }


def png(image: np.ndarray, generation: dict) -> bytes:
    """Returns the bytes of a PNG file of uint8 [H, W, 3] that carries its generation; the same for the same input."""
    written, info = texts(generation), PngInfo()
    info.add_text(PARAMETERS, written[PARAMETERS])
    info.add_itxt(KEY, written[KEY])
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def texts(generation: dict) -> dict[str, str]:
    """Returns the two texts of an image file."""
    return {PARAMETERS: parameters(generation), KEY: json.dumps(generation, ensure_ascii=False)}


def record(root: Path, image: str, label: str, generation: dict, **known: Any) -> Record:
    """Returns the record of a finished image file root/image, with other known fields: synthetic, for training only."""
    return entry(image, shards.locate(root / image).read_bytes(), label, generation, **known)


def entry(image: str, content: bytes, label: str, generation: dict, **known: Any) -> Record:
    """Returns the record of an image of these bytes that is at the path `image`, else as `record`."""
    fixed = {"split": "train", "source": "dermjax", "image_manipulation": "synthetic"}
    digest = hashlib.sha256(content).hexdigest()
    return Record(image=image, sha256=digest, label=label, generation=generation, **fixed, **{"licence": USE} | known)


def parameters(generation: dict) -> str:
    """Returns the generation as A1111 writes it: the prompt, the negative prompt, then `Steps: 20, Sampler: …`."""

    def shown(value: Any) -> Any:  # names with their digests stand in quotation marks
        return f'"{", ".join(f"{name}: {each}" for name, each in value.items())}"' if isinstance(value, dict) else value

    size = generation["size"]
    settings = {
        "Steps": generation["steps"],
        "Sampler": generation["sampler"],
        "CFG scale": f"{generation['guidance']:g}",
        "Seed": generation["seed"],
        "Size": f"{size}x{size}",
        "Model hash": generation["model"],
        **{title: shown(generation[name]) for name, title in UNUSUAL.items() if name in generation},
        "Synthetic": f"true ({USE})",
    }
    negative = [f"Negative prompt: {generation['negative_prompt']}"] if generation["negative_prompt"] else []
    return "\n".join([generation["prompt"], *negative, ", ".join(f"{key}: {value}" for key, value in settings.items())])


def read_parameters(text: str) -> dict:
    """Returns what a text of A1111's tools, or of `parameters`, says, as `generation` names it; what is missing there,
    or is no number, is missing here. Of an A1111 LoRA, `lora` is its name."""
    *lines, last = text[-LONGEST:].strip().split("\n")
    settings = {name.strip(): value.strip('"') for name, value in SETTING.findall(last)}
    if len(settings) < 3:  # as A1111 has it: the line is a part of the prompt
        lines, settings = [*lines, last], {}
    prompt, _, negative = ("\n" + "\n".join(lines)).partition("\nNegative prompt:")
    written = {"synthetic": True, "prompt": LORA.sub("", prompt).strip(), "negative_prompt": negative.strip()}
    named = LORA.search(prompt)
    adapter, weight = (named[1], named[2]) if named else (settings.get("Lora hash"), settings.get("Lora weight"))
    width, _, height = settings.get("Size", "").partition("x")
    sampler, ladder = settings.get("Sampler", ""), settings.get("Schedule type", "")
    if ladder.lower() in LADDERS and ladder.lower() not in sampler.lower():
        sampler = f"{sampler} {ladder}"
    read = {
        "seed": _number(int, settings.get("Seed")),
        "sampler": sampler or None,
        "steps": _number(int, settings.get("Steps")),
        "guidance": _number(float, settings.get("CFG scale")),
        "size": _number(int, width) if width == height else None,
        "model": settings.get("Model hash"),
        "lora": adapter,
        "lora_weight": _number(float, weight),
    }
    return written | {name: value for name, value in read.items() if value is not None}


def _number(kind: type, text: str | None) -> int | float | None:
    try:
        return kind(text[:40]) if text else None
    except ValueError:
        return None


def origin(path: Path) -> dict | None:
    """Returns the generation that a complete image file of ours carries; None for one that is damaged or of others."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            image.verify()  # the checksum of every chunk
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            generation = json.loads(image.text[KEY])
            return generation if isinstance(generation, dict) else None
    except (OSError, SyntaxError, ValueError, KeyError, RecursionError):  # of Pillow and json, at damage and absence
        return None


def missing(workdir: Path, wanted: Mapping[Request, dict], *, signed: bool) -> tuple[set[Request], str]:
    """Returns the requests whose image is not there, damaged or of another generation than is wanted, or, where it is
    to be `signed`, has no content credentials, and how those that are there differ, on one line, "" where none does."""

    def read(path: Path) -> tuple[dict | None, bool]:
        found = origin(path)
        return found, not signed or (found is not None and credentials.is_signed(path.read_bytes()))

    with ThreadPoolExecutor() as pool:
        files = (shards.locate(workdir / request.image) for request in wanted)
        there = dict(zip(wanted, pool.map(read, files), strict=True))
    others = {request for request in wanted if there[request] != (wanted[request], True)}
    differing = [request for request in wanted if request in others and there[request][0] is not None]
    if not differing:
        return others, ""
    first = differing[0]
    changed = differences(there[first][0], wanted[first]) or "not signed"
    return others, f"images that are there and made again: {len(differing)}, such as {first.image} ({changed})"


def show(file: str) -> None:
    """Prints what a file says; one that is no image, or says nothing, is a UserError."""
    path = shards.locate(Path(file).expanduser())
    try:
        with images.open_image(path) as image:
            image.load()
            texts = {name: text for name, text in getattr(image, "text", {}).items() if isinstance(text, str)}
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        reason = getattr(error, "strerror", None) or "not a whole image"
        raise UserError(f"{path}: cannot be read ({reason})") from error
    generation = origin(path)
    lines = _ours(generation, texts) + _a1111(texts) + _credentials(path) + _record(path, generation)
    if not lines:
        raise UserError(
            f"{file}: says nothing of how it was made: no dermjax or A1111 text, no C2PA manifest, no manifest.jsonl "
            "that lists it; this does not make it a photograph"
        )
    print("\n".join([str(path), *lines]))


def _ours(generation: dict | None, texts: Collection[str]) -> list[str]:
    if generation is None:
        return ["dermjax: its text is there but damaged"] if KEY in texts else []
    kind = "synthetic" if generation.get("synthetic") else "not marked as synthetic"
    shown = {name: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for name, v in generation.items()}
    return [f"dermjax: {kind}", *(f"  {name}: {value}" for name, value in shown.items())]


def _a1111(texts: Mapping[str, str]) -> list[str]:
    if PARAMETERS not in texts:
        return []
    return ["parameters, as A1111 writes them:", *(f"  {line}" for line in texts[PARAMETERS].splitlines())]


def _credentials(path: Path) -> list[str]:
    if not credentials.installed():
        return ["C2PA: not looked for; pip install 'dermjax[c2pa]'"] if credentials.is_signed(path.read_bytes()) else []
    signed = credentials.read(path)
    if signed is None:
        return []
    faults = "".join(f"; {fault}" for fault in signed["faults"])
    return [f"C2PA: {signed['state'].lower()}, signed by {signed['issuer']}{faults}"]


def _record(path: Path, generation: dict | None) -> list[str]:
    """Returns what the nearest manifest above a file says that lists it, and whether the file is the one it means."""
    for folder in list(path.absolute().parents)[:FOLDERS]:
        if (folder / records.FILE).is_file():
            manifest = records.read(folder)
            for record in manifest.records:
                if manifest.unchecked_path(record).resolve() == path.resolve():
                    return _compared(path, folder / records.FILE, record, generation)
    return []


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
