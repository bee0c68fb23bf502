"""Attention with a gradient that is fast on a CPU.

XLA makes of the gradient of JAX's attention products with transposed copies of the weights, writes sums over M out to
that size, and takes three times as long as here: what is transposed is never larger than a query, and weights are
divided by their sum once they are summed up over M, as in flash attention (arXiv 2205.14135).

Shapes: B batch, K heads, N queries, M keys and values, d width of a head.
"""

import jax
import jax.numpy as jnp
from einops import rearrange

Array = jax.Array


@jax.custom_vjp
def in_order(q: Array, k: Array, v: Array) -> Array:  # [B, N, K, d], [B, M, K, d] twice -> [B, N, K, d]
    """Returns `models.attention` by products of matrices in the order in which they lie."""
    return _forward(q, k, v)[0]


def product(pattern: str, a: Array, b: Array) -> Array:
    """Returns a product summed up in float32."""
    return jnp.einsum(pattern, a, b, preferred_element_type=jnp.float32)


def _forward(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, ...]]:
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
    # how far a weight's gradient is from the mean of them under the softmax
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
