"""The cells of the grid: each is one training, done once, by one host at a time.

A cell is finished when its folder has metrics.json. A host claims it by making the file `claim`, which only one host
can; it touches the file while it works, so that a claim that nobody has touched for STALE seconds, by the clock of
the file system, is that of a dead host and is taken over. The training resumes from its checkpoint.
"""

import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dermjax.classification import training
from dermjax.classification.training import DONE

CLAIM = "claim"
LEFT = (*training.LEFT, "phase1")  # by which it is known that a cell has been begun
BEAT, STALE = 20.0, 300.0  # seconds


@dataclass(frozen=True, order=True)
class Cell:
    """One training: the images of a fold, a classifier, few-shot size (0 is all), an arm and a seed."""

    fold: int
    classifier: str
    shots: int
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"fold{self.fold}_{self.classifier}_{self.shots or 'all'}_{self.arm}_seed{self.seed}"


def finished(folder: Path) -> bool:
    """Whether the cell of a folder has been done."""
    return (folder / DONE).exists()


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Yields whether the cell of a folder is now this process's, until the end of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CLAIM
    if not (_make(path) or (_deserted(path) and _clear(path) and _make(path))):
        yield False
        return
    ended = threading.Event()
    beat = threading.Thread(target=_touch, args=(path, ended), daemon=True)
    beat.start()
    try:
        yield True
    finally:
        ended.set()
        beat.join()
        path.unlink(missing_ok=True)


def _make(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{socket.gethostname()} {os.getpid()}\n")
    return True


def _deserted(path: Path) -> bool:
    """Whether a claim is of a process of this machine that has ended, or has long not been touched."""
    try:
        host, _, pid = path.read_text().partition(" ")
        touched = path.stat().st_mtime
    except FileNotFoundError:
        return True
    if host == socket.gethostname() and pid.strip().isdigit():
        return not _alive(int(pid))
    now = path.with_name(f".{uuid.uuid4()}.now")  # by the clock that sets the times of files
    now.touch()
    age = now.stat().st_mtime - touched
    now.unlink()
    return age > STALE


def _clear(path: Path) -> bool:
    """Moves a deserted claim away; False when another process was first, whose new claim is put back."""
    away = path.with_name(f".{uuid.uuid4()}.stale")
    try:
        os.rename(path, away)
    except FileNotFoundError:
        return True
    deserted = _deserted(away)
    if not deserted:
        os.link(away, path)
    away.unlink()
    return deserted


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _touch(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        os.utime(path)
