"""The norms far from zero, where a variance is easily lost. Parity with PyTorch is in tests/weights."""

import jax.numpy as jnp
import numpy as np
import pytest

from dermjax.models import nnx_tree
from dermjax.models.layers import GroupNorm, layer_norm


def normal(x, axes):
    """What a norm without scale and bias gives, in float64."""
    x = x.astype(np.float64)
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)


def neutral(make, channels):
    """The norm that `make` builds, with scale one and bias zero."""
    return nnx_tree.split(make).merge({"scale": jnp.ones(channels), "bias": jnp.zeros(channels)})


@pytest.mark.parametrize("offset, tolerance", [(0, 1e-6), (100, 2e-5)])
def test_layer_norm_far_from_zero(offset, tolerance):
    x = np.random.default_rng(0).normal(offset, 1, (256, 64)).astype(np.float32)
    found = neutral(lambda: layer_norm(64, epsilon=1e-5, dtype=jnp.float32), 64)(jnp.asarray(x))
    np.testing.assert_allclose(found, normal(x, -1), rtol=0, atol=tolerance * 4)


def test_group_norm_of_a_constant_image_is_zero():
    """Rounding leaves a variance below zero here, which would be NaN."""
    x = jnp.full((1, 8, 8, 16), 0.1)
    found = neutral(lambda: GroupNorm(4, 16, epsilon=1e-6, dtype=jnp.float32), 16)(x)
    assert np.abs(found).max() < 1e-3


@pytest.mark.parametrize("offset, tolerance", [(0, 1e-6), (10, 1e-4)])
def test_group_norm_far_from_zero(offset, tolerance):
    x = np.random.default_rng(0).normal(offset, 1, (1, 32, 32, 64)).astype(np.float32)
    found = neutral(lambda: GroupNorm(8, 64, epsilon=1e-5, dtype=jnp.float32), 64)(jnp.asarray(x))
    exact = normal(x.reshape(1, 1024, 8, 8), (1, 3)).reshape(x.shape)
    np.testing.assert_allclose(found, exact, rtol=0, atol=tolerance * 4)
