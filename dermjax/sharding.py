"""Devices: the mesh, which parameter goes where on it, and how a batch gets there; no other file knows devices.

The mesh has two axes, ("data", "fsdp"): the batch is divided over both, parameters over "fsdp" by the first matching
row of a table of regular expressions. Pure data parallelism is the mesh (n, 1), one device is (1, 1).

Row i of a batch is example i, whatever the order of the devices: `jax.make_mesh` orders those of a TPU by topology, so
that consecutive rows may lie with the processes 0, 1, 0, 1. `local_rows` are those that the sharding gives to the
devices of a process, which makes them, and `place` puts each where it belongs.
"""

import re
import resource
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dermjax import machine
from dermjax.errors import UserError

Tree = Any
Rules = Sequence[tuple[str, P]]

AXES = ("data", "fsdp")
# Parameters above which a CPU is one device: each of its devices holds them all in the memory that they share, and
# layers that large occupy every core by themselves.
LARGE = 2**28

# The matrices of attention and feed-forward layers hold most parameters; the rest is small enough to be everywhere.
RULES: Rules = (
    (r"(to_q|to_k|to_v|proj|linear_1|fc1|query|key|value)\.kernel$", P(None, "fsdp")),
    (r"(to_out\.0|net\.2|linear_2|fc2|dense)\.kernel$", P("fsdp", None)),
    (r"conv\w*\.kernel$", P(None, None, None, "fsdp")),
    (r".*", P()),
)


def mesh(data: int, fsdp: int, parameters: int = 0, devices: Sequence[jax.Device] = ()) -> Mesh:
    """Returns the mesh (data, fsdp) over the devices of all processes; data = 0 takes every device left by fsdp.

    On a CPU data = 0 is 1 for a model of so many parameters that it is LARGE. `devices` take the place of this
    machine's, to compile for others.
    Axes are Auto: with jax.make_mesh's explicit default, convolutions with sharded parameters raise.

    Raises:
      UserError: there are fewer devices, or a process would be left without one.
    """
    large = not devices and jax.process_count() == 1 and is_large(parameters)
    devices = devices or jax.devices()
    have = len(devices)
    if data < 0 or fsdp < 1:
        raise UserError(f"mesh {data} x {fsdp}: give mesh.data = 0 (all devices) or more, mesh.fsdp = 1 or more")
    data = data or (1 if large else max(1, have // fsdp))
    if data * fsdp > have:
        raise UserError(f"mesh {data} x {fsdp} needs {data * fsdp} devices, here are {have}; make the mesh smaller")
    devices = devices[: data * fsdp]
    idle = set(range(jax.process_count())) - {device.process_index for device in devices}
    if idle:
        raise UserError(f"mesh {data} x {fsdp} leaves process {min(idle)} without a device; make the mesh larger")
    sides, types = (data, fsdp), (AxisType.Auto,) * 2
    try:
        return jax.make_mesh(sides, AXES, axis_types=types, devices=devices)
    except NotImplementedError:  # on some TPUs only axes that are sides of the slice, unless these may be split
        return Mesh(mesh_utils.create_device_mesh(sides, devices, allow_split_physical_axes=True), AXES, types)


def abstract_mesh(data: int, fsdp: int, devices: int, device_kind: str) -> AbstractMesh:
    """Returns the mesh (data, fsdp) of so many GPUs that are not here, for shapes alone; data = 0 as in `mesh`."""
    sides = (data or max(1, devices // fsdp), fsdp)
    device = AbstractDevice(device_kind, None, "gpu")
    return AbstractMesh(sides, AXES, axis_types=(AxisType.Auto,) * 2, abstract_device=device)


def local_mesh(parameters: int = 0) -> Mesh:
    """Returns the mesh of this process's devices, for work that each process does by itself; one of a CPU for LARGE."""
    devices = jax.local_devices()[: 1 if is_large(parameters) else None]
    return jax.make_mesh((len(devices), 1), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def is_large(parameters: int) -> bool:
    """Returns whether a model of so many parameters is more than one device of a CPU should hold, see LARGE."""
    return parameters > LARGE and jax.default_backend() == "cpu"


def fastest_precision() -> str:
    """Returns the quickest type of arithmetic here: XLA on a CPU widens each bfloat16 before it is used."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def platform(grid: Mesh | AbstractMesh) -> str:
    """Returns what the devices of a mesh are: "cpu", "gpu" or "tpu"."""
    return (grid.devices.flat[0] if isinstance(grid, Mesh) else grid.abstract_device).platform


def arithmetic(dtype: jnp.dtype, grid: Mesh) -> str:
    """Returns what the devices of a mesh compute in: the type and, where float32 is multiplied in less, that.

    By XLA's default GPUs round the factors of float32 products to tensorfloat32 and TPUs to bfloat16.
    """
    name, kind = jnp.dtype(dtype).name, platform(grid)
    rounded = name == "float32" and kind != "cpu"
    return f"{name} ({jax.config.jax_default_matmul_precision or 'default'} products of a {kind})" if rounded else name


def tree_shardings(tree: Tree, rules: Rules, grid: Mesh) -> Tree:
    """Returns the NamedSharding of every leaf of a tree of arrays or shapes, by the first row that its path matches.

    A leaf whose axis the mesh does not divide is replicated: small models run on any mesh.
    """

    def choose(path, leaf) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        spec = next(spec for pattern, spec in rules if re.search(pattern, name))
        fits = len(spec) <= leaf.ndim and all(
            axis is None or size % grid.shape[axis] == 0 for axis, size in zip(spec, leaf.shape, strict=False)
        )
        return NamedSharding(grid, spec if fits else P())

    return jax.tree_util.tree_map_with_path(choose, tree)


def tree_specs(tree: Tree, rules: Rules, grid: Mesh) -> Tree:
    """Returns the PartitionSpec of every leaf, as `tree_shardings`; where "fsdp" is one device nothing is divided."""
    homes = tree_shardings(tree, rules, grid)
    return jax.tree.map(lambda home: home.spec if grid.shape["fsdp"] > 1 else P(), homes)


def in_host_memory() -> AbstractContextManager:
    """Within it arrays are made in the host's memory: no device of a mesh needs to hold all of what it divides."""
    return jax.default_device(jax.local_devices(backend="cpu")[0])


def shaped(tree: Tree, shardings: Tree) -> Tree:
    """Returns arrays or shapes as shapes with shardings: what a compiler, or a checkpoint to restore, needs of them."""
    return jax.tree.map(lambda leaf, home: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=home), tree, shardings)


def replicated(grid: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds completely."""
    return NamedSharding(grid, P())


def gathered(tree: Tree, grid: Mesh) -> Tree:
    """Returns the arrays of a tree whole on every device of a mesh, so that each process can read them.

    What "fsdp" divides over several processes none of them could.
    """
    whole = jax.jit(lambda tree: tree, out_shardings=replicated(grid))
    return whole(tree) if grid.shape["fsdp"] > 1 else tree


def batch_sharding(grid: Mesh) -> NamedSharding:
    """Returns the sharding of a batch, whose rows are divided over the whole mesh."""
    return NamedSharding(grid, P(AXES))


def local_rows(batch: int, grid: Mesh) -> np.ndarray:
    """Returns which rows of a batch of all processes this process's devices hold, int, ascending."""
    held = batch_sharding(grid).addressable_devices_indices_map((batch,)).values()
    return np.unique(np.concatenate([np.arange(batch)[index] for index in held]))


def place(rows: Tree, grid: Mesh) -> Tree:
    """Returns the `local_rows` of a batch (numpy, [n, …]) as global arrays [B, …], divided over the whole mesh."""

    def globalise(rows: np.ndarray) -> jax.Array:
        each, rest = divmod(len(rows), len(grid.local_devices))
        if rest:
            raise ValueError(f"{len(rows)} rows do not divide over {len(grid.local_devices)} devices of this process")
        numbers = local_rows(each * grid.size, grid)

        def shard(index: tuple[slice, ...]) -> np.ndarray:
            first = np.searchsorted(numbers, index[0].start or 0)
            return rows[first : first + each]  # what is consecutive in the batch is so among the rows of a process

        return jax.make_array_from_callback((each * grid.size, *rows.shape[1:]), batch_sharding(grid), shard)

    return jax.tree.map(globalise, rows)


def put(tree: Tree, shardings: Tree) -> Tree:
    """Returns arrays of this process, the same in each, on the devices of all processes.

    A jax.Array goes by way of numpy: where a process has one device, JAX 0.10 takes the array of that device for the
    one of all processes, and no shard of it can be read.
    """

    def spread(leaf: Any, home: NamedSharding) -> jax.Array:
        return jax.device_put(leaf if home.is_fully_addressable else np.asarray(leaf), home)

    return jax.tree.map(spread, tree, shardings)


def check_batch(batch: int, accumulate: int, grid: Mesh) -> None:
    """Raises UserError when a batch does not divide into `accumulate` parts, each of them over the mesh."""
    if batch < 1 or accumulate < 1:
        raise UserError(f"batch = {batch}, accumulate = {accumulate}: give 1 or more of each")
    if batch % (grid.size * accumulate):
        parts = f" in accumulate = {accumulate} parts" if accumulate > 1 else ""
        over = f" over {grid.size} devices" if grid.size > 1 else ""
        raise UserError(f"batch = {batch}{parts} does not divide{over}; give a multiple of {grid.size * accumulate}")


def free_memory(grid: Mesh) -> int:
    """Returns the bytes that a program can still take: on one device of a mesh, or on a CPU, of the whole machine."""
    stats = grid.local_devices[0].memory_stats()
    return stats["bytes_limit"] - stats["bytes_in_use"] if stats else machine.free_memory()


def peak_memory() -> int:
    """Returns the most bytes that any device of this process has held so far; on a CPU, that the process has."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    if all(stats):
        return max(each["peak_bytes_in_use"] for each in stats)
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
