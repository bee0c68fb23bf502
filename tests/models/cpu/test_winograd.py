"""Winograd's form of the convolution against the library's, in bands and whole, and inside networks that sample."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dermjax.models import layers
from dermjax.models.convolution import repeated_convolution, xla_convolution
from dermjax.models.cpu import winograd


def drawn(B, h, w, C, D, dtype=jnp.float32):
    """x and a kernel whose output has the variance of x."""
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(B, h, w, C)), rng.normal(size=(3, 3, C, D)) / (9 * C) ** 0.5
    return jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)


@pytest.mark.parametrize("shape", [(2, 4, 6, 3, 5), (1, 2, 2, 1, 1), (2, 32, 16, 128, 192), (1, 36, 64, 256, 128)])
def test_it_is_the_convolution(shape):
    x, kernel = drawn(*shape)
    expected = xla_convolution(x, kernel)
    found = jax.jit(winograd.winograd)(x, winograd.transform(kernel))
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())


def test_a_large_image_is_taken_in_bands():
    """So that a transform is never larger than the cache."""
    x, kernel = drawn(1, 36, 64, 256, 128)
    program = str(jax.make_jaxpr(winograd.winograd)(x, winograd.transform(kernel)))
    assert "while" in program or "scan" in program
    assert x.size * 4 > winograd.BAND


@pytest.mark.parametrize(("shape", "dtype", "taken"), [
    ((1, 32, 32, 256, 256), jnp.float32, True),
    ((1, 32, 32, 256, 256), jnp.bfloat16, False),  # its sums and differences would lose bits
    ((1, 33, 32, 256, 256), jnp.float32, False),
    ((1, 32, 32, 128, 256), jnp.float32, False),
    ((1, 16, 16, 256, 256), jnp.float32, False),
    ((1, 8, 8, 512, 512), jnp.float32, False),  # columns are faster
])  # fmt: skip
def test_where_it_is_taken(shape, dtype, taken):
    x, kernel = drawn(*shape, dtype)
    transformed = winograd.transform(kernel)
    program = jax.jit(repeated_convolution).lower(x, kernel, transformed).as_text()
    assert ("tensor<16x" in program.split("return")[0] and "dot_general" in program and "batching" in program) == taken
    expected = xla_convolution(x, kernel).astype(jnp.float32)
    tolerance = (2e-6 if dtype == jnp.float32 else 2**-7) * np.abs(expected).max()
    np.testing.assert_allclose(
        repeated_convolution(x, kernel, transformed).astype(jnp.float32), expected, atol=tolerance
    )


def test_a_network_makes_its_kernels_ready_once():
    """The transform stands before the loop of a sampler, and what comes out is the same."""
    convolution = layers.conv(256, 256, 3, padding=1, dtype=jnp.float32)
    x, convolution.kernel[...] = drawn(1, 32, 32, 256, 256)
    expected = x
    for _ in range(3):
        expected = convolution(expected)

    def steps(x):
        network = layers.transform_kernels(nnx.clone(convolution))
        return jax.lax.fori_loop(0, 3, lambda _, x: network(x), x)

    np.testing.assert_allclose(jax.jit(steps)(x), expected, atol=1e-5 * np.abs(expected).max())
    outside = jax.make_jaxpr(steps)(x).jaxpr.eqns
    (loop,) = (equation for equation in outside if equation.primitive.name in ("while", "scan"))
    assert "div" in {equation.primitive.name for equation in outside}
    assert " div " not in str(loop.params)
