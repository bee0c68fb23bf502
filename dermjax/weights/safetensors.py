"""safetensors files, in and out, one tensor in memory at a time.

The format: eight bytes with the length of the header, the header (JSON: name -> dtype, shape, first and last byte, and
texts under `__metadata__`), then the elements of all tensors. The package of that name would map the whole file or take
all tensors of a model at once, and knows no bfloat16 without PyTorch.
"""

import json
import math
import os
from pathlib import Path

import ml_dtypes
import numpy as np

from dermjax.errors import UserError
from dermjax.weights.stored import Tensors, in_file

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
ALIGNMENT = 8  # the header is padded with spaces to a multiple of it


def read(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Returns a file's tensors, unread, and its metadata.

    Raises:
      UserError: the file ends early, its header is damaged, or a tensor's type is not one of DTYPES.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        if start > size:
            raise UserError(f"{path}: ends early, within its header; fetch the file again")
        header = file.read(start - 8)
    try:
        entries = json.loads(header)
        metadata = entries.pop("__metadata__", {})
        tensors, end = {}, start
        for name, entry in entries.items():
            dtype, shape, (first, last) = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
            if any(type(number) is not int or number < 0 for number in (*shape, first, last)):
                raise ValueError(f"{name} has shape {list(shape)} and bytes {first} to {last}")
            if last - first != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{name} has {last - first} bytes for {shape} {dtype}")
            tensors[name] = in_file(path, start + first, dtype, shape)
            end = max(end, start + last)
        if not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("__metadata__ holds more than texts")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: its header is damaged ({error}); fetch the file again") from error
    if end != size:
        raise UserError(f"{path}: {size:,} bytes where its header promises {end:,}; fetch the file again")
    return tensors, metadata


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
