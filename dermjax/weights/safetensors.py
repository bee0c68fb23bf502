"""Tensors that stay in their file until they are read, and safetensors files of them.

Everything that renames, splits or transposes tensors on their way works on `LazyTensor`s, known by shape and type and
read one at a time, so that a complete model takes the memory of its largest tensor on its way in or out.

The package `safetensors` checks a file when it is opened. The elements are mapped here, and written here: the package
copies what it reads, takes all tensors of a file at once to write them, and has no bfloat16 without PyTorch.
"""

import dataclasses
import json
import math
import mmap
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from dermjax.errors import UserError

DTYPES = {
    **{f"{kind.upper()}{8 * size}": np.dtype(f"{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8)},
    **{f"F{8 * size}": np.dtype(f"f{size}") for size in (2, 4, 8)},
    "BOOL": np.dtype(np.bool_),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
ALIGNMENT = 8  # the header is padded with spaces to a multiple of it
MOST_AXES, MOST_ELEMENTS = 32, 2**40  # of a tensor; the largest of a Stable Diffusion has 2**26
UNREAD = "which dermjax does not read; give the file in float16, bfloat16 or float32"
SHOWN = 200  # characters of what a file says in an error


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor that `read` fetches, each time anew."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """The number of its elements."""
        return math.prod(self.shape)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """Reads it where numpy or JAX needs an array, so that a tree of such tensors is one of parameters."""
        return np.asarray(self.read(), dtype)

    def transform(self, shape: tuple[int, ...], function: Callable[[np.ndarray], np.ndarray]) -> "LazyTensor":
        """Returns the tensor of this shape that `function` makes of this one when it is read."""
        return LazyTensor(shape, self.dtype, lambda: function(self.read()))


Tensors = dict[str, LazyTensor]


def from_file(path: Path, offset: int, dtype: np.dtype, shape: tuple[int, ...]) -> LazyTensor:
    """Returns the tensor whose little-endian elements, last axis fastest, start at this byte of the file.

    What it reads are pages of the file, mapped: they take memory when they are touched, and writing to the array
    leaves the file as it is.
    """

    def read() -> np.ndarray:
        size = math.prod(shape) * dtype.itemsize
        # bytes first: numpy maps files of its own types only, and bfloat16 is none of them; nor does it map nothing
        content = np.asarray(np.memmap(path, np.uint8, "c", offset, size)) if size else np.empty(0, np.uint8)
        return content.view(dtype).reshape(shape)

    return LazyTensor(shape, dtype, read)


def forget_pages(array: np.ndarray) -> None:
    """Gives back the memory that an array mapped from a file has taken so far; what is read again is mapped again.

    A look at one element maps up to a megabyte around it, which of a model's 700 tensors is more than its largest one.
    """
    owner = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, mmap.mmap):
        owner.madvise(mmap.MADV_DONTNEED)


def from_array(array: np.ndarray) -> LazyTensor:
    """Returns an array in the place of a tensor of a file."""
    return LazyTensor(array.shape, array.dtype, lambda: array)


def read(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Returns a file's tensors, unread, and its metadata.

    A tensor of a type that is not one of DTYPES, such as one of four bits, is an error when it is read, not before.

    Raises:
      UserError: the file ends early, or the package or `check_shape` refuses its header.
    """
    try:
        with safe_open(path, "np"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", None) or {}
        for name, entry in header.items():
            check_shape(name, entry["shape"])
    except (SafetensorError, ValueError) as error:
        damage = f"its header is damaged ({summarize(error)})"
        unknown = re.search(r"unknown variant `(\w{1,20})`", str(error))
        if unknown:
            raise UserError(f"{path}: a tensor is of the type {ascii(unknown[1])[1:-1]}, {UNREAD}") from error
        if "invalid header length" in str(error):
            damage = "ends early, within its header"
        elif "not fully covered" in str(error):
            damage = f"has {path.stat().st_size:,} bytes where its header promises another number"
        raise UserError(f"{path}: {damage}; fetch the file again") from error

    def tensor(name: str, entry: dict[str, Any]) -> LazyTensor:
        shape, kind = tuple(entry["shape"]), entry["dtype"]
        if kind in DTYPES:
            return from_file(path, 8 + length + entry["data_offsets"][0], DTYPES[kind], shape)

        def refuse() -> np.ndarray:
            raise UserError(f"{path}: {name} is of the type {kind}, {UNREAD}")

        return LazyTensor(shape, np.dtype(np.void), refuse)

    return {name: tensor(name, entry) for name, entry in header.items()}, metadata


def write(path: Path, tensors: Tensors, metadata: dict[str, str]) -> None:
    """Writes the tensors one after the other under a temporary name, then in place of what was there.

    Where it fails, on a full disk or on a tensor that cannot be read, nothing is left behind.
    """
    header, end = {"__metadata__": {"format": "pt"} | metadata}, 0
    for name, tensor in tensors.items():
        first, end = end, end + tensor.size * tensor.dtype.itemsize
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": (first, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name, tensor in tensors.items():
                array = tensor.read()
                if (array.shape, array.dtype) != (tensor.shape, tensor.dtype):
                    raise ValueError(f"{name} is {array.shape} {array.dtype}, not {tensor.shape} {tensor.dtype}")
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def check_shape(name: str, shape: Any) -> None:
    """Raises ValueError where what a file gives as a shape is none, or none that arrays have."""
    if not isinstance(shape, list | tuple) or any(type(n) is not int or n < 0 for n in shape[:MOST_AXES]):
        raise ValueError(f"{name} has the shape {ascii(shape)[:80]}")
    if len(shape) > MOST_AXES or math.prod(max(n, 1) for n in shape) > MOST_ELEMENTS:
        raise ValueError(f"{name} has {len(shape)} axes or more elements than a tensor can have")


def summarize(error: Exception) -> str:
    """Returns an error over a file in a piece of one line, whatever the file has put into it."""
    text = str(error) if all(isinstance(each, str | bytes | int) for each in error.args) else ""
    return f"{type(error).__name__}: {ascii(text[:SHOWN])[1:-1]}".removesuffix(": ")
