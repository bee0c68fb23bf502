"""What frozen networks make of images and prompts, computed once and kept on disk under a digest of its causes.

So a resumed or repeated run does not compute it again, runs may share a folder, and another model or data set, another
arithmetic or other code never meets stale arrays.

What the frozen autoencoder makes of the training images, once: the moments of their latents.

The moments (mean and log-variance, not a draw) are kept in the `cache`. Images are divided over all devices of all
processes.

The prompts of a tuning run as the network takes them: contexts, or tokens where the text encoder is tuned.

The model as it stands before the first step, with the new words that it is to learn.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from dermjax import run_folder, sharding
from dermjax.data import images
from dermjax.data.records import Manifest, Record
from dermjax.data.tokens import load_tokenizer, tokenize
from dermjax.errors import UserError
from dermjax.models import clip_text, vae
from dermjax.models.stable_diffusion import Params, StableDiffusion
from dermjax.progress import bar
from dermjax.tuning.concepts import digested
from dermjax.tuning.trainable import table
from dermjax.weights import model_files, textual_inversion
from dermjax.weights.textual_inversion import Embedding, spell_out


def fingerprint(params: Params, config: Mapping) -> str:
    """Returns a digest of a network: its parameters and its config."""
    total = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for leaf in jax.tree.leaves(params):
        total.update(np.asarray(leaf).tobytes())
    return total.hexdigest()[:16]


def computed_once(folder: Path, name: str, causes: Mapping, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Returns the array that make() gives, mapped from the folder's file of what follows from `causes` (`run_folder`).

    Where there is no such file, every process makes the array and the first one writes it.

    Raises:
      UserError: the file is damaged.
    """
    path = run_folder.derived(folder, name, causes).with_suffix(".npy")
    if not multihost_utils.broadcast_one_to_all(np.array(path.exists())):
        if jax.process_index() == 0:
            run_folder.report_stale(path, causes)
        made = make()
        if jax.process_index() == 0:
            run_folder.write_causes(path, causes)
            part = path.with_suffix(f".{os.getpid()}.part.npy")
            np.save(part, made)
            part.rename(path)
        multihost_utils.sync_global_devices(f"dermjax: {name} written")
    try:
        # as a plain array: jax.device_put takes no memmap to the devices of several processes
        return np.asarray(np.load(path, mmap_mode="r"))
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it, and it is computed again") from error


PIXELS = 2**17  # that a CPU encodes at a time: a gigabyte in the layers of Stable Diffusion's autoencoder


def moments(
    sd: StableDiffusion,
    params: Params,
    sources: list[tuple[Manifest, Record]],
    size: int,
    batch: int,
    folder: Path,
    grid: Mesh,
) -> np.ndarray:
    """Returns moments float16 [N, 2, h, w, 2 Z] of N images and of their mirror images, mapped from folder's file."""
    causes = {
        run_folder.SUBJECT: f"{sources[0][1].split} images",
        run_folder.NUMERIC_VERSIONS: {"images": images.NUMERIC_VERSION, "vae": vae.NUMERIC_VERSION},
        "arithmetic": sharding.arithmetic(sd.dtype, grid),
        "vae": fingerprint(params["vae"], sd.configs["vae"]),
        "size": size,
        "images": digested(sources),
    }
    return computed_once(folder, "moments", causes, lambda: _encode(sd, params, sources, size, batch, grid))


def _encode(
    sd: StableDiffusion, params: Params, sources: list[tuple[Manifest, Record]], size: int, batch: int, grid: Mesh
) -> np.ndarray:
    def both(vae: Params, image: jax.Array) -> jax.Array:
        flipped = jnp.concatenate([image, image[:, :, ::-1]])
        return jnp.stack(jnp.split(sd.encode({"vae": vae}, flipped), 2), axis=1)

    if sharding.platform(grid) == "cpu":  # where more at a time take memory and are no quicker
        batch = min(batch, max(1, PIXELS // size**2))
    batch = -(-batch // grid.size) * grid.size
    own = sharding.local_rows(batch, grid)
    step = jax.jit(both, out_shardings=sharding.replicated(grid))
    vae = model_files.place(params["vae"], sharding.replicated(grid))
    rows = []
    with bar(len(sources), "latents", "images", 0) as progress:
        for at in range(0, len(sources), batch):
            some = sources[at : at + batch]
            mine = [some[row] for row in own if row < len(some)]
            pixels = [images.load(manifest.path(record), size) for manifest, record in mine]
            filled = np.zeros((len(own), size, size, 3), np.uint8)
            filled[: len(pixels)] = np.reshape(pixels, (-1, size, size, 3))
            encoded = step(vae, sharding.place(images.to_model(filled), grid))
            rows.append(np.asarray(encoded, np.float16)[: len(some)])
            progress.update(len(some))
    return np.concatenate(rows)


@dataclass(frozen=True)
class Texts:
    """P different prompts and, after them, the empty one, as token numbers int32 [P + 1, N]."""

    prompts: list[str]
    tokens: np.ndarray
    words: list[Embedding]

    def rows(self, prompts: list[str]) -> np.ndarray:
        """Returns the place of each prompt, int32."""
        place = {prompt: number for number, prompt in enumerate(self.prompts)}
        return np.array([place[spell_out(prompt, self.words)] for prompt in prompts], np.int32)

    def contexts(self, sd: StableDiffusion, params: Params, batch: int, folder: Path, grid: Mesh) -> np.ndarray:
        """Returns what a frozen text encoder makes of them, once: float32 [P + 1, N, D], kept in the `cache`."""
        text = params["text_encoder"]
        causes = {
            run_folder.NUMERIC_VERSIONS: {"text_encoder": clip_text.NUMERIC_VERSION},
            "arithmetic": sharding.arithmetic(sd.dtype, grid),
            "text_encoder": fingerprint(text, sd.configs["text_encoder"]),
            "tokens": hashlib.sha256(repr(self.tokens.tolist()).encode()).hexdigest()[:16],
        }
        return computed_once(folder, "contexts", causes, lambda: _encoded(sd, text, self.tokens, batch, grid))


def read_texts(sd: StableDiffusion, prompts: list[str], words: list[Embedding]) -> Texts:
    """Returns the different ones of the prompts; one that is too long, or a word that none says, is a UserError."""
    for word in words:
        if not any(word.token in prompt for prompt in prompts):
            raise UserError(f"config.words.{word.token}: no prompt says it, so it would not be learnt; put it in one")
    asked = sorted({spell_out(prompt, words) for prompt in prompts})
    return Texts(asked, tokenize(load_tokenizer(sd.tokenizer, *sd.text_limits), [*asked, ""]), words)


def _encoded(sd: StableDiffusion, text: Params, tokens: np.ndarray, batch: int, grid: Mesh) -> np.ndarray:
    """Returns the contexts of tokens, divided over all devices of all processes."""
    batch = -(-min(batch, len(tokens)) // grid.size) * grid.size
    step = jax.jit(
        lambda text, tokens: sd.encode_text({"text_encoder": text}, tokens), out_shardings=sharding.replicated(grid)
    )
    text = model_files.place(text, sharding.replicated(grid))
    rows = []
    with bar(len(tokens), "contexts", "prompts", 0) as progress:
        for at in range(0, len(tokens), batch):
            some = tokens[at : at + batch]
            filled = np.resize(some, (batch, tokens.shape[1]))[sharding.local_rows(batch, grid)]
            rows.append(np.asarray(step(text, sharding.place(filled, grid)))[: len(some)])
            progress.update(len(some))
    return np.concatenate(rows)


def read_start(
    model: str, *, dtype, remat: str, words: Mapping[str, str], vectors: int, folder: Path
) -> tuple[StableDiffusion, Params, list[Embedding]]:
    """Returns the description of a model, its parameters, float32 and lazy, and the new words as they start.

    words: {new word: the known word whose vector it starts from}, `vectors` for each (arXiv 2208.01618); they become
    the last rows of the token table, and `folder` gets the tokenizer that knows them.

    Raises:
      UserError: no such model, a known word is none or several tokens, or a new one is known already.
    """
    sd, params = model_files.read(model_files.locate(model), dtype=dtype, lazy=True)
    sd, known = dataclasses.replace(sd, remat=remat), load_tokenizer(sd.tokenizer, *sd.text_limits)
    embeddings = []
    for word, like in words.items():
        found = known(like, add_special_tokens=False)["input_ids"]
        if len(found) != 1:
            raise UserError(f"config.words.{word} = {like!r} is {len(found)} tokens; give a word that is one")
        if len(known(word, add_special_tokens=False)["input_ids"]) == 1:
            raise UserError(f"config.words.{word}: the model knows this word already; give a new one, as <{word}>")
        embedding = Embedding(word, np.repeat(np.asarray(table(params))[found], vectors, axis=0))
        configs, params = textual_inversion.add(sd.configs, params, embedding, sd.tokenizer, folder)
        sd = dataclasses.replace(sd, configs=configs, tokenizer=folder)
        embeddings.append(embedding)
    return sd, params, embeddings
