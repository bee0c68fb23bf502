"""What a synthetic image says of itself, in its file and in its record: that it is synthetic, and how it was made.

Two texts in the PNG: `parameters` in the form that A1111's tools read and show, and `dermjax`, the same as JSON. A
signed manifest can come on top (`credentials`).
"""

import io
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dermjax.data import origin
from dermjax.generation.plan import Request
from dermjax.run_folder import differences

USE = "research use only"
PARAMETERS = "parameters"  # of the text as A1111 writes it
UNUSUAL = {  # what is only named where it is asked for, and how `parameters` calls it
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


def generation(request: Request, size: int, digests: Mapping[str, Any]) -> dict:
    """Returns all that the image follows from: the request, the side in pixels and the digests of the weights.

    `digests` has those of the `model` and, where they were asked for, of a `lora`, with its `lora_weight`, and of the
    words of `embeddings`; the `precision` of the arithmetic; and the `numeric_versions` of the code. Older images
    say no versions, and a precision only where it is not float32.
    """
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
        **_unusual(request),
    }


def _unusual(request: Request) -> dict:
    """Returns what the request asks for beyond the usual: only that is named."""
    settings = {
        "spacing": request.spacing,
        "guidance_rescale": request.guidance_rescale,
        "guidance_interval": list(request.guidance_interval),  # as JSON gives it back
        "deep_cache": request.deep_cache if request.deep_cache > 1 else None,
        "words": dict(request.words),
    }
    return {name: value for name, value in settings.items() if value}


def png(image: np.ndarray, generation: dict) -> bytes:
    """Returns the bytes of a PNG file of uint8 [H, W, 3] that carries its generation; the same for the same input."""
    texts = PngInfo()
    texts.add_text(PARAMETERS, parameters(generation))
    texts.add_itxt(origin.KEY, json.dumps(generation, ensure_ascii=False))
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", pnginfo=texts)
    return file.getvalue()


def parameters(generation: dict) -> str:
    """Returns the generation as A1111 writes it: the prompt, the negative prompt, then `Steps: 20, Sampler: …`."""
    size = generation["size"]
    settings = {
        "Steps": generation["steps"],
        "Sampler": generation["sampler"],
        "CFG scale": f"{generation['guidance']:g}",
        "Seed": generation["seed"],
        "Size": f"{size}x{size}",
        "Model hash": generation["model"],
        **{shown: _shown(generation[name]) for name, shown in UNUSUAL.items() if name in generation},
        "Synthetic": f"true ({USE})",
    }
    negative = [f"Negative prompt: {generation['negative_prompt']}"] if generation["negative_prompt"] else []
    return "\n".join([generation["prompt"], *negative, ", ".join(f"{key}: {value}" for key, value in settings.items())])


def _shown(value: Any) -> Any:
    """Returns a value as A1111 writes it: names with their digests stand in quotation marks."""
    return f'"{", ".join(f"{name}: {each}" for name, each in value.items())}"' if isinstance(value, dict) else value


def missing(workdir: Path, wanted: Mapping[Request, dict]) -> tuple[set[Request], str]:
    """Returns the requests whose image is not there, damaged or of another generation than is wanted, and how the
    generations that are there differ, on one line, "" where none does."""
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda request: origin.read(workdir / request.image), wanted))
    others = {request: made for request, made in zip(wanted, found, strict=True) if made != wanted[request]}
    differing = [request for request, made in others.items() if made is not None]
    if not differing:
        return set(others), ""
    first = differing[0]
    changed = differences(others[first], wanted[first])
    return set(others), f"images that are there and made again: {len(differing)}, such as {first.image} ({changed})"
