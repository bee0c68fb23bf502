"""Prompts as the token numbers of CLIP's byte-pair encoding, and small tokenizers in CLIP's own file form.

CLIP (Radford et al. 2021) spells a word in byte symbols, the last one marked `</w>`, and merges neighbours in the order
of merges.txt until none is left to merge. In vocab.json the 256 byte symbols come first, their `</w>` forms next, then
the result of every merge, then the start and the end of the text.
"""

import json
import os
import re
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
FREE = 10**9  # from here on it says that there is no limit
FORMS = (("vocab.json", "merges.txt"), ("tokenizer.json",))  # CLIP's own, and what transformers 5 saves


def load_tokenizer(folder: Path, length: int | None = None, rows: int | None = None) -> "CLIPTokenizer":
    """Returns the CLIP tokenizer of a model's `tokenizer` folder, for a text encoder of `length` positions and `rows`.

    The text encoder's length holds where the tokenizer's own is missing or beyond it, as in files of transformers that
    say 1e30; a shorter one is the tokenizer's. Without a text encoder the tokenizer has to say a length itself.

    Raises:
      UserError: a file is missing or broken, the length is none, or a token has no row in the text encoder.
    """
    # it would advise to install PyTorch, which a tokenizer does not need
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import CLIPTokenizer  # imported here: it takes a second or two, and most of dermjax needs none

    if not any(all((folder / name).is_file() for name in form) for form in FORMS):
        raise UserError(f"tokenizer {folder}: neither {' nor '.join(' with '.join(form) for form in FORMS)} is there")
    said = _said_length(folder / "tokenizer_config.json")
    if length is None and (said is None or said >= FREE):
        raise UserError(f"tokenizer {folder}: no model_max_length in tokenizer_config.json; add it (77 for CLIP)")
    try:
        found = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        numbers = found.get_vocab()
    except Exception as error:  # whatever the libraries say of a file that they cannot read
        raise UserError(f"tokenizer {folder}: cannot be read ({' '.join(ascii(str(error))[1:200].split())})") from error
    beyond = sorted((number, word) for word, number in numbers.items() if rows is not None and number >= rows)
    if beyond:
        words = ", ".join(ascii(word) for _, word in beyond[:3]) + (", …" if len(beyond) > 3 else "")
        raise UserError(
            f"tokenizer {folder}: {words} would be row {beyond[0][0]} of the text encoder, which has {rows}; give the "
            "text encoder that was trained with this tokenizer, or take the word out of it"
        )
    if said and length and length < said < FREE:
        say(f"tokenizer {folder}: model_max_length = {said}, the text encoder takes {length}; {length} it is")
    found.model_max_length = min(each for each in (said, length) if each)
    return found


def _said_length(path: Path) -> int | None:
    """Returns the model_max_length of a tokenizer's config, None where it says none; no length is a UserError."""
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    said = config.get("model_max_length") if isinstance(config, dict) else "no object"
    if said is None:
        return None
    if type(said) not in (int, float) or not said >= SHORTEST or said != said // 1:
        given = ascii(said)[:80]
        raise UserError(f"{path}: model_max_length = {given} should be a whole number from {SHORTEST} (77 for CLIP)")
    return int(said)


def tokenize(tokenizer: "CLIPTokenizer", prompts: list[str], long: str = "refuse") -> np.ndarray:
    """Returns the prompts as int32 [B, C N], N = model_max_length: C chunks of start, words, end, padding.

    What does not fit into one chunk is a UserError with `long` "refuse" (then C is 1). With "chunk" it goes on in the
    next one, as in AUTOMATIC1111's program, which users take their prompts from, and the word BREAK begins a new one.
    C is that of the longest prompt, and shorter ones get empty chunks. Give prompts and negative prompts in one call
    where they must be equally long.
    """
    size = tokenizer.model_max_length - 2  # words in a chunk, beside start and end
    parts = [re.split(r"\s*\bBREAK\b\s*", prompt) if long == "chunk" else [prompt] for prompt in prompts]
    texts = [text for each in parts for text in each]
    found = iter(tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])
    rows = [[next(found) for _ in each] for each in parts]
    if long == "chunk":
        comma = tokenizer.convert_tokens_to_ids(",</w>")
        rows = [[chunk for words in row for chunk in split_chunks(words, size, comma)] for row in rows]
    for prompt, row in zip(prompts, rows, strict=True):
        if len(row[0]) > size:
            raise UserError(
                f"prompt {prompt!r}: {len(row[0]) + 2} tokens with start and end, the text encoder takes {size + 2}; "
                "shorten it"
            )
    most = max(len(row) for row in rows)
    start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id

    def whole(words: list[int]) -> list[int]:
        return [start, *words, end, *[pad] * (size - len(words))]

    even = ([*row, *[[]] * (most - len(row))] for row in rows)
    return np.array([[token for words in row for token in whole(words)] for row in even], np.int32)


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
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": model_max_length,
        "do_lower_case": True,
        **special,
    }

    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "vocab.json", vocabulary)
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", special)
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def word_merges(words: list[str]) -> list[tuple[str, str]]:
    """Returns merges that build each word into one symbol, from the left, sharing the beginnings of words.

    A later merge is tried only where no earlier one applies, so a word that is whole stays whole as others are added.
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
    for place in rest:
        if tuple(pieces[place : place + 2]) == pair:
            joined.append(pair[0] + pair[1])
            next(rest)
        else:
            joined.append(pieces[place])
    return joined


def _byte_symbols() -> dict[int, str]:
    """Returns a printable character for each byte, in CLIP's order: printable bytes are themselves (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
