"""dermjax: labelled dermoscopy images in, a better skin-lesion classifier and the evidence for it out.

From Python, with images as files, PIL images or NumPy arrays (what is made is for research use only):

    pipe = dermjax.load("runs/tune/model")               # a folder of diffusers', one file, or "derm-base"
    images = pipe("dermoscopy of a malignant mole", sampler="DPM++ 2M", steps=20, seeds=range(8))
    pipe.save(images, "synthetic")                       # PNG files that say what they are, and a manifest
    table = dermjax.read_manifest("runs/prepare").to_pandas()
    labels, probabilities = dermjax.load_classifier("runs/vit").predict(["mole.jpg"])
    model = dermjax.tune("runs/prepare", "derm-tiny", "runs/tune", preset="tiny", steps=50)

What a user can mend is a `dermjax.UserError` of one line. JAX is imported by the first function that computes.
"""

from os import PathLike
from os.path import expanduser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dermjax.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dermjax.classification.predictions import LesionClassifier
    from dermjax.data.records import Manifest
    from dermjax.sampling.pipeline import Pipeline

__all__ = ["UserError", "load", "load_classifier", "read_manifest", "samplers", "tune"]


def load(
    model: str | PathLike,
    lora: str | PathLike = "",
    *,
    lora_weight: float = 0.8,
    embeddings: "str | PathLike | Sequence[str | PathLike]" = (),
    precision: str = "",
    long_prompts: str = "refuse",
) -> "Pipeline":
    """Returns a Stable Diffusion to call with prompts.

    Args:
      model: a folder in diffusers' layout, a single .safetensors or .ckpt, or what ships with dermjax,
        "derm-base" or "derm-tiny".
      lora: a file in PEFT's or kohya's form, merged into the model at lora_weight; 1 is as trained.
      embeddings: files of textual inversion, whose words prompts can use.
      precision: of the arithmetic: float32, bfloat16 or float16; "" is float32 on a CPU, else bfloat16.
      long_prompts: what to do with prompts beyond the text encoder's tokens: refuse, or chunk, as AUTOMATIC1111 does.
    """
    from dermjax.sampling.model import load_model
    from dermjax.sampling.pipeline import Pipeline, number

    several = [embeddings] if isinstance(embeddings, str | PathLike) else embeddings
    name, adapter, *files = (expanduser(str(each)) for each in (model, lora or "", *several))
    weight = number("lora_weight", lora_weight)
    return Pipeline(load_model(name, adapter, weight, files, long_prompts, precision))


def load_classifier(folder: str | PathLike) -> "LesionClassifier":
    """Returns a classifier: a run of `dermjax classify`, its classifier/, or one like it in Hugging Face's layout."""
    from dermjax import buckets
    from dermjax.classification.predictions import LesionClassifier

    return LesionClassifier(buckets.path_here("classifier", folder))


def read_manifest(path: str | PathLike) -> "Manifest":
    """Returns the manifest in a file or in the folder of a stage: its records, and `to_pandas()`."""
    from dermjax import buckets
    from dermjax.data import records

    return records.read(buckets.path_here("manifest", path))


def samplers() -> list[str]:
    """Returns the names of the samplers; after one of them "Karras" or "eta 0.4" are understood as well."""
    from dermjax.diffusion.samplers import SAMPLERS

    return [sampler.name for sampler in SAMPLERS.values()]


def tune(
    manifest: str | PathLike, model: str | PathLike, workdir: str | PathLike, *, preset: str = "lora", **changes: Any
) -> Path:
    """Teaches a Stable Diffusion the classes of a manifest, as `dermjax tune` does, and returns the tuned model's path.

    preset is a variant of configs/tune.py, and changes are its keys: steps=500, lora={"rank": 8}. The same call again
    goes on where a killed one was.
    """
    from dermjax import buckets, config_file, run_folder
    from dermjax.tuning import run

    config = config_file.preset("tune", preset)
    paths = {"manifest": expanduser(str(manifest)), "model": expanduser(str(model))}
    config_file.change(config, paths | changes)
    config_file.check_types(config, config_file.preset("tune", preset))
    folder = buckets.path_here("workdir", workdir).absolute()
    with run_folder.lock(folder, alone=True), run_folder.claimed(folder, config.to_dict()):
        run.run(config, folder)
    return folder / "model"
