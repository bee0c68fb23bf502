"""Being told to stop: by a signal, or by the notice that a TPU or a cloud machine is taken away."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils

from dermjax import signals
from dermjax.errors import Stopped

Ending = type[Stopped] | type[KeyboardInterrupt]


@contextmanager
def watched() -> Iterator[Callable[[int], Ending | None]]:
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
