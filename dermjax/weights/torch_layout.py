"""PyTorch's names and layouts <-> ours: the only file that knows OIHW from HWIO.

A parameter's path in our tree, joined by dots, is its name in the file up to the last word, the leaf:

    kernel [h, w, in, out]  <->  weight [out, in, h, w]      (convolution)
    kernel [in, out]        <->  weight [out, in]            (linear)
    scale [C]               <->  weight [C]                  (norms)
    embedding [V, D]        <->  weight [V, D]
    bias, and leaves of other names, stay as they are
"""

from typing import Any

import numpy as np

from dermjax.errors import UserError

Tree = dict[str, Any]
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


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


def to_torch(path: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """Returns the file's name and layout of one of our arrays."""
    parent, _, leaf = path.rpartition(".")
    name = LEAVES.get(leaf, leaf)
    if leaf == "kernel":
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    return f"{parent}.{name}", np.ascontiguousarray(array)


def from_torch(shapes: Tree, tensors: dict[str, np.ndarray], source: str, *, dtype) -> Tree:
    """Returns our tree, shaped like `shapes`, from a file's tensors; every tensor is used or it is an error.

    Raises:
      UserError: missing, unexpected and misshapen tensors, all in one line with their names and shapes.
    """
    tree, wrong, used = {}, [], set()
    for path, leaf in flatten(shapes).items():
        expected_name, expected = to_torch(path, np.broadcast_to(np.float32(0), leaf.shape))
        tensor = tensors.get(expected_name)
        if tensor is None:
            wrong.append(f"{expected_name} is missing")
            continue
        used.add(expected_name)
        if tensor.shape != expected.shape:
            wrong.append(f"{expected_name} is {tensor.shape}, the config asks for {expected.shape}")
            continue
        if path.endswith("kernel"):
            tensor = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
        tree[path] = np.ascontiguousarray(tensor, dtype)
    wrong += [f"{name} is not expected" for name in sorted(tensors.keys() - used)]
    if wrong:
        shown = "; ".join(wrong[:3]) + ("; …" if len(wrong) > 3 else "")
        raise UserError(f"{source}: {len(wrong)} of {len(flatten(shapes))} tensors do not fit: {shown}")
    return unflatten(tree)
