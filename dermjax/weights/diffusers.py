"""Model folders in exactly diffusers' layout: what we write its pipelines load, what they write we load.

model_index.json  scheduler/scheduler_config.json  tokenizer/…
text_encoder/  config.json  model.safetensors
unet/, vae/    config.json  diffusion_pytorch_model.safetensors

Also read: variants (`model.fp16.safetensors`), shards with an index, PyTorch's .bin, and the names of older files.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dermjax.errors import UserError
from dermjax.models.nnx_tree import Params
from dermjax.models.stable_diffusion import StableDiffusion
from dermjax.weights import safetensors, torch_layout
from dermjax.weights.safetensors import Tensors
from dermjax.weights.tensor_files import SHIPPED, read_folder, read_json, snapshot, weight_files

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
    folder = snapshot(SHIPPED.get(model, Path(model)))
    index = folder / "model_index.json"
    if not index.is_file():
        names, hub = ", ".join(SHIPPED), ""
        if re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not folder.exists():
            hub = f"; nothing is fetched by itself: `hf download {model}` prints a folder"
        raise UserError(
            f"model {folder}: no model_index.json; give a folder in diffusers' layout, a single file or one of: {names}"
            + hub
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
    sd = describe(folder, dtype=dtype)
    folder = locate(str(folder))
    varied = [name for name in FILES if variant and any((folder / name).glob(f"*.{variant}.*"))] or FILES
    networks = {name: read_network(folder / name, variant if name in varied else "") for name in FILES}
    return sd, parameters(sd, networks, str(folder), params_dtype, lazy)


def describe(folder: Path, *, dtype=jnp.float32) -> StableDiffusion:
    """Returns a model folder's description, by its configs alone; UserError where they are missing or do not fit."""
    folder = locate(str(folder))
    configs = {name: read_json(folder / name / "config.json") for name in FILES}
    configs["scheduler"] = read_json(folder / "scheduler" / "scheduler_config.json")
    sd = StableDiffusion(configs, folder / "tokenizer", dtype)
    sd.check()
    return sd


def read_network(folder: Path, variant: str) -> Tensors:
    """Returns the tensors of a network's folder, unread, under the names of published files.

    transformers 5 saves CLIP's text model without the prefix `text_model.` that every older file has, and older files
    carry a buffer of positions that is no weight.
    """
    tensors = read_folder(folder, variant)
    if "embeddings.token_embedding.weight" in tensors:
        tensors = {f"text_model.{name}": tensor for name, tensor in tensors.items()}
    tensors.pop("text_model.embeddings.position_ids", None)
    return {".".join(OLDER.get(word, word) for word in name.split(".")): each for name, each in tensors.items()}


def parameters(sd: StableDiffusion, networks: dict[str, Tensors], source: str, dtype, lazy: bool) -> Params:
    """Returns the parameters of a model from the tensors of its networks, all checked before the first one is read."""

    def all_of(tensors: dict[str, dict]) -> dict:
        return {f"{name}/{key}": each for name in FILES for key, each in tensors[name].items()}

    wanted = {name: torch_layout.expected(sd.shapes[name]) for name in FILES}
    torch_layout.check(all_of(wanted), all_of(networks), source)
    params = {
        name: torch_layout.from_file(sd.shapes[name], networks[name], f"{source}: {name}/", dtype) for name in FILES
    }
    return params if lazy else jax.tree.map(lambda leaf: leaf.read(), params)


def write(folder: Path, sd: StableDiffusion, params: Params, *, dtype) -> None:
    """Writes the model folder as `replaced` does, a tensor after the other."""
    # transformers 5 would compute in the type of the text encoder's file, while diffusers takes the UNet's halves to
    # float32 unless a type is requested: the two could not be multiplied
    text = {key: value for key, value in sd.configs["text_encoder"].items() if key != "torch_dtype"}
    with replaced(folder) as part:
        shutil.copytree(sd.tokenizer, part / "tokenizer")
        write_json(part / "model_index.json", index(sd))
        for name, config in (sd.configs | {"text_encoder": text | {"dtype": "float32"}}).items():
            (part / name).mkdir()
            write_json(part / name / ("scheduler_config.json" if name == "scheduler" else "config.json"), config)
        for name, file in FILES.items():
            safetensors.write(part / name / file, torch_layout.to_file(params[name], dtype), {})


def write_vae(folder: Path, sd: StableDiffusion, vae: Params, *, dtype) -> None:
    """Writes an autoencoder by itself, as diffusers' AutoencoderKL.from_pretrained reads it."""
    with replaced(folder) as part:
        write_json(part / "config.json", sd.configs["vae"])
        safetensors.write(part / FILES["vae"], torch_layout.to_file(vae, dtype), {})


def index(sd: StableDiffusion) -> dict:
    """Returns the model_index.json of a model: its classes in diffusers and transformers."""
    pipeline = INDEX["_class_name"]
    if sd.configs["unet"]["in_channels"] == INPAINTING:
        pipeline = "StableDiffusionInpaintPipeline"
    scheduler = sd.configs["scheduler"].get("_class_name", INDEX["scheduler"][1])
    return INDEX | {"_class_name": pipeline, "scheduler": ["diffusers", scheduler]}


def files(folder: Path) -> dict[str, Path]:
    """Returns every file of a model folder that images follow from, by its name within the folder.

    These are the weights that `read` takes, the configs, the scheduler's too, and the tokenizer; no model card and no
    image.
    """
    paths = [folder / "model_index.json", folder / "scheduler" / "scheduler_config.json"]
    for name in FILES:
        paths += [folder / name / "config.json", *weight_files(folder / name, "")]
    paths += [path for path in (folder / "tokenizer").rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path for path in paths}


@contextlib.contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """Yields a new folder that takes the place of `folder` at the end.

    Where the writing fails, on a full disk or on values beyond a type, nothing is left behind. What was there is moved
    away and deleted last: a kill while it is deleted, which takes seconds for a model, leaves no half of it.
    """
    part, old = folder.with_name(f".{folder.name}.part"), folder.with_name(f".{folder.name}.old.part")
    for left in (part, old):
        shutil.rmtree(left, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
        if folder.exists():
            os.replace(folder, old)
        os.replace(part, folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_json(path: Path, content: dict) -> None:
    """Writes JSON as people read it."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
