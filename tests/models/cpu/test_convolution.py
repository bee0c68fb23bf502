"""The convolution and its gradients by both ways against the library's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax.models.convolution import convolution, xla_convolution
from dermjax.models.cpu import convolution as by_cpu
from dermjax.models.cpu.convolution import FEW, FEWER, NARROW, WIDE, columns, columns_gradient, kernel_gradient

SHAPES = [(2, 4, 4, 3, 40), (1, 5, 7, 8, 4), (2, 1, 1, 4, 8), (3, 2, 9, 6, 5)]  # B, h, w, C, D


def drawn(B, h, w, C, D, dtype=jnp.float32):
    """x, kernel and the gradient of the output."""
    rng = np.random.default_rng(0)
    return (jnp.asarray(rng.normal(size=shape), dtype) for shape in ((B, h, w, C), (3, 3, C, D), (B, h, w, D)))


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_the_librarys(shape):
    x, kernel, gradient = drawn(*shape)
    found, back = jax.vjp(convolution, x, kernel)
    expected, expected_back = jax.vjp(xla_convolution, x, kernel)
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())
    for ours, theirs in zip(back(gradient), expected_back(gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
    np.testing.assert_allclose(columns_gradient(kernel, gradient), expected_back(gradient)[0],
                               atol=1e-5 * np.abs(expected_back(gradient)[0]).max())  # fmt: skip


@pytest.mark.parametrize("channels", [4 * FEWER, 4 * FEWER - 1])
def test_a_small_image_of_many_channels_is_one_product_on_a_cpu(channels):
    """It is the library's convolution, whatever the batch; one channel fewer is left to the library."""
    x, kernel, _ = drawn(3, 2, 2, channels, 5)
    program = jax.jit(convolution).lower(x, kernel).as_text()
    assert ("stablehlo.convolution" not in program) == (channels == 4 * FEWER)
    expected = xla_convolution(x, kernel)
    for found in (convolution(x, kernel), columns(x, kernel)):
        np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())


def test_both_ways_are_taken_on_a_cpu():
    """Few pixels for the channels: no kernel is turned around."""

    def transposes(B, h, w, C, D):
        x, kernel, gradient = drawn(B, h, w, C, D)
        program = jax.jit(lambda k, g: jax.vjp(convolution, x, k)[1](g)[0]).lower(kernel, gradient)
        return "stablehlo.reverse" in program.as_text()

    assert not transposes(1, 4, 4, 3, 16 // FEW)
    assert transposes(1, 4, 4, 3, 16 // FEW - 1)


@pytest.mark.parametrize("fewest", [0, 512])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_kernel_s_gradient_by_products_is_the_librarys(shape, fewest, monkeypatch):
    monkeypatch.setattr(by_cpu, "FEWEST", fewest)
    x, kernel, gradient = drawn(*shape)
    expected = jax.vjp(xla_convolution, x, kernel)[1](gradient)[1]
    found = kernel_gradient(x, gradient)
    assert found.shape == kernel.shape
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("pixels", "channels", "products"),
    [((2, 2), NARROW, True), ((2, 2), NARROW - 1, False), ((99, 99), NARROW, False), ((99, 99), WIDE, True)],
)
def test_a_kernel_of_many_channels_has_its_gradient_by_products_on_a_cpu(pixels, channels, products):
    """More channels for more pixels; the fewer of both sides count."""
    shapes = ((1, *pixels, channels), (3, 3, channels, 2 * channels), (1, *pixels, 2 * channels))
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    program = jax.jit(lambda x, k, g: jax.vjp(convolution, x, k)[1](g)[1]).lower(*arrays)
    assert ("stablehlo.convolution" not in program.as_text()) == products


def test_columns_are_summed_in_float32():
    """bfloat16 gradients are as near to float32 as the library's, but for one rounding."""
    x, kernel, gradient = drawn(1, 4, 4, 16, 64, jnp.bfloat16)
    exact = jax.vjp(xla_convolution, *(a.astype(jnp.float32) for a in (x, kernel)))[1](gradient.astype(jnp.float32))[0]
    found = columns_gradient(kernel, gradient)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=2**-8, atol=1e-6 * np.abs(exact).max())
