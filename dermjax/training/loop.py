"""Being told to stop: by a signal, or by the notice that a TPU or a cloud machine is taken away.

The gradient of a batch: taken part by part, and summed over devices.

`gradient(params, variables, constants, batch, key) -> ((loss, (variables, scalars)), grads)` is `jax.value_and_grad` of
a loss of `training/loop.py`, a mean over the examples of the batch.

The training loop of everything that is trained here: autoencoder, diffusion model, DreamBooth, classifiers.

A loss is a pure function `loss(params, variables, constants, batch, key) -> (scalar, (variables, scalars))`:
`variables` change without gradients (batch statistics), `constants` are frozen arrays that no checkpoint needs, `batch`
has the place of each example in the step's batch as `index` int32 [B], `key` is the run's key folded with the step. The
loss and its scalars are means over examples, so that a batch may be taken in parts, and by devices. The loop makes the
step of it, compiles it once with its shardings, and walks: batch, step, scalars, checkpoint. Killed anywhere, the same
call goes on from the last checkpoint and ends with the same numbers.
"""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jax.experimental import multihost_utils
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dermjax import sharding, signals
from dermjax.errors import Stopped, UserError
from dermjax.progress import bar
from dermjax.training import checkpoints, optimizers
from dermjax.training.state import State
from dermjax.training.writers import Writer

Ending = type[Stopped] | type[KeyboardInterrupt]


@contextmanager
def watched_for_preemption() -> Iterator[Callable[[int], Ending | None]]:
    """Yields told(step), what to raise once that step is saved where this run was told to stop, else None.

    The answer is the same in every process at the same step: with several of them JAX itself listens to SIGTERM, and
    its coordinator chooses the step at which all of them stop. Outside of the main thread, where Python lets nobody
    listen to signals, one process is never told.
    """
    if jax.process_count() > 1:
        yield lambda step: Stopped if multihost_utils.reached_preemption_sync_point(step) else None
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: None
        return
    with signals.deferred() as notices:
        yield lambda step: _ending(notices)
    ending = _ending(notices)
    if ending:  # after the last step was asked about
        raise ending("told to stop, every step is saved")


def _ending(notices: list[int]) -> Ending | None:
    if not notices:
        return None
    return KeyboardInterrupt if notices[0] == signal.SIGINT else Stopped


Tree = Any
Gradient = Callable[[Tree, Tree, Tree, Tree, jax.Array], tuple[tuple[jax.Array, tuple[Tree, Tree]], Tree]]

SMALL = 2**16  # numbers of an array that is sooner copied than summed by itself


def gradient_of(loss: Callable, accumulate: int, mesh: Mesh) -> Gradient:
    """Returns the gradient function of a loss over a batch [B, …] without `index`, taken in `accumulate` parts."""
    gradient = jax.value_and_grad(loss, has_aux=True)
    if sharding.platform(mesh) == "cpu":
        gradient = joined(gradient, mesh)
    return summed(gradient, accumulate, mesh)


def joined(gradient: Gradient, mesh: Mesh) -> Gradient:
    """Returns the gradient function that sums what is small over the devices as one array.

    Left to itself XLA sums array by array, and on a CPU the threads of the devices meet for each: 75 µs, 327 times a
    step of derm-tiny on two devices, a fifteenth of it. Accelerators join them by themselves. Parameters that are
    divided over devices, and statistics that are taken over the whole batch, are left to XLA as well.
    """

    def local(params: Tree, variables: Tree, constants: Tree, batch: Tree, key: jax.Array):
        (value, (variables, scalars)), grads = gradient(params, variables, constants, batch, key)
        leaves, form = jax.tree.flatten((value, scalars, grads))
        small, restored = ravel_pytree([leaf for leaf in leaves if leaf.size < SMALL])
        small, large = jax.lax.pmean((small, [leaf for leaf in leaves if leaf.size >= SMALL]), sharding.AXES)
        small, large = iter(restored(small)), iter(large)
        means = [next(small) if leaf.size < SMALL else next(large) for leaf in leaves]
        value, scalars, grads = jax.tree.unflatten(form, means)
        return (value, (variables, scalars)), grads

    def whole(params: Tree, variables: Tree, constants: Tree, batch: Tree, key: jax.Array):
        if mesh.size == 1 or mesh.shape["fsdp"] > 1 or jax.tree.leaves(variables):
            return gradient(params, variables, constants, batch, key)
        return everywhere(params, variables, constants, batch, key)

    places = (P(), P(), P(), P(sharding.AXES), P())
    everywhere = jax.shard_map(local, mesh=mesh, in_specs=places, out_specs=P(), check_vma=False)
    return whole


def summed(gradient: Gradient, accumulate: int, mesh: Mesh) -> Gradient:
    """Returns the gradient function over a whole batch that asks `gradient` for it part by part.

    A part has the same rows on every device, so nothing moves between devices.
    """

    def numbered(batch: Tree) -> Tree:
        return batch | {"index": jnp.arange(len(jax.tree.leaves(batch)[0]), dtype=jnp.int32)}

    def whole(params: Tree, variables: Tree, constants: Tree, batch: Tree, key: jax.Array):
        return gradient(params, variables, constants, numbered(batch), key)

    def parts(params: Tree, variables: Tree, constants: Tree, batch: Tree, key: jax.Array):
        def divided(rows: jax.Array) -> jax.Array:
            return rearrange(rows, "(device part b) ... -> part (device b) ...", device=mesh.size, part=accumulate)

        def add(carry, part):
            variables, total = carry
            (value, (variables, scalars)), grads = gradient(params, variables, constants, part, key)
            return (variables, jax.tree.map(jnp.add, total, grads)), (value, scalars)

        start = (variables, optimizers.wide(jax.tree.map(jnp.zeros_like, params)))
        (variables, total), told = jax.lax.scan(add, start, jax.tree.map(divided, numbered(batch)))
        value, scalars = jax.tree.map(lambda column: column.mean(0), told)
        return (value, (variables, scalars)), jax.tree.map(lambda leaf: leaf / accumulate, total)

    return whole if accumulate == 1 else parts


Tree = Any
Scalars = dict[str, Any]
Loss = Callable[[Tree, Tree, Tree, Tree, jax.Array], tuple[jax.Array, tuple[Tree, Scalars]]]

FAILURES = 5  # steps in a row without a finite loss after which a run stops; each of them leaves the state as it was
SHOWN = 8  # names in a message
# XLA asks for a step's temporaries at once, and what is over 64 MB a thread takes from the system and gives back,
# whatever `machine.keep_freed_memory` says: 188 MB and 48,000 page faults a step of derm-tiny. In pieces they are kept:
# 0.19 s a step in place of 0.24. A large model has layers that are larger than a piece and steps that hide the faults.
PIECES = {"xla_multiheap_size_constraint_per_heap": 2**25}
# A large model's step on a CPU in the order that needs least memory: a third less for eight-bit AdamW than the default
LEAST_MEMORY = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


class NotFinite(UserError):
    """The loss was not finite too often, or at the end: lower the rate, or look at the images that are named."""


class Step(NamedTuple):
    """One step: its number, the rows of its batch, its scalars."""

    number: int
    rows: Sequence[int]
    scalars: Scalars


def fit(
    loss: Loss,
    state: State,
    constants: Tree,
    batches: Any,
    *,
    optimizer: optax.GradientTransformation,
    seed: int,
    steps: int,
    ema_decay: float,
    accumulate: int,
    mesh: Mesh,
    rules: sharding.Rules,
    workdir: Path,
    title: str,
    save_every: int,
    log_every: int,
    evaluate: Callable[[State, Tree], Scalars] | None = None,
    evaluate_every: int = 0,
    minimise: str = "",
    patience: int = 0,
    names: Sequence[str] = (),
) -> State:
    """Returns the state after `steps` updates, resumed from workdir/checkpoints where one is.

    `batches` is a grain iterator (`next`, `get_state`, `set_state`) of numpy trees; a step takes each in `accumulate`
    parts, one after the other, and updates once, which saves memory and changes no number. `evaluate(state,
    constants)` is called before the first step, every `evaluate_every` steps and at the end, with evaluate_every 0
    never; its scalars are logged. With save_every 0 only the end is saved, and where the run is told to stop.
    Where `minimise` names one of them, the checkpoint at which it was lowest is kept too; with `patience` it is what is
    returned, and training ends once it is so many steps old. ema_decay 0 keeps no average.

    A step whose loss or gradient is not finite changes nothing; `names` are what to call its examples by their number
    in the batch's `row`.

    Raises:
      UserError: a checkpoint is damaged or of another model, or there is no room for one.
      NotFinite: a UserError, the loss was not finite FAILURES times in a row, or at the end: nothing was saved since.
      Stopped: the run was told to stop (SIGTERM, or a machine that is taken away) and has saved its last step.
      KeyboardInterrupt: the same, of Ctrl-C.
    """
    shardings = sharding.tree_shardings(state, rules, mesh)
    target = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), state, shardings)
    resumed = checkpoints.restore(workdir / "checkpoints", target)
    if resumed:
        state, iterator = resumed
        batches.set_state(iterator)
    else:
        state = placed(state, shardings)
    done = int(state.step)
    large = sum(leaf.size for leaf in jax.tree.leaves((state, constants))) > sharding.LARGE
    step = compiled(loss, optimizer, ema_decay, accumulate, shardings, mesh, large)
    # made where it lies: device_put would not take a key to the devices of another process
    key = jax.jit(partial(jax.random.key, seed), out_shardings=sharding.replicated(mesh))()
    constants = jax.device_put(constants, sharding.tree_shardings(constants, rules, mesh))
    best = checkpoints.best(workdir / "checkpoints")
    window: list[Step] = []
    streak: list[Step] = []
    shown: Scalars = {}
    with (
        closing(Writer(workdir, done if resumed else -1)) as writer,
        bar(steps, title, "steps", done) as progress,
        watched_for_preemption() as told,
    ):
        if evaluate and evaluate_every and not resumed:
            writer.write(0, evaluate(state, constants))
        for k in range(done + 1, steps + 1):
            if patience and best and k > best[0] + patience:
                break
            batch = next(batches)
            state, scalars = step(state, constants, sharding.place(batch, mesh), key)
            window.append(Step(k, batch.get("row", ()), scalars))
            stops = told(k)
            saves = due(k, save_every) or k == steps or stops
            evaluates = evaluate and evaluate_every and (due(k, evaluate_every) or k == steps)
            if saves or evaluates or due(k, log_every) or k == 1:
                window = jax.device_get(window)
                record, streak, window = mean(window), failed(streak + window), []
                if len(streak) >= FAILURES or (streak and k == steps):
                    raise NotFinite(f"{title}: {not_finite(streak, names)}; {remedy(workdir / 'checkpoints')}")
                if evaluates:
                    record |= evaluate(state, constants)
                    if minimise and isfinite(record[minimise]) and (best is None or record[minimise] < best[1]):
                        best, saves = (k, record[minimise]), True
                    elif minimise and k == steps and not (patience or isfinite(record[minimise])):
                        raise NotFinite(f"{title}: {minimise} is not finite; {remedy(workdir / 'checkpoints')}")
                writer.write(k, record)
                shown = {name: record[name] for name in ("loss", minimise) if name in record}
                shown["memory"] = f"{sharding.peak_memory() / 1e9:.2f} GB"
            progress.update(1, **shown)
            if saves:
                checkpoints.save(workdir / "checkpoints", k, state, batches.get_state(), keep=2, best=best)
            if stops:
                raise stops(f"{title}: told to stop, step {k} of {steps} is saved")
    if patience and best and best[0] < int(state.step):
        state, _ = checkpoints.restore(workdir / "checkpoints", target, best[0])
    return state


def due(step: int, every: int) -> bool:
    """Returns whether a step is one of every so many, of which 0 is none."""
    return every > 0 and step % every == 0


def placed(state: State, shardings: State) -> State:
    """Returns the state on its devices, every array in memory of its own.

    A step takes the old state's memory for the new one, each piece once. Arrays that are the same, as zeros of an
    optimiser or the parameters that it remembers, and arrays that lie where they belong already are not copied by
    `device_put`.
    """
    taken: set[int] = set()

    def one(leaf: jax.Array, home: NamedSharding) -> jax.Array:
        leaf = jax.device_put(leaf, home)
        here = {shard.data.unsafe_buffer_pointer() for shard in leaf.addressable_shards if shard.data.size}
        if here & taken:
            leaf = leaf.copy()
            here = {shard.data.unsafe_buffer_pointer() for shard in leaf.addressable_shards if shard.data.size}
        taken.update(here)
        return leaf

    return jax.tree.map(one, state, shardings)


def compiled(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    accumulate: int,
    shardings: State,
    mesh: Mesh,
    large: bool,
):
    """The jitted step (state, constants, batch, key) -> (state, scalars); the old state's memory is reused.

    large: whether the model has more parameters than `sharding.LARGE`.
    """

    def step(state: State, constants: Tree, batch: Tree, key: jax.Array) -> tuple[State, Scalars]:
        key = jax.random.fold_in(key, state.step)
        gradient = gradient_of(loss, accumulate, mesh)
        (value, (variables, scalars)), grads = gradient(state.params, state.variables, constants, batch, key)
        grads = optimizers.wide(grads)
        norm, count = optax.tree.norm(grads), state.step + 1

        def moved(state: State, grads: Tree) -> State:
            updates, optimizer_state = optimizer.update(grads, state.optimizer_state, optimizers.wide(state.params))
            params = optimizers.add(state.params, updates, key)
            # a young average follows faster, so that a short run does not keep its random start
            decay = jnp.minimum(ema_decay, (1 + count) / (10 + count))
            ema = jax.tree.map(lambda old, new: old * decay + new * (1 - decay), state.ema, params) if state.ema else {}
            return State(count, params, variables, optimizer_state, ema)

        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        state = where(finite, moved, state, grads).replace(step=count)
        return state, {"loss": value, "gradient_norm": norm, **scalars, "skipped": ~finite}

    options = (LEAST_MEMORY if large else PIECES) if sharding.platform(mesh) == "cpu" else None
    out = (shardings, sharding.replicated(mesh))
    return jax.jit(step, donate_argnums=0, out_shardings=out, compiler_options=options)


def where(finite: jax.Array, moved: Callable[[State, Tree], State], state: State, grads: Tree) -> State:
    """Returns moved(state, grads) where `finite`, else the state as it was.

    On a CPU it is a branch: XLA would compute the gradients' last operations anew in each pass of a rule that is part
    of the whole, and copy the old state before it writes the new one over it, a fifth of derm-tiny's step. A GPU's host
    would wait at a branch, so accelerators choose number by number.
    """

    def branch(finite: jax.Array, state: State, grads: Tree) -> State:
        return jax.lax.cond(finite, moved, lambda state, grads: state, state, grads)

    def choice(finite: jax.Array, state: State, grads: Tree) -> State:
        return jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved(state, grads), state)

    return jax.lax.platform_dependent(finite, state, grads, cpu=branch, default=choice)


def mean(window: list[Step]) -> dict[str, float]:
    """Returns the mean of every scalar over the steps that counted, and how many did not, if any."""
    counted = [step.scalars for step in window if not step.scalars["skipped"]]
    names = [name for name in window[0].scalars if name != "skipped"]
    record = {name: float(sum(float(s[name]) for s in counted) / len(counted)) for name in names} if counted else {}
    lost = len(window) - len(counted)
    return record | ({"skipped": lost} if lost else {})


def failed(steps: list[Step]) -> list[Step]:
    """Returns the last of the steps, as far back as none of them counted."""
    last = max((i for i, step in enumerate(steps) if not step.scalars["skipped"]), default=-1)
    return steps[last + 1 :]


def not_finite(streak: list[Step], names: Sequence[str]) -> str:
    """Returns which steps failed and, where rows have names, what was in their batches."""
    shown = dict.fromkeys(names[row] for step in streak for row in step.rows) if names else {}
    batches = f", on {', '.join(list(shown)[:SHOWN])}{', …' if len(shown) > SHOWN else ''}" if shown else ""
    one, last = streak[0].number, streak[-1].number
    when = f"steps {one} to {last}" if one < last else f"step {one}"
    return f"the loss or its gradient was not finite at {when}{batches}"


def remedy(folder: Path) -> str:
    """Returns what to do about it, and what is left to go on from."""
    saved = checkpoints.steps(folder)
    good = f"; {folder / f'{saved[-1]:08d}'} is good" if saved else ""
    return f"lower the rate or look at the images{good}"
