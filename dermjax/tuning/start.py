"""The model as it stands before the first step, with the new words that it is to learn."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dermjax.data import tokens
from dermjax.errors import UserError
from dermjax.models.stable_diffusion import Params, StableDiffusion
from dermjax.tuning.parts import table
from dermjax.weights import model_files, textual_inversion
from dermjax.weights.textual_inversion import Embedding


def read(
    model: str, *, dtype, remat: str, words: Mapping[str, str], vectors: int, folder: Path
) -> tuple[StableDiffusion, Params, list[Embedding]]:
    """Returns the description of a model, its parameters, float32 and lazy, and the new words as they start.

    words: {new word: the known word whose vector it starts from}, `vectors` for each (arXiv 2208.01618); they become
    the last rows of the token table, and `folder` gets the tokenizer that knows them.

    Raises:
      UserError: no such model, a known word is none or several tokens, or a new one is known already.
    """
    sd, params = model_files.read(model_files.locate(model), dtype=dtype, lazy=True)
    sd, known = dataclasses.replace(sd, remat=remat), tokens.tokenizer(sd.tokenizer, *sd.text_limits)
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
