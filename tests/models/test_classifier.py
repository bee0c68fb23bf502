"""The classifier bundle: where parameters begin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax.models.classifier import ARCHITECTURES, describe, fresh

LABELS = ("a", "b", "c")
SMALL = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "depth_multiplier": 0.35}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_network_begins_from_its_seed_and_nothing_else(kind):
    classifier = fresh(describe(kind, SMALL, LABELS, 32), jnp.float32)
    first, again, other = (classifier.init(seed) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), first)
    assert shapes == classifier.shapes
    assert classifier.labels == LABELS and first[0]["classifier"]["kernel"].shape[-1] == 3
    assert not np.array_equal(first[0]["classifier"]["kernel"], other[0]["classifier"]["kernel"])


def test_a_kernel_keeps_the_variance_of_its_input():
    params, _ = fresh(describe("vit", SMALL, LABELS, 32), jnp.float32).init(0)
    kernel = params["vit"]["encoder"]["layer"]["0"]["intermediate"]["dense"]["kernel"]
    np.testing.assert_allclose((np.random.default_rng(0).normal(size=(64, 32)) @ kernel).std(), 1, rtol=0.03)
