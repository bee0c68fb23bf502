"""Attention that is fast on a CPU, and so is its gradient.

XLA makes of the gradient of JAX's attention products with transposed copies of the weights, writes sums over M out to
that size, and takes three times as long as `whole`: what is transposed is never larger than a query, and weights are
divided by their sum once they are summed up over M, as in flash attention (arXiv 2205.14135).

Many weights of narrow heads leave the cache before they are used: the 4,096 tokens of 64 x 64 latents have 537 MB of
them. `blocks` never has more than BLOCK queries' of two heads at once. Forwards it takes 0.45 to 0.5 of the time of
`whole` on jaxlib 0.10.2 (0.7 to 1.1 on 0.12, whose products are better). For the gradient it makes them again, which
takes 0.9 (0.10.2) to 1.25 (0.12) of the time and none of their memory.

Shapes: B batch, K heads, N queries, M keys and values, d width of a head; c blocks of n queries, h heads.
"""

import math

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax

Array = jax.Array
BLOCK, LEAST = 256, 64  # queries of a block: at most, and what is worth a loop
NARROW = 256  # a head's width, at most, for blocks: the products of wider ones do not wait for memory
MANY = 1 << 20  # weights of a head, at least, for blocks forwards, when a cache no longer holds them
HUGE = 1 << 23  # and for the gradient, when memory should not hold them
ONES = 8  # columns beside the values, whose product with the weights is their sum: a vector register of a CPU has eight


@jax.custom_vjp
def attention(q: Array, k: Array, v: Array) -> Array:  # [B, N, K, d], [B, M, K, d] twice -> [B, N, K, d]
    """Returns `models.attention`, as a whole or in blocks of queries."""
    return (blocks if in_blocks(q.shape[1], k.shape[1], q.shape[-1], MANY) else whole)(q, k, v)[0]


def in_blocks(N: int, M: int, d: int, least: int) -> bool:
    """Returns whether heads of width d are taken in blocks, which are for so many weights at least."""
    return least <= N * M and d <= NARROW and math.gcd(N, BLOCK) >= LEAST


def weights_held(N: int, K: int, d: int, *, gradient: bool) -> int:
    """Returns how many weights of one image's attention to itself are in memory at a time, or until its gradient."""
    if in_blocks(N, N, d, HUGE if gradient else MANY):
        return 0 if gradient else math.gcd(K, 2) * BLOCK * N
    return K * N * N


def product(pattern: str, a: Array, b: Array) -> Array:
    """Returns a product summed up in float32."""
    return jnp.einsum(pattern, a, b, preferred_element_type=jnp.float32)


def whole(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, ...]]:
    """Returns `attention` by products of matrices in the order in which they lie, and what its gradient takes."""
    q, k, v = (rearrange(a, "B N K d -> B K N d") for a in (q, k, v))
    scores = product("BKNd,BKMd->BKNM", q, k)
    # the largest weight is 1, so that the least sum is too
    weights = jnp.exp((scores - scores.max(-1, keepdims=True)) * q.shape[-1] ** -0.5)
    total = weights.sum(-1, keepdims=True)
    weights = weights.astype(v.dtype)
    out = product("BKNM,BKMd->BKNd", weights, v) / total
    return rearrange(out.astype(q.dtype), "B K N d -> B N K d"), (q, k, v, weights, total, out)


def whole_backward(saved: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array]:
    """Returns the gradients of `whole` with respect to q, k and v."""
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


def blocks(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, ...]]:
    """Returns `attention` by blocks of queries, whose weights stay in the cache, and what its gradient takes."""
    d, n, h = q.shape[-1], math.gcd(q.shape[1], BLOCK), math.gcd(q.shape[2], 2)
    q = rearrange(q, "B (c n) (K h) d -> K c B h n d", n=n, h=h)  # B is kept, since devices may divide it
    k, v = (rearrange(a, "B M (K h) d -> K B h M d", h=h) for a in (k, v))
    ones = jnp.ones((*v.shape[:-1], ONES), v.dtype)

    def head(inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        q, k, v = inputs

        def block(q: Array) -> tuple[Array, ...]:
            scores = product("BhNd,BhMd->BhNM", q, k)
            most = scores.max(-1, keepdims=True)
            weights = jnp.exp((scores - most) * d**-0.5).astype(v.dtype)
            sums = product("BhNM,BhMd->BhNd", weights, v)
            return sums[..., :d] / sums[..., d : d + 1], most, sums[..., d : d + 1]

        return lax.map(block, q)

    out, most, total = lax.map(head, (q, k, jnp.concatenate([v, ones], -1)))
    return rearrange(out.astype(q.dtype), "K c B h n d -> B (c n) (K h) d"), (q, k, v, out, most, total)


def blocks_backward(saved: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array]:
    """Returns the gradients of `blocks` with respect to q, k and v."""
    q, k, v, *results = saved
    scale = q.shape[-1] ** -0.5
    gradient = rearrange(gradient, "B (c n) (K h) d -> K c B h n d", c=q.shape[1], h=q.shape[3])

    def head(inputs: tuple) -> tuple[Array, ...]:
        k, v, blocks = inputs

        def block(sums: tuple[Array, Array], inputs: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
            q, gradient, out, most, total = inputs
            weights = jnp.exp((product("BhNd,BhMd->BhNM", q, k) - most) * scale)
            shared = (gradient / total).astype(v.dtype)
            # how far a weight's gradient is from the mean of them under the softmax
            mean = (gradient * out).sum(-1, keepdims=True)
            by_scores = weights * (product("BhNd,BhMd->BhNM", gradient, v) - mean) * (scale / total)
            by_scores, weights = by_scores.astype(q.dtype), weights.astype(v.dtype)
            by_k = sums[0] + product("BhNM,BhNd->BhMd", by_scores, q)
            by_v = sums[1] + product("BhNM,BhNd->BhMd", weights, shared)
            return (by_k, by_v), product("BhNM,BhMd->BhNd", by_scores, k)

        zeros = jnp.zeros(k.shape, jnp.float32)
        (by_k, by_v), by_q = lax.scan(block, (zeros, zeros), blocks)
        return by_q, by_k, by_v

    by_q, by_k, by_v = lax.map(head, (k, v, (q, gradient, *results)))
    by_k, by_v = (rearrange(a, "K B h M d -> B M (K h) d") for a in (by_k, by_v))
    return rearrange(by_q.astype(q.dtype), "K c B h n d -> B (c n) (K h) d"), by_k.astype(k.dtype), by_v.astype(v.dtype)


def _forward(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, ...]]:
    return (blocks if in_blocks(q.shape[1], k.shape[1], q.shape[-1], HUGE) else whole)(q, k, v)


def _backward(saved: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array]:
    divided = saved[0].ndim == 6  # heads [K c B h n d] in place of [B K N d]
    return (blocks_backward if divided else whole_backward)(saved, gradient)


attention.defvjp(_forward, _backward)
