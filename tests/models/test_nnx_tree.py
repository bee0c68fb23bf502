"""Networks and their plain trees: what was split comes back to the layer that it came from, at any depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from dermjax.models import nnx_tree
from dermjax.models.classifier import ARCHITECTURES, describe, fresh
from dermjax.models.stable_diffusion import NETWORKS, SD15, SD21, StableDiffusion

LENGTHS = st.lists(st.integers(0, 130), min_size=1, max_size=3)


class Layer(nnx.Module):
    """One number that says which layer it is."""

    def __init__(self, number: int):
        self.scale = nnx.Param(jnp.float32(number))


class Tower(nnx.Module):
    """Lists of layers, some of them within the elements of another list, and a dict whose keys look like numbers."""

    def __init__(self, lengths: list[int]):
        self.towers = nnx.List([Layer(-1), *(nnx.List([Layer(i) for i in range(length)]) for length in lengths)])
        self.named = nnx.Dict({str(i): Layer(i) for i in (10, 2, 1)})


def numbers(model: Tower) -> list[list[int]]:
    """What each list of the network holds, in the network's own order."""
    return [[int(layer.scale[...]) for layer in tower] for tower in list(model.towers)[1:]]


@settings(deadline=None, max_examples=25)
@given(LENGTHS)
def test_merging_what_was_split_is_the_identity(lengths):
    model = Tower(lengths)
    network = nnx_tree.split(lambda: Tower(lengths))
    tree = nnx_tree.variables(model, nnx.Param)
    for number, length in enumerate(lengths, 1):
        tower = tree["towers"].get(str(number), {})
        assert {name: int(layer["scale"]) for name, layer in tower.items()} == {str(i): i for i in range(length)}
    shuffled = jax.tree.map(lambda leaf: leaf, tree)  # jax.tree sorts keys as strings: "10" before "2"
    for back in (network.merge(tree), network.merge(shuffled)):
        assert numbers(back) == [list(range(length)) for length in lengths]
        assert {name: int(back.named[name].scale[...]) for name in back.named} == {"10": 10, "2": 2, "1": 1}
        jax.tree.map(np.testing.assert_array_equal, nnx_tree.variables(back, nnx.Param), tree)
    assert jax.tree.map(jnp.shape, tree) == jax.tree.map(lambda leaf: leaf.shape, network.shapes[0])


@pytest.mark.parametrize("name", ["SD15", "SD21", *ARCHITECTURES])
def test_every_leaf_of_a_real_network_comes_back_to_its_place(name):
    """Real depths, each leaf filled with its own number: no leaf moves within any list of any network."""
    if name in ARCHITECTURES:
        networks = [fresh(describe(name, {"num_hidden_layers": 24}, ("a", "b"), 224), jnp.float32).network]
    else:
        model = StableDiffusion({"SD15": SD15, "SD21": SD21}[name], "", jnp.float32)
        networks = list(model.networks.values())
    for network in networks:
        trees, count = [], 0
        for shapes in network.shapes:
            leaves, structure = jax.tree.flatten(shapes)
            trees.append(jax.tree.unflatten(structure, range(count, count + len(leaves))))
            count += len(leaves)
        model = network.merge(*trees)
        kinds = (nnx.Param, nnx.BatchStat)[: len(trees)]
        assert [nnx_tree.variables(model, kind) for kind in kinds] == trees


@pytest.mark.parametrize("name", NETWORKS)
def test_building_a_network_of_real_size_computes_nothing(name):
    """No initial value takes memory, and JAX does not look into the modules."""
    network = NETWORKS[name](SD15[name], dtype=jnp.float32)
    values = jax.tree.leaves(nnx.to_pure_dict(nnx.state(network)))
    assert len(values) > 100 and all(isinstance(value, np.ndarray) and not any(value.strides) for value in values)
    ours = [module for _, module in nnx.iter_modules(network) if type(module).__module__.startswith("dermjax")]
    assert len(ours) > 50 and all(jax.tree.leaves(module)[0] is module for module in ours)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda tree: tree["towers"]["1"].pop("3"), r"towers\.1 does not fit the network: \['3'\]"),
        (lambda tree: tree["towers"].update({"7": {}}), r"towers does not fit the network: \['7'\]"),
        (lambda tree: tree.update(named=jnp.zeros(3)), r"named does not fit the network"),
    ],
)
def test_a_tree_with_other_keys_is_refused(change, named):
    tree = nnx_tree.variables(Tower([12]), nnx.Param)
    change(tree)
    with pytest.raises(ValueError, match=named):
        nnx_tree.split(lambda: Tower([12])).merge(tree)
