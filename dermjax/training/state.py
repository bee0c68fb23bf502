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
    """Returns the state before the first step."""
    copy = jax.tree.map(jnp.copy, params) if ema else {}  # a copy, since the step donates both
    return State(jnp.zeros((), jnp.int32), params, variables, optimizer.init(params), copy)
