"""The processes of one run, one on each host: joined by jax.distributed, compared at the start, watched until the end.

JAX's coordination service, in process 0, keeps texts that all processes reach without a collective. Each writes there
what it runs, then every BEAT seconds that it lives and which step it has come to. Process 0 looks at all of them and
writes why the run ends, which the others wait for. So every process ends with one line, and the same command goes on:

  what happens                                  it ends
  a process has other versions, config, workdir at the start
  one is refused something, as by a full disk   in a beat, with exit code 2 as the one that was refused
  one is killed, or its host is lost            FAILING after its last sign if a collective failed for it, else SILENCE
  one stands still while the others go on       STRAGGLING after it was last seen to move
  process 0 is killed; its host is lost         at once; in HEARTBEAT
  one never begins                              in START

Where process 0 is lost JAX calls abort(), in some thread and with a page that `machine.quiet_compiler` leaves out. The
handler of that signal has the last word.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import NoReturn

import jax
from jax._src import distributed  # JAX has no other way to the texts

from dermjax import run_folder
from dermjax.errors import AGAIN, Stopped, UserError
from dermjax.progress import duration, say

# seconds
BEAT = 1.0
FAILING, SILENCE = 6.0, 30.0
BEHIND, STRAGGLING = 120.0, 1800.0  # a process that is behind is named, later it ends the run
HEARTBEAT = 60
START = 300  # for the others to begin
GRACE = 10.0  # that process 0 stays at most, for the others to read why it ends
# keys of the texts
FACTS, HELD, BEGUN, SIGNS, END, LEFT = (
    f"dermjax/{name}" for name in ("facts", "held", "begun", "signs", "end", "left")
)

DIFFERENCES = {
    "versions": ("runs other versions than", "install the same on all hosts"),
    "config": ("has another config than", "give all the same command"),
}
NAMED = 4  # processes in a message
SAME = "start all again with the same command"

_run: "Processes | None" = None


def reached(step: int) -> None:
    """Notes the step that this process has come to, for the others to see who is behind."""
    if _run:
        _run.step = step


@contextlib.contextmanager
def joined(
    arguments: Mapping, command: str, config: Mapping, workdir: Path, claimed: AbstractContextManager,
    mendable: Callable[[Exception], str],
) -> Iterator[None]:  # fmt: skip
    """Joins the processes of a run and enters `claimed`, which holds the workdir, in the first of them, for all.

    Where a process is refused something, there or in the block, or is lost, every process says so on one line and ends.

    arguments: of `jax.distributed.initialize`.
    mendable: gives the line for what a person can mend, "" for any other error.
    """
    global _run
    run = _run = Processes(command)
    with calls_on_abort(run.on_abort):
        try:
            jax.distributed.initialize(**arguments, initialization_timeout=START, heartbeat_timeout_seconds=HEARTBEAT)
        except (ValueError, RuntimeError) as error:
            raise UserError(f"the processes of this run cannot be joined: {str(error).splitlines()[0]}") from error
        try:
            with run.begun(config, workdir, claimed):
                yield
        except Stopped:
            run.leave()
            raise
        except KeyboardInterrupt:
            run.stop()
            raise
        except Exception as error:
            line = mendable(error)
            if line:
                run.end(line, 2)
            run.fail(error)
        run.leave()


@contextlib.contextmanager
def calls_on_abort(function: Callable[[int], None]) -> Iterator[None]:
    """Within the block abort() calls a function first, in C: Python's own handlers run once abort() has returned."""
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(function)
    library = ctypes.CDLL(None)
    library.signal(int(signal.SIGABRT), handler)
    try:
        yield
    finally:
        library.signal(int(signal.SIGABRT), None)  # as it was: SIG_DFL


def versions() -> dict[str, str]:
    """Returns what must be the same in all processes: the packages that shape results, and dermjax's own source."""
    package = Path(run_folder.__file__).parent
    source = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        source.update(f"{path.relative_to(package)} {path.stat().st_size} ".encode() + path.read_bytes())
    packages = {name: metadata.version(name) for name in run_folder.PACKAGES}
    return packages | {"source": source.hexdigest()[:16]}


@dataclass
class Sign:
    """The last sign of a process, and when it came, when another step came, and when it first told of a failure."""

    text: Mapping
    at: float
    moved: float
    failed: float | None = None

    def then(self, text: Mapping, now: float) -> "Sign":
        """Returns the sign after another look."""
        if text == self.text:
            return self
        moved = now if text["step"] != self.text.get("step") else self.moved
        return Sign(text, now, moved, self.failed or (now if "failed" in text else None))


@dataclass(frozen=True)
class Ending:
    """Why a run ends: the line for all but the process that it is of, the exit code, and which processes are gone.

    An empty line is that all is done.
    """

    line: str
    code: int = 0
    process: int | None = None
    gone: tuple[int, ...] = ()


def ending(signs: Sequence[Sign], name: Callable[[int], str], now: float) -> Ending | None:
    """Returns why a run is to end by the signs of its processes, None where it goes on."""
    for index, sign in enumerate(signs):
        if "line" in sign.text:
            return Ending(f"{name(index)}: {sign.text['line']}", sign.text["code"], index, (index,))
    patience = FAILING if any(sign.failed for sign in signs) else SILENCE
    gone = tuple(index for index, sign in enumerate(signs) if now - sign.at > patience)
    if gone:
        last = signs[gone[0]]
        since = f"since step {last.text['step']}" if last.text.get("step") else "since the start"
        names = ", ".join(name(index) for index in gone[:NAMED]) + ", …" * (len(gone) > NAMED)
        silent = f"no sign of {names} for {duration(now - last.at)}, {since}"
        return Ending(f"{silent}; {SAME}", AGAIN, gone[0], gone)
    for index, sign in enumerate(signs):
        if sign.failed and now - sign.failed > FAILING + BEAT:
            return Ending(f"{name(index)} failed ({sign.text['failed']})", AGAIN, index, (index,))
    if all("done" in sign.text for sign in signs):
        return Ending("")
    for index in behind(signs, STRAGGLING, now):
        sign = signs[index]
        ahead = max(each.text.get("step", 0) for each in signs)
        stands = f"{name(index)} has been at step {sign.text['step']} for {duration(now - sign.moved)}"
        return Ending(f"{stands}, others are at {ahead}; see what holds it up, then {SAME}", AGAIN, index)
    return None


def behind(signs: Sequence[Sign], seconds: float, now: float) -> list[int]:
    """Returns the processes that others are ahead of and that have not come on for so long."""
    steps = [sign.text.get("step", 0) for sign in signs]
    return [i for i, sign in enumerate(signs) if steps[i] < max(steps) and now - sign.moved > seconds]


class Processes:
    """This process and the others of its run."""

    def __init__(self, command: str):
        self.command = command
        self.step = 0
        self._sign = {"beat": 0}
        self._joined = self._begun = self._lost = False
        self._hosts: Sequence[str] = ()
        self._over = threading.Event()
        self._last_word = threading.Lock()

    @property
    def index(self) -> int:
        """The number of this process; jax.process_index would begin the backend."""
        return distributed.global_state.process_id

    @property
    def count(self) -> int:
        """How many processes there are."""
        return distributed.global_state.num_processes

    @contextlib.contextmanager
    def begun(self, config: Mapping, workdir: Path, claimed: AbstractContextManager) -> Iterator[None]:
        """Compares the processes, claims the run in the first, and watches; UserError in all where one is refused.

        One that sees another folder as the workdir is refused: it would wait there for what the first one writes.
        """
        self._joined = True
        facts = {"host": platform.node(), "versions": versions(), "config": config}
        self._put(f"{FACTS}/{self.index}", facts)
        with contextlib.ExitStack() as stack:
            if self.index == 0:
                self._compare()
                stack.enter_context(claimed)
                self._put(HELD, run_folder.held_by(workdir))
                self._put(BEGUN, "")
            elif refusal := self._get(BEGUN, START):
                raise UserError(refusal)
            elif run_folder.held_by(workdir) != self._get(HELD, START):
                raise UserError(f"workdir {workdir}: is not the first process's; give one that all hosts share")
            self._begun = True
            threading.Thread(target=self._watch, name="processes", daemon=True).start()
            yield

    def leave(self) -> None:
        """Waits until every process has done its work, and leaves jax.distributed."""
        self._sign["done"] = True
        self._give_sign()
        self._over.wait()
        jax.distributed.shutdown()

    def fail(self, error: Exception) -> NoReturn:
        """Ends this process for an error that may be another's doing: a collective fails where a process is lost."""
        told = f"{type(error).__name__}: {error}".splitlines()[0]
        if self._begun:
            self._sign["failed"] = told
            self._over.wait(SILENCE + FAILING)
        else:
            self._announce(f"failed ({told})", AGAIN, None)
        self._last_word.acquire()
        try:
            traceback.print_exc()
            sys.stderr.flush()
        finally:  # also where nobody reads it any more
            os._exit(1)

    def end(self, line: str, code: int, told: Ending | None = None) -> NoReturn:
        """Says why this process ends, tells the others, and ends at once: a collective would wait for ever."""
        self._last_word.acquire()  # of the thread that comes first
        with contextlib.suppress(OSError):  # nobody reads it any more, as where a terminal was closed
            print(f"dermjax {self.command}: {' '.join(line.splitlines())}", file=sys.stderr, flush=True)
        self._announce(line, code, told)
        os._exit(code)

    def stop(self) -> None:
        """Tells the others that this process was told to stop, which says so by itself."""
        self._last_word.acquire()
        self._announce("told to stop", AGAIN, None)

    def _announce(self, line: str, code: int, told: Ending | None) -> None:
        """Tells the others, in a thread that may wait for ever where process 0 is what is lost."""

        def announce() -> None:
            if self.index == 0:
                if not self._begun:
                    self._put(BEGUN, line)
                self._tell(told or Ending(f"{self._name(0)}: {line}", code, 0, (0,)))
            else:
                self._sign |= {"line": line, "code": code}
                self._give_sign()
                self._put(f"{LEFT}/{self.index}", "")

        if self._joined and not self._lost:
            thread = threading.Thread(target=announce, daemon=True)
            thread.start()
            thread.join(GRACE)

    def on_abort(self, number: int) -> NoReturn:
        """Ends this process in place of abort(), by which JAX and XLA end it."""
        if self._over.is_set() and "done" in self._sign:  # all is done, and process 0 left while this one was leaving
            os._exit(0)
        if not self._begun:
            self.end(f"the processes of this run did not all begin within {duration(START)}; {SAME}", AGAIN)
        try:
            self._get(BEGUN, BEAT)
        except jax.errors.JaxRuntimeError:
            self._lost = True
            self.end(f"process 0, which joins the others, is lost; {SAME}", AGAIN)
        self.end("a library ended this process by abort(); TF_CPP_MIN_LOG_LEVEL=3 has XLA say why", 128 + number)

    def _compare(self) -> None:
        facts = [self._get(f"{FACTS}/{index}", START) for index in range(self.count)]
        self._hosts = [each["host"] for each in facts]
        for index, other in enumerate(facts):
            for what, (differs, remedy) in DIFFERENCES.items():
                if changed := run_folder.differences(facts[0][what], other[what]):
                    raise UserError(f"{self._name(index)} {differs} {self._name(0)} ({changed}); {remedy}")

    def _name(self, index: int) -> str:
        host = f" ({self._hosts[index]})" if self._hosts else ""
        return f"process {index} of {self.count}{host}"

    def _watch(self) -> None:
        """Gives signs, and ends this process for the reason that process 0 finds and the others wait for."""
        found = self._look() if self.index == 0 else self._wait()
        if found.line and not ("failed" in self._sign and found.process == self.index):
            self.end(found.line, found.code, found)
        if self.index == 0:
            self._tell(found)
        self._over.set()

    def _look(self) -> Ending:
        """Returns why the run ends, once it does."""
        signs = [Sign({}, time.monotonic(), time.monotonic())] * self.count
        named: set[int] = set()
        while True:
            time.sleep(BEAT)
            self._give_sign()
            now = time.monotonic()
            for key, text in distributed.global_state.client.key_value_dir_get(SIGNS):
                index = int(key.rpartition("/")[2])
                signs[index] = signs[index].then(json.loads(text), now)
            if found := ending(signs, self._name, now):
                return found
            for index in set(behind(signs, BEHIND, now)) - named:
                named.add(index)
                say(f"{self.command}: {self._name(index)} is behind, at step {signs[index].text['step']}")

    def _wait(self) -> Ending:
        """Returns why the run ends, once process 0 has found out; where that is lost JAX calls abort()."""
        while True:
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # there is none yet
                self._give_sign()
                return Ending(**self._get(END, BEAT))
            time.sleep(BEAT / 10)

    def _tell(self, told: Ending) -> None:
        """Gives the others the reason, and waits until those who live have read it: the service ends with process 0."""
        self._put(END, asdict(told))
        until = time.monotonic() + GRACE
        while told.line and time.monotonic() < until:
            left = len(distributed.global_state.client.key_value_dir_get(LEFT))
            if left >= self.count - len({0, *told.gone}):
                return
            time.sleep(0.05)

    def _give_sign(self) -> None:
        self._sign["beat"] += 1
        self._put(f"{SIGNS}/{self.index}", self._sign | {"step": self.step})

    def _put(self, key: str, value: object) -> None:
        distributed.global_state.client.key_value_set(key, json.dumps(value), allow_overwrite=True)

    def _get(self, key: str, seconds: float) -> object:
        return json.loads(distributed.global_state.client.blocking_key_value_get(key, int(1000 * seconds)))
