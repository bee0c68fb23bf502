"""Model folders in exactly diffusers' layout: what we write its pipelines load, what they write we load.

model_index.json  scheduler/scheduler_config.json  tokenizer/…
text_encoder/  config.json  model.safetensors
unet/, vae/    config.json  diffusion_pytorch_model.safetensors
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dermjax.errors import UserError
from dermjax.models.stable_diffusion import StableDiffusion
from dermjax.weights import torch_layout

Params = dict[str, Any]

FILES = {
    "text_encoder": "model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}
SHIPPED = {"derm-tiny": Path(__file__).parent / "derm_tiny"}
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.42.1",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def locate(model: str) -> Path:
    """Returns the folder of a model: one that ships with dermjax, by name, or a path.

    Raises:
      UserError: there is no such folder, or it is not in diffusers' layout.
    """
    folder = SHIPPED.get(model, Path(model))
    if not (folder / "model_index.json").is_file():
        names = ", ".join(SHIPPED)
        raise UserError(f"model {folder}: no model_index.json; give a folder in diffusers' layout, or one of: {names}")
    return folder


def read(folder: Path, *, dtype=jnp.float32) -> tuple[StableDiffusion, Params]:
    """Returns a model folder's description and its parameters, float32; `dtype` is that of the later arithmetic.

    Raises:
      UserError: the folder or one of its files is missing or broken, or its tensors do not fit its configs.
    """
    folder = locate(str(folder))
    configs = {name: read_json(folder / name / "config.json") for name in FILES}
    configs["scheduler"] = read_json(folder / "scheduler" / "scheduler_config.json")
    sd = StableDiffusion(configs, folder / "tokenizer", dtype)
    params = {
        name: torch_layout.from_torch(
            sd.shapes[name], tensors(folder / name / file), str(folder / name / file), dtype=np.float32
        )
        for name, file in FILES.items()
    }
    return sd, params


def write(folder: Path, sd: StableDiffusion, params: Params, *, dtype) -> None:
    """Writes the model folder whole: under a temporary name first, then in place of what was there."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(sd.tokenizer, part / "tokenizer")
    write_json(part / "model_index.json", INDEX)
    for name, config in sd.configs.items():
        (part / name).mkdir()
        write_json(part / name / ("scheduler_config.json" if name == "scheduler" else "config.json"), config)
    for name, file in FILES.items():
        arrays = jax.device_get(torch_layout.flatten(params[name]))
        named = dict(torch_layout.to_torch(path, array.astype(dtype)) for path, array in arrays.items())
        save_file(named, part / name / file, metadata={"format": "pt"})
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(part, folder)


def tensors(path: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a safetensors file under the names of published files.

    transformers 5 saves CLIP's text model without the prefix `text_model.` that every older file has, and older files
    carry a buffer of positions that is no weight.
    """
    try:
        with safe_open(path, framework="np") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); fetch the file again") from error
    if "embeddings.token_embedding.weight" in found:
        found = {f"text_model.{name}": tensor for name, tensor in found.items()}
    found.pop("text_model.embeddings.position_ids", None)
    return found


def digest(folder: Path) -> str:
    """Returns the first 16 hex digits of the SHA-256 over the weight files: the name of a model in records."""
    total = hashlib.sha256()
    for name, file in FILES.items():
        with (Path(folder) / name / file).open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()[:16]


def read_json(path: Path) -> dict:
    """Returns a JSON file's content, or raises UserError naming it."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error


def write_json(path: Path, content: dict) -> None:
    """Writes JSON as people read it."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
