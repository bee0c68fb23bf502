"""The gradient of a batch: taken part by part, and summed over devices.

`gradient(params, variables, constants, batch, key) -> ((loss, (variables, scalars)), grads)` is `jax.value_and_grad` of
a loss of `training/loop.py`, a mean over the examples of the batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from dermjax import sharding
from dermjax.training import precision

Tree = Any
Gradient = Callable[[Tree, Tree, Tree, Tree, jax.Array], tuple[tuple[jax.Array, tuple[Tree, Tree]], Tree]]

SMALL = 2**16  # numbers of an array that is sooner copied than summed by itself


def of(loss: Callable, accumulate: int, mesh: Mesh) -> Gradient:
    """Returns the gradient function of a loss over a batch [B, …] without `index`, taken in `accumulate` parts."""
    gradient = jax.value_and_grad(loss, has_aux=True)
    if sharding.platform(mesh) == "cpu":
        gradient = joined(gradient, mesh)
    return summed(gradient, accumulate, mesh)


def joined(gradient: Gradient, mesh: Mesh) -> Gradient:
    """Returns the gradient function that sums what is small over the devices as one array.

    Left to itself XLA sums array by array, and on a CPU the threads of the devices meet for each: 75 µs, 327 times a
    step of derm-tiny on two devices, a fifteenth of it. Accelerators join them by themselves. Parameters that are
    divided over devices, and statistics that are taken over the whole batch, are left to XLA as well.
    """

    def local(params: Tree, variables: Tree, constants: Tree, batch: Tree, key: jax.Array):
        (value, (variables, scalars)), grads = gradient(params, variables, constants, batch, key)
        leaves, form = jax.tree.flatten((value, scalars, grads))
        small, restored = ravel_pytree([leaf for leaf in leaves if leaf.size < SMALL])
        small, large = jax.lax.pmean((small, [leaf for leaf in leaves if leaf.size >= SMALL]), sharding.AXES)
        small, large = iter(restored(small)), iter(large)
        means = [next(small) if leaf.size < SMALL else next(large) for leaf in leaves]
        value, scalars, grads = jax.tree.unflatten(form, means)
        return (value, (variables, scalars)), grads

    def whole(params: Tree, variables: Tree, constants: Tree, batch: Tree, key: jax.Array):
        if mesh.size == 1 or mesh.shape["fsdp"] > 1 or jax.tree.leaves(variables):
            return gradient(params, variables, constants, batch, key)
        return everywhere(params, variables, constants, batch, key)

    places = (P(), P(), P(), P(sharding.AXES), P())
    everywhere = jax.shard_map(local, mesh=mesh, in_specs=places, out_specs=P(), check_vma=False)
    return whole


def summed(gradient: Gradient, accumulate: int, mesh: Mesh) -> Gradient:
    """Returns the gradient function over a whole batch that asks `gradient` for it part by part.

    A part has the same rows on every device, so nothing moves between devices.
    """

    def numbered(batch: Tree) -> Tree:
        return batch | {"index": jnp.arange(len(jax.tree.leaves(batch)[0]), dtype=jnp.int32)}

    def whole(params: Tree, variables: Tree, constants: Tree, batch: Tree, key: jax.Array):
        return gradient(params, variables, constants, numbered(batch), key)

    def parts(params: Tree, variables: Tree, constants: Tree, batch: Tree, key: jax.Array):
        def divided(rows: jax.Array) -> jax.Array:
            return rearrange(rows, "(device part b) ... -> part (device b) ...", device=mesh.size, part=accumulate)

        def add(carry, part):
            variables, total = carry
            (value, (variables, scalars)), grads = gradient(params, variables, constants, part, key)
            return (variables, jax.tree.map(jnp.add, total, grads)), (value, scalars)

        start = (variables, precision.wide(jax.tree.map(jnp.zeros_like, params)))
        (variables, total), told = jax.lax.scan(add, start, jax.tree.map(divided, numbered(batch)))
        value, scalars = jax.tree.map(lambda column: column.mean(0), told)
        return (value, (variables, scalars)), jax.tree.map(lambda leaf: leaf / accumulate, total)

    return whole if accumulate == 1 else parts
