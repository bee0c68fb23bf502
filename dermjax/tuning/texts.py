"""The prompts of a tuning run as the network takes them: contexts, or tokens where the text encoder is tuned."""

from dataclasses import dataclass

import jax
import numpy as np

from dermjax.data.tokens import tokenizer, tokens
from dermjax.models.stable_diffusion import Params, StableDiffusion
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

    def constants(self, sd: StableDiffusion, params: Params, frozen: bool) -> dict[str, np.ndarray]:
        """Returns what the loss needs of them: contexts float32 [P + 1, N, D] of a frozen encoder, else the tokens."""
        if not frozen:
            return {"tokens": self.tokens}
        encode = jax.jit(lambda text, tokens: sd.encode_text({"text_encoder": text}, tokens))
        return {"contexts": np.asarray(encode(params["text_encoder"], self.tokens))}


def read(sd: StableDiffusion, prompts: list[str], words: list[Embedding]) -> Texts:
    """Returns the different ones of the prompts; one that is too long is a UserError."""
    asked = sorted({spelt_out(prompt, words) for prompt in prompts})
    return Texts(asked, tokens(tokenizer(sd.tokenizer), [*asked, ""]), words)
