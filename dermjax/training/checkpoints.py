"""Checkpoints: Orbax behind one thin module that makes them complete, verified, and compared before they are restored.

`checkpoints/00000120/` holds Orbax's `state/`, the data iterator as `iterator.json`, the best step so far with its
value as `best.json` and `digests.json`, a SHA-256 of every file. It is written under a temporary name and renamed when
complete, so a folder named by a number is complete, and `best.json` is what was known at that step. The newest are kept
and the best. Orbax's own manager is not used: its default policy skips a save while another runs, and it restores a
flipped byte without a word.
"""

import contextlib
import hashlib
import json
import logging
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from dermjax import machine
from dermjax.errors import UserError
from dermjax.progress import say

Tree = Any
PART, BEST = ".part", "best.json"
NO_ROOM = "{}: no room for a checkpoint of {}, those before are whole; make room, then the same command"


def save(folder: Path, step: int, state: Tree, iterator: dict, *, keep: int, best: tuple[int, float] | None) -> None:
    """Writes the checkpoint of `step`, then removes all but the newest `keep` and that of the best step.

    Raises:
      UserError: the disk has no room for it; the checkpoints already there are untouched.
    """
    final = folder / f"{step:08d}"
    part = final.with_suffix(PART)
    first = jax.process_index() == 0
    if first:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(f"[0-9]*{PART}"):  # of a killed save
            shutil.rmtree(stale)
    raise_in_all(shortage(folder, state) if first else "")
    if first:
        part.mkdir()
    multihost_utils.sync_global_devices("dermjax: checkpoint folder made")
    with disk_full_as_error(part), ocp.StandardCheckpointer() as writer:
        writer.save(part.absolute() / "state", state)
    if first:
        with disk_full_as_error(part):
            (part / "iterator.json").write_text(json.dumps(iterator))
            if best:
                (part / BEST).write_text(json.dumps({"step": best[0], "value": best[1]}))
            (part / "digests.json").write_text(json.dumps(digests(part), indent=1))
        part.rename(final)
        for old in steps(folder)[:-keep]:
            if not best or old != best[0]:
                shutil.rmtree(folder / f"{old:08d}")
    multihost_utils.sync_global_devices("dermjax: checkpoint complete")


def restore(folder: Path, target: Tree, step: int | None = None) -> tuple[Tree, dict] | None:
    """Returns the state of the newest checkpoint, or of a step's, and its data iterator; None where there is none.

    The state is placed like `target`, a tree of jax.ShapeDtypeStruct with shardings.

    Raises:
      UserError: a file is damaged or missing (the newest complete checkpoint before it is named), or the trees differ.
    """
    if not steps(folder):
        return None
    *before, newest = steps(folder)
    path = folder / f"{newest if step is None else step:08d}"
    fault = damage(path)
    if fault:
        intact = next((old for old in reversed(before) if not damage(folder / f"{old:08d}")), None)
        if intact is None:
            raise UserError(f"checkpoint {path}: {fault}; none before it is whole: give another --workdir")
        raise UserError(f"checkpoint {path}: {fault}; delete it, and the same command resumes from {intact:08d}")
    with ocp.StandardCheckpointer() as reader:
        compare(path, reader.metadata(path.absolute() / "state").item_metadata.tree, target)
        state = reader.restore(path.absolute() / "state", target)
    say(f"{'resuming from' if step is None else 'the best is'} {path}")
    return state, json.loads((path / "iterator.json").read_text())


def best(folder: Path) -> tuple[int, float] | None:
    """Returns the step and the value of the best checkpoint that the newest one names; None where it is not there."""
    path = folder / f"{max(steps(folder), default=0):08d}" / BEST
    record = json.loads(path.read_text()) if path.exists() else {"step": None}
    return (record["step"], record["value"]) if record["step"] in steps(folder) else None


def newest(folder: Path) -> int:
    """Returns the step of the newest complete checkpoint, 0 for none; UserError where processes see different ones."""
    seen = max(steps(folder), default=0)
    first = int(multihost_utils.broadcast_one_to_all(np.array(seen)))
    if seen != first:
        raise UserError(f"{folder}: step {seen} is the newest that process {jax.process_index()} sees, {first} that "
                        "the first one does; start again once all hosts show the same")  # fmt: skip
    return seen


def steps(folder: Path) -> list[int]:
    """Returns the steps of the complete checkpoints, oldest first."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def shortage(folder: Path, state: Tree) -> str:
    """Returns the message where the disk cannot take the state and a tenth more, else ""."""
    need = int(1.1 * sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
    try:
        machine.probe_disk(folder, need)
    except OSError as error:
        if error.errno not in machine.DISK_FULL:
            raise
        return NO_ROOM.format(folder, machine.format_bytes(need))
    return ""


def raise_in_all(problem: str) -> None:
    """Raises UserError in every process where the first has a problem: none waits for one that has stopped."""
    if multihost_utils.broadcast_one_to_all(np.array(bool(problem))):
        raise UserError(problem or "the first process cannot save a checkpoint; it says why")


@contextlib.contextmanager
def disk_full_as_error(part: Path) -> Iterator[None]:
    """Raises one line for what Orbax and the system say of a full disk or quota, and removes what was written."""
    # Orbax logs every failure with its traceback and then raises it; its event loop reports the other failed writes
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels, before = [logger.level for logger in loggers], sys.unraisablehook

    def without_closed_loops(event) -> None:
        if str(event.exc_value) != "Event loop is closed":
            before(event)

    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    after, sys.unraisablehook = before, without_closed_loops
    try:
        yield
    except (OSError, ValueError) as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        number = int(code[1]) if code else getattr(error, "errno", None)
        if number not in machine.DISK_FULL:
            raise
        # failed writes that nobody waited for are reported until the process ends, by threads as well
        levels, after = [logging.CRITICAL] * len(loggers), without_closed_loops
        written = sum(file.stat().st_size for file in part.rglob("*") if file.is_file())
        shutil.rmtree(part, ignore_errors=True)
        raise UserError(NO_ROOM.format(part.parent, f"more than {machine.format_bytes(written)}")) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        sys.unraisablehook = after


def digests(path: Path) -> dict[str, str]:
    """Returns {relative file name: SHA-256} of every file below a folder but digests.json itself."""
    hashes = {}
    for file in sorted(file for file in path.rglob("*") if file.is_file() and file != path / "digests.json"):
        with file.open("rb") as stream:
            hashes[str(file.relative_to(path))] = hashlib.file_digest(stream, "sha256").hexdigest()
    return hashes


def damage(path: Path) -> str:
    """Returns what is wrong with the files of a checkpoint, or an empty string."""
    try:
        recorded = json.loads((path / "digests.json").read_text())
    except (OSError, ValueError) as error:
        return f"digests.json cannot be read ({error})"
    present = digests(path)
    bad = [name for name in recorded if present.get(name) != recorded[name]]
    return f"{len(bad)} damaged or missing files, first {bad[0]}" if bad else ""


def compare(path: Path, saved: Tree, target: Tree) -> None:
    """Raises one UserError that lists how the saved tree differs from the one this run has."""

    def shapes(tree: Tree) -> dict[str, tuple]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape for path, leaf in leaves}

    old, new = shapes(saved), shapes(target)
    wrong = [f"{name} is {old.get(name, 'absent')}, the run has {new.get(name, 'none')}"
             for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]  # fmt: skip
    if wrong:
        raise UserError(f"checkpoint {path}: {len(wrong)} of {len(new)} arrays do not fit: {'; '.join(wrong[:3])}")
