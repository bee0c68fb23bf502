"""What is trained and what is frozen: gradients, the optimiser's state and the clipping norm know the former only."""

import runpy
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax import sharding
from dermjax.models.stable_diffusion import SD15, StableDiffusion, count
from dermjax.training import optimizers
from dermjax.training.state import create
from dermjax.tuning import costs, needs, trainable
from dermjax.tuning.setup import Setup, shaped_setup
from dermjax.weights import lora
from dermjax.weights.torch_layout import flatten

CONFIG = Path(__file__).parents[2] / "configs" / "tune.py"
NOTHING = {"rank": 2, "targets": ("attention",), "seed": 0, "words": 0, "precision": "float32"}


def divided(params, unet, text_encoder, **changes):
    return trainable.divide(params, {"unet": unet, "text_encoder": text_encoder}, **NOTHING | changes)


@pytest.mark.parametrize(
    "unet, text_encoder, trained, frozen",
    [
        ("full", "frozen", {"full.unet"}, set()),
        ("full", "full", {"full.unet", "full.text_encoder"}, set()),
        ("lora", "frozen", {"lora.unet"}, {"unet"}),
        ("lora", "lora", {"lora.unet", "lora.text_encoder"}, {"unet", "text_encoder"}),
        ("full", "lora", {"full.unet", "lora.text_encoder"}, {"text_encoder"}),
        ("frozen", "full", {"full.text_encoder"}, {"unet"}),
    ],
)
def test_a_model_is_divided_as_asked(small_model, unet, text_encoder, trained, frozen):
    _, params, _ = small_model
    tree, rest = divided(params, unet, text_encoder)
    assert {f"{how}.{network}" for how, part in tree.items() for network in part} == trained
    assert set(rest["networks"]) == frozen
    assert trainable.needs_text_encoder(tree, rest) == (text_encoder != "frozen")
    whole = trainable.assemble(tree, rest, 2.0)
    for network in {"unet", "text_encoder"} & set(whole):  # fresh adapters change nothing
        jax.tree.map(np.testing.assert_array_equal, whole[network], params[network])
    optimizer = optimizers.build("adamw", rate=1.0, warmup=0, steps=1, schedule="constant", weight_decay=0.0, clip=1.0)
    state = create(tree, {}, optimizer, ema=True)
    assert count(state.ema) == count(tree) and count(state.optimizer_state) == 2 * count(tree) + 2


def test_a_model_is_divided_in_the_host_s_memory():
    """Else the first accelerator would hold all parameters beside its share of them, for as long as it trains."""
    work = Setup(*[None] * 4, "params", None, None, lambda params: (params, jax.config.jax_default_device), None, None,
                 False)  # fmt: skip
    assert work.divided() == ("params", jax.devices("cpu")[0])


def test_new_words_are_the_last_rows_of_the_table_and_the_rest_is_still(small_model):
    _, params, _ = small_model
    tree, rest = divided(params, "frozen", "frozen", words=2)
    assert set(tree) == {"words"} and set(rest["networks"]) == {"unet", "text_encoder"}
    moved = tree | {"words": tree["words"] + 1}
    before, after = (np.asarray(trainable.token_table(trainable.assemble(each, rest, 1.0))) for each in (tree, moved))
    np.testing.assert_array_equal(before[:-2], after[:-2])
    np.testing.assert_allclose(after[-2:], before[-2:] + 1)


@pytest.mark.parametrize("precision", trainable.PRECISIONS)
def test_precisions_are_of_what_is_trained_and_of_what_is_frozen(small_model, precision):
    _, params, _ = small_model
    tree, rest = divided(params, "full", "lora", precision=precision)
    kept, arithmetic = trainable.PRECISIONS[precision]
    assert {leaf.dtype for leaf in jax.tree.leaves(tree["full"])} == {jnp.dtype(kept)}
    adapted = {f"{module}.kernel" for module in lora.Lora(tree["lora"], {}).ranks}
    types = {path: leaf.dtype for path, leaf in flatten(rest["networks"]).items()}
    assert types == {path: jnp.dtype(jnp.float32 if path in adapted else arithmetic) for path in types}
    assert adapted < types.keys()
    assert {leaf.dtype for leaf in jax.tree.leaves(tree["lora"])} == {jnp.dtype("float32")}


def test_a_small_change_arrives_in_a_layer_that_rounds_to_bfloat16():
    """A change of 0.05 % of the kernel, less than half a step of most of its numbers, arrives whole in the mean.

    A number off the grid is rounded to the next step of size u with probability |d| / u, so that the slope of what
    arrives over the change d is 1, with a variance of sum d^2 |d| u / (sum d^2)^2 at most. On the grid most of it is
    lost, whatever its size.
    """
    rng, size, rank = np.random.default_rng(0), 512, 4
    kernel = rng.normal(size=(size, size)).astype(np.float32)
    params = {"unet": {"attn1": {"to_q": {"kernel": kernel}}}, "text_encoder": {}}
    tree, rest = divided(params, "lora", "frozen", rank=rank, precision="bfloat16")
    down = np.asarray(tree["lora"]["unet"]["attn1"]["to_q"]["down"])
    up = rng.normal(size=(rank, size)).astype(np.float32)
    up *= np.float32(5e-4 / (down @ up).std())
    tree["lora"]["unet"]["attn1"]["to_q"]["up"] = jnp.asarray(up)
    change = (down @ up).astype(np.float64)

    def rounded(array):
        return np.asarray(jnp.asarray(array, jnp.bfloat16), np.float64)

    def slope(before, after):
        return ((rounded(after) - rounded(before)) * change).sum() / (change**2).sum()

    whole = trainable.assemble(tree, rest, float(rank))["unet"]["attn1"]["to_q"]["kernel"]
    step = 2.0 ** (np.floor(np.log2(np.abs(kernel))) - 7)
    error = np.sqrt((np.abs(change) ** 3 * step).sum()) / (change**2).sum()
    assert error < 0.02 and abs(slope(kernel, whole) - 1) < 4 * error
    assert slope(kernel, rounded(kernel) + change) < 0.5


def test_kernels_with_adapters_are_counted_as_they_are_kept():
    """Two bytes a number of SD 1.5's UNet in bfloat16, and two more of its attention."""
    config = runpy.run_path(str(CONFIG))["get_config"]("paper")
    config.precision = "bfloat16"
    setup = shaped_setup(config, StableDiffusion(SD15, Path(), jnp.bfloat16), sharding.mesh(1, 1))
    state, frozen = setup.shapes
    kernels = costs.adapted_kernels(state.params["lora"])
    assert kernels == pytest.approx(94e6, rel=0.01)
    assert needs.resident(setup)["parameters"] == 2 * (count(frozen) + kernels) + 4 * count(state.params)


def test_the_text_encoder_may_learn_more_slowly(small_model):
    """The rate's share for it, as `tune` builds its optimiser."""
    _, params, _ = small_model
    tree, _ = divided(params, "lora", "lora")
    optimizer = optimizers.build("adamw", rate=1.0, warmup=0, steps=1, schedule="constant", weight_decay=0.0, clip=0.0,
                                 slower={r"text_encoder|^words": 0.25})  # fmt: skip
    ones = jax.tree.map(jnp.ones_like, tree)
    updates, _ = optimizer.update(ones, optimizer.init(tree), tree)
    steps = {path: float(jnp.abs(leaf).max()) for path, leaf in flatten(updates).items()}
    expected = {path: 0.25 if "text_encoder" in path else 1.0 for path in steps}
    assert steps == pytest.approx(expected, rel=1e-4) and len(set(expected.values())) == 2


def test_the_clipping_norm_is_of_what_is_trained(small_model):
    """A loss that pulls at the frozen parameters too: their slopes are in no gradient."""
    _, params, _ = small_model
    tree, rest = divided(params, "lora", "frozen")

    def loss(trained):
        whole = trainable.assemble(trained, rest, 2.0)
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(whole["unet"]))

    gradient = jax.grad(loss)(tree)
    assert jax.tree.structure(gradient) == jax.tree.structure(tree)
    assert set(flatten(gradient["lora"])) == set(flatten(lora.init({"unet": params["unet"]}, 2, 0)))
    assert partial(trainable.assemble, alpha=2.0)(tree, rest).keys() == {"unet"}
