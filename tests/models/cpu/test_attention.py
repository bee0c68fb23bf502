"""Attention as a CPU computes it against JAX's own: values and all three gradients."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as jax_s

from dermjax.models.attention import accelerated, attention, by_cudnn, capability
from dermjax.models.cpu import attention as by_cpu


def given(dtype, size: float, queries: int = 7, heads: int = 3):
    rng = np.random.default_rng(0)
    shapes = ((2, queries, heads, 8), (2, 5, heads, 8), (2, 5, heads, 8), (2, queries, heads, 8))
    return [jnp.asarray(size * rng.normal(size=shape), dtype) for shape in shapes]


def value_and_gradients(attend, q, k, v, weight):
    y, back = jax.vjp(attend, q, k, v)
    return y, *back(weight)


@pytest.fixture(params=["whole", "blocks"])
def way(request, monkeypatch):
    """Both ways, whatever the number of weights; in blocks of two queries."""
    jax.clear_caches()
    monkeypatch.setattr(by_cpu, "BLOCK", 2)
    monkeypatch.setattr(by_cpu, "LEAST", 2)
    for limit in ("MANY", "HUGE"):
        monkeypatch.setattr(by_cpu, limit, 0 if request.param == "blocks" else 1 << 60)
    yield request.param
    jax.clear_caches()


@pytest.mark.parametrize("heads", [3, 4])
def test_it_is_jax_s(way, heads):
    arrays = given(jnp.float32, 1.0, queries=6, heads=heads)
    assert by_cpu.in_blocks(6, 5, 8, by_cpu.MANY) == (way == "blocks")
    expected = value_and_gradients(jax.nn.dot_product_attention, *arrays)
    ours = jax.jit(value_and_gradients, static_argnums=0)(attention, *arrays)
    for mine, other in zip((*ours, jax.jit(attention)(*arrays[:3])), (*expected, expected[0]), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())


def test_scores_in_thousands_are_as_near_to_float64_as_jax_s(way):
    """Where float32 has rounded the scores themselves by some 1e-4."""
    arrays = given(jnp.float32, 30.0, queries=6, heads=4)
    with jax.enable_x64():
        exact = value_and_gradients(jax.nn.dot_product_attention, *(np.asarray(a, np.float64) for a in arrays))
        assert exact[0].dtype == np.float64
    ours, theirs = (value_and_gradients(call, *arrays) for call in (attention, jax.nn.dot_product_attention))
    for mine, other, true in zip(ours, theirs, map(np.asarray, exact), strict=True):
        errors = [np.linalg.norm(np.asarray(each, np.float64) - true) for each in (mine, other)]
        assert errors[0] < 1.5 * errors[1] + 1e-6 * np.linalg.norm(true)


@pytest.mark.parametrize(("queries", "width", "divided"), [(4096, 40, True), (4095, 40, False), (4096, 512, False)])
def test_blocks_are_for_many_weights_of_narrow_heads_in_even_parts(queries, width, divided):
    assert by_cpu.in_blocks(queries, queries, width, by_cpu.HUGE) == divided
    assert not by_cpu.in_blocks(queries, 77, width, by_cpu.MANY)
    kept = by_cpu.weights_held(queries, 8, width, gradient=True)
    assert kept == (0 if divided else 8 * queries**2)
    assert by_cpu.weights_held(queries, 8, width, gradient=False) == (2 * 256 * queries if divided else kept)


def test_neither_a_value_nor_a_gradient_of_64_x_64_latents_holds_all_weights():
    """8 heads of 4,096 x 4,096 numbers are 537 MB."""
    q = jax.ShapeDtypeStruct((1, 4096, 8, 40), jnp.float32)
    for work, arrays in ((attention, (q, q, q)), (value_and_gradients, (attention, q, q, q, q))):
        compiled = jax.jit(work, static_argnums=0 if len(arrays) == 5 else ()).lower(*arrays).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < 100e6


TWO_DEVICES = """
import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from dermjax.models.attention import attention

rows = NamedSharding(jax.make_mesh((2,), ("data",), (AxisType.Auto,)), PartitionSpec("data"))
q = jax.ShapeDtypeStruct((4, 4096, 8, 40), "float32", sharding=rows)
both = lambda q, k, v, weight: (lambda y, back: (y, *back(weight)))(*jax.vjp(attention, q, k, v))
for work, arrays in ((attention, 3), (both, 4)):
    print(jax.jit(work, out_shardings=rows).lower(*[q] * arrays).compile().as_text())
"""


def test_devices_that_divide_a_batch_exchange_nothing_for_its_blocks():
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", TWO_DEVICES], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "while(" in done.stdout and "num_partitions=2" in done.stdout
    for exchange in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert f"{exchange}(" not in done.stdout


def test_bfloat16_is_as_near_to_float32_as_jax_s(way):
    arrays = given(jnp.bfloat16, 1.0, queries=6)
    exact = value_and_gradients(jax.nn.dot_product_attention, *(a.astype(jnp.float32) for a in arrays))
    ours, theirs = (value_and_gradients(way, *arrays) for way in (attention, jax.nn.dot_product_attention))
    for mine, other, true in zip(ours, theirs, exact, strict=True):
        assert mine.dtype == jnp.bfloat16
        errors = [float(jnp.linalg.norm(a.astype(jnp.float32) - true)) for a in (mine, other)]
        assert errors[0] < 1.2 * errors[1]


def gradients(attend):
    return jax.grad(lambda *arrays: attend(*arrays).astype(jnp.float32).sum(), argnums=(0, 1, 2))


def kernels(call, queries, keys, width, dtype=jnp.bfloat16) -> int:
    """How many of cuDNN's kernels the program for NVIDIA GPUs has; none is needed to write it."""
    q, k = (jax.ShapeDtypeStruct((2, length, 8, width), dtype) for length in (queries, keys))
    return jax.jit(call).trace(q, k, k).lower(lowering_platforms=("cuda",)).as_text().count("__cudnn$fmha")


@pytest.fixture
def gpu(monkeypatch):
    """A function after which JAX takes this process's devices for GPUs of a compute capability."""

    def become(*number):
        jax.clear_caches()  # what was traced for other devices is not taken again
        monkeypatch.setattr("dermjax.models.attention.capability", lambda: number)
        monkeypatch.setattr(jax_s, "check_cudnn_version", lambda: 91200)
        monkeypatch.setattr(
            jax_s, "check_compute_capability", lambda least: tuple(map(int, least.split("."))) <= number
        )

    yield become
    jax.clear_caches()


@pytest.mark.parametrize("width", [40, 44, 64, 80, 160, 256, 264])
@pytest.mark.parametrize(("queries", "keys"), [(64, 64), (4096, 77), (197, 197)])
@pytest.mark.parametrize("number", [(8, 0), (9, 0)])
def test_cudnn_is_taken_where_jax_s_call_takes_it(gpu, number, queries, keys, width):
    gpu(*number)
    for way in (lambda attend: attend, gradients):
        try:
            expected = kernels(way(by_cudnn), queries, keys, width)
        except NotImplementedError:
            expected = 0
        assert kernels(way(attention), queries, keys, width) == expected


def test_cudnn_s_shapes(gpu):
    """Of JAX 0.10.2 and 0.12.0; where a newer one takes more, so does `attention`, and this list grows."""
    gpu(9, 0)
    assert [kernels(attention, 64, 77, width) for width in (40, 64, 80, 160, 256, 264, 44)] == [1, 1, 1, 1, 1, 0, 0]
    assert [kernels(gradients(attention), 64, 64, width) for width in (40, 64, 80, 160, 256, 264)] == [2] * 5 + [0]
    assert kernels(gradients(attention), 197, 197, 64) == 0
    assert kernels(attention, 64, 64, 64, jnp.float32) == 0
    gpu(8, 0)
    assert [kernels(attention, 64, 77, width) for width in (128, 160)] == [1, 0]
    gpu(7, 5)
    assert kernels(attention, 64, 64, 64) == 0


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="a GPU may have cuDNN")
def test_without_cudnn_it_is_jax_s_own():
    assert capability() == ()
    arrays = given(jnp.bfloat16, 1.0)
    ours, theirs = (
        jax.jit(value_and_gradients, static_argnums=0)(way, *arrays)
        for way in (accelerated, jax.nn.dot_product_attention)
    )
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
@pytest.mark.parametrize(
    ("queries", "keys", "width"),
    [(256, 256, 40), (256, 77, 80), (64, 64, 64), (64, 64, 160), (197, 197, 64), (64, 64, 256)],
)
def test_cudnn_is_as_near_to_float32_as_jax_s(queries, keys, width):
    """In the shapes of Stable Diffusion, of a ViT and of Stable Diffusion's autoencoder."""
    rng = np.random.default_rng(0)
    shapes = ((2, queries, 8, width), (2, keys, 8, width), (2, keys, 8, width), (2, queries, 8, width))
    arrays = [jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in shapes]
    if width <= (128 if capability() < (9, 0) else 256):
        assert kernels(attention, queries, keys, width) == 1
    with jax.default_matmul_precision("highest"):
        exact = value_and_gradients(jax.nn.dot_product_attention, *(a.astype(jnp.float32) for a in arrays))
    ours, theirs = (
        (*jax.jit(value_and_gradients, static_argnums=0)(way, *arrays), jax.jit(way)(*arrays[:3]))
        for way in (attention, jax.nn.dot_product_attention)
    )
    for mine, other, true in zip(ours, theirs, (*exact, exact[0]), strict=True):
        assert mine.dtype == jnp.bfloat16
        errors = [float(jnp.linalg.norm(a.astype(jnp.float32) - true)) for a in (mine, other)]
        print(f"{errors[0]:.4f} {errors[1]:.4f} of {float(jnp.linalg.norm(true)):.1f}")
        assert errors[0] < 1.2 * errors[1]
