"""The model that makes images: its files, a LoRA merged into it, the words of textual inversions, its tokens."""

import functools
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dermjax import run_folder, sharding
from dermjax.data import images
from dermjax.data.tokens import load_tokenizer, shown, tokenize
from dermjax.errors import UserError
from dermjax.models import clip_text, unet, vae
from dermjax.models.stable_diffusion import Params, StableDiffusion, count
from dermjax.progress import say
from dermjax.sampling import text_to_image
from dermjax.sampling.requests import Request
from dermjax.weights import lora, model_files, textual_inversion

PIXELS = 2**17  # that a CPU makes of a large model at a time: more take memory and are no quicker
LONG_PROMPTS = ("refuse", "chunk")
# in prompts for AUTOMATIC1111's program: <lora:mole:0.8>, an embedding <mole>, and a weight (mole:1.3)
NETWORK, PLACEHOLDER = re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>", re.IGNORECASE), re.compile(r"<[^<>\s]+>")
WEIGHT = re.compile(r"\([^()]*:\s*\d*\.?\d+\s*\)")
NUMERIC_VERSIONS = {  # of all that images are made by
    "images": images.NUMERIC_VERSION,
    "sampling": text_to_image.NUMERIC_VERSION,
    "text_encoder": clip_text.NUMERIC_VERSION,
    "unet": unet.NUMERIC_VERSION,
    "vae": vae.NUMERIC_VERSION,
}
PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}  # of the arithmetic


@dataclass(frozen=True)
class Model:
    """A model with all that was added to it.

    tokens(request) are int32 [2, N]: prompt and negative prompt in equally many chunks; without guidance [1, N].
    digests: what the records of its images say of its weights, of the arithmetic and of the code.
    sources: the files and folders of it, as they were named: beside them lie the lists of what a generator saw.
    """

    sd: StableDiffusion
    params: Params  # lazy, until `placed`
    tokens: Callable[[Request], np.ndarray]
    digests: dict[str, object]
    sources: tuple[Path, ...]

    @property
    def grid(self) -> Mesh:
        """The devices of this process that make its images."""
        return sharding.local_mesh(count(self.params))

    def placed(self) -> "Model":
        """Returns the model with its parameters on every device of the grid."""
        return replace(self, params=model_files.place(self.params, sharding.replicated(self.grid)))

    def kind(self, request: Request) -> tuple:
        """Returns what requests have in common that one compiled function makes: settings and number of tokens."""
        return request.settings, self.tokens(request).shape[1]

    def size(self, size: int) -> int:
        """Returns the side of images in pixels, the model's own for 0; a part of a latent cell is a UserError."""
        cell = self.sd.factor
        if size < 0 or size % cell:
            near = max(1, round(size / cell)) * cell
            raise UserError(f"size = {size}: this model makes multiples of {cell} px; give {near}, or 0 for its own")
        return size or self.sd.size

    def largest_batch(self, batch: int, size: int) -> int:
        """Returns how many of `batch` images of a size a device should make at a time: a CPU few of a large model."""
        return min(batch, max(1, PIXELS // size**2)) if sharding.is_large(count(self.params)) else batch


def check_prompt(prompt: str, vocabulary: Collection[str], long_prompts: str) -> None:
    """Refuses the parts of a prompt that mean something to other programs and nothing here.

    Raises:
      UserError: it asks for a LoRA, a word of an embedding or a chunk that is not there.
    """
    if any("\ud800" <= each <= "\udfff" for each in prompt):
        raise UserError(f"prompt {shown(prompt)}: is no text in UTF-8; write it again")
    network = NETWORK.search(prompt)
    unknown = next((word for word in PLACEHOLDER.findall(prompt) if word.lower() not in vocabulary), "")
    if network:
        raise UserError(f"prompt {shown(prompt)}: {network[0]} would load nothing; give the file as config.lora (lora= "
                        "in Python) with its weight, and leave it out of the prompt")  # fmt: skip
    if unknown:
        raise UserError(f"prompt {shown(prompt)}: the model has no word {unknown}; give its file as config.embeddings "
                        "(embeddings= in Python), or leave the word out")  # fmt: skip
    if long_prompts == "refuse" and re.search(r"\bBREAK\b", prompt):
        raise UserError(f"prompt {shown(prompt)}: BREAK divides prompts with config.long_prompts = chunk alone; give "
                        "that (long_prompts= in Python), or leave it out")  # fmt: skip


def say_weights(prompts: Iterable[str]) -> bool:
    """Says of the first prompt with a weight that it is plain words here; returns whether there is one."""
    for prompt in prompts:
        if weight := WEIGHT.search(prompt):
            say(f"prompt {shown(prompt)}: weights such as {weight[0]} are not known here and are read as words")
            return True
    return False


def load_model(
    name: str, adapter: str, adapter_weight: float, embeddings: Sequence[str], long_prompts: str, precision: str
) -> Model:
    """Returns a model by name or path, with the LoRA and the embeddings in the files of these names; "" is no LoRA.

    precision is a key of PRECISIONS, or "" for the quickest here.

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
    files = [textual_inversion.locate(Path(each)) for each in embeddings]
    words = {file: textual_inversion.read(file) for file in files}
    sd, params = model_files.read(path, dtype=PRECISIONS[precision], lazy=True)
    digests = {
        "model": model_files.digest(path),
        "precision": sharding.arithmetic(PRECISIONS[precision], sharding.local_mesh()),
        run_folder.NUMERIC_VERSIONS: NUMERIC_VERSIONS,
    }
    if adapter:
        params = lora.merge(params, lora.read(Path(adapter), sd.shapes), adapter_weight)
        digests |= {"lora": lora.digest(Path(adapter)), "lora_weight": adapter_weight}
    if words:
        digests["embeddings"] = {each.token: model_files.digest(file) for file, read in words.items() for each in read}
    known = [each for read in words.values() for each in read]
    with tempfile.TemporaryDirectory() as folder:
        for number, embedding in enumerate(known):
            extended = Path(folder) / str(number)
            configs, params = textual_inversion.add(sd.configs, params, embedding, sd.tokenizer, extended)
            sd = replace(sd, configs=configs, tokenizer=extended)
        tokenizer = load_tokenizer(sd.tokenizer, *sd.text_limits)
    vocabulary = {word.lower() for word in tokenizer.get_vocab()}

    said = False

    @functools.cache
    def tokens_of(*texts: str) -> np.ndarray:
        nonlocal said
        for text in texts:
            check_prompt(text, vocabulary, long_prompts)
        said = said or say_weights(texts)
        return tokenize(tokenizer, textual_inversion.spell_stored(texts, tokenizer), long_prompts)

    def tokens(request: Request) -> np.ndarray:
        return tokens_of(request.prompt, *([request.negative] if request.guidance > 1 else []))

    return Model(sd, params, tokens, digests, tuple(Path(each) for each in (name, adapter, *embeddings) if each))
