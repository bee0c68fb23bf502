"""PyTorch's own files (`.ckpt`, `.pt`, `.bin`) without PyTorch and without running what is in them.

Two forms are read: the zip archive that torch.save writes since 1.6 (`data.pkl`, and one member a storage), and the
older one (five pickles, then the storages one after the other).

A pickle is a program that may call any function of any module. Here the names that files of weights have are given
stand-ins, every other name is refused, and nothing is imported. Nor may a pickle be long, ask for memory beyond its own
length, or hold what takes for ever to unfold.
"""

import io
import math
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

import ml_dtypes
import numpy as np

from dermjax.errors import UserError
from dermjax.weights.safetensors import SHOWN, LazyTensor, Tensors, check_shape, from_file, summarize

ZIP = b"PK\x03\x04"
MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the older form
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # that pickle as bytes
LEAVES, DEPTH, NAME = 2**17, 32, 512  # of nested dictionaries: values, levels, characters of a joined name
DAMAGE = (  # what a broken archive or pickle raises
    pickle.UnpicklingError, zipfile.BadZipFile, struct.error, EOFError, OSError, ValueError, KeyError, TypeError,
    AttributeError, IndexError, ArithmeticError, MemoryError, RuntimeError, zlib.error,
)  # fmt: skip
LONGEST = 2**24  # bytes of a pickle; Stable Diffusion's with its optimizer's state has 2**20
STEPS = 2**20  # reads of a pickle, one an instruction and one for what it takes
LINE = 1024  # bytes of the lines in a pickle, which hold names and numbers
KEY = 2**31  # numbers below it are keys of dictionaries; larger ones could be chosen to collide
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
    at: Callable[[str, int, np.dtype, tuple[int, ...]], LazyTensor]  # (key, first element, dtype, shape)


class Ignored:
    """Stand-in of what training leaves beside the weights: numpy scalars, callbacks, data types, sets."""

    def __init__(self, *arguments):
        pass

    def __setstate__(self, state):
        pass


class OrderedDict(dict):
    """Stand-in of OrderedDict; what torch.nn.Module hangs on it, versions of modules, is left out."""

    def __init__(self, pairs=()):
        super().__init__(plain_keys(pairs))

    def __setstate__(self, state):
        pass


class ParameterDict(dict):
    """Stand-in of torch.nn.ParameterDict, which older textual inversions hold."""

    def __init__(self):
        super().__init__()

    def __setstate__(self, state: dict):
        values = state | (state.get("_parameters") or {})
        self.update({name: value for name, value in values.items() if isinstance(value, LazyTensor)})


def plain_keys(pairs: Iterable[tuple[Any, Any]]) -> dict[str | int, Any]:
    """Returns a dictionary of those pairs whose key is a text or a small number, as the names of weights are.

    Others are left out unread: keys could be chosen to collide, or be tuples that take for ever to compare.
    """
    return {key: value for key, value in pairs if type(key) is str or (type(key) is int and abs(key) < KEY)}


def rebuild_tensor(storage: Storage, first: int, shape, strides, *_: Any) -> LazyTensor:
    """Stand-in of torch._utils._rebuild_tensor_v2: a strided view of a storage, in elements."""
    check_shape("a tensor", shape)
    if not isinstance(storage, Storage) or any(type(n) is not int for n in (first, *strides)):
        raise pickle.UnpicklingError("a tensor of something other than a storage and whole numbers")
    shape, strides = tuple(shape), tuple(strides)
    span = 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) if 0 not in shape else 0
    most = max(first + span, math.prod(shape))  # more elements than the storage has: strides of 0, a bomb
    if min(first, *strides, 0) < 0 or most > storage.size:
        raise pickle.UnpicklingError(f"a tensor {shape} does not fit into its storage of {storage.size}")
    run = storage.at(storage.key, first, storage.dtype, (span,))
    steps = tuple(step * storage.dtype.itemsize for step in strides)
    return run.transform(shape, lambda array: np.lib.stride_tricks.as_strided(array, shape, steps, writeable=False))


ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("__builtin__", "set"): Ignored,
    ("builtins", "set"): Ignored,
    ("torch", "Size"): lambda *sizes: None,
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
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

# instructions that no file of weights has: they make sets, whose members could be chosen to collide, take memory for
# whatever number stands there, or ask for names by number
BARRED = {
    code[0]
    for code in (
        pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.BYTEARRAY8, pickle.NEXT_BUFFER,
        pickle.READONLY_BUFFER, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4,
        pickle.INST, pickle.OBJ, pickle.PERSID,
    )
}  # fmt: skip


class BoundedFile:
    """A file that a pickle is read from, up to LONGEST bytes in STEPS reads."""

    def __init__(self, file: BinaryIO):
        self.file, self.left, self.steps = file, LONGEST, STEPS

    def read(self, size: int) -> bytes:
        """Returns the next bytes."""
        return self._counted(size, self.file.read)

    def readline(self) -> bytes:
        """Returns a line."""
        return self._counted(LINE, self.file.readline)

    def _counted(self, size: int, fetch: Callable[[int], bytes]) -> bytes:
        if not 0 <= size <= self.left or not self.steps:
            raise pickle.UnpicklingError(f"more than {LONGEST >> 20} MiB or {STEPS:,} steps, too many for weights")
        content = fetch(size)
        self.left, self.steps = self.left - len(content), self.steps - 1
        return content


class Unpickler(pickle._Unpickler):
    """Unpickles with the stand-ins; `at` finds the elements of a storage.

    Of Python's two implementations it is the one in Python: the other makes room for whatever number a file names.
    """

    def __init__(self, file: BinaryIO, path: Path, at: Callable[..., LazyTensor]):
        super().__init__(BoundedFile(file))
        self.path, self.at = path, at
        self.sizes: dict[str, int] = {}  # bytes of the storages that were met, by key
        self.taken = 0  # members of what stand-ins were called with: a file can give one list a thousand times

    def find_class(self, module: str, name: str) -> Any:
        """Returns the stand-in of a name; any other is refused."""
        if (module, name) not in ALLOWED:
            raise UserError(
                f"{self.path}: its pickle asks for {ascii(f'{module}.{name}'[:SHOWN])[1:-1]}, which no file of weights "
                "needs; nothing of it was run. Give the model as safetensors"
            )
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        """Returns the storage of a reference ("storage", type, key, device, elements)."""
        if not isinstance(pid, tuple) or len(pid) not in (5, 6):
            raise pickle.UnpicklingError("a reference of a form that PyTorch's have not")
        kind, dtype, key, _, size, *_ = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError("a reference to something other than a storage")
        if type(key) not in (str, int) or type(size) is not int or size < 0:
            raise pickle.UnpicklingError("a storage without a key or a size")
        self.sizes[str(key)] = size * dtype.itemsize
        return Storage(str(key), dtype, size, self.at)

    # pickle's instructions: what a frame holds is counted like the rest, dictionaries take plain keys, and what a
    # stand-in is given is counted

    def load_frame(self) -> None:
        self.read(8)

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._put(items)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put([key, value])

    def load_setitems(self) -> None:
        self._put(self.pop_mark())

    def load_reduce(self) -> None:
        arguments, call = self._given(self.stack.pop()), self.stack.pop()
        self.append(call(*arguments))

    def load_newobj(self) -> None:
        arguments, kind = self._given(self.stack.pop()), self.stack.pop()
        self.append(kind.__new__(kind, *arguments))

    def load_build(self) -> None:
        (state,) = self._given((self.stack.pop(),))
        if not isinstance(self.stack[-1], Ignored | OrderedDict | ParameterDict):
            raise pickle.UnpicklingError(f"a state for a {type(self.stack[-1]).__name__}")
        self.stack[-1].__setstate__(state)

    def _put(self, items: list) -> None:
        if not isinstance(self.stack[-1], dict | Ignored):
            raise pickle.UnpicklingError("a key for something other than a dictionary")
        if isinstance(self.stack[-1], dict):
            self.stack[-1].update(plain_keys(zip(items[::2], items[1::2], strict=True)))

    def _given(self, arguments: tuple) -> tuple:
        sizes = (len(each) for each in (arguments, *arguments) if isinstance(each, tuple | list | dict))
        self.taken += sum(sizes) if isinstance(arguments, tuple) else STEPS
        if self.taken > STEPS:
            raise pickle.UnpicklingError("more is given to what is made than weights need")
        return arguments

    dispatch: ClassVar = {
        **{code: each for code, each in pickle._Unpickler.dispatch.items() if code not in BARRED},
        pickle.FRAME[0]: load_frame,
        pickle.DICT[0]: load_dict,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.BUILD[0]: load_build,
    }


def read(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Returns a file's tensors, unread, and the numbers and texts beside them; nested names are joined by dots.

    Of a training checkpoint only its `state_dict` is taken.

    Raises:
      UserError: the file is damaged, or its pickle asks for anything but tensors in dictionaries.
    """
    with path.open("rb") as file:
        form = read_zip if file.read(len(ZIP)) == ZIP else read_legacy
        file.seek(0)
        try:
            values = list(leaves(form(file, path)))
        except DAMAGE as error:
            problem = f"damaged, or not a file of PyTorch ({summarize(error)})"
            raise UserError(f"{path}: {problem}; fetch the file again") from error
    tensors, texts = {}, {}
    for name, value in values:
        if isinstance(value, LazyTensor):
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
    waiting, count = [("", content, 0)], 0
    while waiting:
        name, value, depth = waiting.pop()
        count += 1
        if count > LEAVES or depth > DEPTH or len(name) > NAME:
            raise ValueError("dictionaries within dictionaries without end")
        if isinstance(value, dict):
            if len(waiting) + len(value) > LEAVES:
                raise ValueError(f"more than {LEAVES:,} names")
            more = [(f"{name}.{key}" if depth else str(key), each, depth + 1) for key, each in value.items()]
            waiting += reversed(more)
        else:
            yield name, value


def read_zip(file: BinaryIO, path: Path) -> Any:
    """Returns the content of an archive `NAME/data.pkl` with its storages in `NAME/data/KEY`, uncompressed."""
    with zipfile.ZipFile(file) as archive:
        pickled, *more = [name for name in archive.namelist() if name.endswith("data.pkl")] or [""]
        if more or not pickled:
            raise ValueError("an archive without one data.pkl, such as a zip of a folder, which is to be unpacked")
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist():
            with open_member(archive, f"{folder}byteorder") as order:
                if order.read(8) != b"little":
                    raise ValueError("big-endian")

        def at(key: str, first: int, dtype: np.dtype, shape: tuple[int, ...]) -> LazyTensor:
            member = archive.getinfo(f"{folder}data/{key}")
            start, needed = start_of(file, member), (first + shape[0]) * dtype.itemsize
            complete = needed <= member.file_size and start + needed <= os.fstat(file.fileno()).st_size
            if member.compress_type != zipfile.ZIP_STORED or not complete:
                raise ValueError(f"storage {key} is compressed or short")
            return from_file(path, start + first * dtype.itemsize, dtype, shape)

        with open_member(archive, pickled) as content:
            return Unpickler(content, path, at).load()


def open_member(archive: zipfile.ZipFile, name: str) -> BinaryIO:
    """Returns a member to read; one that is compressed, as PyTorch's never are, could be a thousand times the file."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    return io.BufferedReader(archive.open(name))


def start_of(file: BinaryIO, member: zipfile.ZipInfo) -> int:
    """Returns where a member's bytes start: after its local header of 30 bytes, its name and its extra field."""
    file.seek(member.header_offset + 26)
    name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
    return member.header_offset + 30 + name + extra


def read_legacy(file: BinaryIO, path: Path) -> Any:
    """Returns the content of the older form: magic number, version, machine, content, keys; then the storages."""
    starts: dict[str, int] = {}

    def at(key: str, first: int, dtype: np.dtype, shape: tuple[int, ...]) -> LazyTensor:
        def read_later() -> np.ndarray:  # where storages are is known after the pickle
            return from_file(path, starts[key] + first * dtype.itemsize, dtype, shape).read()

        return LazyTensor(shape, dtype, read_later)

    if Unpickler(file, path, at).load() != MAGIC:
        raise ValueError("no magic number")
    for _ in ("version", "machine"):
        Unpickler(file, path, at).load()
    unpickler = Unpickler(file, path, at)
    content = unpickler.load()
    keys = Unpickler(file, path, at).load()
    offset = file.tell()
    if not isinstance(keys, list) or not all(type(key) in (str, int) for key in keys):
        raise ValueError("no list of storages")
    for key in keys:
        starts[str(key)] = offset + 8  # eight bytes with the number of elements
        offset += 8 + unpickler.sizes[str(key)]
    if offset > path.stat().st_size:
        raise ValueError("it ends early")
    if not unpickler.sizes.keys() <= starts.keys():
        raise ValueError("a storage that is not listed")
    return content
