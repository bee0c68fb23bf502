"""PyTorch's names and layouts <-> ours: the only file that knows OIHW from HWIO.

A parameter's path in our tree, joined by dots, is its name in the file up to the last word, the leaf:

    kernel [h, w, in, out]  <->  weight [out, in, h, w]      (convolution)
    kernel [in, out]        <->  weight [out, in]            (linear)
    scale [C]               <->  weight [C]                  (norms)
    embedding [V, D]        <->  weight [V, D]
    bias, and leaves of other names, stay as they are
"""

import ctypes
import mmap
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np

from dermjax import machine
from dermjax.errors import UserError
from dermjax.weights.safetensors import LazyTensor, Tensors, forget_pages

Tree = dict[str, Any]
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
# kernels are never zeros throughout once they are trained, and but for these not before: a head for new labels, and the
# branches of a level that pretraining adds
EMPTY = ("classifier.kernel", "conv2.kernel")
LOOKED_AT = 2**13  # elements in the middle of a tensor
SHOWN = 3  # misfits of each kind that an error names; the others are counted

LARGE = 2**18  # elements that are worth a second core
SHARE = 2**20  # elements that a core takes at a time
PIECE = 2**16  # elements that are cast at a time, in the cache
SIGN_AND_REST = -0x70002000  # the bits of a float32 that one of two bytes has, as a signed number
POPULATE_WRITE = 23  # of Linux 5.14: all pages at once, half the time of a fault for each; no harm where it is unknown
THREADS = ThreadPoolExecutor(machine.cores())
advise = ctypes.CDLL(None).madvise  # mmap's own keeps the interpreter's lock meanwhile
advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def flatten(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """Returns {dotted path: leaf} of nested dicts."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def unflatten(flat: dict[str, Any]) -> Tree:
    """Returns the nested dicts of {dotted path: leaf}."""
    tree: Tree = {}
    for path, value in flat.items():
        *parents, leaf = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def file_name(path: str) -> str:
    """Returns the file's name of one of our paths."""
    return rename_leaf(path, LEAVES)


def rename_leaf(path: str, leaves: Mapping[str, str]) -> str:
    """Returns a path with its last word replaced where `leaves` has it."""
    parent, _, leaf = path.rpartition(".")
    return f"{parent}.{leaves.get(leaf, leaf)}"


def file_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape in the file of one of our arrays."""
    if path.rpartition(".")[2] != "kernel":
        return tuple(shape)
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else tuple(shape[::-1])


def to_torch(path: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """Returns the file's name and layout of one of our arrays."""
    if path.rpartition(".")[2] == "kernel":
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    return file_name(path), np.ascontiguousarray(array)


def to_file(tree: Tree, dtype) -> Tensors:
    """Returns our arrays as a file's tensors of this type, each brought to the host and into its layout when read."""

    def tensor(path: str, array) -> LazyTensor:
        def read() -> np.ndarray:
            try:
                with np.errstate(over="raise"):
                    return to_torch(path, np.asarray(array).astype(dtype, copy=False))[1]
            except FloatingPointError as error:
                name = np.dtype(dtype).name
                raise UserError(f"{path}: values beyond {name}'s largest; write bfloat16 or float32") from error

        return LazyTensor(file_shape(path, array.shape), np.dtype(dtype), read)

    return {file_name(path): tensor(path, array) for path, array in flatten(tree).items()}


def from_file(shapes: Tree, tensors: Tensors, source: str, dtype) -> Tree:
    """Returns our tree, shaped like `shapes`, of a file's tensors in our layout and type, each read when it is used.

    What is read is a view of the file where that has the type, else of a copy. A kernel keeps the file's order in
    memory until it is placed on a device, which has to move it anyhow. `check_values` looks at each; its UserError
    begins with `source`.
    """

    def leaf(path: str, tensor: LazyTensor, shape: tuple[int, ...]) -> LazyTensor:
        def read() -> np.ndarray:
            array = tensor.read()
            array = array if array.dtype == dtype else cast(array, np.dtype(dtype))
            check_values(path, array, source)
            forget_pages(array)
            if path.rpartition(".")[2] != "kernel":
                return array
            return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T

        return LazyTensor(tuple(shape), np.dtype(dtype), read)

    return unflatten({path: leaf(path, tensors[file_name(path)], at.shape) for path, at in flatten(shapes).items()})


def from_torch(
    shapes: Tree, tensors: Tensors, source: str, *, dtype, place: Callable[[str, np.ndarray], Any] = lambda _, a: a
) -> Tree:
    """Returns our tree, shaped like `shapes`, from a file's tensors; `place` takes each by its path to its devices.

    Every tensor is used or it is an error, and all are checked before the first one is read.

    Raises:
      UserError: missing, unexpected and misshapen tensors, all in one line with their names and shapes.
    """
    check(expected(shapes), tensors, source)
    lazy = flatten(from_file(shapes, tensors, f"{source}: ", dtype))
    return unflatten({path: place(path, leaf.read()) for path, leaf in lazy.items()})


def expected(shapes: Tree) -> dict[str, tuple[int, ...]]:
    """Returns the names and shapes that the file of a tree has."""
    return {file_name(path): file_shape(path, leaf.shape) for path, leaf in flatten(shapes).items()}


def check(wanted: dict[str, tuple[int, ...]], tensors: Tensors, source: str) -> None:
    """Raises UserError with every tensor that is missing, of another shape, or in excess, in one line."""
    kinds = (
        [f"{name} is missing {shape}" for name, shape in wanted.items() if name not in tensors],
        [
            f"{name} is {tensors[name].shape}, the config asks for {shape}"
            for name, shape in wanted.items()
            if name in tensors and tensors[name].shape != shape
        ],
        [f"{name} is not expected {tensors[name].shape}" for name in sorted(tensors.keys() - wanted.keys())],
        # whole numbers are those of a quantisation, whose scales are not read
        [f"{name} is {tensors[name].dtype}, not floating" for name in wanted.keys() & tensors.keys()
         if tensors[name].dtype.kind in "iub"],
    )  # fmt: skip
    if any(kinds):
        shown = (
            each for kind in kinds for each in [*kind[:SHOWN], *[f"{len(kind) - SHOWN} more"] * (len(kind) > SHOWN)]
        )
        raise UserError(f"{source}: {sum(map(len, kinds))} of {len(wanted)} tensors do not fit: {'; '.join(shown)}")


def check_values(path: str, array: np.ndarray, source: str) -> None:
    """Raises UserError where the tensor of a path holds NaN or infinity, or zeros alone where trained weights do not.

    The middle of a tensor stands for all of it, which is read when it is used.
    """
    start = max(0, array.size - LOOKED_AT) // 2
    flat = array.reshape(-1)[start : start + LOOKED_AT]
    if not np.isfinite(flat.astype(np.float32)).all():
        raise UserError(
            f"{source}{file_name(path)} holds NaN or infinity, as a training that diverged or a conversion to float16 "
            "leaves it; take an earlier state, or fetch the file again"
        )
    filled = path.endswith(".kernel") and not path.endswith(EMPTY)
    if filled and flat.size and not flat.any() and not array.any():
        raise UserError(
            f"{source}{file_name(path)} is zeros throughout, as a download that broke off leaves it; fetch the file "
            "again"
        )


def cast(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns a C-ordered copy in another type, made by all cores where it is large, as fast as disks are."""
    if array.size < LARGE:
        return array.astype(dtype, order="C")
    # not np.empty, which asks for huge pages: a virtual machine may have to get each of them from its host
    memory = mmap.mmap(-1, array.size * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    copy, flat = np.frombuffer(memory, np.uint8).view(dtype), array.reshape(-1)

    def share(first: int) -> None:
        last = min(first + SHARE, array.size)
        advise(copy.ctypes.data + first * dtype.itemsize, (last - first) * dtype.itemsize, POPULATE_WRITE)
        for start in range(first, last, PIECE):
            piece = slice(start, min(start + PIECE, last))
            if dtype == np.float32 and array.dtype in (np.float16, ml_dtypes.bfloat16):
                widen(flat[piece], copy[piece])
            else:
                with np.errstate(invalid="ignore"):  # NaN of every kind
                    copy[piece] = flat[piece]

    list(THREADS.map(share, range(0, array.size, SHARE)))
    return copy.reshape(array.shape)


def widen(halves: np.ndarray, singles: np.ndarray) -> None:
    """Writes float16 or bfloat16 numbers as float32, four times as fast as numpy's cast.

    A bfloat16 is the first half of a float32. The bits of a float16, at their places in a float32, are a number 2**112
    too small; infinity and NaN are left to numpy, and everything in a thread in which a library has numbers below the
    normal ones flushed to zero.
    """
    bits = singles.view(np.int32)
    np.copyto(bits, halves.view(np.int16))
    if halves.dtype != np.float16:
        np.left_shift(bits, 16, out=bits)
        return
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, SIGN_AND_REST, out=bits)
    np.multiply(singles, np.float32(2.0**112), out=singles)
    flushed = np.float32(2.0**-140) * np.float32(2.0**112) != np.float32(2.0**-28)
    if flushed or singles.max() >= 2**16 or singles.min() <= -(2**16):
        singles[:] = halves
