"""`dermjax convert`: a model from one form into another, a LoRA merged into it, or a LoRA into its other form."""

import math
from pathlib import Path

import ml_dtypes
import numpy as np

from dermjax.errors import UserError
from dermjax.models.nnx_tree import Params
from dermjax.models.stable_diffusion import StableDiffusion
from dermjax.progress import say
from dermjax.weights import diffusers, model_files, single_file, tensor_files
from dermjax.weights.lora import KOHYA, NUMBERED, locate, merge, read, write_kohya, write_peft
from dermjax.weights.tensor_files import open_file

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
NONE = "none"  # for `lora`: merge nothing
FOUND = "found"  # for `variant` and `prediction`: what the model's files say or have
PREDICTIONS = (FOUND, *tensor_files.PREDICTIONS.values())


def convert(
    from_: str, to: str, lora: str, lora_weight: float, dtype: str, variant: str, ema: bool, prediction: str
) -> None:
    """Writes what is at `from_` to `to`: a name ending in .safetensors makes a file, any other a folder.

    A LoRA at `from_` is written in the other form: kohya's where it was PEFT's, and the other way round. `variant` is
    which files of a folder to take; `ema` and `prediction` are of single files: the UNet's running averages, and what
    it predicts where the file does not say it.

    Raises:
      UserError: `to` is there already, a choice is unknown or not one of this model's, or what is read is broken or
        does not fit.
    """
    source, target = tensor_files.snapshot(Path(from_)), Path(to)
    if not (source / "model_index.json").is_file() and not (source / "config.json").is_file():
        source = locate(source)  # a folder of PEFT's
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is unknown; there are {', '.join(DTYPES)}")
    if not math.isfinite(lora_weight):
        raise UserError(f"lora_weight {lora_weight} is no number; 1 is as trained")
    if prediction not in PREDICTIONS:
        raise UserError(f"prediction {prediction!r} is unknown; there are {', '.join(PREDICTIONS)}")
    model_files.check_target(target)
    if source.is_file() and tensor_files.kind(open_file(source)[0]) == tensor_files.LORA:
        if lora != NONE:
            raise UserError(f"{source}: is a LoRA; merge {lora} into a model instead")
        convert_lora(source, target, DTYPES[dtype])
    else:
        sd, params = read_model(model_files.locate(from_), variant, ema, prediction)
        if lora != NONE:
            params = merge(params, read(Path(lora), sd.shapes), lora_weight)
        target.parent.mkdir(parents=True, exist_ok=True)
        model_files.write(target, sd, params, dtype=DTYPES[dtype])
    say(f"convert: {target}")


def read_model(source: Path, variant: str, ema: bool, prediction: str) -> tuple[StableDiffusion, Params]:
    """Returns the model at `source` from those of its files and tensors that are requested."""
    if source.is_file():
        if variant != FOUND:
            raise UserError(f"{source}: is a single file; variants are of folders")
        return single_file.read(source, ema=ema, prediction="" if prediction == FOUND else prediction)
    if ema or prediction != FOUND:
        raise UserError(f"{source}: is a folder; running averages and the prediction are asked of single files")
    return diffusers.read(source, variant="" if variant == FOUND else variant)


def convert_lora(source: Path, target: Path, dtype) -> None:
    """Writes a LoRA in kohya's form where it is in PEFT's, else in PEFT's."""
    model_files.refuse_pickle(target)
    if target.suffix.lower() != ".safetensors":
        raise UserError(f"{target}: a LoRA is one file; name it {target.name}.safetensors")
    tensors, _ = open_file(source)
    width = tensor_files.context_width(tensors)
    if width not in single_file.PRESETS:
        raise UserError(f"{source}: made for a model with a context {width} wide, whose layers are not known here")
    adapters = read(source, StableDiffusion(single_file.PRESETS[width][0], Path(), np.float32).shapes)
    kohya = any(name.startswith((*KOHYA.values(), NUMBERED)) for name in tensors)
    target.parent.mkdir(parents=True, exist_ok=True)
    (write_peft if kohya else write_kohya)(target, adapters, dtype=dtype)
