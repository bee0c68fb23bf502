"""Stop signals: Ctrl-C (SIGINT), or a scheduler's SIGTERM.

At the first a training loop saves its next step and stops; everything else stops where it is. At the second the process
ends at once, and so it does where nothing is to be saved and it has not stopped after GRACE seconds. Python calls its
handlers between two lines of the main thread, which may wait for minutes while XLA compiles: a thread listens as well.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from dermjax import machine
from dermjax.progress import say

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 5.0  # seconds
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}

_saving = threading.Event()  # set while a training loop runs, which saves before it stops


class Terminated(KeyboardInterrupt):
    """SIGTERM where nothing is to be saved."""


@contextmanager
def interruptible(command: str) -> Iterator[None]:
    """Within the block a signal is a KeyboardInterrupt, and ends the process where nothing acts on that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    listening, woken = socket.socketpair()
    woken.setblocking(False)
    listener = threading.Thread(target=_listen, args=(listening, command), daemon=True)
    listener.start()
    before = signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
    try:
        with _handled(_raise):
            yield
    finally:
        signal.set_wakeup_fd(before)
        woken.close()  # which ends the thread, unless that is ending the process
        listener.join()


@contextmanager
def deferred() -> Iterator[list[int]]:
    """Yields the signals received in the block, which the first of them does not interrupt."""
    received: list[int] = []

    def receive(number: int, frame: object) -> None:
        if received:
            _raise(number, frame)
        received.append(number)

    _saving.set()
    try:
        with _handled(receive):
            yield received
    finally:
        _saving.clear()


def end(command: str, stop: KeyboardInterrupt) -> NoReturn:
    """Says the last line of a command that was interrupted, and ends the process."""
    _end(command, signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT, str(stop))


@contextmanager
def _handled(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Within the block `handler` gets the signals, but for those that the process was started to ignore."""
    before = {each: signal.getsignal(each) for each in SIGNALS}
    ours = [each for each in SIGNALS if before[each] not in (signal.SIG_IGN, None)]
    for each in ours:
        signal.signal(each, handler)
    try:
        yield
    finally:
        for each in ours:
            signal.signal(each, before[each])


def _raise(number: int, frame: object) -> None:
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _listen(listening: socket.socket, command: str) -> None:
    """Ends the process at the second signal, or GRACE seconds after one that nothing was to be saved after."""
    first = 0
    with listening:
        while True:
            try:
                number = listening.recv(1)
            except TimeoutError:
                _end(command, first, "")
            if not number:
                return
            if number[0] not in SIGNALS:
                continue
            if first:
                _end(command, number[0], "")
            first = number[0]
            if _saving.is_set():
                say(f"{command}: told to stop, which it does once this step is saved; told again, at once")
            else:
                listening.settimeout(GRACE)


def _end(command: str, number: int, words: str) -> NoReturn:
    print(f"\ndermjax {command}: {words or WORDS[number]}; resume with the same command", file=sys.stderr, flush=True)
    machine.remove_programs()
    # at once: Python would wait for every thread, and XLA, compiling in one of its own, would crash
    os._exit(128 + number)
