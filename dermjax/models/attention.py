"""Attention of all queries to all keys (arXiv 1706.03762), computed the way that is fast where it runs.

On accelerators it is JAX's; in half precision on a recent NVIDIA GPU that is cuDNN's flash attention (arXiv
2307.08691), which keeps no weights [N, M], a gigabyte a layer for four images of 64 x 64 latents.

Shapes: B batch, K heads, N queries, M keys and values, d width of a head.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dermjax.models.cpu.attention import attention as by_cpu

Array = jax.Array


def attention(q: Array, k: Array, v: Array) -> Array:  # [B, N, K, d], [B, M, K, d] twice -> [B, N, K, d]
    """Returns the mean of the values, weighted by the softmax of q k / sqrt(d) over the keys."""
    return jax.lax.platform_dependent(q, k, v, cpu=by_cpu, default=accelerated)


@jax.custom_vjp
def accelerated(q: Array, k: Array, v: Array) -> Array:
    """`attention` by JAX, through cuDNN where it takes these arrays: the two directions are decided apart."""
    return (by_cudnn if has_cudnn(by_cudnn, q, k, v) else jax.nn.dot_product_attention)(q, k, v)


def _forward(q: Array, k: Array, v: Array) -> tuple[Array, Callable]:
    return jax.vjp(by_cudnn if has_cudnn(gradients, q, k, v) else jax.nn.dot_product_attention, q, k, v)


accelerated.defvjp(_forward, lambda back, gradient: back(gradient))


def by_cudnn(q: Array, k: Array, v: Array) -> Array:
    """`attention` by cuDNN's flash attention; raises NotImplementedError or RuntimeError where it has none."""
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")


def gradients(q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
    """Returns the gradients of the sum of `by_cudnn`."""
    out, back = jax.vjp(by_cudnn, q, k, v)
    return back(jnp.ones_like(out))


def has_cudnn(call: Callable, q: Array, k: Array, v: Array) -> bool:
    """Returns whether JAX has `by_cudnn` or its `gradients` for such arrays on this process's devices.

    The call itself decides, by shapes alone: in half precision, for heads of 8, 16, … 128, and up to 256 from compute
    capability 9.0 on. Gradients are for even lengths: JAX (0.10.2 and 0.12.0) means to refuse odd ones only beside a
    bias, but takes its placeholder for one. The 77 tokens of a prompt are odd; their weights are small.

    That there is nothing before 8.0 is reported only as the program is compiled, when it is too late for another way.
    """
    if capability() < (8, 0):
        return False
    try:
        jax.eval_shape(call, *(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (q, k, v)))
    except (NotImplementedError, RuntimeError):  # not for such arrays; no cuDNN
        return False
    return True


def capability() -> tuple[int, ...]:
    """Returns the compute capability of this process's NVIDIA GPUs, (9, 0) for Hopper; () for other devices."""
    device = jax.local_devices()[0]
    if device.platform != "gpu" or "cuda" not in device.client.platform_version:
        return ()
    return tuple(map(int, device.compute_capability.split(".")))
