"""What is trained and what is frozen: gradients, the optimiser's state and the clipping norm know the former only."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax.models.stable_diffusion import count
from dermjax.training import optimizers
from dermjax.training.state import create
from dermjax.tuning import trainable
from dermjax.weights import lora
from dermjax.weights.torch_layout import flatten

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
    assert {leaf.dtype for leaf in jax.tree.leaves(rest)} == {jnp.dtype(arithmetic)}
    assert {leaf.dtype for leaf in jax.tree.leaves(tree["lora"])} == {jnp.dtype("float32")}


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
