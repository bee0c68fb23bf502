"""A network and its plain tree: the only place that splits NNX modules, merges them again and draws their parameters.

Everything else holds parameters as nested dicts with string keys, whose joined path is the name that the parameter has
in other people's files (`encoder.layers.10.mlp.fc1.kernel`). A `Network` remembers the keys that NNX itself uses, so
that a tree comes back to the layers that it came from whatever the order of its keys: `nnx.merge` takes leaves in the
order of their sorted keys, and as a string "10" comes before "2", which ran every text encoder of eleven or more layers
in scrambled order.

Initial parameters are drawn by numpy: Flax's initialisers compile one program a shape, which takes thirteen seconds of
processor time for MobileNetV2 and would be a sixth of the demo's training.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

Params = dict[str, Any]


class Module(nnx.Module):
    """A module that is a node of NNX's graph and no pytree of JAX.

    Flax examines every attribute of a pytree twice as it is set, which was half of the time in which a UNet is built.
    """

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(pytree=False, **kwargs)


def unread(key: Any, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> np.ndarray:
    """An initial value that takes no memory and no time: values come from files or from `draw`."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def parameter(*shape: int) -> nnx.Param:
    """A parameter of this shape, its initial value `unread`."""
    return nnx.Param(unread(None, shape))


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """One network without its arrays: the graph of its modules, and one tree of shapes a kind of variable."""

    graph: nnx.GraphDef
    states: tuple[dict, ...]  # of jax.ShapeDtypeStruct, under NNX's keys: names, and numbers for a list's elements

    @property
    def shapes(self) -> tuple[Params, ...]:
        """The plain trees with jax.ShapeDtypeStruct leaves, one a kind of variable."""
        return tuple(plain(state) for state in self.states)

    def merge(self, *trees: Params) -> nnx.Module:
        """Returns the network with the leaves of these plain trees, one tree a kind of variable.

        Raises:
          ValueError: a tree has other keys than the network.
        """
        return nnx.merge(self.graph, *(native(*pair) for pair in zip(self.states, trees, strict=True)))


def split(make: Callable[[], nnx.Module], *kinds: type[nnx.Variable]) -> Network:
    """Returns the network that `make` builds, without allocating an array; `kinds` divide its variables into trees.

    Initial values that are not `unread` are traced, which costs a millisecond each.
    """
    networks = []

    def build() -> None:
        graph, *states = nnx.split(make(), *kinds or (nnx.Param,))
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), states)
        networks.append(Network(graph, tuple(nnx.to_pure_dict(state) for state in shapes)))

    jax.eval_shape(build)
    return networks[0]


def variables(model: nnx.Module, kind: type[nnx.Variable]) -> Params:
    """Returns the variables of one kind that a network has now, as a plain tree."""
    return plain(nnx.to_pure_dict(nnx.state(model, kind)))


def plain(state: Any) -> Params:
    """Returns nested dicts of NNX with string keys: list indices become "0", "1", …"""
    if isinstance(state, dict):
        return {str(key): plain(value) for key, value in state.items()}
    return state


def native(state: Any, tree: Any, path: str = "") -> Any:
    """Returns the leaves of a plain tree under NNX's keys, those of `state`: the inverse of `plain`.

    Raises:
      ValueError: the keys differ.
    """
    if not isinstance(state, dict):
        return tree
    keys = {str(key): key for key in state}
    if not isinstance(tree, dict) or tree.keys() != keys.keys():
        differ = sorted(keys.keys() ^ tree.keys()) if isinstance(tree, dict) else "a leaf in place of a dict"
        raise ValueError(f"{path or 'the tree'} does not fit the network: {differ}")
    return {key: native(state[key], tree[name], f"{path}.{name}".lstrip(".")) for name, key in keys.items()}


def draw(shapes: dict, config: dict, rng: np.random.Generator) -> dict:
    """Returns the float32 arrays of nested dicts of shapes, each by the rule of its leaf's name."""
    return {
        name: draw(value, config, rng)
        if isinstance(value, dict)
        else np.float32(LEAVES[name](value.shape, config, rng))
        for name, value in shapes.items()
    }


# the initial values of a leaf, float64, by its name
LEAVES = {
    # variance 1 / inputs, which keeps that of the signal (LeCun et al. 1998, Efficient BackProp)
    "kernel": lambda shape, config, rng: rng.normal(0.0, np.prod(shape[:-1]) ** -0.5, shape),
    "bias": lambda shape, config, rng: np.zeros(shape),
    "scale": lambda shape, config, rng: np.ones(shape),
    "mean": lambda shape, config, rng: np.zeros(shape),
    "var": lambda shape, config, rng: np.ones(shape),
    # 0.02 in every published ViT
    "cls_token": lambda shape, config, rng: rng.normal(0.0, config["initializer_range"], shape),
    "position_embeddings": lambda shape, config, rng: rng.normal(0.0, config["initializer_range"], shape),
    "embedding": lambda shape, config, rng: rng.normal(0.0, 0.02, shape),  # CLIP's, of tokens and of positions
    "lambda1": lambda shape, config, rng: np.full(shape, config["layerscale_value"]),
}
