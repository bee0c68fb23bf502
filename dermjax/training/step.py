"""One step of training: the gradient of a batch, in parts and summed over devices, and the update if it is finite.

A loss is a pure function `loss(params, variables, constants, batch, key) -> (scalar, (variables, scalars))`:
`variables` change without gradients (batch statistics), `constants` are frozen arrays that no checkpoint needs, `batch`
has the place of each example in the step's batch as `index` int32 [B], `key` is the run's key folded with the step. The
loss and its scalars are means over examples, so that a batch may be divided into parts and over devices. Its gradient
function takes the same and returns what `jax.value_and_grad` does: `((scalar, (variables, scalars)), grads)`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from dermjax import sharding
from dermjax.training import rounding
from dermjax.training.state import State

Tree = Any
Scalars = dict[str, Any]
Loss = Callable[[Tree, Tree, Tree, Tree, jax.Array], tuple[jax.Array, tuple[Tree, Scalars]]]
Gradient = Callable[[Tree, Tree, Tree, Tree, jax.Array], tuple[tuple[jax.Array, tuple[Tree, Scalars]], Tree]]

SMALL = 2**16  # numbers of an array that is sooner copied than summed by itself
# XLA asks for a step's temporaries at once, and what is over 64 MB a thread takes from the system and gives back,
# whatever `machine.keep_freed_memory` says: 188 MB and 48,000 page faults a step of derm-tiny. In pieces they are kept:
# 0.19 s a step in place of 0.24. A large model has layers that are larger than a piece and steps that hide the faults.
PIECES = {"xla_multiheap_size_constraint_per_heap": 2**25}
# A large model's step on a CPU in the order that needs least memory: a third less for eight-bit AdamW than the default
LEAST_MEMORY = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


def compile_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    accumulate: int,
    shardings: State,
    mesh: Mesh,
    large: bool,
) -> Callable[[State, Tree, Tree, jax.Array], tuple[State, Scalars]]:
    """Returns the jitted step (state, constants, batch, key) -> (state, scalars); it reuses the old state's memory.

    A loss or gradient that is not finite leaves the state as it was but for the count, and `skipped` is true.
    large: whether the model has more parameters than `sharding.LARGE`.
    """

    def step(state: State, constants: Tree, batch: Tree, key: jax.Array) -> tuple[State, Scalars]:
        key = jax.random.fold_in(key, state.step)
        gradient = gradient_function(loss, accumulate, mesh)
        (value, (variables, scalars)), grads = gradient(state.params, state.variables, constants, batch, key)
        grads = rounding.wide(grads)
        norm, count = optax.tree.norm(grads), state.step + 1

        def update(state: State, grads: Tree) -> State:
            updates, optimizer_state = optimizer.update(grads, state.optimizer_state, rounding.wide(state.params))
            params = rounding.add(state.params, updates, key)
            # a young average follows faster, so that a short run does not keep its random start
            decay = jnp.minimum(ema_decay, (1 + count) / (10 + count))
            ema = jax.tree.map(lambda old, new: old * decay + new * (1 - decay), state.ema, params) if state.ema else {}
            return State(count, params, variables, optimizer_state, ema)

        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        state = update_where(finite, update, state, grads).replace(step=count)
        return state, {"loss": value, "gradient_norm": norm, **scalars, "skipped": ~finite}

    options = (LEAST_MEMORY if large else PIECES) if sharding.platform(mesh) == "cpu" else None
    out = (shardings, sharding.replicated(mesh))
    return jax.jit(step, donate_argnums=0, out_shardings=out, compiler_options=options)


def update_where(finite: jax.Array, update: Callable[[State, Tree], State], state: State, grads: Tree) -> State:
    """Returns update(state, grads) where `finite`, else the state as it was.

    On a CPU it is a branch: XLA would compute the gradients' last operations anew in each pass of a rule that is part
    of the whole, and copy the old state before it writes the new one over it, a fifth of derm-tiny's step. A GPU's host
    would wait at a branch, so accelerators choose number by number. optax.apply_if_finite guards the optimiser alone,
    not the average and the batch statistics, and keeps counters in the checkpoint.
    """

    def branch(finite: jax.Array, state: State, grads: Tree) -> State:
        return jax.lax.cond(finite, update, lambda state, grads: state, state, grads)

    def choice(finite: jax.Array, state: State, grads: Tree) -> State:
        return jax.tree.map(lambda new, old: jnp.where(finite, new, old), update(state, grads), state)

    return jax.lax.platform_dependent(finite, state, grads, cpu=branch, default=choice)


def gradient_function(loss: Loss, accumulate: int, mesh: Mesh) -> Gradient:
    """Returns the gradient function of a loss over a batch [B, …] without `index`, taken in `accumulate` parts.

    Each device takes the gradient of its own rows, and all sum theirs once, in the types of the parameters. Left to
    itself XLA sums what the product of a layer gives: in bfloat16 where the layer computes in it, of a LoRA's kernel
    the whole in place of the adapter, and again for every part; where parameters are divided it sends activations in
    their place, the more the larger the batch. Statistics over the whole batch are left to it all the same.
    """
    gradient = jax.value_and_grad(loss, has_aux=True)
    by_device = sum_over_devices(accumulate_parts(gradient, accumulate, 1), mesh)
    by_xla = accumulate_parts(gradient, accumulate, mesh.size)

    def numbered(params: Tree, variables: Tree, constants: Tree, batch: Tree, key: jax.Array):
        batch = batch | {"index": jnp.arange(len(jax.tree.leaves(batch)[0]), dtype=jnp.int32)}
        whole = mesh.size == 1 or jax.tree.leaves(variables)
        return (by_xla if whole else by_device)(params, variables, constants, batch, key)

    return numbered


def sum_over_devices(gradient: Gradient, mesh: Mesh) -> Gradient:
    """Returns the gradient function that takes each device's rows by themselves and the mean over the devices.

    Arrays that "fsdp" divides (`sharding.RULES`) are gathered before the loss, and of their gradients each device gets
    the sum of its share: within a step a device may hold all parameters, of the optimiser's state and the average its
    share alone (ZeRO, Rajbhandari et al. 2020, arXiv 1910.02054). What is sent does not grow with the batch or the
    devices; a compiler may gather an array again rather than keep it for the way back.

    On a CPU what is small is summed as one array: the threads of the devices meet for each, 75 µs, 327 times a step of
    derm-tiny on two devices, a fifteenth of it. Accelerators join them by themselves.
    """

    def mean(tree: Tree) -> Tree:
        if sharding.platform(mesh) != "cpu":
            return jax.lax.pmean(tree, sharding.AXES)
        leaves, form = jax.tree.flatten(tree)
        small, unravel = ravel_pytree([leaf for leaf in leaves if leaf.size < SMALL])
        small, large = jax.lax.pmean((small, [leaf for leaf in leaves if leaf.size >= SMALL]), sharding.AXES)
        small, large = iter(unravel(small)), iter(large)
        return jax.tree.unflatten(form, [next(small) if leaf.size < SMALL else next(large) for leaf in leaves])

    def summed(params: Tree, variables: Tree, constants: Tree, batch: Tree, key: jax.Array):
        of_params, of_constants = (sharding.tree_specs(tree, sharding.RULES, mesh) for tree in (params, constants))

        def on_each_device(params: Tree, variables: Tree, constants: Tree, batch: Tree, key: jax.Array):
            params, constants = gather(params, of_params), gather(constants, of_constants)
            (value, (variables, scalars)), grads = gradient(params, variables, constants, batch, key)
            leaves, form = jax.tree.flatten(grads)
            axes = [divided_axis(spec) for spec in jax.tree.leaves(of_params)]
            held = [leaf for leaf, axis in zip(leaves, axes, strict=True) if axis is None]
            value, scalars, held = mean((value, scalars, held))
            held = iter(held)
            leaves = [next(held) if axis is None else mean_of_share(leaf, axis, mesh)
                      for leaf, axis in zip(leaves, axes, strict=True)]  # fmt: skip
            return (value, (variables, scalars)), jax.tree.unflatten(form, leaves)

        return jax.shard_map(
            on_each_device, mesh=mesh, in_specs=(of_params, P(), of_constants, P(sharding.AXES), P()),
            out_specs=((P(), (P(), P())), of_params), check_vma=False,
        )(params, variables, constants, batch, key)  # fmt: skip

    return summed


def gather(tree: Tree, specs: Tree) -> Tree:
    """Returns the whole of arrays of which a device of a `shard_map` holds shares along "fsdp"."""

    def whole(leaf: jax.Array, spec: P) -> jax.Array:
        axis = divided_axis(spec)
        return leaf if axis is None else jax.lax.all_gather(leaf, "fsdp", axis=axis, tiled=True)

    return jax.tree.map(whole, tree, specs)


def mean_of_share(leaf: jax.Array, axis: int, mesh: Mesh) -> jax.Array:
    """Returns this device's share along an axis of the mean of arrays over all devices of a `shard_map`.

    The shares have an axis of their own, the first: the TPU compiler does not know how to scatter rows of a matrix.
    """
    shares = jnp.stack(jnp.split(leaf, mesh.shape["fsdp"], axis))
    return jax.lax.psum(jax.lax.psum_scatter(shares, "fsdp"), "data") / mesh.size


def divided_axis(spec: P) -> int | None:
    """Returns the axis of an array that "fsdp" divides, None where each device holds all of it."""
    return next((axis for axis, name in enumerate(spec) if name == "fsdp"), None)


def accumulate_parts(gradient: Gradient, accumulate: int, devices: int) -> Gradient:
    """Returns the gradient function that takes a batch part by part, whose rows lie on so many devices.

    A part has the same rows on every device, so nothing moves between devices.
    """

    def accumulated(params: Tree, variables: Tree, constants: Tree, batch: Tree, key: jax.Array):
        if accumulate == 1:
            return gradient(params, variables, constants, batch, key)

        def divide(rows: jax.Array) -> jax.Array:
            return rearrange(rows, "(device part b) ... -> part (device b) ...", device=devices, part=accumulate)

        def add(carry, part):
            variables, total = carry
            (value, (variables, scalars)), grads = gradient(params, variables, constants, part, key)
            return (variables, jax.tree.map(jnp.add, total, grads)), (value, scalars)

        zero = (variables, rounding.wide(jax.tree.map(jnp.zeros_like, params)))
        (variables, total), each = jax.lax.scan(add, zero, jax.tree.map(divide, batch))
        value, scalars = jax.tree.map(lambda column: column.mean(0), each)
        return (value, (variables, scalars)), jax.tree.map(lambda leaf: leaf / accumulate, total)

    return accumulated
