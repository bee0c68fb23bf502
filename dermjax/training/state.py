"""What training carries from step to step, and what a checkpoint holds."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

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
    """Returns the state before the first step; the optimiser's part and the average are float32 over any params.

    It is made in the host's memory: one device of a mesh need not hold it whole. Its parts may share arrays.
    """
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
        average = jax.tree.map(jnp.copy, wide) if ema else {}
        return State(jnp.zeros((), jnp.int32), params, variables, optimizer.init(wide), average)
