"""Textual-inversion embeddings (arXiv 2208.01618): vectors that stand for a word of their own in the text encoder.

    {"<mole>": [n, D]}                                diffusers, .bin and .safetensors
    {"emb_params": [n, D]}                            AUTOMATIC1111, .safetensors; the file's name is the word
    {"string_to_param": {"*": [n, D]}, "name": …}     AUTOMATIC1111, .pt

A file with several words holds an embedding of each. An embedding of several vectors takes the words `mole`, `mole_1`,
`mole_2`, … as in diffusers.
"""

import dataclasses
import functools
import itertools
import json
import operator
import re
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dermjax.errors import UserError
from dermjax.progress import say
from dermjax.weights import safetensors, tensor_files
from dermjax.weights.safetensors import from_array
from dermjax.weights.tensor_files import open_file, read_json
from dermjax.weights.torch_layout import Tree

FILES = ("learned_embeds.safetensors", "learned_embeds.bin")  # in a folder, as diffusers names them
TOKENIZER = "tokenizer.json"  # all of a tokenizer, as transformers 5 writes it
ADDED = "added_tokens.json"  # beside vocab.json: words with their numbers
CONFIG, LISTED = (
    "tokenizer_config.json",
    "added_tokens_decoder",
)  # beside vocab.json too: the same, and how each is found
SPECIAL = "special_tokens_map.json"  # beside vocab.json: which words start and end a text
PARAMS = "string_to_param."  # what AUTOMATIC1111's names begin with, once joined
NUMBERS = "string_to_token."  # the word's number in somebody's tokenizer: a tensor in files of CompVis' own program
MOST = 75  # vectors of a word: a prompt has no more tokens
TABLE = ("text_encoder", "text_model", "embeddings", "token_embedding", "embedding")


@dataclasses.dataclass(frozen=True)
class Embedding:
    """A word and its vectors [n, D], float32."""

    token: str
    vectors: np.ndarray

    @property
    def tokens(self) -> list[str]:
        """The words of the vectors, in order."""
        return [self.token, *(f"{self.token}_{i}" for i in range(1, len(self.vectors)))]


def locate(path: Path) -> Path:
    """Returns the file of an embedding that is given as a file or as a folder, also one of Hugging Face's cache.

    Raises:
      UserError: the folder has none.
    """
    path = tensor_files.snapshot(path)
    if not path.is_dir():
        return path
    files = [path / name for name in FILES if (path / name).is_file()]
    if not files:
        raise UserError(f"{path}: a folder without {' or '.join(FILES)}; name the embedding's file")
    return files[0]


def read(path: Path) -> list[Embedding]:
    """Returns the embeddings in a file of any of the three forms, one for each of its words.

    Raises:
      UserError: the file is broken, holds something else, or an embedding for SDXL.
    """
    tensors, texts = open_file(path)
    tensor_files.require(tensor_files.EMBEDDING, tensors, str(path))
    embeddings = []
    for name, tensor in tensors.items():
        if name.startswith(NUMBERS):
            continue
        token = name.removeprefix(PARAMS)
        if name in tensor_files.EMBEDDING_NAMES:
            token = path.stem
        elif token != name and token == "*":
            token = texts.get("name", path.stem)
            if token != path.stem:  # AUTOMATIC1111's program goes by the file's name, diffusers by what is in it
                say(f"{path}: its word is {token}, as the file says; a prompt that says {path.stem} does not use it")
        vectors = np.atleast_2d(tensor.read().astype(np.float32))
        numbers = vectors.ndim == 2 and vectors.size and tensor.dtype.kind not in "iub" and np.isfinite(vectors).all()
        if not numbers or len(vectors) > MOST:
            raise UserError(
                f"{path}: {token!r} has {len(vectors)} vectors, of which some are none; fetch the file again"
            )
        if not token.strip() or not token.isprintable():
            raise UserError(f"{path}: {token!a} is no word; rename it")
        embeddings.append(Embedding(token, vectors))
    return embeddings


def write(path: Path, embedding: Embedding) -> None:
    """Writes the .safetensors file that diffusers' `load_textual_inversion`, ComfyUI and AUTOMATIC1111 read."""
    safetensors.write(path, {embedding.token: from_array(embedding.vectors)}, {})


def add(configs: dict[str, dict], params: Tree, embedding: Embedding, tokenizer: Path, folder: Path):
    """Returns (configs, params) with the vectors as new rows of the token table; `folder` gets the tokenizer with them.

    It may be the tokenizer itself, of earlier words; else what was in it is gone.

    Raises:
      UserError: the vectors are not as wide as the text encoder, or the word is taken.
    """
    table = np.asarray(functools.reduce(operator.getitem, TABLE, params))
    if embedding.vectors.shape[1] != table.shape[1]:
        raise UserError(
            f"embedding {embedding.token}: {embedding.vectors.shape[1]} wide, the text encoder {table.shape[1]}; it "
            "was made for another family of models"
        )
    taken = [token for token in embedding.tokens if token in vocabulary(tokenizer)]
    if taken:
        raise UserError(
            f"embedding {embedding.token}: the tokenizer has {taken[0]!r} already; rename the file, or the word where "
            "the file holds it"
        )
    if tokenizer != folder:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tokenizer, folder)
    enlarge(folder, {token: len(table) + i for i, token in enumerate(embedding.tokens)})
    rows = np.concatenate([table, embedding.vectors.astype(table.dtype)])
    text = configs["text_encoder"] | {"vocab_size": len(rows)}
    return configs | {"text_encoder": text}, with_leaf(params, TABLE, rows)


def vocabulary(folder: Path) -> set[str]:
    """Returns the words and pieces of words of a tokenizer's folder, in CLIP's own form or in transformers 5's."""
    words = set()
    if (folder / TOKENIZER).is_file():
        content = read_json(folder / TOKENIZER)
        words |= content["model"]["vocab"].keys() | {each["content"] for each in content["added_tokens"]}
    for name in ("vocab.json", ADDED):
        if (folder / name).is_file():
            words |= read_json(folder / name).keys()
    return words | {each["content"] for each in _known(folder / CONFIG).get(LISTED, {}).values()}


def stored(added: Collection[str]) -> list[Embedding]:
    """Returns the words of several vectors, `mole`, `mole_1`, …, among those that were added to a tokenizer: diffusers
    finds them by these names too. Their vectors are rows of the token table, and none here."""
    counts = {word: next(i for i in itertools.count(1) if f"{word}_{i}" not in added) for word in added}
    return [Embedding(word, np.empty((count, 0), np.float32)) for word, count in counts.items() if count > 1]


def enlarge(folder: Path, words: dict[str, int]) -> None:
    """Adds words with their numbers to the files of a tokenizer."""
    usual = {"lstrip": False, "rstrip": False, "normalized": True, "special": False}
    added = {number: {"content": word, "single_word": is_single(word), **usual} for word, number in words.items()}
    if (folder / TOKENIZER).is_file():
        content = read_json(folder / TOKENIZER)
        content["added_tokens"] += [{"id": number, **each} for number, each in added.items()]
        files = {TOKENIZER: content}
    else:
        known, config = _known(folder / ADDED), _known(folder / CONFIG)
        if LISTED not in config:  # where it is, transformers heeds neither of the other two files
            special = _known(folder / SPECIAL)
            config |= {name: each["content"] if isinstance(each, dict) else each for name, each in special.items()}
            config[LISTED] = {
                number: {"content": word, "single_word": False, **usual} for word, number in known.items()
            }
        files = {ADDED: known | words, CONFIG: config | {LISTED: config[LISTED] | added}}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _known(file: Path) -> dict:
    """Returns what a JSON file of a tokenizer says, {} where it is not there."""
    return read_json(file) if file.is_file() else {}


def with_leaf(tree: Tree, path: tuple[str, ...], leaf: np.ndarray) -> Tree:
    """Returns the tree with another leaf at the path."""
    if not path:
        return leaf
    return tree | {path[0]: with_leaf(tree[path[0]], path[1:], leaf)}


def is_single(word: str) -> bool:
    """Returns whether a word is no part of a longer one, as in AUTOMATIC1111's program: it begins and ends in a letter
    or digit. `<mole>` is found in `<mole>s`."""
    return word[0].isalnum() and word[-1].isalnum()


def spell_out(prompt: str, embeddings: list[Embedding]) -> str:
    """Returns the prompt with the word of each embedding, in any case, followed by those of its further vectors.

    Words are found as the tokenizer finds them. Where one begins with another, as `bad-artist-anime` does, the longer
    one is taken; so a further vector that a prompt names itself, `<mole>_1`, stays as it is.
    """
    if not embeddings:
        return prompt
    spelt = [(word, word) for each in embeddings for word in each.tokens[1:]]
    spelt += [(each.token, " ".join(each.tokens)) for each in embeddings]
    spelt.sort(key=lambda pair: len(pair[0]), reverse=True)
    words = "|".join(rf"((?<!\w){re.escape(word)}(?!\w))" if is_single(word) else f"({re.escape(word)})"
                     for word, _ in spelt)  # fmt: skip
    return re.sub(words, lambda found: spelt[found.lastindex - 1][1], prompt, flags=re.IGNORECASE)


def spell_stored(prompts: Sequence[str], tokenizer: Any) -> list[str]:
    """Returns prompts with the words of several vectors that were added to a tokenizer spelt out: those of embeddings,
    and those that a tuned model brings."""
    known = stored(tokenizer.get_added_vocab().keys())
    return [spell_out(prompt, known) for prompt in prompts]
