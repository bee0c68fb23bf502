"""Numbers in sixteen and in eight bits for training: rounded at random, so that nothing is lost on average.

An update of AdamW is about a thousandth of a parameter, a step of bfloat16 a hundredth: rounded to the nearest it would
vanish. Rounded at random, up as often as the remainder is large, it arrives in the mean (Gupta et al. 2015, arXiv
1502.02551).

Blockwise quantisation after Dettmers et al. 2022 (arXiv 2110.02861), with a ladder of our own: within a block the codes
1 to n are n magnitudes in equal ratios that end at the block's largest, and 0 is zero. A step changes Adam's second
moment by a thousandth, far less than one rung (7 %), so it is rounded at random too, to the lower or the upper rung.
Blocks lie along the last axis and the codes have the shape of their parameter, so that one table of shardings serves
both.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

Tree = Any

# Folded into a key it gives the one for rounding: no step is so late and no place in a batch so large, and with these
# everything else folds.
ROUNDING = 2**32 - 1
BLOCK = 256  # elements that share one scale, where the last axis divides; else the largest power of two that does
SMALLEST = 4096  # parameters with fewer elements keep float32 moments: norms and biases are few and sensitive
# codes above zero, powers of ten that they span, the least code of a positive number
FIRST = (127, 6.0, 0)
SECOND = (255, 8.0, 1)  # never rounded to zero: the update divides by its root


def wide(tree: Tree) -> Tree:
    """Returns the tree in float32."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


def add(params: Tree, updates: Tree, key: jax.Array) -> Tree:
    """Returns params + updates, summed in float32, in the parameters' own types; the key may be the loss's."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.fold_in(key, ROUNDING), len(leaves))
    sums = [
        leaf + update if leaf.dtype == jnp.float32 else to_bfloat16(leaf.astype(jnp.float32) + update, leaf_key)
        for leaf, update, leaf_key in zip(leaves, jax.tree.leaves(updates), keys, strict=True)
    ]
    return jax.tree.unflatten(structure, sums)


def to_bfloat16(x: jax.Array, key: jax.Array) -> jax.Array:
    """Returns float32 x as bfloat16, up or down at random so that its mean is x."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    bits = bits + jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    # what bfloat16 has no room for is cut off, so that the conversion is exact
    return jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32).astype(jnp.bfloat16)


def pack(x: jax.Array, kind: tuple[int, float, int], key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the codes of a float32 array and the scale of each block [..., blocks]; a small array as it is, and 1."""
    if x.size < SMALLEST:
        return x, jnp.ones(())
    levels, decades, least = kind
    blocks = rearrange(x, "... (n block) -> ... n block", block=math.gcd(x.shape[-1], BLOCK))
    scale = jnp.abs(blocks).max(-1)
    share = jnp.abs(blocks) / jnp.where(scale == 0, 1, scale)[..., None]
    rung = (levels - 1) * (1 + jnp.log10(jnp.maximum(share, 1e-30)) / decades) + 1
    below = jnp.clip(jnp.floor(rung), least, levels - 1)
    low, high = magnitude(below, kind), magnitude(below + 1, kind)
    up = jax.random.uniform(key, blocks.shape) < (share - low) / (high - low)
    codes = jnp.where(share > 0, below + up, 0) * jnp.sign(blocks)
    return codes.reshape(x.shape).astype(jnp.uint8 if least else jnp.int8), scale


def empty(shape: tuple[int, ...], kind: tuple[int, float, int]) -> tuple[jax.Array, jax.Array]:
    """Returns what `pack` gives for zeros, without the memory and the time that it takes for a large array."""
    if math.prod(shape) < SMALLEST:
        return jnp.zeros(shape), jnp.ones(())
    blocks = shape[-1] // math.gcd(shape[-1], BLOCK)
    return jnp.zeros(shape, jnp.uint8 if kind[2] else jnp.int8), jnp.zeros((*shape[:-1], blocks))


def unpack(codes: jax.Array, scale: jax.Array, kind: tuple[int, float, int]) -> jax.Array:
    """Returns the float32 array of codes and scales."""
    if codes.size < SMALLEST:
        return codes
    signed = codes.astype(jnp.float32)
    values = jnp.sign(signed) * magnitude(jnp.abs(signed), kind)
    blocks = rearrange(values, "... (n block) -> ... n block", n=scale.shape[-1])
    return (blocks * scale[..., None]).reshape(codes.shape)


def magnitude(code: jax.Array, kind: tuple[int, float, int]) -> jax.Array:
    """Returns the share of the block's largest magnitude that a code, float32 and not negative, stands for."""
    levels, decades, _ = kind
    return jnp.where(code == 0, 0.0, 10.0 ** (decades * ((code - 1) / (levels - 1) - 1)))
