"""Batch normalisation with ReLU6 behind it against PyTorch's: values, all three gradients, running statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dermjax.models.batch_norm import BatchNorm

SHAPE = (4, 5, 6, 7)


def module(activate: bool, dtype, scale, bias) -> BatchNorm:
    norm = BatchNorm(SHAPE[-1], momentum=0.9, epsilon=1e-3, activate=activate, dtype=dtype)
    norm.scale[...], norm.bias[...] = jnp.asarray(scale), jnp.asarray(bias)
    return norm


@pytest.mark.parametrize("activate", [True, False])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_it_is_pytorch_s(activate, offset):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, weight = (np.float32(rng.normal(size=SHAPE)) for _ in range(2))
    x += np.float32(offset)
    scale, bias = (np.float32(3 + rng.normal(size=SHAPE[-1])) for _ in range(2))
    theirs = torch.nn.BatchNorm2d(SHAPE[-1], eps=1e-3, momentum=0.1).train()
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(scale))
        theirs.bias.copy_(torch.tensor(bias))
    given = torch.tensor(x, requires_grad=True)
    expected = theirs(given.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    expected = torch.nn.functional.relu6(expected) if activate else expected
    (expected * torch.tensor(weight)).sum().backward()
    graph, params, rest = nnx.split(module(activate, jnp.float32, scale, bias), nnx.Param, ...)

    def total(params, x):
        norm = nnx.merge(graph, params, rest, copy=True)
        y = norm(x, train=True)
        return (y * weight).sum(), (y, norm.mean[...])

    (by_params, by_x), (y, mean) = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(params, x)
    clipped = ((np.asarray(y) == 0) | (np.asarray(y) == 6)).mean()
    assert 0.1 < clipped < 0.9 if activate else clipped == 0
    np.testing.assert_allclose(y, expected.detach(), atol=2e-4)
    np.testing.assert_allclose(by_x, given.grad, atol=2e-4)
    np.testing.assert_allclose(by_params["scale"][...], theirs.weight.grad, atol=2e-3)
    np.testing.assert_allclose(by_params["bias"][...], theirs.bias.grad, atol=1e-4)
    np.testing.assert_allclose(mean, theirs.running_mean, atol=1e-5)


def test_bfloat16_comes_out_as_it_went_in_and_is_near_float32():
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=SHAPE), jnp.bfloat16)
    ones = np.ones(SHAPE[-1], np.float32)

    def gradient(x, dtype):
        y, back = jax.vjp(lambda x: module(True, dtype, ones, ones)(x, train=True), x)
        return y, back(jnp.sin(y))[0]

    half, whole = gradient(x, jnp.bfloat16), gradient(x.astype(jnp.float32), jnp.float32)
    for ours, exact in zip(half, whole, strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(ours.astype(jnp.float32), exact, atol=2e-2)
