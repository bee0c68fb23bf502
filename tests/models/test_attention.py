"""Attention as a CPU computes it against JAX's own: values and all three gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax.models.attention import attention, by_cudnn, in_order


def given(dtype, size: float):
    rng = np.random.default_rng(0)
    shapes = ((2, 7, 3, 8), (2, 5, 3, 8), (2, 5, 3, 8), (2, 7, 3, 8))
    return [jnp.asarray(size * rng.normal(size=shape), dtype) for shape in shapes]


def value_and_gradients(attend, q, k, v, weight):
    y, back = jax.vjp(attend, q, k, v)
    return y, *back(weight)


@pytest.mark.parametrize("size", [1.0, 30.0])
def test_it_is_jax_s(size):
    """At a size of 30, scores reach thousands."""
    arrays = given(jnp.float32, size)
    expected = value_and_gradients(jax.nn.dot_product_attention, *arrays)
    for way in (in_order, attention):
        for ours, theirs in zip(jax.jit(value_and_gradients, static_argnums=0)(way, *arrays), expected, strict=True):
            assert np.isfinite(ours).all()
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())


def test_bfloat16_is_as_near_to_float32_as_jax_s():
    arrays = given(jnp.bfloat16, 1.0)
    exact = value_and_gradients(jax.nn.dot_product_attention, *(a.astype(jnp.float32) for a in arrays))
    ours, theirs = (value_and_gradients(way, *arrays) for way in (in_order, jax.nn.dot_product_attention))
    for mine, other, true in zip(ours, theirs, exact, strict=True):
        assert mine.dtype == jnp.bfloat16
        errors = [float(jnp.linalg.norm(a.astype(jnp.float32) - true)) for a in (mine, other)]
        assert errors[0] < 1.2 * errors[1]


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
@pytest.mark.parametrize(("queries", "keys", "width"), [(256, 256, 40), (256, 78, 80), (64, 64, 64)])
def test_cudnn_is_as_near_to_float32_as_jax_s(queries, keys, width):
    """In Stable Diffusion's shapes; the 77 words of a prompt are odd, and not cuDNN's."""
    rng = np.random.default_rng(0)
    shapes = ((2, queries, 8, width), (2, keys, 8, width), (2, keys, 8, width), (2, queries, 8, width))
    arrays = [jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in shapes]
    assert by_cudnn(*arrays[:2]) and not by_cudnn(arrays[0], arrays[1][:, 1:])
    assert not by_cudnn(*(array.astype(jnp.float32) for array in arrays[:2]))
    with jax.default_matmul_precision("highest"):
        exact = value_and_gradients(jax.nn.dot_product_attention, *(a.astype(jnp.float32) for a in arrays))
    ours, theirs = (
        jax.jit(value_and_gradients, static_argnums=0)(way, *arrays)
        for way in (attention, jax.nn.dot_product_attention)
    )
    for mine, other, true in zip(ours, theirs, exact, strict=True):
        assert mine.dtype == jnp.bfloat16
        errors = [float(jnp.linalg.norm(a.astype(jnp.float32) - true)) for a in (mine, other)]
        print(f"{errors[0]:.4f} {errors[1]:.4f} of {float(jnp.linalg.norm(true)):.1f}")
        assert errors[0] < 1.2 * errors[1]
