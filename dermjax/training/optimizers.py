"""Optimisers and learning-rate schedules by name."""

import difflib

import jax
import optax

from dermjax.errors import UserError


def build(
    name: str, *, rate: float, warmup: int, steps: int, schedule: str, weight_decay: float, clip: float
) -> optax.GradientTransformation:
    """Returns the update rule: clipping by global norm `clip` (0 = off), then the named optimiser.

    `rate` is the peak learning rate, reached after `warmup` updates; weight decay is decoupled and spares vectors
    (norms and biases), as is usual.
    """
    rates = pick("schedule", SCHEDULES, schedule)(rate, warmup, steps)
    update = pick("optimizer", OPTIMIZERS, name)(rates, weight_decay)
    return optax.chain(optax.clip_by_global_norm(clip), update) if clip else update


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


def matrices(params):
    """Returns a mask that is true where weight decay belongs."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def adamw(rates: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101) with the betas of diffusers' scripts."""
    return optax.adamw(rates, b1=0.9, b2=0.999, eps=1e-8, weight_decay=weight_decay, mask=matrices)


SCHEDULES = {"constant": constant, "cosine": cosine}
OPTIMIZERS = {"adamw": adamw}
