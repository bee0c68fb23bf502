"""What a step of `tune` needs of each device: memory, operations, traffic and collectives, before anything runs.

An accelerator's compiler says it of the step itself, without weights and without the devices. Where there is none, on
GPUs from afar and on CPUs, whose own plan says nothing of their memory, it follows from shapes.
"""

import math
import re
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.stages import Compiled, Lowered
from ml_collections import ConfigDict

from dermjax import sharding
from dermjax.training.collectives import Collective, around_ring, collectives
from dermjax.training.step import compile_step
from dermjax.tuning import costs, trainable
from dermjax.tuning.setup import Setup
from dermjax.tuning.trainable import Tree

# what the TPU compiler says of a step without room: its temporaries, or all that it takes
NO_ROOM = re.compile(r"HLO temporaries \(([\d.]+)([KMGT]?)\)|Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm")
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Needs:
    """What a step takes of each device: bytes, operations, bytes read and written, and collectives.

    parameters: trained and frozen ones. activations: all else at the peak, gradients and padding among it. estimate:
    the seconds of a step by the compiler's own count, operation by operation, 0 without one. `by` says who says so. Of
    a step that finds no room the compiler names the peak alone: `fits` is false, the rest 0.
    """

    by: str
    parameters: float
    optimizer: float
    average: float
    activations: float
    operations: float = 0.0
    traffic: float = 0.0
    collectives: dict[str, Collective] = field(default_factory=dict)
    estimate: float = 0.0
    fits: bool = True

    @property
    def peak(self) -> float:
        """The bytes of a device at most."""
        return self.parameters + self.optimizer + self.average + self.activations


def compiled(setup: Setup, config: ConfigDict) -> Needs:
    """Returns the needs of a step by the compiler of the mesh's devices, which need not be there."""
    try:
        return from_program(setup, config, lower(setup, config).compile())
    except jax.errors.JaxRuntimeError as error:
        held = resident(setup)
        activations = without_room(str(error), sum(held.values()))
        if activations is None:
            raise
        return Needs(compiler(setup.grid), **held, activations=activations, fits=False)


def without_room(message: str, held: float) -> float | None:
    """Returns the bytes besides those held that a step lacks room for, by the compiler's error; None of another."""
    match = NO_ROOM.search(message)
    if not match:
        return None
    temporaries, unit, used, unit_used = match.groups()
    return float(temporaries) * UNITS[unit] if temporaries else float(used) * UNITS[unit_used] - held


def lower(setup: Setup, config: ConfigDict) -> Lowered:
    """Returns the training step of a config, lowered for the devices of its mesh."""
    state, frozen = setup.shapes
    grid, homes = setup.grid, sharding.tree_shardings(state, sharding.RULES, setup.grid)
    constants, rows, key = frozen | texts(setup), batch(setup), jax.eval_shape(lambda: jax.random.key(0))
    step = compile_step(
        setup.loss(**config.loss), setup.optimizer, config.ema_decay, config.accumulate, homes, grid, large=False
    )
    return step.lower(
        sharding.shaped(state, homes),
        sharding.shaped(constants, sharding.tree_shardings(constants, sharding.RULES, grid)),
        sharding.shaped(rows, jax.tree.map(lambda leaf: sharding.batch_sharding(grid), rows)),
        sharding.shaped(key, sharding.replicated(grid)),
    )


def from_program(setup: Setup, config: ConfigDict, program: Compiled) -> Needs:
    """Returns the needs of a compiled step.

    Operations and traffic are XLA's count for what it compiled. It counts the body of a loop once, and the parts of a
    batch (config.accumulate) are a loop, of all but the update.
    """
    held, memory, cost = resident(setup), program.memory_analysis(), program.cost_analysis()
    peak = memory.peak_memory_in_bytes + memory.generated_code_size_in_bytes
    each = max(cost["bytes accessed"] - 2 * sum(held.values()), 0.0)
    return Needs(
        compiler(setup.grid), **held, activations=peak - sum(held.values()),
        operations=cost["flops"] * config.accumulate,
        traffic=cost["bytes accessed"] + (config.accumulate - 1) * each,
        collectives=collectives(program.as_text()),
        estimate=max(cost.get("optimal_seconds", 0.0), 0.0) * config.accumulate,  # of large programs it is negative
    )  # fmt: skip


def by_shapes(setup: Setup, config: ConfigDict) -> Needs:
    """Returns the needs of a step by shapes alone.

    A device reads and writes the state once, and once what it keeps of a part of the batch. It sends its gradients
    once, and where "fsdp" divides parameters, gets the others' in both directions of a pass.
    """
    grid, held = setup.grid, resident(setup)
    peak = costs.memory(setup)(setup.samples.size, config.batch / config.accumulate)
    peak /= grid.size if sharding.platform(grid) == "cpu" else 1  # there it is that of all devices
    activations = max(peak - sum(held.values()), 0.0)
    return Needs(
        "shapes", **held, activations=activations,
        operations=rounds(setup, again=True) * forward_operations(setup, config) / grid.size,
        traffic=2 * sum(held.values()) + 2 * activations * config.accumulate,
        collectives=_sent(setup),
    )  # fmt: skip


def rounds(setup: Setup, again: bool) -> int:
    """Returns how many times a forward pass a step's operations are: forwards, and backwards to what came in.

    Where kernels are trained, backwards to them as well; with rematerialisation, counted if `again`, forwards again.
    """
    state, _ = setup.shapes
    remat = again and setup.sd.remat == "blocks" and sharding.platform(setup.grid) != "cpu"
    return 2 + ("full" in state.params) + remat


def forward_operations(setup: Setup, config: ConfigDict) -> float:
    """Returns the floating-point operations of the loss of a batch, without its gradient, on all devices together."""
    state, frozen = setup.shapes
    rows = batch(setup)
    rows["index"] = jax.ShapeDtypeStruct(rows["row"].shape, jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    traced = jax.jit(setup.loss(**config.loss)).trace(state.params, {}, frozen | texts(setup), rows, key)
    return traced.lower(lowering_platforms=("tpu",)).cost_analysis()["flops"]  # a CPU has loops, counted once


def resident(setup: Setup) -> dict[str, float]:
    """Returns the bytes of parameters, optimiser and average on each device."""
    state, frozen = setup.shapes

    def held(tree: Tree) -> float:
        homes = sharding.tree_shardings(tree, sharding.RULES, setup.grid)
        each = jax.tree.map(
            lambda leaf, home: math.prod(home.shard_shape(leaf.shape)) * leaf.dtype.itemsize, tree, homes
        )
        return float(sum(jax.tree.leaves(each)))

    return {
        "parameters": held(state.params) + held(frozen),
        "optimizer": held(state.optimizer_state),
        "average": held(state.ema),
    }


def batch(setup: Setup) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch."""
    side, rows = setup.samples.size // setup.sd.factor, setup.samples.batch
    channels = 2 * setup.sd.configs["vae"]["latent_channels"]
    kinds = {"moments": jnp.float16, "prompt": jnp.int32, "weight": jnp.float32, "row": jnp.int32}
    each = {"moments": (2, side, side, channels)}
    return {name: jax.ShapeDtypeStruct((rows, *each.get(name, ())), kind) for name, kind in kinds.items()}


def texts(setup: Setup) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of the prompts as a step takes them: contexts, or tokens where the text encoder is trained."""
    state, frozen = setup.shapes
    shape = setup.prompts.tokens.shape
    if trainable.needs_text_encoder(state.params, frozen):
        return {"tokens": jax.ShapeDtypeStruct(shape, jnp.int32)}
    width = setup.sd.configs["text_encoder"]["hidden_size"]
    return {"contexts": jax.ShapeDtypeStruct((*shape, width), jnp.float32)}


def compiler(grid: Mesh) -> str:
    """Returns what compiles for the devices of a mesh, as people call it."""
    kind = grid.devices.flat[0].device_kind
    version = f" (libtpu {metadata.version('libtpu')})" if find_spec("libtpu") and kind.startswith("TPU") else ""
    return f"the compiler for {kind}{version}"


def _sent(setup: Setup) -> dict[str, Collective]:
    """Returns the collectives of a step by shapes: gradients once, what "fsdp" divides once at least."""
    state, frozen = setup.shapes
    data, fsdp = setup.grid.shape["data"], setup.grid.shape["fsdp"]

    def size(tree: Tree, divided: bool) -> float:
        """The bytes of what is divided over devices, or of what each holds completely."""
        specs = jax.tree.leaves(sharding.tree_specs(tree, sharding.RULES, setup.grid))
        leaves = zip(jax.tree.leaves(tree), specs, strict=True)
        return float(sum(leaf.size * leaf.dtype.itemsize for leaf, spec in leaves if any(spec) == divided))

    gathered, whole = size(state.params, True), size(state.params, False)
    sent = {
        "all-reduce": around_ring("all-reduce", 1, whole, data * fsdp)
        + around_ring("all-reduce", 1, gathered / fsdp, data),
        "all-gather": around_ring("all-gather", 1, gathered + size(frozen, True), fsdp),
        "reduce-scatter": around_ring("reduce-scatter", 1, gathered, fsdp),
    }
    return {kind: each for kind, each in sent.items() if each.sent}
