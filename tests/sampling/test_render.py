"""Rounds are started before the one before them is waited for, files are written beside, and time is accounted for."""

import threading
import time

import numpy as np
import pytest

from dermjax.sampling.render import Started, produce
from dermjax.sampling.requests import rounds


class Asked(str):
    """A request that is its name."""

    image = prompt = property(str)


BATCHES = [["a0", "a1"], ["a2"], ["a3", "a4"], ["b0"], ["b1", "b2"]]


class Images:
    """What a device is at work on: there after so many seconds from the time that it is free."""

    free_at = 0.0

    def __init__(self, rows, seconds):
        self.rows = rows
        Images.free_at = self.at = max(time.monotonic(), Images.free_at) + seconds

    def block_until_ready(self):
        time.sleep(max(0.0, self.at - time.monotonic()))

    def __array__(self, dtype=None, copy=None):
        self.block_until_ready()
        return np.arange(self.rows)[:, None, None, None] + np.arange(2)[:, None]  # a row of two pixels each


def begin(seconds, log):
    def start(batches):
        requests = tuple(enumerate(Asked(request) for batch in batches for request in batch))
        log.append(("begin", batches[0][0]))
        return Started(requests, Images(len(requests), seconds), time.monotonic())

    return start


def test_rounds_have_a_batch_a_device_and_one_kind_of_request():
    of_two = list(rounds(BATCHES, 2, lambda request: request[0]))
    assert of_two == [BATCHES[:2], BATCHES[2:3], BATCHES[3:]]
    assert list(rounds(BATCHES, 1, lambda request: request[0])) == [[batch] for batch in BATCHES]
    assert list(rounds([], 3, lambda request: request[0])) == []


def test_what_is_wanted_is_written_with_its_row_and_counted():
    log, written, ticks = [], {}, []
    work = rounds(BATCHES, 2, lambda request: request[0])
    wanted = {"a0", "a2", "a3", "b2"}
    accounts = produce(
        work, begin(0.0, log), wanted, lambda r, row: written.update({r: int(row[0, 0, 0])}), ticks.append
    )
    assert written == {"a0": 0, "a2": 2, "a3": 0, "b2": 2}
    assert accounts.images == sum(ticks) == 4


def test_the_next_round_is_started_before_the_one_before_it_is_written():
    log = []
    work = [[batch] for batch in BATCHES]
    asked = {request for batch in BATCHES for request in batch}
    produce(work, begin(0.05, log), asked, lambda request, row: log.append(("write", request)), lambda n: None)
    assert log.index(("begin", "a2")) < log.index(("write", "a0"))
    assert log.index(("begin", "b0")) < log.index(("write", "a3"))


def test_slow_files_and_slow_preparation_do_not_keep_the_device_waiting():
    """40 ms of the device a round, 30 to prepare it, 30 to write it: one after the other it would work 40 % of them."""

    def slow(batches):
        time.sleep(0.03)
        return begin(0.04, [])(batches)

    work = [[[f"a{n}"]] for n in range(15)]
    accounts = produce(work, slow, {f"a{n}" for n in range(15)}, lambda *_: time.sleep(0.03), lambda n: None)
    assert accounts.device_seconds == pytest.approx(15 * 0.04, rel=0.15)
    assert accounts.device_seconds > 0.75 * accounts.seconds


def test_a_device_that_waits_is_not_counted_as_at_work():
    def slow(batches):
        time.sleep(0.1)
        return begin(0.02, [])(batches)

    accounts = produce([[["a"]], [["b"]], [["c"]]], slow, set("abc"), lambda *_: None, lambda n: None)
    assert accounts.device_seconds < 0.5 * accounts.seconds


def test_at_most_one_round_waits_to_be_written():
    """Files that take longer than images hold the next round up, rather than fill the memory."""
    now, most, lock = [0], [0], threading.Lock()

    def start(batches):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        return begin(0.0, [])(batches)

    def write(request, row):
        time.sleep(0.02)
        with lock:
            now[0] -= 1

    produce([[[f"a{n}"]] for n in range(12)], start, {f"a{n}" for n in range(12)}, write, lambda n: None)
    assert most[0] <= 3


def test_what_a_thread_raises_is_raised():
    def full(request, row):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        produce([[["a"]], [["b"]]], begin(0.0, []), set("ab"), full, lambda n: None)
