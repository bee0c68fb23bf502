"""PyTorch's own files (`.ckpt`, `.pt`, `.bin`) without PyTorch and without running what is in them.

A pickle is a program that may call any function of any module. This reader knows the few names that files of weights
use, gives each a stand-in of its own and refuses every other name before anything is called: nothing is imported.

Two forms are read: the zip archive that torch.save writes since 1.6 (`data.pkl`, and one member a storage), and the
older one (five pickles, then the storages one after the other).
"""

import collections
import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from dermjax.errors import UserError
from dermjax.weights.stored import Stored, Tensors, in_file

ZIP = b"PK\x03\x04"
MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the older form
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # that pickle as bytes
DAMAGE = (  # what a broken archive or pickle raises
    pickle.UnpicklingError, zipfile.BadZipFile, struct.error, EOFError, OSError, ValueError, KeyError, TypeError,
    AttributeError, IndexError, ArithmeticError, MemoryError, RuntimeError, zlib.error,
)  # fmt: skip
STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class Storage(NamedTuple):
    """A run of elements that tensors are views of."""

    key: str
    dtype: np.dtype
    size: int  # in elements
    at: Callable[[str, int, np.dtype, tuple[int, ...]], Stored]  # (key, first element, dtype, shape)


class Ignored:
    """Stands for what training leaves beside the weights: numpy scalars, callbacks, data types."""

    def __init__(self, *arguments):
        pass

    def __setstate__(self, state):
        pass


class ParameterDict(dict):
    """Stands for torch.nn.ParameterDict, which older textual inversions hold."""

    def __setstate__(self, state: dict):
        found = state | (state.get("_parameters") or {})
        self.update({name: value for name, value in found.items() if isinstance(value, Stored)})


def tensor(storage: Storage, first: int, shape, strides, *_: Any) -> Stored:
    """Stands for torch._utils._rebuild_tensor_v2: a strided view of a storage, in elements."""
    shape, strides = tuple(shape), tuple(strides)
    span = 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) if 0 not in shape else 0
    if min(first, *shape, *strides, 0) < 0 or first + span > storage.size:
        raise pickle.UnpicklingError(f"a tensor {shape} does not fit into its storage of {storage.size}")
    run = storage.at(storage.key, first, storage.dtype, (span,))
    steps = tuple(step * storage.dtype.itemsize for step in strides)
    return run.changed(shape, lambda array: np.lib.stride_tricks.as_strided(array, shape, steps, writeable=False))


ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("__builtin__", "set"): set,
    ("builtins", "set"): set,
    ("torch", "Size"): lambda *sizes: None,
    ("torch._utils", "_rebuild_tensor_v2"): tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch.nn.modules.container", "ParameterDict"): ParameterDict,
    ("_codecs", "encode"): Ignored,
    ("numpy", "dtype"): Ignored,
    ("numpy", "ndarray"): Ignored,
    ("numpy.core.multiarray", "_reconstruct"): Ignored,
    ("numpy.core.multiarray", "scalar"): Ignored,
    ("numpy._core.multiarray", "_reconstruct"): Ignored,
    ("numpy._core.multiarray", "scalar"): Ignored,
    ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"): Ignored,
    **{("torch", name): np.dtype(dtype) for name, dtype in STORAGES.items()},
    **{("torch", name): name for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32")},
}


class Reader(pickle.Unpickler):
    """Unpickles with the stand-ins; `at` finds the elements of a storage."""

    def __init__(self, file: BinaryIO, path: Path, at: Callable[..., Stored]):
        super().__init__(file)
        self.path, self.at = path, at
        self.sizes: dict[str, int] = {}  # bytes of the storages that were met, by key

    def find_class(self, module: str, name: str) -> Any:
        """Returns the stand-in of a name; any other is refused."""
        if (module, name) not in ALLOWED:
            raise UserError(
                f"{self.path}: its pickle asks for {module}.{name}, which no file of weights needs; nothing of it was "
                "run. Give the model as safetensors"
            )
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        """Returns the storage of a reference ("storage", type, key, device, elements)."""
        kind, dtype, key, _, size, *_ = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError(f"a reference to {kind!r}")
        self.sizes[str(key)] = size * dtype.itemsize
        return Storage(str(key), dtype, size, self.at)


def read(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Returns a file's tensors, unread, and the numbers and texts beside them; nested names are joined by dots.

    Of a training checkpoint only its `state_dict` is taken.

    Raises:
      UserError: the file is damaged, or its pickle asks for anything but tensors in dictionaries.
    """
    with path.open("rb") as file:
        form = zipped if file.read(len(ZIP)) == ZIP else legacy
        file.seek(0)
        try:
            found = leaves(form(file, path))
        except DAMAGE as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"{path}: damaged, or not a file of PyTorch ({said}); fetch the file again") from error
    tensors, texts = {}, {}
    for name, value in found:
        if isinstance(value, Stored):
            tensors[name] = value
        elif isinstance(value, str | int | float):
            texts[name] = str(value)
    prefix = "state_dict."
    if any(name.startswith(prefix) for name in tensors):
        tensors = {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}
    return tensors, texts


def leaves(content: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Returns what nested dictionaries hold, by joined name; lists and whatever else is in them are left out."""
    if not isinstance(content, dict):
        return [(prefix.removesuffix("."), content)]
    return [leaf for key, value in content.items() for leaf in leaves(value, f"{prefix}{key}.")]


def zipped(file: BinaryIO, path: Path) -> Any:
    """Returns the content of an archive `NAME/data.pkl` with its storages in `NAME/data/KEY`, uncompressed."""
    with zipfile.ZipFile(file) as archive:
        (pickled,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise ValueError("big-endian")

        def at(key: str, first: int, dtype: np.dtype, shape: tuple[int, ...]) -> Stored:
            member = archive.getinfo(f"{folder}data/{key}")
            start, needed = start_of(file, member), (first + shape[0]) * dtype.itemsize
            whole = needed <= member.file_size and start + needed <= os.fstat(file.fileno()).st_size
            if member.compress_type != zipfile.ZIP_STORED or not whole:
                raise ValueError(f"storage {key} is compressed or short")
            return in_file(path, start + first * dtype.itemsize, dtype, shape)

        return Reader(io.BytesIO(archive.read(pickled)), path, at).load()


def start_of(file: BinaryIO, member: zipfile.ZipInfo) -> int:
    """Returns where a member's bytes start: after its local header of 30 bytes, its name and its extra field."""
    file.seek(member.header_offset + 26)
    name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
    return member.header_offset + 30 + name + extra


def legacy(file: BinaryIO, path: Path) -> Any:
    """Returns the content of the older form: magic number, version, machine, content, keys; then the storages."""
    starts: dict[str, int] = {}

    def at(key: str, first: int, dtype: np.dtype, shape: tuple[int, ...]) -> Stored:
        def read_later() -> np.ndarray:  # where storages are is known after the pickle
            return in_file(path, starts[key] + first * dtype.itemsize, dtype, shape).read()

        return Stored(shape, dtype, read_later)

    if Reader(file, path, at).load() != MAGIC:
        raise ValueError("no magic number")
    for _ in ("version", "machine"):
        Reader(file, path, at).load()
    reader = Reader(file, path, at)
    content = reader.load()
    keys = Reader(file, path, at).load()
    place, end = file.tell(), path.stat().st_size
    for key in keys:
        starts[str(key)] = place + 8  # eight bytes with the number of elements
        place += 8 + reader.sizes[str(key)]
    if place > end:
        raise ValueError("it ends early")
    return content
