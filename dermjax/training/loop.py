"""The training loop of everything that is trained here: autoencoder, diffusion model, DreamBooth, classifiers.

A task says what is learnt and how it is watched; the loop compiles its step once (`training/step.py`) and walks: batch,
step, scalars, evaluation, checkpoint. Killed anywhere, the same call goes on from the last checkpoint and ends with the
same numbers.
"""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import NamedTuple, Protocol

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from dermjax import machine, processes, sharding, signals
from dermjax.errors import Stopped, UserError
from dermjax.progress import bar, say
from dermjax.training import checkpoints
from dermjax.training.state import State, place
from dermjax.training.step import Loss, Scalars, Tree, compile_step
from dermjax.training.writers import Writer

FAILURES = 5  # steps in a row without a finite loss after which a run stops; each of them leaves the state as it was
SHOWN = 8  # names in a message

Evaluate = Callable[[State, Tree], dict[str, float | np.ndarray]]


@dataclass(frozen=True)
class Task:
    """What is learnt by which rule, and how it is watched.

    `evaluate(state, constants)` gives scalars and images to log; `minimise` names the scalar whose lowest value makes a
    checkpoint the best, "" for none; a step that leaves it out is not the best. `names` are what to call examples by
    their number in the batch's `row`.
    """

    title: str
    loss: Loss
    optimizer: optax.GradientTransformation
    evaluate: Evaluate = lambda state, constants: {}
    minimise: str = ""
    names: Sequence[str] = ()


@dataclass(frozen=True)
class LoopConfig:
    """How long and how often; a period of 0 is never, and `ema_decay` 0 keeps no average.

    A step takes its batch in `accumulate` parts, one after the other, and updates once, which saves memory and changes
    no number. The task is evaluated before the first step, every `evaluate_every` steps and at the end. With `patience`
    training ends once its best evaluation is so many steps old, and another one was made since, and gives that
    checkpoint's state. With save_every 0 only the end is saved, and where the run is told to stop.
    """

    seed: int
    steps: int
    save_every: int
    log_every: int
    ema_decay: float = 0.0
    accumulate: int = 1
    evaluate_every: int = 0
    patience: int = 0


class Batches(Protocol):
    """A checkpointable iterator of numpy trees, as grain's are."""

    def __next__(self) -> dict[str, np.ndarray]: ...
    def get_state(self) -> dict: ...
    def set_state(self, state: dict) -> None: ...


class NotFinite(UserError):
    """The loss was not finite FAILURES times in a row, or at the end."""


class Step(NamedTuple):
    """One step: its number, the rows of its batch, its scalars."""

    number: int
    rows: Sequence[int]
    scalars: Scalars


def fit(
    task: Task, state: State, constants: Tree, batches: Batches, config: LoopConfig, *, mesh: Mesh, workdir: Path
) -> State:
    """Returns the state after config.steps updates, resumed from workdir/checkpoints where one is.

    A step whose loss or gradient is not finite changes nothing.

    Raises:
      UserError: a checkpoint is damaged, of another model or of a later step, or there is no room for one.
      NotFinite: a UserError, the loss was not finite FAILURES times in a row, or at the end: nothing was saved since.
      Stopped: the run was told to stop (SIGTERM, or a machine that is taken away) and has saved its last step.
      KeyboardInterrupt: the same, of Ctrl-C.
    """
    folder, evaluates = workdir / "checkpoints", config.evaluate_every > 0
    shardings = sharding.tree_shardings(state, sharding.RULES, mesh)
    target = sharding.shaped(state, shardings)
    saved = checkpoints.newest(folder)
    if saved > config.steps:  # its state would pass for that of fewer steps
        asked = f"{folder} holds step {saved} and {config.steps} steps are asked for"
        raise UserError(f"{task.title}: {asked}; give {saved} or more, or train anew in another --workdir")
    state = resume(state, batches, folder, target) if saved else place(state, shardings)
    begin = int(state.step)
    large = sum(leaf.size for leaf in jax.tree.leaves((state, constants))) > sharding.LARGE
    if sharding.platform(mesh) == "cpu" and not large:
        machine.keep_freed_memory()
    step = compile_step(task.loss, task.optimizer, config.ema_decay, config.accumulate, shardings, mesh, large)
    # made where it lies: device_put would not take a key to the devices of another process
    key = jax.jit(partial(jax.random.key, config.seed), out_shardings=sharding.replicated(mesh))()
    constants = sharding.put(constants, sharding.tree_shardings(constants, sharding.RULES, mesh))
    best = checkpoints.best(folder)
    window: list[Step] = []
    streak: list[Step] = []
    postfix: Scalars = {}
    with (
        closing(Writer(workdir, begin if saved else -1)) as writer,
        bar(config.steps, task.title, "steps", begin) as progress,
        watch_for_preemption() as preempted,
    ):
        if evaluates and not saved:
            writer.write(0, task.evaluate(state, constants))
        for k in range(begin + 1, config.steps + 1):
            # after the best evaluation there is another one at least, however short patience is
            if config.patience and best and k > best[0] + max(config.patience, config.evaluate_every):
                break
            batch = next(batches)
            given = state, constants, sharding.place(batch, mesh), key
            if large and k == begin + 1:  # what the compiler took is given back before the step takes its own
                step = step.lower(*given).compile()
                machine.release_memory()
            state, scalars = step(*given)
            del given
            if window:  # at most two steps wait on a device: their batches lie in its memory, and the bar counts them
                jax.block_until_ready(window[-1].scalars)
            window.append(Step(k, batch.get("row", ()), scalars))
            stop, last = preempted(k), k == config.steps
            saves = is_due(k, config.save_every) or last or stop
            evaluated = evaluates and (is_due(k, config.evaluate_every) or last)
            if saves or evaluated or is_due(k, config.log_every) or k == 1:
                window = jax.device_get(window)
                record, streak, window = mean_of(window), failed_at_end(streak + window), []
                if len(streak) >= FAILURES or (streak and last):
                    raise NotFinite(f"{task.title}: {not_finite(streak, task.names)}; {remedy(folder)}")
                if evaluated:
                    record |= task.evaluate(state, constants)
                    value = record.get(task.minimise)
                    if value is not None and isfinite(value) and (best is None or value < best[1]):
                        best, saves = (k, value), True
                    elif value is not None and last and not (config.patience or isfinite(value)):
                        raise NotFinite(f"{task.title}: {task.minimise} is not finite; {remedy(folder)}")
                writer.write(k, record)
                postfix = {name: record[name] for name in ("loss", task.minimise) if name in record}
                postfix["memory"] = f"{sharding.peak_memory() / 1e9:.2f} GB"
            progress.update(1, **postfix)
            if saves:
                checkpoints.save(folder, k, state, batches.get_state(), keep=2, best=best)
            if stop:
                raise stop(f"{task.title}: told to stop, step {k} of {config.steps} is saved")
    if config.patience and task.minimise and not best:
        say(f"{task.title}: warning: no evaluation may be the best, so the last step is taken")
    if config.patience and best and best[0] < int(state.step):
        state, _ = checkpoints.restore(folder, target, best[0])
    return state


def resume(state: State, batches: Batches, folder: Path, target: State) -> State:
    """Returns the state of the newest checkpoint in place of a new one, and sets the batches to where it was."""
    consume(state)  # the restored one takes its memory: of a whole UNet two would be 17 GB
    machine.release_memory()
    state, iterator = checkpoints.restore(folder, target)
    batches.set_state(iterator)
    return state


def consume(state: State) -> None:
    """Frees the arrays of a state, whoever holds them, as the step does with a state that it is given."""
    for leaf in jax.tree.leaves(state):
        if isinstance(leaf, jax.Array):
            leaf.delete()


def is_due(step: int, every: int) -> bool:
    """Returns whether a step is one of every so many, of which 0 is none."""
    return every > 0 and step % every == 0


def mean_of(window: list[Step]) -> dict[str, float]:
    """Returns the mean of every scalar over the steps that counted, and how many did not, if any."""
    counted = [step.scalars for step in window if not step.scalars["skipped"]]
    names = [name for name in window[0].scalars if name != "skipped"]
    record = {name: float(sum(float(s[name]) for s in counted) / len(counted)) for name in names} if counted else {}
    lost = len(window) - len(counted)
    return record | ({"skipped": lost} if lost else {})


def failed_at_end(steps: list[Step]) -> list[Step]:
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


@contextmanager
def watch_for_preemption() -> Iterator[Callable[[int], type[BaseException] | None]]:
    """Yields preempted(step), what to raise once that step is saved where the run was told to stop, else None.

    The answer is the same in every process at the same step: with several of them JAX itself listens to SIGTERM, and
    its coordinator chooses the step at which all of them stop. Outside of the main thread, where Python
    handles no signals, a single process answers None.
    """
    if jax.process_count() > 1:

        def together(step: int) -> type[BaseException] | None:
            processes.reached(step)
            return Stopped if multihost_utils.reached_preemption_sync_point(step) else None

        yield together
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: None
        return

    def exception() -> type[BaseException] | None:
        return (KeyboardInterrupt if notices[0] == signal.SIGINT else Stopped) if notices else None

    with signals.deferred() as notices:
        yield lambda step: exception()
    if stop := exception():  # after the last step asked
        raise stop("told to stop, every step is saved")
