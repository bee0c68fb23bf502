"""What training carries from step to step, and what a checkpoint holds."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from dermjax import sharding

Tree = Any


@flax.struct.dataclass
class State:
    """One training run between two steps.

    step: int32 scalar, updates done. params: what takes gradients. variables: what changes without them (batch
    statistics), or {}. optimizer_state: optax's. ema: an exponential moving average of params, or {}.
    """

    step: jax.Array
    params: Tree
    variables: Tree
    optimizer_state: Tree
    ema: Tree

    @property
    def smooth(self) -> Tree:
        """The parameters to use after training: the average where there is one."""
        return self.ema or self.params


def create(params: Tree, variables: Tree, optimizer: optax.GradientTransformation, *, ema: bool) -> State:
    """Returns the state before the first step; the optimiser's state and the average are float32 over any params.

    It is made in the host's memory. Its trees may share arrays.
    """
    with sharding.in_host_memory():
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
        average = jax.tree.map(jnp.copy, wide) if ema else {}
        return State(jnp.zeros((), jnp.int32), params, variables, optimizer.init(wide), average)


def place(state: State, shardings: State) -> State:
    """Returns the state on its devices, every array in memory of its own.

    A step takes the old state's memory for the new one, each piece once. Arrays that are the same, as zeros of an
    optimiser or the parameters that it remembers, and arrays that lie where they belong already are not copied by
    `device_put`.
    """
    taken: set[int] = set()

    def pointers(leaf: jax.Array) -> set[int]:
        return {shard.data.unsafe_buffer_pointer() for shard in leaf.addressable_shards if shard.data.size}

    def separate(leaf: jax.Array, home: jax.sharding.NamedSharding) -> jax.Array:
        leaf = sharding.put(leaf, home)
        leaf = leaf.copy() if pointers(leaf) & taken else leaf
        taken.update(pointers(leaf))
        return leaf

    return jax.tree.map(separate, state, shardings)
