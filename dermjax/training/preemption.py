"""Being told to stop: SIGTERM from a scheduler, or the notice that a TPU or a cloud machine is taken away."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils


@contextmanager
def watched() -> Iterator[Callable[[int], bool]]:
    """Yields told(step), whether this run was told to stop: the same answer in every process at the same step.

    With several processes JAX itself listens, and its coordinator chooses the step at which all of them stop. Outside
    of the main thread, where Python lets nobody listen to signals, one process is never told.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    notices: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: notices.append(number))
    try:
        yield lambda step: bool(notices)
    finally:
        signal.signal(signal.SIGTERM, before)
