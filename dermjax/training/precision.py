"""Parameters in sixteen bits: sums in float32, and a rounding that loses nothing on average.

An update of AdamW is about a thousandth of a parameter, a step of bfloat16 a hundredth: rounded to the nearest it would
vanish. Rounded at random, up as often as the remainder is large, it arrives in the mean (Gupta et al. 2015, arXiv
1502.02551).
"""

from typing import Any

import jax
import jax.numpy as jnp

Tree = Any

# Folded into a key it gives the one for rounding: no step is so late and no place in a batch so large, and with these
# everything else folds.
ROUNDING = 2**32 - 1


def wide(tree: Tree) -> Tree:
    """Returns the tree in float32."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


def add(params: Tree, updates: Tree, key: jax.Array) -> Tree:
    """Returns params + updates, summed in float32, in the parameters' own types; the key may be the loss's."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.fold_in(key, ROUNDING), len(leaves))
    sums = [
        leaf + update if leaf.dtype == jnp.float32 else rounded(leaf.astype(jnp.float32) + update, own)
        for leaf, update, own in zip(leaves, jax.tree.leaves(updates), keys, strict=True)
    ]
    return jax.tree.unflatten(structure, sums)


def rounded(x: jax.Array, key: jax.Array) -> jax.Array:
    """Returns float32 x as bfloat16, up or down at random so that its mean is x."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    bits = bits + jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    # what bfloat16 has no room for is cut off, so that the conversion is exact
    return jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32).astype(jnp.bfloat16)
