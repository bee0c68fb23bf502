"""The model that makes the images: its files, a LoRA merged into it, words taught by textual inversion, its tokens."""

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dermjax import run_folder, sharding
from dermjax.data import images
from dermjax.data.tokens import load_tokenizer, tokenize
from dermjax.errors import UserError
from dermjax.models import clip_text, unet, vae
from dermjax.models.stable_diffusion import Params, StableDiffusion, count
from dermjax.sampling import text_to_image
from dermjax.sampling.requests import Request
from dermjax.weights import lora, lora_files, model_files, textual_inversion
from dermjax.weights.textual_inversion import Embedding

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

LONG_PROMPTS = ("refuse", "chunk")
NUMERIC_VERSIONS = {  # of all that images are made by
    "images": images.NUMERIC_VERSION,
    "sampling": text_to_image.NUMERIC_VERSION,
    "text_encoder": clip_text.NUMERIC_VERSION,
    "unet": unet.NUMERIC_VERSION,
    "vae": vae.NUMERIC_VERSION,
}
PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}  # of the arithmetic


@dataclasses.dataclass(frozen=True)
class Model:
    """A model with all that was added to it; `digests` is what the records of its images say of its weights,
    of the arithmetic and of the code."""

    sd: StableDiffusion
    params: Params  # lazy
    tokens: Callable[[Request], np.ndarray]  # int32 [2, C N]: prompt and negative prompt; without guidance [1, C N]
    digests: dict[str, Any]

    @property
    def grid(self) -> Mesh:
        """The devices of this process that make its images."""
        return sharding.local_mesh(count(self.params))

    def placed(self) -> Params:
        """Returns the parameters as every device of the grid has them."""
        return model_files.place(self.params, sharding.replicated(self.grid))


def read(
    name: str, adapter: str, adapter_weight: float, embeddings: Sequence[str], long_prompts: str, precision: str
) -> Model:
    """Returns a model by name or path, with the LoRA and the embeddings in the files of these names; "" is no LoRA.

    Raises:
      UserError: one of the files is missing, broken, something else, or does not belong to the model.
    """
    if not name:
        raise UserError("config.model is empty; give a model folder or a single file, such as runs/tune/model")
    if long_prompts not in LONG_PROMPTS:
        raise UserError(f"config.long_prompts = {long_prompts!r}: give {' or '.join(LONG_PROMPTS)}")
    precision = precision or sharding.fastest_precision()
    if precision not in PRECISIONS:
        raise UserError(f"config.precision = {precision!r} is unknown; give {', '.join(PRECISIONS)}")
    path = model_files.locate(name)
    words = {file: textual_inversion.read(Path(file)) for file in embeddings}
    sd, params = model_files.read(path, dtype=PRECISIONS[precision], lazy=True)
    digests = {
        "model": model_files.digest(path),
        "precision": sharding.arithmetic(PRECISIONS[precision], sharding.local_mesh()),
        run_folder.NUMERIC_VERSIONS: NUMERIC_VERSIONS,
    }
    if adapter:
        params = lora.merge(params, lora_files.read(Path(adapter), sd.shapes), adapter_weight)
        digests |= {"lora": lora_files.digest(Path(adapter)), "lora_weight": adapter_weight}
    if words:
        digests["embeddings"] = {
            each.token: model_files.digest(Path(file)) for file, found in words.items() for each in found
        }
    known = [each for found in words.values() for each in found]
    sd, params, spelling = taught(sd, params, known)
    return Model(sd, params, speaker(spelling, known, long_prompts), digests)


def taught(
    sd: StableDiffusion, params: Params, embeddings: list[Embedding]
) -> tuple[StableDiffusion, Params, "CLIPTokenizer"]:
    """Returns the model, its parameters and its tokenizer with the embeddings' words."""
    with tempfile.TemporaryDirectory() as folder:
        for n, embedding in enumerate(embeddings):
            more = Path(folder) / str(n)
            configs, params = textual_inversion.add(sd.configs, params, embedding, sd.tokenizer, more)
            sd = dataclasses.replace(sd, configs=configs, tokenizer=more)
        return sd, params, load_tokenizer(sd.tokenizer, *sd.text_limits)


def speaker(words: "CLIPTokenizer", embeddings: list[Embedding], long_prompts: str) -> Callable[[Request], np.ndarray]:
    """Returns the function from a request to its tokens; prompt and negative prompt get equally many chunks."""

    @functools.cache
    def said(*texts: str) -> np.ndarray:
        return tokenize(words, [textual_inversion.spelt_out(text, embeddings) for text in texts], long_prompts)

    return lambda request: said(request.prompt, *([request.negative] if request.guidance > 1 else []))
