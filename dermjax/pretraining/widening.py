"""A wider network that computes what a narrower one does, to go on learning from (Net2WiderNet, arXiv 1511.05641).

From nothing, derm-base's autoencoder has 17 dB on crops after 400 steps: group normalisation takes the brightness of an
even crop away, and the way around it is learnt slowly. Widened from derm-tiny's it begins at 24 dB.

Every channel stands k times, side by side, so that the groups of a normalisation hold the same channels as before. What
reads them divides its weights between the copies, at random, so that the copies learn to differ.
"""

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
