"""Optimisers and learning-rate schedules by name."""

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

from dermjax.errors import UserError
from dermjax.progress import say
from dermjax.training.rounding import FIRST, ROUNDING, SECOND, empty, pack, unpack

SMALL_FACTOR = 0.1  # of prodigy's step, up to which a rate is one of other optimisers
ALONE = 2**20  # elements of an array whose moments take much memory while they are wide


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
    if name == "prodigy" and 0 < rate <= SMALL_FACTOR:
        say(f"rate = {rate:g}: prodigy finds its step itself and takes the rate as a factor; give 1")
    update = pick("optimizer", OPTIMIZERS, name)(rates, weight_decay)
    before = [clip_by_global_norm(clip)] if clip else []
    after = [multiply_by_path(slower)] if slower else []
    return optax.chain(*before, update, *after) if before or after else update


def clip_by_global_norm(most: float) -> optax.GradientTransformation:
    """Returns the rule that multiplies gradients by one factor, so that their global norm is `most` or less.

    optax.clip_by_global_norm divides number by number, and XLA on a CPU writes the quotients out before the optimiser
    reads them: 23.2 ms of processor time an update of derm-tiny's UNet in place of 20.3, measured in turns.
    """

    def scaled(grads, params):
        factor = jnp.minimum(1.0, most / optax.tree.norm(grads))
        return jax.tree.map(lambda leaf: leaf * factor, grads)

    return optax.stateless(scaled)


def multiply_by_path(factors: Mapping[str, float]) -> optax.GradientTransformation:
    """Returns the rule that multiplies updates by the factor of the first pattern that matches their path, or by 1."""

    def scaled(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return leaf * next((factor for pattern, factor in factors.items() if re.search(pattern, name)), 1.0)

    return optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(scaled, updates))


def pick(what: str, table: Mapping[str, Any], name: str) -> Any:
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


def matrices(params: optax.Params) -> optax.Params:
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
        leaves, tree = jax.tree.flatten(params)
        packed = [tuple(zip(*(empty(leaf.shape, kind) for leaf in leaves), strict=True)) for kind in (FIRST, SECOND)]
        return QuantisedState(jnp.zeros((), jnp.int32), *(tree.unflatten(part) for pair in packed for part in pair))

    def update(gradients: optax.Updates, state: QuantisedState, params: optax.Params | None = None):
        count = state.count + 1
        # 1 - b ** count without the cancellation that costs float32 two digits at the start
        weight_first, weight_second = (-jnp.expm1(count * math.log(b)) for b in (b1, b2))
        # below ROUNDING, since the key of a run of seed 0 at this step is fold_in(key(0), count)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), ROUNDING), count)
        leaves, tree = jax.tree.flatten(gradients)

        def move(place: int, gradient: jax.Array, *stored: jax.Array) -> tuple[jax.Array, ...]:
            gradient = gradient.astype(jnp.float32)
            first = b1 * unpack(*stored[:2], FIRST) + (1 - b1) * gradient
            second = b2 * unpack(*stored[2:], SECOND) + (1 - b2) * gradient**2
            direction = first / weight_first / (jnp.sqrt(second / weight_second) + eps)
            one, other = jax.random.split(jax.random.fold_in(key, place))
            return direction, *pack(first, FIRST, one), *pack(second, SECOND, other)

        rows = []
        for place, arrays in enumerate(zip(leaves, *(jax.tree.leaves(part) for part in state[1:]), strict=True)):
            take = partial(move_alone, partial(move, place), count) if arrays[0].size >= ALONE else partial(move, place)
            rows.append(take(*arrays))
        directions, *parts = (tree.unflatten(column) for column in zip(*rows, strict=True))
        return directions, QuantisedState(count, *parts)

    return optax.GradientTransformation(init, update)


def move_alone(move: Callable, count: jax.Array, gradient: jax.Array, *stored: jax.Array) -> tuple[jax.Array, ...]:
    """Returns move(gradient, *stored), on a CPU with memory that the next array takes over.

    XLA's CPU compiler begins the temporaries of all arrays before it ends one: 7.5 times the parameters, 26 GB for
    Stable Diffusion's UNet. A branch has its memory for itself while it runs. The condition always holds, and the
    compiler cannot know it.
    """

    def branched(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        return jax.lax.cond(count > 0, move, lambda gradient, *stored: (gradient.astype(jnp.float32), *stored), *arrays)

    return jax.lax.platform_dependent(gradient, *stored, cpu=branched, default=move)


ADAM = {"b1": 0.9, "b2": 0.999, "eps": 1e-8}
SCHEDULES = {"constant": constant, "cosine": cosine, "linear": linear}
OPTIMIZERS = {"adamw": adamw, "adamw8bit": adamw8bit, "adafactor": adafactor, "lion": lion, "prodigy": prodigy}
