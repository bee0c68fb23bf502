"""PyTorch's own files (`.ckpt`, `.pt`, `.bin`) without PyTorch and without running what is in them (`pickle_reader`).

Two forms are read: the zip archive that torch.save writes since 1.6 (`data.pkl`, and one member a storage), and the
older one (five pickles, then the storages one after the other).
"""

import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dermjax.errors import UserError
from dermjax.weights.pickle_reader import Reader
from dermjax.weights.stored import Stored, Tensors, in_file, short

ZIP = b"PK\x03\x04"
MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the older form
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # that pickle as bytes
LEAVES, DEPTH, NAME = 2**17, 32, 512  # of nested dictionaries: values, levels, characters of a joined name
DAMAGE = (  # what a broken archive or pickle raises
    pickle.UnpicklingError, zipfile.BadZipFile, struct.error, EOFError, OSError, ValueError, KeyError, TypeError,
    AttributeError, IndexError, ArithmeticError, MemoryError, RuntimeError, zlib.error,
)  # fmt: skip


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
            found = list(leaves(form(file, path)))
        except DAMAGE as error:
            said = f"damaged, or not a file of PyTorch ({short(error)})"
            raise UserError(f"{path}: {said}; fetch the file again") from error
    tensors, texts = {}, {}
    for name, value in found:
        if isinstance(value, Stored):
            tensors[name] = value
        elif isinstance(value, str | float) or (isinstance(value, int) and abs(value) < 2**63):
            texts[name] = str(value)
    prefix = "state_dict."
    if any(name.startswith(prefix) for name in tensors):
        tensors = {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}
    return tensors, texts


def leaves(content: Any) -> Iterator[tuple[str, Any]]:
    """Yields what nested dictionaries hold, by joined name; lists and whatever else is in them are left out.

    A file can name one dictionary many times within others, so that few bytes unfold to more than any memory holds.
    """
    waiting, met = [("", content, 0)], 0
    while waiting:
        name, value, depth = waiting.pop()
        met += 1
        if met > LEAVES or depth > DEPTH or len(name) > NAME:
            raise ValueError("dictionaries within dictionaries without end")
        if isinstance(value, dict):
            if len(waiting) + len(value) > LEAVES:
                raise ValueError(f"more than {LEAVES:,} names")
            more = [(f"{name}.{key}" if depth else str(key), each, depth + 1) for key, each in value.items()]
            waiting += reversed(more)
        else:
            yield name, value


def zipped(file: BinaryIO, path: Path) -> Any:
    """Returns the content of an archive `NAME/data.pkl` with its storages in `NAME/data/KEY`, uncompressed."""
    with zipfile.ZipFile(file) as archive:
        (pickled,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist():
            with plain(archive, f"{folder}byteorder") as order:
                if order.read(8) != b"little":
                    raise ValueError("big-endian")

        def at(key: str, first: int, dtype: np.dtype, shape: tuple[int, ...]) -> Stored:
            member = archive.getinfo(f"{folder}data/{key}")
            start, needed = start_of(file, member), (first + shape[0]) * dtype.itemsize
            whole = needed <= member.file_size and start + needed <= os.fstat(file.fileno()).st_size
            if member.compress_type != zipfile.ZIP_STORED or not whole:
                raise ValueError(f"storage {key} is compressed or short")
            return in_file(path, start + first * dtype.itemsize, dtype, shape)

        with plain(archive, pickled) as content:
            return Reader(content, path, at).load()


def plain(archive: zipfile.ZipFile, name: str) -> BinaryIO:
    """Returns a member to read; one that is compressed, as PyTorch's never are, could be a thousand times the file."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    return io.BufferedReader(archive.open(name))


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
    if not isinstance(keys, list) or not all(type(key) in (str, int) for key in keys):
        raise ValueError("no list of storages")
    for key in keys:
        starts[str(key)] = place + 8  # eight bytes with the number of elements
        place += 8 + reader.sizes[str(key)]
    if place > end:
        raise ValueError("it ends early")
    if not reader.sizes.keys() <= starts.keys():
        raise ValueError("a storage that is not listed")
    return content
