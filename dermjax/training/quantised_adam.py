"""Adam with both moments in eight bits: a quarter of the optimiser's memory.

Blockwise quantisation after Dettmers et al. 2022 (arXiv 2110.02861), with a ladder of our own: within a block the codes
1 to n are n magnitudes in equal ratios that end at the block's largest, and 0 is zero. A step changes the second moment
by a thousandth, far less than one rung (7 %), so rounding to the nearest would never move it. We round at random, to
the lower or the upper rung, such that the expected value is exact. The randomness follows from the step, the parameter
and the moment, each of which has a key that nothing else draws from: a resumed run is the same run.

Blocks lie along the last axis and the codes have the shape of their parameter, so that one table of shardings serves
both.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from einops import rearrange

from dermjax.training import precision

BLOCK = 256  # elements that share one scale, where the last axis divides; else the largest power of two that does
SMALLEST = 4096  # parameters with fewer elements keep float32 moments: norms and biases are few and sensitive

# codes above zero, powers of ten that they span, the least code of a positive number
FIRST = (127, 6.0, 0)
SECOND = (255, 8.0, 1)  # never rounded to zero: the update divides by its root


class State(NamedTuple):
    """Codes int8 / uint8 shaped like the parameters with the scale of each block, or float32 moments and a 1."""

    count: jax.Array
    first: optax.Params
    first_scale: optax.Params
    second: optax.Params
    second_scale: optax.Params


def scale_by_quantised_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Returns Adam's direction (Kingma and Ba 2015, arXiv 1412.6980), its state between steps in eight bits."""

    def init(params: optax.Params) -> State:
        key = jax.random.key(0)
        zeros = [jnp.zeros(leaf.shape, jnp.float32) for leaf in jax.tree.leaves(params)]
        tree = jax.tree.structure(params)
        packed = [tuple(zip(*(pack(zero, kind, key) for zero in zeros), strict=True)) for kind in (FIRST, SECOND)]
        return State(jnp.zeros((), jnp.int32), *(tree.unflatten(leaves) for pair in packed for leaves in pair))

    def update(gradients: optax.Updates, state: State, params: optax.Params | None = None):
        count = state.count + 1
        # 1 - b ** count without the cancellation that costs float32 two digits at the start
        weight_first, weight_second = (-jnp.expm1(count * math.log(b)) for b in (b1, b2))
        # below ROUNDING, since the key of a run of seed 0 at this step is fold_in(key(0), count)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), precision.ROUNDING), count)
        leaves, tree = jax.tree.flatten(gradients)
        rows = []
        for place, (gradient, *stored) in enumerate(
            zip(leaves, *(jax.tree.leaves(part) for part in state[1:]), strict=True)
        ):
            gradient = gradient.astype(jnp.float32)
            first = b1 * unpack(*stored[:2], FIRST) + (1 - b1) * gradient
            second = b2 * unpack(*stored[2:], SECOND) + (1 - b2) * gradient**2
            direction = first / weight_first / (jnp.sqrt(second / weight_second) + eps)
            one, other = jax.random.split(jax.random.fold_in(key, place))
            rows.append((direction, *pack(first, FIRST, one), *pack(second, SECOND, other)))
        directions, *parts = (tree.unflatten(column) for column in zip(*rows, strict=True))
        return directions, State(count, *parts)

    return optax.GradientTransformation(init, update)


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
