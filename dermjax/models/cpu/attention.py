"""Attention of all queries to all keys (arXiv 1706.03762), computed the way that is fast where it runs.

On accelerators it is JAX's own; in half precision on a recent NVIDIA GPU that is cuDNN's flash attention (arXiv
2307.08691), which keeps no weights [N, M], a gigabyte a layer for four images of 64 x 64 latents.

On a CPU, XLA makes of the gradient of JAX's own products with transposed copies of the weights, writes sums over M out
to that size, and takes three times as long as here: what is turned around is never larger than a query, and weights are
divided by their sum once they are summed up over M, as in flash attention (arXiv 2205.14135).

Shapes: B batch, K heads, N queries, M keys and values, d width of a head.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax

Array = jax.Array


def attention(q: Array, k: Array, v: Array) -> Array:  # [B, N, K, d], [B, M, K, d] twice -> [B, N, K, d]
    """Returns the mean of the values, weighted by the softmax of q k / sqrt(d) over the keys."""
    return lax.platform_dependent(q, k, v, cpu=in_order, default=accelerated)


@jax.custom_vjp
def accelerated(q: Array, k: Array, v: Array) -> Array:
    """`attention` by JAX, through cuDNN where it takes these arrays."""
    return (by_cudnn if has_cudnn(by_cudnn, q, k, v) else jax.nn.dot_product_attention)(q, k, v)


def _accelerated_forward(q: Array, k: Array, v: Array):
    return jax.vjp(by_cudnn if has_cudnn(gradients, q, k, v) else jax.nn.dot_product_attention, q, k, v)


accelerated.defvjp(_accelerated_forward, lambda back, gradient: back(gradient))


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
    bias, but takes its own placeholder for one. The 77 words of a prompt are odd; their weights are small.

    That there is nothing before 8.0 is said only as the program is compiled, when it is too late for another way.
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


@jax.custom_vjp
def in_order(q: Array, k: Array, v: Array) -> Array:
    """`attention` by products of matrices in the order in which they lie."""
    return _forward(q, k, v)[0]


def product(pattern: str, a: Array, b: Array) -> Array:
    """Returns a product summed up in float32."""
    return jnp.einsum(pattern, a, b, preferred_element_type=jnp.float32)


def _forward(q: Array, k: Array, v: Array):
    q, k, v = (rearrange(a, "B N K d -> B K N d") for a in (q, k, v))
    scores = product("BKNd,BKMd->BKNM", q, k)
    # the largest weight is 1, so that the least sum is too
    weights = jnp.exp((scores - scores.max(-1, keepdims=True)) * q.shape[-1] ** -0.5)
    total = weights.sum(-1, keepdims=True)
    weights = weights.astype(v.dtype)
    out = product("BKNM,BKMd->BKNd", weights, v) / total
    return rearrange(out.astype(q.dtype), "B K N d -> B N K d"), (q, k, v, weights, total, out)


def _backward(saved: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array]:
    q, k, v, weights, total, out = saved
    gradient = rearrange(gradient, "B N K d -> B K N d")
    shared = (gradient / total).astype(v.dtype)
    # how far a weight's own gradient is from the mean of them under the softmax
    mean = (gradient * out).sum(-1, keepdims=True)
    by_scores = weights * (product("BKNd,BKMd->BKNM", gradient, v) - mean) * (q.shape[-1] ** -0.5 / total)
    by_scores = by_scores.astype(q.dtype)
    by_q = rearrange(product("BKNM,BKMd->BKNd", by_scores, k), "B K N d -> B N K d")
    by_k, by_v = (
        rearrange(product("BKNd,BKNM->BKdM", a, b), "B K d M -> B M K d")
        for a, b in ((q, by_scores), (shared, weights))
    )
    return by_q.astype(q.dtype), by_k.astype(k.dtype), by_v.astype(v.dtype)


in_order.defvjp(_forward, _backward)
