"""Model folders in exactly diffusers' layout: what we write its pipelines load, what they write we load.

model_index.json  scheduler/scheduler_config.json  tokenizer/…
text_encoder/  config.json  model.safetensors
unet/, vae/    config.json  diffusion_pytorch_model.safetensors

Also read: variants (`model.fp16.safetensors`), shards with an index, PyTorch's .bin, and the names of older files.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dermjax.errors import UserError
from dermjax.models.stable_diffusion import StableDiffusion
from dermjax.weights import safetensors, torch_layout
from dermjax.weights.safetensors import Tensors
from dermjax.weights.tensor_files import SHIPPED, open_file, read_json, weight_files

Params = dict[str, Any]

FILES = {
    "text_encoder": "model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}
OLDER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # the VAE's attention until 2023
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
INPAINTING = 9  # input channels of the UNets that also see a mask and a masked image


def locate(model: str) -> Path:
    """Returns the folder of a model: one that ships with dermjax, by name, or a path.

    Raises:
      UserError: there is no such folder, or it is not a Stable Diffusion 1.x or 2.x in diffusers' layout.
    """
    folder = SHIPPED.get(model, Path(model))
    index = folder / "model_index.json"
    if not index.is_file():
        names = ", ".join(SHIPPED)
        raise UserError(
            f"model {folder}: no model_index.json; give a folder in diffusers' layout, a single file or one of: {names}"
        )
    pipeline = str(read_json(index).get("_class_name"))
    if not pipeline.startswith("StableDiffusion") or any(word in pipeline for word in ("XL", "3")):
        raise UserError(f"{index}: a {pipeline} is not supported; dermjax knows Stable Diffusion 1.x and 2.x")
    return folder


def read(
    folder: Path, *, dtype=jnp.float32, params_dtype=np.float32, variant: str = "", lazy: bool = False
) -> tuple[StableDiffusion, Params]:
    """Returns a model folder's description and its parameters; `dtype` is that of the later arithmetic.

    Tensors go one by one from the file to numpy arrays of `params_dtype`; `lazy` ones stay in the file, and each is
    read when it is used. An empty `variant` takes the plain files, or the only variant that is there; networks that
    have none of a `variant` that others have are plain.

    Raises:
      UserError: the folder or one of its files is missing or broken, or its tensors do not fit its configs.
    """
    folder = locate(str(folder))
    configs = {name: read_json(folder / name / "config.json") for name in FILES}
    configs["scheduler"] = read_json(folder / "scheduler" / "scheduler_config.json")
    varied = [name for name in FILES if variant and any((folder / name).glob(f"*.{variant}.*"))] or FILES
    found = {name: component(folder / name, variant if name in varied else "") for name in FILES}
    sd = StableDiffusion(configs, folder / "tokenizer", dtype)
    sd.check()
    return sd, parameters(sd, found, str(folder), params_dtype, lazy)


def parameters(sd: StableDiffusion, found: dict[str, Tensors], source: str, dtype, lazy: bool) -> Params:
    """Returns the parameters of a model from the tensors of its networks, all checked before the first one is read."""

    def together(networks: dict[str, dict]) -> dict:
        return {f"{name}/{key}": each for name in FILES for key, each in networks[name].items()}

    wanted = {name: torch_layout.expected(sd.shapes[name]) for name in FILES}
    torch_layout.check(together(wanted), together(found), source)

    params = {name: torch_layout.from_file(sd.shapes[name], found[name], dtype) for name in FILES}
    return params if lazy else jax.tree.map(lambda leaf: leaf.read(), params)


def write(folder: Path, sd: StableDiffusion, params: Params, *, dtype) -> None:
    """Writes the model folder whole: under a temporary name first, then in place of what was there.

    Where it fails, on a full disk or on values beyond the type, nothing is left behind.
    """
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        shutil.copytree(sd.tokenizer, part / "tokenizer")
        write_json(part / "model_index.json", index(sd))
        for name, config in (sd.configs | {"text_encoder": computing(sd.configs["text_encoder"])}).items():
            (part / name).mkdir()
            write_json(part / name / ("scheduler_config.json" if name == "scheduler" else "config.json"), config)
        for name, file in FILES.items():
            safetensors.write(part / name / file, torch_layout.to_file(params[name], dtype), {})
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def index(sd: StableDiffusion) -> dict:
    """Returns the model_index.json of a model: its classes in diffusers and transformers."""
    kind = "StableDiffusionInpaintPipeline" if sd.configs["unet"]["in_channels"] == INPAINTING else INDEX["_class_name"]
    scheduler = sd.configs["scheduler"].get("_class_name", INDEX["scheduler"][1])
    return INDEX | {"_class_name": kind, "scheduler": ["diffusers", scheduler]}


def computing(config: dict) -> dict:
    """Returns a text encoder's config that says float32, whatever its file holds.

    transformers 5 would compute in the file's type, while diffusers takes the UNet's halves to float32 unless it is
    asked for a type: the two could not be multiplied.
    """
    return {key: value for key, value in config.items() if key != "torch_dtype"} | {"dtype": "float32"}


def component(folder: Path, variant: str) -> Tensors:
    """Returns the tensors of a component's folder, unread, under the names of published files.

    transformers 5 saves CLIP's text model without the prefix `text_model.` that every older file has, and older files
    carry a buffer of positions that is no weight.
    """
    found = {name: each for file in weight_files(folder, variant) for name, each in open_file(file)[0].items()}
    if "embeddings.token_embedding.weight" in found:
        found = {f"text_model.{name}": tensor for name, tensor in found.items()}
    found.pop("text_model.embeddings.position_ids", None)
    return {".".join(OLDER.get(word, word) for word in name.split(".")): each for name, each in found.items()}


def files(folder: Path) -> dict[str, Path]:
    """Returns every file of a model folder that images follow from, by its name within the folder.

    These are the weights that `read` takes, the configs, the scheduler's too, and the tokenizer; no card, no picture.
    """
    found = [folder / "model_index.json", folder / "scheduler" / "scheduler_config.json"]
    for name in FILES:
        found += [folder / name / "config.json", *weight_files(folder / name, "")]
    found += [path for path in (folder / "tokenizer").rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path for path in found}


def write_json(path: Path, content: dict) -> None:
    """Writes JSON as people read it."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
