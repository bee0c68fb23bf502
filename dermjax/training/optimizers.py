"""Parameters in sixteen bits: sums in float32, and a rounding that loses nothing on average.

An update of AdamW is about a thousandth of a parameter, a step of bfloat16 a hundredth: rounded to the nearest it would
vanish. Rounded at random, up as often as the remainder is large, it arrives in the mean (Gupta et al. 2015, arXiv
1502.02551).

Adam with both moments in eight bits: a quarter of the optimiser's memory.

Blockwise quantisation after Dettmers et al. 2022 (arXiv 2110.02861), with a ladder of our own: within a block the codes
1 to n are n magnitudes in equal ratios that end at the block's largest, and 0 is zero. A step changes the second moment
by a thousandth, far less than one rung (7 %), so rounding to the nearest would never move it. We round at random, to
the lower or the upper rung, such that the expected value is exact. The randomness follows from the step, the parameter
and the moment, each of which has a key that nothing else draws from: a resumed run is the same run.

Blocks lie along the last axis and the codes have the shape of their parameter, so that one table of shardings serves
both.

Optimisers and learning-rate schedules by name.
"""

import difflib
import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from math import isfinite
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from einops import rearrange

from dermjax.errors import UserError
from dermjax.progress import say

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


BLOCK = 256  # elements that share one scale, where the last axis divides; else the largest power of two that does
ALONE = 2**20  # elements of an array whose moments take much memory while they are wide
SMALLEST = 4096  # parameters with fewer elements keep float32 moments: norms and biases are few and sensitive

# codes above zero, powers of ten that they span, the least code of a positive number
FIRST = (127, 6.0, 0)
SECOND = (255, 8.0, 1)  # never rounded to zero: the update divides by its root


class QuantisedState(NamedTuple):
    """Codes int8 / uint8 shaped like the parameters with the scale of each block, or float32 moments and a 1."""

    count: jax.Array
    first: optax.Params
    first_scale: optax.Params
    second: optax.Params
    second_scale: optax.Params


def scale_by_quantised_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Returns Adam's direction (Kingma and Ba 2015, arXiv 1412.6980), its state between steps in eight bits."""

    def init(params: optax.Params) -> QuantisedState:
        key = jax.random.key(0)
        zeros = [jnp.zeros(leaf.shape, jnp.float32) for leaf in jax.tree.leaves(params)]
        tree = jax.tree.structure(params)
        packed = [tuple(zip(*(pack(zero, kind, key) for zero in zeros), strict=True)) for kind in (FIRST, SECOND)]
        return QuantisedState(jnp.zeros((), jnp.int32), *(tree.unflatten(leaves) for pair in packed for leaves in pair))

    def update(gradients: optax.Updates, state: QuantisedState, params: optax.Params | None = None):
        count = state.count + 1
        # 1 - b ** count without the cancellation that costs float32 two digits at the start
        weight_first, weight_second = (-jnp.expm1(count * math.log(b)) for b in (b1, b2))
        # below ROUNDING, since the key of a run of seed 0 at this step is fold_in(key(0), count)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), ROUNDING), count)
        leaves, tree = jax.tree.flatten(gradients)
        rows = []

        def moved(place: int, gradient: jax.Array, *stored: jax.Array) -> tuple[jax.Array, ...]:
            gradient = gradient.astype(jnp.float32)
            first = b1 * unpack(*stored[:2], FIRST) + (1 - b1) * gradient
            second = b2 * unpack(*stored[2:], SECOND) + (1 - b2) * gradient**2
            direction = first / weight_first / (jnp.sqrt(second / weight_second) + eps)
            one, other = jax.random.split(jax.random.fold_in(key, place))
            return direction, *pack(first, FIRST, one), *pack(second, SECOND, other)

        for place, arrays in enumerate(zip(leaves, *(jax.tree.leaves(part) for part in state[1:]), strict=True)):
            move = partial(moved, place)
            rows.append(alone(move, count, *arrays) if arrays[0].size >= ALONE else move(*arrays))
        directions, *parts = (tree.unflatten(column) for column in zip(*rows, strict=True))
        return directions, QuantisedState(count, *parts)

    return optax.GradientTransformation(init, update)


def alone(move: Callable, count: jax.Array, gradient: jax.Array, *stored: jax.Array) -> tuple[jax.Array, ...]:
    """Returns move(gradient, *stored), on a CPU with memory that the next array takes over.

    XLA's CPU compiler begins the temporaries of all arrays before it ends one: 7.5 times the parameters, 26 GB for
    Stable Diffusion's UNet. A branch has its memory for itself while it runs. The condition always holds, and the
    compiler cannot know it.
    """

    def branched(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        return jax.lax.cond(count > 0, move, lambda gradient, *stored: (gradient.astype(jnp.float32), *stored), *arrays)

    return jax.lax.platform_dependent(gradient, *stored, cpu=branched, default=move)


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


def build(
    name: str,
    *,
    rate: float,
    warmup: int,
    steps: int,
    schedule: str,
    weight_decay: float,
    clip: float,
    slower: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
    """Returns the update rule: clipping by global norm `clip` (0 = off), then the named optimiser.

    `rate` is the peak learning rate, reached after `warmup` updates; weight decay is decoupled and spares vectors
    (norms and biases), as is usual. slower: {pattern of a parameter's path: what its updates are multiplied by}.
    """
    # the loop looks at the loss and its gradient alone: with a finite rate their updates are finite too
    if not isfinite(rate):
        raise UserError(f"rate {rate} is not a finite number; give one such as 1e-4")
    rates = pick("schedule", SCHEDULES, schedule)(rate, warmup, steps)
    if warmup > steps:
        say(f"warmup = {warmup} is longer than steps = {steps}: the rate ends below {rate:g}; a shorter one reaches it")
    update = pick("optimizer", OPTIMIZERS, name)(rates, weight_decay)
    before = [clipped(clip)] if clip else []
    after = [multiplied(slower)] if slower else []
    return optax.chain(*before, update, *after) if before or after else update


def clipped(most: float) -> optax.GradientTransformation:
    """Returns the rule that multiplies gradients by one factor, so that their global norm is `most` or less.

    optax.clip_by_global_norm divides number by number, and XLA on a CPU writes the quotients out before the optimiser
    reads them: a tenth of an update's time.
    """

    def scaled(grads, params):
        factor = jnp.minimum(1.0, most / optax.tree.norm(grads))
        return jax.tree.map(lambda leaf: leaf * factor, grads)

    return optax.stateless(scaled)


def multiplied(factors: Mapping[str, float]) -> optax.GradientTransformation:
    """Returns the rule that multiplies updates by the factor of the first pattern that matches their path, or by 1."""

    def scaled(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return leaf * next((factor for pattern, factor in factors.items() if re.search(pattern, name)), 1.0)

    return optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(scaled, updates))


def pick(what: str, table: dict, name: str):
    """Returns table[name], or raises UserError with the nearest names."""
    if name not in table:
        near = difflib.get_close_matches(name, table) or list(table)
        raise UserError(f"{what} {name!r} is unknown; did you mean {' or '.join(near)}?")
    return table[name]


def constant(rate: float, warmup: int, steps: int) -> optax.Schedule:
    """Linear warm-up, then `rate` to the end (the paper's)."""
    return optax.linear_schedule(0.0 if warmup else rate, rate, max(warmup, 1))


def cosine(rate: float, warmup: int, steps: int) -> optax.Schedule:
    """Linear warm-up, then half a cosine down to 1 % of `rate`."""
    return optax.warmup_cosine_decay_schedule(0.0, rate, warmup, max(steps, warmup + 1), end_value=0.01 * rate)


def linear(rate: float, warmup: int, steps: int) -> optax.Schedule:
    """Linear warm-up, then a straight line down to zero."""
    down = optax.linear_schedule(rate, 0.0, max(steps - warmup, 1))
    return optax.join_schedules([constant(rate, warmup, steps), down], [warmup])


def matrices(params):
    """Returns a mask that is true where weight decay belongs."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def adamw(rates: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101) with the betas of diffusers' scripts."""
    return optax.adamw(rates, **ADAM, weight_decay=weight_decay, mask=matrices)


def adamw8bit(rates: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    """AdamW with moments in eight bits (arXiv 2110.02861)."""
    return optax.chain(
        scale_by_quantised_adam(**ADAM),
        optax.add_decayed_weights(weight_decay, matrices),
        optax.scale_by_learning_rate(rates),
    )


def adafactor(rates: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    """Adafactor (arXiv 1804.04235) at the given rate: no step size of its own, as diffusion tools use it."""
    return optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.add_decayed_weights(weight_decay, matrices),
        optax.scale_by_learning_rate(rates),
    )


def lion(rates: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    """Lion (arXiv 2302.06675); its rate is a third to a tenth of AdamW's, its weight decay as much larger."""
    return optax.lion(rates, b1=0.9, b2=0.99, weight_decay=weight_decay, mask=matrices)


def prodigy(rates: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    """Prodigy (arXiv 2306.06101), which finds its step size itself: `rate` is a factor on it, 1 as a rule.

    Its weight decay has no mask in optax, so it reaches vectors too.
    """
    # without the safeguard the first step of a warm-up, whose rate is zero, divides zero by zero
    return optax.contrib.prodigy(rates, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay, safeguard_warmup=True)


ADAM = {"b1": 0.9, "b2": 0.999, "eps": 1e-8}
SCHEDULES = {"constant": constant, "cosine": cosine, "linear": linear}
OPTIMIZERS = {"adamw": adamw, "adamw8bit": adamw8bit, "adafactor": adafactor, "lion": lion, "prodigy": prodigy}
