"""The prompts of a tuning run as the network takes them: contexts, or tokens where the text encoder is tuned."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from dermjax import run_folder, sharding
from dermjax.data.tokens import tokenizer, tokens
from dermjax.errors import UserError
from dermjax.models.clip_text import NUMERIC_VERSION
from dermjax.models.stable_diffusion import Params, StableDiffusion
from dermjax.progress import bar
from dermjax.tuning import cache
from dermjax.weights import model_files
from dermjax.weights.textual_inversion import Embedding, spelt_out


@dataclass(frozen=True)
class Texts:
    """P different prompts and, after them, the empty one, as token numbers int32 [P + 1, N]."""

    prompts: list[str]
    tokens: np.ndarray
    words: list[Embedding]

    def rows(self, prompts: list[str]) -> np.ndarray:
        """Returns the place of each prompt, int32."""
        place = {prompt: number for number, prompt in enumerate(self.prompts)}
        return np.array([place[spelt_out(prompt, self.words)] for prompt in prompts], np.int32)

    def contexts(self, sd: StableDiffusion, params: Params, batch: int, folder: Path, grid: Mesh) -> np.ndarray:
        """Returns what a frozen text encoder makes of them, once: float32 [P + 1, N, D], kept in the `cache`."""
        text = params["text_encoder"]
        causes = {
            run_folder.NUMERIC_VERSIONS: {"text_encoder": NUMERIC_VERSION},
            "arithmetic": sharding.arithmetic(sd.dtype, grid),
            "text_encoder": cache.fingerprint(text, sd.configs["text_encoder"]),
            "tokens": hashlib.sha256(repr(self.tokens.tolist()).encode()).hexdigest()[:16],
        }
        return cache.once(folder, "contexts", causes, lambda: _encoded(sd, text, self.tokens, batch, grid))


def read(sd: StableDiffusion, prompts: list[str], words: list[Embedding]) -> Texts:
    """Returns the different ones of the prompts; one that is too long, or a word that none says, is a UserError."""
    for word in words:
        if not any(word.token in prompt for prompt in prompts):
            raise UserError(f"config.words.{word.token}: no prompt says it, so it would not be learnt; put it in one")
    asked = sorted({spelt_out(prompt, words) for prompt in prompts})
    return Texts(asked, tokens(tokenizer(sd.tokenizer, *sd.text_limits), [*asked, ""]), words)


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
            filled = np.resize(some, (batch, tokens.shape[1]))[sharding.own(batch, grid)]
            rows.append(np.asarray(step(text, sharding.place(filled, grid)))[: len(some)])
            progress.update(len(some))
    return np.concatenate(rows)
