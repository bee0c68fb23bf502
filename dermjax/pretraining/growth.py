"""Larger networks that begin as what a smaller one has learnt (Net2Net, arXiv 1511.05641).

From nothing, derm-base's autoencoder has 17 dB on crops after 400 steps: group normalisation takes the brightness of an
even crop away, and the way around it is learnt slowly. Widened from derm-tiny's it begins at 24 dB.

Wider: every channel stands k times, side by side, so that the groups of a normalisation hold the same channels as
before. What reads them divides its weights between the copies, at random, so that the copies learn to differ.

Deeper: a UNet gets a level at its full resolution, around what the smaller one has. The inner levels then see a latent
image of half the side, as large as the one that they know, and the new level passes it on as it is.
"""

import re

import numpy as np

from dermjax.models.nnx_tree import Params
from dermjax.weights.torch_layout import flatten, unflatten

APART = 0.25  # deviation of how unevenly a weight is divided between the copies of its input, as a share of it


def widen(narrow: Params, shapes: Params, seed: int) -> Params:
    """Returns the parameters of the wider network of `shapes` that computes what the narrower one does.

    Widths are whole multiples; kernels are [..., inputs, outputs]. Where queries of an attention are k times as wide,
    their products are k times as large and divided by sqrt(k): its projection makes up for the rest.

    Raises:
      ValueError: the networks have other layers, or a width is no multiple.
    """
    flat, wide, rng = flatten(narrow), flatten(shapes), np.random.default_rng(seed)
    if flat.keys() != wide.keys():
        raise ValueError(f"networks differ in {sorted(flat.keys() ^ wide.keys())[:3]}")
    return unflatten({path: _widened(path, np.asarray(flat[path]), wide[path].shape, rng) for path in sorted(flat)})


def deepen(inner: Params, fresh: Params) -> Params:
    """Returns the UNet of `fresh`, which has one more level at its full resolution, that begins as the `inner` one.

    The second convolution of each residual branch of the new level is zero, so that the branch adds nothing; what comes
    before it keeps its fresh values. Convolutions between levels take the middle of their window, and where the level
    joins what came from below with what it passed on, it takes the former.

    Raises:
      ValueError: a level of `fresh` has other layers than the inner network's.
    """
    flat, deep = flatten(inner), flatten(fresh)
    known = {_one_level_in(path): leaf for path, leaf in flat.items()}
    if strange := [path for path in known if path not in deep or deep[path].shape != known[path].shape]:
        raise ValueError(f"{strange[0]} is no array of a UNet with one more level of the same width")
    new = {path: _passing(path, np.asarray(leaf)) for path, leaf in deep.items() if path not in known}
    return unflatten(new | {path: np.asarray(leaf) for path, leaf in known.items()})


def with_words(known: Params, fresh: Params, known_words: dict[str, int], words: dict[str, int]) -> Params:
    """Returns a text encoder that knows what `known` knows, and of more words the fresh vectors.

    Raises:
      ValueError: the text encoders have other layers or widths.
    """
    flat, more = flatten(known), flatten(fresh)
    table = next(path for path in more if path.endswith("token_embedding.embedding"))
    for path, leaf in more.items():
        axes = slice(1 if path == table else 0, None)  # the rows are the words
        if path not in flat or flat[path].shape[axes] != leaf.shape[axes]:
            raise ValueError(f"{path} is of another text encoder")
    vectors = np.array(more[table])
    for word, row in words.items():
        if word in known_words:
            vectors[row] = flat[table][known_words[word]]
    return unflatten({path: np.asarray(flat[path]) for path in more} | {table: vectors})


def _one_level_in(path: str) -> str:
    """The path, in a UNet with one more level outside, of an array: levels down are counted from outside."""
    return re.sub(r"^down_blocks\.(\d+)", lambda found: f"down_blocks.{int(found[1]) + 1}", path)


def _passing(path: str, leaf: np.ndarray) -> np.ndarray:
    """An array of a new level that passes on what it is given."""
    if ".conv2." in path or path.endswith("conv.bias") or path.endswith("conv_shortcut.bias"):
        return np.zeros_like(leaf)
    if path.endswith(("samplers.0.conv.kernel", "conv_shortcut.kernel")):
        identity = np.zeros_like(leaf)
        middle = leaf.shape[0] // 2
        identity[middle, middle] = np.eye(*leaf.shape[2:])
        return identity
    return leaf


def _widened(path: str, leaf: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    times = [new // old for old, new in zip(leaf.shape, shape, strict=True)]
    for axis, (old, new) in enumerate(zip(leaf.shape, shape, strict=True)):
        if new % old:
            raise ValueError(f"{path}: {new} is no multiple of {old}")
        leaf = np.repeat(leaf, times[axis], axis)
    if path.endswith(".kernel"):
        leaf = leaf * _shares(leaf.shape, times[-2], rng)
    if ".to_q." in path:
        leaf = leaf / np.sqrt(times[-1])
    return leaf.astype(np.float32)


def _shares(shape: tuple[int, ...], copies: int, rng: np.random.Generator) -> np.ndarray:
    """Factors of a kernel [..., I, O] that sum to 1 over the `copies` of each input."""
    if copies == 1:
        return np.ones(())
    *window, inputs, outputs = shape
    uneven = rng.normal(0, APART, (*window, inputs // copies, copies, outputs))
    return (1 / copies + uneven - uneven.mean(-2, keepdims=True)).reshape(shape)
