"""What a person sees of a long run: a cost line before a stage, a bar with rate and time left, plain lines.

On a terminal the bar is tqdm's. Elsewhere (a log file, a pipe, a batch system) the same facts come as plain lines,
the first at once, then about every ten seconds, the last at the end. Everything goes to standard output. Rates are
means over the run: of training, that takes evaluations and checkpoints in, which the last ten seconds are or are not.
"""

import contextlib
import sys
import time
from collections.abc import Iterator

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0


@contextlib.contextmanager
def bar(total: int, title: str, unit: str, done: int) -> Iterator["TerminalBar | PlainLines"]:
    """Yields an object whose `update(n=1, **postfix)` counts n more units; a resumed step starts at `done`."""
    if sys.stdout.isatty():
        counter = TerminalBar(
            total=total,
            desc=title,
            unit=f" {unit}",
            initial=done,
            file=sys.stdout,
            dynamic_ncols=True,
            smoothing=0,  # the mean over the run
        )
    else:
        counter = PlainLines(total, title, unit, done)
    try:
        yield counter
    finally:
        counter.close()


def say(line: str) -> None:
    """Prints a plain line, above the bar when one is running."""
    if sys.stdout.isatty():
        tqdm.write(line, file=sys.stdout)
    else:
        print(line, flush=True)


def cost(stage: str, **facts: str | float) -> None:
    """Prints what a stage is about to cost: `tune: 1 cpu device, 8.6 M parameters, 150 steps, about 2 min`.

    A number is printed with its key as the unit (steps=150), `seconds` as a rounded duration, a string as it is.
    """
    say(f"{stage}: " + ", ".join(_fact(key, value) for key, value in facts.items()))


class TerminalBar(tqdm):
    """tqdm's bar under the interface of `bar`."""

    def update(self, n: int = 1, **postfix: object) -> None:
        """Counts n more units and shows the postfix beside the rate."""
        if postfix:
            self.set_postfix(postfix, refresh=False)
        super().update(n)


class PlainLines:
    """The same facts as lines: `tune: 40/150 steps, 1.3 steps/s, 1 min 25 s left, loss=0.12`."""

    def __init__(self, total: int, title: str, unit: str, done: int):
        self._total, self._title, self._unit = total, title, unit
        self._start, self._done, self._postfix = done, done, {}
        self._began = self._line_at = time.monotonic()
        self._counts_from = self._began, done  # when, and at how many, the rate begins
        say(f"{title}: {done}/{total} {unit}")

    def update(self, n: int = 1, **postfix: object) -> None:
        """Counts n more units; prints a line when the last one is ten seconds old."""
        first = self._done == self._start
        self._done += n
        self._postfix = postfix
        now = time.monotonic()
        if first:  # it waits for a compilation, which says nothing of the others
            self._counts_from = now, self._done
        if now - self._line_at >= SECONDS_BETWEEN_LINES and self._done < self._total:
            began, start = self._counts_from
            rate = (self._done - start) / max(now - began, 1e-9)
            times = [self._rate(rate), f"{duration((self._total - self._done) / rate)} left"] if rate else []
            self._line(times)
            self._line_at = now

    def close(self) -> None:
        """Prints the last line, with the mean rate and the time that this run took."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        self._line([self._rate((self._done - self._start) / seconds), f"took {duration(seconds)}"])

    def _rate(self, rate: float) -> str:
        return f"{rate:.3g} {self._unit}/s"

    def _line(self, times: list[str]) -> None:
        counted = f"{self._done}/{self._total} {self._unit}"
        postfix = [f"{key}={_number(value)}" for key, value in self._postfix.items()]
        say(f"{self._title}: " + ", ".join([counted, *times, *postfix]))


def duration(seconds: float) -> str:
    """Returns a duration for people: `8 s`, `1 min 25 s`, `12 min`, `3 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    if whole < 3600:
        return f"{round(whole / 60)} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _fact(key: str, value: str | float) -> str:
    if isinstance(value, str):
        return value
    if key == "seconds":
        return f"about {duration(value)}"
    return f"{_count(value)} {key.replace('_', ' ')}"


def _count(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:g}" if isinstance(value, float) else f"{value}"


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
