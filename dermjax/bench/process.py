"""A process that does one case's work whenever it is asked, and the end that asks it; both speak in lines of JSON.

Each side of a case has a process of its own, as its users have them: within one, the memory and the threads of JAX and
PyTorch disturb each other.
"""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LAST_WORDS = 400  # characters of a log that tell why a process ended


def peak_memory() -> int:
    """Returns the most bytes that this process has held so far."""
    status = Path("/proc/self/status")
    if status.is_file():  # a process starts its ru_maxrss with its parent's
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line[:6] == "VmHWM:") * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@dataclass(frozen=True)
class Work:
    """What a side does in a round: `run` does it and waits for it.

    operations: floating-point operations of a round, products and sums, 0 where they mean nothing. peak: the most bytes
    held, on a GPU the device's.
    """

    run: Callable[[], object]
    operations: float = 0.0
    peak: Callable[[], int] = peak_memory


def serve(*kinds: Callable[..., Work]) -> None:
    """Does the work of `sys.argv[1:]`, a kind, its settings and whether its first call counts, once for each line read.

    kinds: functions of settings; the name of each is that of its kind.

    The answers are lines of JSON on standard output; whatever libraries print goes to the errors' side.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    kind, settings, fresh = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3] == "fresh"

    def answer(**facts: float) -> None:
        print(json.dumps(facts), file=answers, flush=True)

    def timed(work: Work) -> dict[str, float]:
        faults, busy, began = _faults(), time.process_time(), time.perf_counter()
        work.run()
        seconds, busy = time.perf_counter() - began, time.process_time() - busy
        return {"seconds": seconds, "processor_seconds": busy, "page_faults": _faults() - faults, "peak": work.peak()}

    work = {each.__name__: each for each in kinds}[kind](**settings)
    answer(first=0.0 if fresh else timed(work)["seconds"], operations=work.operations)
    for _ in sys.stdin:
        answer(**timed(work))


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


class Ended(Exception):
    """A process ended before it answered; its text says why, on one line."""


class Side:
    """The end that asks: a process that was started by a command, and what it says of itself once it is ready."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path):
        self._log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        try:
            self.ready = self._answer()
        except BaseException:
            self.close()
            raise

    def round(self) -> dict[str, float]:
        """Returns the times and the peak memory of one round."""
        with contextlib.suppress(BrokenPipeError):  # it has ended, and reading says why
            print(file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """Ends the process, if it has not ended."""
        self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()  # not read to its end: processes of its own may hold it open
        self._process.wait()

    def _answer(self) -> dict[str, float]:
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        lines = [each for each in self._log.read_text(errors="replace").splitlines() if each.strip()]
        if code == -signal.SIGKILL:
            raise Ended("killed, as the system does where memory runs out")
        raise Ended(f"{lines[-1].strip()[:LAST_WORDS] if lines else f'exit code {code}'}; see {self._log}")
