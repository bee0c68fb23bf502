"""Tensors that are still in their file: known by shape and type, read one at a time, each time anew.

Everything that renames, splits or transposes tensors on their way works on these, so that the memory a whole model
takes on its way in or out is that of its largest tensor.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dermjax.errors import UserError

SHOWN = 200  # characters of what a file says in an error
MOST_AXES, MOST_ELEMENTS = 32, 2**40  # of a tensor; the largest of a Stable Diffusion has 2**26


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor that `read` fetches."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """The number of its elements."""
        return math.prod(self.shape)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """Reads it where numpy or JAX asks for an array, so that a tree of such tensors is one of parameters."""
        return np.asarray(self.read(), dtype)

    def changed(self, shape: tuple[int, ...], change: Callable[[np.ndarray], np.ndarray]) -> "Stored":
        """Returns the tensor of this shape that `change` makes of this one when it is read."""
        return Stored(shape, self.dtype, lambda: change(self.read()))


Tensors = dict[str, Stored]


def in_file(path: Path, offset: int, dtype: np.dtype, shape: tuple[int, ...]) -> Stored:
    """Returns the tensor whose little-endian elements, last axis fastest, start at this byte of the file.

    What it reads are pages of the file, mapped: they take memory when they are touched, and writing to the array
    leaves the file as it is.
    """

    def read() -> np.ndarray:
        size = math.prod(shape) * dtype.itemsize
        # bytes first: numpy maps files of its own types only, and bfloat16 is none of them; nor does it map nothing
        found = np.asarray(np.memmap(path, np.uint8, "c", offset, size)) if size else np.empty(0, np.uint8)
        return found.view(dtype).reshape(shape)

    return Stored(shape, dtype, read)


def in_memory(array: np.ndarray) -> Stored:
    """Returns an array in the place of a stored tensor."""
    return Stored(array.shape, array.dtype, lambda: array)


def unreadable(what: str, shape: tuple[int, ...]) -> Stored:
    """Returns a tensor of a type that is not known here: in the way of nothing until it is read."""

    def read() -> np.ndarray:
        raise UserError(f"{what}, which dermjax does not read; give the file in float16, bfloat16 or float32")

    return Stored(shape, np.dtype(np.void), read)


def check_shape(name: str, shape: Any) -> None:
    """Raises ValueError where what a file gives as a shape is none, or none that arrays have."""
    if not isinstance(shape, list | tuple) or any(type(n) is not int or n < 0 for n in shape[:MOST_AXES]):
        raise ValueError(f"{name} has the shape {ascii(shape)[:80]}")
    if len(shape) > MOST_AXES or math.prod(max(n, 1) for n in shape) > MOST_ELEMENTS:
        raise ValueError(f"{name} has {len(shape)} axes or more elements than a tensor can have")


def short(error: Exception) -> str:
    """Returns what an error in a file says, in a piece of one line: the file may have put anything into it."""
    said = str(error) if all(isinstance(each, str | bytes | int) for each in error.args) else ""
    return f"{type(error).__name__}: {ascii(said[:SHOWN])[1:-1]}".removesuffix(": ")
