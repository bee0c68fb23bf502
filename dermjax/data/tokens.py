"""Prompts as the token numbers of CLIP's byte-pair encoding, and small tokenizers in CLIP's file form.

CLIP (Radford et al. 2021) spells a word in byte symbols, the last one marked `</w>`, and merges neighbours in the order
of merges.txt until none is left to merge. In vocab.json the 256 byte symbols come first, their `</w>` forms next, then
the result of every merge, then the start and the end of the text.
"""

import json
import os
import re
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dermjax.errors import UserError
from dermjax.progress import say

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
COMMA = 20  # AUTOMATIC1111's setting comma_padding_backtrack
SHORTEST = 3  # tokens of a text: start, a word, end
SHOWN = 300  # characters of a prompt in a message
UNLIMITED = 10**9  # a model_max_length from here on means that there is no limit
FORMS = (("vocab.json", "merges.txt"), ("tokenizer.json",))  # CLIP's, and what transformers 5 saves


def load_tokenizer(folder: Path, length: int | None = None, rows: int | None = None) -> "CLIPTokenizer":
    """Returns the CLIP tokenizer of a model's `tokenizer` folder, for a text encoder of `length` positions and `rows`.

    The text encoder's length holds where the tokenizer's is missing or beyond it, as in files of transformers with
    1e30; else the tokenizer's, which is needed where there is no text encoder.

    Raises:
      UserError: a file is missing or broken, the length is none, or a token has no row in the text encoder.
    """
    # it would advise to install PyTorch, which a tokenizer does not need
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import CLIPTokenizer  # imported here: it takes a second or two, and most of dermjax needs none

    if not any(all((folder / name).is_file() for name in form) for form in FORMS):
        raise UserError(f"tokenizer {folder}: neither {' nor '.join(' with '.join(form) for form in FORMS)} is there")
    configured = _configured_length(folder / "tokenizer_config.json")
    if length is None and (configured is None or configured >= UNLIMITED):
        raise UserError(f"tokenizer {folder}: no model_max_length in tokenizer_config.json; add it (77 for CLIP)")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        numbers = tokenizer.get_vocab()
    except Exception as error:  # the libraries raise anything for a file that they cannot read
        raise UserError(f"tokenizer {folder}: cannot be read ({' '.join(ascii(str(error))[1:200].split())})") from error
    if not (folder / "tokenizer.json").is_file():
        _check_merges(folder / "merges.txt", numbers.keys() - tokenizer.get_added_vocab().keys())
    beyond = sorted((number, word) for word, number in numbers.items() if rows is not None and number >= rows)
    if beyond:
        words = ", ".join(ascii(word) for _, word in beyond[:3]) + (", …" if len(beyond) > 3 else "")
        raise UserError(
            f"tokenizer {folder}: {words} would be row {beyond[0][0]} of the text encoder, which has {rows}; give the "
            "text encoder that was trained with this tokenizer, or take the word out of it"
        )
    if configured and length and length < configured < UNLIMITED:
        say(f"tokenizer {folder}: model_max_length = {configured}, the text encoder takes {length}; {length} it is")
    tokenizer.model_max_length = min(each for each in (configured, length) if each)
    return tokenizer


def _check_merges(path: Path, words: Iterable[str]) -> None:
    """Raises UserError where pieces of words are made by no merge: a file that is cut short gives other tokens."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    made = {"".join(line.split()) for line in lines}
    lost = sorted(word for word in words if len(word.removesuffix("</w>")) > 1 and word not in made)
    lost = [word for word in lost if not word.startswith("<")]  # start, end, and what somebody added
    if lost:
        few = ", ".join(map(ascii, lost[:3]))
        raise UserError(f"{path}: no merge makes {len(lost)} pieces of vocab.json ({few}); fetch it again, complete")


def _configured_length(path: Path) -> int | None:
    """Returns the model_max_length of a tokenizer's config, None where there is none; no length is a UserError."""
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    length = config.get("model_max_length") if isinstance(config, dict) else "no object"
    if length is None:
        return None
    if type(length) not in (int, float) or not length >= SHORTEST or length != length // 1:
        given = ascii(length)[:80]
        raise UserError(f"{path}: model_max_length = {given} should be a whole number from {SHORTEST} (77 for CLIP)")
    return int(length)


def tokenize(tokenizer: "CLIPTokenizer", prompts: list[str], long: str = "refuse") -> np.ndarray:
    """Returns the prompts as int32 [B, C N], N = model_max_length: C chunks of start, words, end, padding.

    What does not fit into one chunk is a UserError with `long` "refuse" (then C is 1). With "chunk" it goes on in the
    next one, as in AUTOMATIC1111's program, which users take their prompts from, and the word BREAK begins a new one.
    C is that of the longest prompt, and shorter ones get empty chunks. Give prompts and negative prompts in one call
    where they must be equally long.
    """
    size = tokenizer.model_max_length - 2  # words in a chunk, beside start and end
    texts = [re.split(r"\s*\bBREAK\b\s*", prompt) if long == "chunk" else [prompt] for prompt in prompts]
    flat = [text for each in texts for text in each]
    numbers = iter(tokenizer(flat, add_special_tokens=False, verbose=False)["input_ids"])
    rows = [[next(numbers) for _ in each] for each in texts]
    if long == "chunk":
        comma = tokenizer.convert_tokens_to_ids(",</w>")
        rows = [[chunk for words in row for chunk in split_chunks(words, size, comma)] for row in rows]
    for prompt, row in zip(prompts, rows, strict=True):
        if len(row[0]) > size:
            raise UserError(
                f"prompt {shown(prompt)}: {len(row[0]) + 2} tokens with start and end, the text encoder takes "
                f"{size + 2}; shorten it"
            )
    most = max(len(row) for row in rows)
    start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    chunks = [[*row, *[[]] * (most - len(row))] for row in rows]
    padded = [[[start, *words, end, *[pad] * (size - len(words))] for words in row] for row in chunks]
    return np.array(padded, np.int32).reshape(len(prompts), -1)


def shown(prompt: str) -> str:
    """Returns a prompt as messages show it: quoted, its beginning alone where it is long."""
    return repr(prompt if len(prompt) <= SHOWN else f"{prompt[:SHOWN]}…")


def split_chunks(words: list[int], size: int, comma: int) -> list[list[int]]:
    """Returns tokens in chunks of at most `size`, divided as AUTOMATIC1111 does.

    A full chunk ends after its last comma where that is among its last COMMA tokens, so that what commas divide stays
    together.
    """
    chunks, rest = [], words
    while len(rest) > size:
        commas = [i for i in range(max(0, size - COMMA), size) if rest[i] == comma]
        cut = commas[-1] + 1 if commas and rest[size] != comma else size
        chunks.append(rest[:cut])
        rest = rest[cut:]
    return [*chunks, rest]


def write_word_tokenizer(folder: Path, words: list[str], model_max_length: int) -> None:
    """Writes a small CLIP tokenizer in which each of the words, letters only, is one token `word</w>`.

    Other text still has tokens, those of its bytes and of the pieces of words that it contains.
    """
    merges = word_merges(words)
    symbols = list(_byte_symbols().values())
    names = [*symbols, *(symbol + "</w>" for symbol in symbols), *(left + right for left, right in merges), START, END]
    vocabulary = {name: number for number, name in enumerate(dict.fromkeys(names))}
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": model_max_length, "do_lower_case": True}
    folder.mkdir(parents=True, exist_ok=True)
    files = {"vocab": vocabulary, "tokenizer_config": config | special, "special_tokens_map": special}
    for name, content in files.items():
        text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def word_merges(words: list[str]) -> list[tuple[str, str]]:
    """Returns merges that build each word into one symbol, from the left, sharing the beginnings of words.

    A later merge is tried only where no earlier one applies, so a word that is one symbol stays so as others are added.
    """
    merges: dict[tuple[str, str], int] = {}
    for word in words:
        if not word.isalpha() or word != word.lower():
            raise ValueError(f"word {word!r}: CLIP splits text into lower-case runs of letters; give those")
        while len(pieces := _merge(word, merges)) > 1:
            merges[pieces[0], pieces[1]] = len(merges)
    return list(merges)


def _merge(word: str, merges: dict[tuple[str, str], int]) -> list[str]:
    """Returns the symbols that the merges (pair -> rank, the lowest first) leave of a word."""
    spelling = [_byte_symbols()[byte] for byte in word.encode()]
    pieces = [*spelling[:-1], spelling[-1] + "</w>"]
    while known := [pair for pair in pairwise(pieces) if pair in merges]:
        pieces = _join(pieces, min(known, key=merges.__getitem__))
    return pieces


def _join(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """Returns the pieces with every occurrence of the pair, from the left, as one."""
    joined: list[str] = []
    rest = iter(range(len(pieces)))
    for i in rest:
        if tuple(pieces[i : i + 2]) == pair:
            joined.append("".join(pair))
            next(rest)
        else:
            joined.append(pieces[i])
    return joined


def _byte_symbols() -> dict[int, str]:
    """Returns a printable character for each byte, in CLIP's order: printable bytes are themselves (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
