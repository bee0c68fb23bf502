"""safetensors files, in and out, one tensor in memory at a time.

The format: eight bytes with the length of the header, the header (JSON: name -> dtype, shape, first and last byte, and
texts under `__metadata__`), then the elements of all tensors. The package of that name would map the whole file or take
all tensors of a model at once, and knows no bfloat16 without PyTorch. What it refuses is refused here: bytes that two
tensors share or none has, a name that is there twice, texts that are no UTF-8.
"""

import collections
import json
import math
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from dermjax.errors import UserError
from dermjax.weights.stored import Tensors, check_shape, in_file, short, unreadable

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64}  # an element, of the format's types that are not read here
BITS |= {name: 8 * dtype.itemsize for name, dtype in DTYPES.items()}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
ALIGNMENT = 8  # the header is padded with spaces to a multiple of it
LONGEST = 100_000_000  # bytes of a header, as the package has it


def read(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Returns a file's tensors, unread, and its metadata.

    A tensor of a type that is not one of DTYPES, such as one of four bits, is an error when it is read, not before.

    Raises:
      UserError: the file ends early, or its header is damaged.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        start = 8 + length
        if start > size:
            raise UserError(f"{path}: ends early, within its header; fetch the file again")
        if length > LONGEST:
            raise UserError(f"{path}: a header of {length:,} bytes is none of a model; fetch the file again")
        header = file.read(length)
    try:
        entries = json.loads(header.decode("utf-8"), object_pairs_hook=once)
        metadata = entries.pop("__metadata__", None) or {}
        if not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("__metadata__ holds more than texts")
        spans = {name: span(name, entry) for name, entry in entries.items()}
        end = 0
        for name, (first, last) in sorted(spans.items(), key=lambda each: each[1]):
            if first != end:
                raise ValueError(f"{name} begins at byte {first:,}, where the tensor before it ends at {end:,}")
            end = last
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: its header is damaged ({short(error)}); fetch the file again") from error
    if start + end != size:
        raise UserError(f"{path}: {size:,} bytes where its header promises {start + end:,}; fetch the file again")
    tensors = {}
    for name, entry in entries.items():
        dtype, shape = DTYPES.get(entry["dtype"]), tuple(entry["shape"])
        if dtype is None:
            tensors[name] = unreadable(f"{path}: {name} is of the type {entry['dtype']}", shape)
        else:
            tensors[name] = in_file(path, start + spans[name][0], dtype, shape)
    return tensors, metadata


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a JSON object of its pairs; a name that is there twice, or is no text, is a ValueError."""
    content = dict(pairs)
    if len(content) != len(pairs):
        (name, _), *_ = collections.Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{name} is there twice")
    "".join(content).encode("utf-8")  # halves of a surrogate pair are a UnicodeEncodeError
    return content


def span(name: str, entry: dict[str, Any]) -> tuple[int, int]:
    """Returns the first and the last byte of a tensor, which are as far apart as its shape and its type ask for."""
    (first, last), shape = entry["data_offsets"], entry["shape"]
    check_shape(name, shape)
    if any(type(number) is not int or number < 0 for number in (first, last)):
        raise ValueError(f"{name} has the bytes {first} to {last}")
    bits = BITS.get(entry["dtype"])
    if bits is not None and 8 * (last - first) != math.prod(shape) * bits:
        raise ValueError(f"{name} has {last - first} bytes for {shape} {entry['dtype']}")
    if last < first:
        raise ValueError(f"{name} ends before it begins")
    return first, last


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
