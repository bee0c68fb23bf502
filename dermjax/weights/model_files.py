"""A model by name or path: one that ships with dermjax, a folder in diffusers' layout, or a single file."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from dermjax.errors import UserError
from dermjax.models.nnx_tree import Params
from dermjax.models.stable_diffusion import StableDiffusion
from dermjax.weights import diffusers, single_file, tensor_files

PICKLES = (".ckpt", ".pt", ".pth", ".bin")


def locate(model: str) -> Path:
    """Returns the folder or the file of a model; a UserError where there is none."""
    path = Path(model)
    return path if path.is_file() else diffusers.locate(model)


def read(path: Path, *, dtype=jnp.float32, lazy: bool = False) -> tuple[StableDiffusion, Params]:
    """Returns a model's description and its parameters, float32; `dtype` is that of the later arithmetic.

    `lazy` parameters stay in the file, and each is read when it is used.
    """
    return (single_file if path.is_file() else diffusers).read(path, dtype=dtype, lazy=lazy)


def describe(path: Path) -> StableDiffusion:
    """Returns a model's description alone; of a folder it reads the configs, so that no weights need to be there."""
    return read(path, lazy=True)[0] if path.is_file() else diffusers.describe(path)


def place(params: Params, home: Sharding) -> Params:
    """Returns parameters, lazy ones too, on their devices: one after the other, so that the host holds one of them."""
    return jax.tree.map(lambda leaf: jax.block_until_ready(jax.device_put(np.asarray(leaf), home)), params)


def write(path: Path, sd: StableDiffusion, params: Params, *, dtype) -> None:
    """Writes the model as a single file where the name ends in .safetensors, else as a folder."""
    refuse_pickle(path)
    (single_file if path.suffix.lower() == ".safetensors" else diffusers).write(path, sd, params, dtype=dtype)


def check_target(target: Path) -> None:
    """Raises UserError where something has the name of what is to be written, or nothing can have it."""
    try:
        there = target.exists()
        target.with_name(f".{target.name}.part").exists()  # what it is called while it is written
        above = next(each for each in target.absolute().parents if each.exists())
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}); give another name") from error
    if there:
        raise UserError(f"{target}: is there already; remove it or give another name")
    if not above.is_dir():
        raise UserError(f"{target}: cannot be written, as {above} is no folder; give another name")


def refuse_pickle(path: Path) -> None:
    """Raises UserError where a file to be written has the name of a pickle."""
    if path.suffix.lower() in PICKLES:
        raise UserError(f"{path}: pickles can run code and are not written; name it {path.stem}.safetensors")


def digest(path: Path) -> str:
    """Returns the name of a model, or of an embedding, in records: 16 hex digits of all that images follow from.

    Of a folder that is weights, configs, scheduler and tokenizer, of a file its bytes and those of LDM's config beside.
    """
    return tensor_files.digest((diffusers if path.is_dir() else single_file).files(path))
