"""The inputs of tuning: the model before its first step, its prompts, and what its frozen networks make of the data.

manifest -> concepts -> moments (autoencoder) and contexts (text encoder), each computed once -> examples -> batches

Moments are mean and log-variance of the latents, not a draw; their arrays and the contexts stay in the `cache`. Images
and prompts are encoded on all devices of all processes. A text encoder that is tuned reads the tokens anew each step.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dermjax import run_folder, sharding
from dermjax.data import digests, images
from dermjax.data.records import Manifest, Record
from dermjax.data.tokens import load_tokenizer, shown, tokenize
from dermjax.errors import UserError
from dermjax.models import clip_text, vae
from dermjax.models.stable_diffusion import Params, StableDiffusion
from dermjax.progress import bar
from dermjax.sampling.model import PLACEHOLDER, say_weights
from dermjax.training.disk_cache import digest_of, load_or_compute
from dermjax.tuning.concepts import Concepts, digest_of_images
from dermjax.tuning.trainable import token_table
from dermjax.weights import model_files, textual_inversion
from dermjax.weights.textual_inversion import Embedding, spell_stored

LONGEST = 200  # bytes of a file's name, with room for what is added while it is written
PIXELS = 2**17  # that a CPU encodes at a time: a gigabyte in the layers of Stable Diffusion's autoencoder


def read_model(
    model: str, *, dtype: jnp.dtype, remat: str, words: Mapping[str, str], vectors: int, folder: Path
) -> tuple[StableDiffusion, Params, list[Embedding]]:
    """Returns the description of a model, its parameters, float32 and lazy, and the new words before their training.

    words: {new word: the known word whose vector it starts from}, `vectors` for each (arXiv 2208.01618); they become
    the last rows of the token table, and `folder` gets the tokenizer that knows them.

    Raises:
      UserError: no such model, a known word is none or several tokens, or a new one is known already or no name of a
        file.
    """
    sd, params = model_files.read(model_files.locate(model), dtype=dtype, lazy=True)
    sd, tokenizer = dataclasses.replace(sd, remat=remat), load_tokenizer(sd.tokenizer, *sd.text_limits)
    embeddings, files = [], set()
    for word, like in words.items():
        if not word.strip() or not isinstance(like, str):
            raise UserError(f"config.words.{word} = {like!r}: give a new word and a known one, as <mole> and mole")
        file = word_file(word)
        if "/" in file or len(file.encode()) > LONGEST or file in files:
            raise UserError(f"config.words.{word}: its vectors go into {file}, which is no name of a file or another "
                            "word's; give one such as <mole>")  # fmt: skip
        files.add(file)
        ids = tokenizer(like, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise UserError(f"config.words.{word} = {like!r} is {len(ids)} tokens; give a word that is one")
        if len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1:
            raise UserError(f"config.words.{word}: the model knows this word already; give a new one, as <{word}>")
        embedding = Embedding(word, np.repeat(np.asarray(token_table(params))[ids], vectors, axis=0))
        configs, params = textual_inversion.add(sd.configs, params, embedding, sd.tokenizer, folder)
        sd = dataclasses.replace(sd, configs=configs, tokenizer=folder)
        embeddings.append(embedding)
    return sd, params, embeddings


def word_file(word: str) -> str:
    """Returns the name of the file of a new word, which AUTOMATIC1111's program takes for the word."""
    return f"{word.strip('<>')}.safetensors"


@dataclass(frozen=True)
class Prompts:
    """P different prompts, words spelt out, and the tokens of these and of the empty one, int32 [P + 1, N]."""

    texts: list[str]
    tokens: np.ndarray
    words: list[Embedding]
    spelt: dict[str, str]  # the text of each prompt that was given

    def rows(self, prompts: list[str]) -> np.ndarray:
        """Returns the row of each prompt, int32."""
        row = {text: number for number, text in enumerate(self.texts)}
        return np.array([row[self.spelt[prompt]] for prompt in prompts], np.int32)


def tokenize_prompts(sd: StableDiffusion, prompts: list[str], words: list[Embedding]) -> Prompts:
    """Returns the different ones of the prompts; one that is too long, or a word that none has, is a UserError."""
    for word in words:
        if not any(word.token in prompt for prompt in prompts):
            raise UserError(f"config.words.{word.token}: no prompt says it, so it would not be learnt; put it in one")
    tokenizer = load_tokenizer(sd.tokenizer, *sd.text_limits)
    spelt = dict(zip(prompts, spell_stored(prompts, tokenizer), strict=True))  # a model tuned before has words too
    texts = sorted(set(spelt.values()))
    vocabulary = {word.lower() for word in tokenizer.get_vocab()}
    for text in texts:
        unknown = next((word for word in PLACEHOLDER.findall(text) if word.lower() not in vocabulary), "")
        if unknown:
            raise UserError(f"prompt {shown(text)}: the model has no word {unknown}; give it in config.words, or leave "
                            "it out")  # fmt: skip
    say_weights(texts)
    return Prompts(texts, tokenize(tokenizer, [*texts, ""]), words, spelt)


@dataclass(frozen=True)
class Encoder:
    """The frozen networks of a model, `batch` images or prompts at a time; their results stay in the folder `cache`."""

    sd: StableDiffusion
    params: Params
    batch: int
    cache: Path
    grid: Mesh

    def examples(self, concepts: Concepts, prompts: Prompts, size: int) -> dict[str, np.ndarray]:
        """Returns the rows that batches are made of, one an image: moments, prompt, weight and its number."""
        moments = self.moments(concepts.sources, size)
        number = np.arange(len(moments), dtype=np.int32)
        return {"moments": moments, "prompt": prompts.rows(concepts.prompts), "weight": concepts.weights, "row": number}

    def moments(self, sources: list[tuple[Manifest, Record]], size: int) -> np.ndarray:
        """Returns moments float16 [N, 2, h, w, 2 Z] of N images and of their mirror images."""
        causes = {
            run_folder.SUBJECT: f"{sources[0][1].split} images",
            run_folder.NUMERIC_VERSIONS: {"images": images.NUMERIC_VERSION, "vae": vae.NUMERIC_VERSION},
            "arithmetic": sharding.arithmetic(self.sd.dtype, self.grid),
            "vae": digest_of(jax.tree.leaves(self.params["vae"]), self.sd.configs["vae"]),
            "size": size,
            "images": digest_of_images(sources),
        }
        return load_or_compute(self.cache, "moments", causes, lambda: self._encode_images(sources, size))

    def contexts(self, prompts: Prompts) -> np.ndarray:
        """Returns the contexts of prompts and of the empty one, float32 [P + 1, N, D]."""
        causes = {
            run_folder.NUMERIC_VERSIONS: {"text_encoder": clip_text.NUMERIC_VERSION},
            "arithmetic": sharding.arithmetic(self.sd.dtype, self.grid),
            "text_encoder": digest_of(jax.tree.leaves(self.params["text_encoder"]), self.sd.configs["text_encoder"]),
            "tokens": digests.of_text(repr(prompts.tokens.tolist())),
        }
        return load_or_compute(self.cache, "contexts", causes, lambda: self._encode_tokens(prompts.tokens))

    def _encode_images(self, sources: list[tuple[Manifest, Record]], size: int) -> np.ndarray:
        def encode_both(vae: Params, image: jax.Array) -> jax.Array:
            flipped = jnp.concatenate([image, image[:, :, ::-1]])
            return jnp.stack(jnp.split(self.sd.encode({"vae": vae}, flipped), 2), axis=1)

        batch = self.batch
        if sharding.platform(self.grid) == "cpu":  # where more at a time take memory and are no quicker
            batch = min(batch, max(1, PIXELS // size**2))
        batch = -(-batch // self.grid.size) * self.grid.size
        local = sharding.local_rows(batch, self.grid)
        step = jax.jit(encode_both, out_shardings=sharding.replicated(self.grid))
        vae = model_files.place(self.params["vae"], sharding.replicated(self.grid))
        rows = []
        with bar(len(sources), "latents", "images", 0) as progress:
            for at in range(0, len(sources), batch):
                some = sources[at : at + batch]
                mine = [some[row] for row in local if row < len(some)]
                pixels = [images.load(manifest.path(record), size) for manifest, record in mine]
                filled = np.zeros((len(local), size, size, 3), np.uint8)
                filled[: len(pixels)] = np.reshape(pixels, (-1, size, size, 3))
                encoded = step(vae, sharding.place(images.to_model(filled), self.grid))
                rows.append(np.asarray(encoded, np.float16)[: len(some)])
                progress.update(len(some))
        return np.concatenate(rows)

    def _encode_tokens(self, tokens: np.ndarray) -> np.ndarray:
        def encode(text: Params, tokens: jax.Array) -> jax.Array:
            return self.sd.encode_text({"text_encoder": text}, tokens)

        batch = -(-min(self.batch, len(tokens)) // self.grid.size) * self.grid.size
        step = jax.jit(encode, out_shardings=sharding.replicated(self.grid))
        text = model_files.place(self.params["text_encoder"], sharding.replicated(self.grid))
        rows = []
        with bar(len(tokens), "contexts", "prompts", 0) as progress:
            for at in range(0, len(tokens), batch):
                some = tokens[at : at + batch]
                filled = np.resize(some, (batch, tokens.shape[1]))[sharding.local_rows(batch, self.grid)]
                rows.append(np.asarray(step(text, sharding.place(filled, self.grid)))[: len(some)])
                progress.update(len(some))
        return np.concatenate(rows)
