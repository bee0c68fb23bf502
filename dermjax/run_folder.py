"""The run folder (`--workdir`): one config, one set of versions, and files that are complete or not there.

A folder belongs to the config it was started with, so that a resumed run cannot silently become another one. Where the
user allows it, the config changes and `config_changes.jsonl` records how. One run at a time works in a folder, unless
several share it, and what a killed one left half-written is removed when the next one starts. `.lock` says so to the
runs of this host, by the system's lock on it, which ends with its process, and to those of other hosts that share the
folder, by what its process writes into it every BEAT seconds: file systems differ in how far their locks reach.

A derived file has its causes beside it: the digests of its inputs, the arithmetic that it was computed in and the
numeric versions of the code. Where one of them differs, it is computed again.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

from dermjax import buckets
from dermjax.errors import AGAIN, UserError
from dermjax.progress import duration, say

PACKAGES = ("dermjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
CONFIG, CHANGES = "config.json", "config_changes.jsonl"
VERSIONS = "versions.json"
CAUSES = "causes.json"
EXAMINED = "examined.jsonl"  # what `prepare` has found out about images by their bytes, which serves any config
# keys of causes: {code: its version}, and the subject of a file, where others beside it are no older state of it
NUMERIC_VERSIONS, SUBJECT = "numeric_versions", "of"
KEYS_SHOWN = 8
# names under which files, folders and checkpoints are written before they are complete
PART = re.compile(r"(\..*|\d{8})\.part|.*\.part\.(npy|png)")
PATIENCE = 10.0  # seconds that a run waits for one before it, which may have been killed and be giving its memory back
LOCK = ".lock"
BEAT = 10.0  # seconds between two signs of life of the run that holds a folder
SILENCE = 60.0  # seconds after which a run of another host that gives none is dead; NFS may show a file that much later
DESERTED = 3600.0  # seconds without a change, after which what is half-written in a shared folder is nobody's
ELSEWHERE = "give another --workdir"  # what to do about a folder of another config
OR_ALLOW = f"{ELSEWHERE}, or --allow_config_change to go on with it"  # and where the command has that flag


@contextlib.contextmanager
def lock(workdir: Path, *, alone: bool) -> Iterator[None]:
    """Makes the folder, sweeps it if no run is in it, and locks it for this run or, not `alone`, those that share it.

    Whether runs of other hosts share it cannot be known everywhere: only what is DESERTED is swept then.

    Raises UserError where the folder cannot be made or written, or another run works in it.
    """
    make_folder(workdir)
    path = workdir / LOCK
    file = _locked(path, fcntl.LOCK_EX, PATIENCE if alone else 0.0)
    free = file is not None
    if not free and not alone:
        file = _locked(path, fcntl.LOCK_SH, PATIENCE)
    if file is None:
        raise UserError(f"workdir {workdir}: another run works in it; wait for it or end it")
    try:
        if free:
            _check_other_hosts(path)
            sweep(workdir, 0.0 if alone else DESERTED)
        with _signs_of_life(path, file) if alone else _shared(path, file):
            yield
    finally:
        os.close(file)


def is_locked(workdir: Path) -> bool:
    """Returns whether a run of this host works alone in a folder; asking disturbs none."""
    try:
        file = os.open(workdir / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not _flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    finally:
        os.close(file)


def held_by(workdir: Path) -> str:
    """Returns the name of the run that works alone in a folder, of whatever host, "" where none says so."""
    return _holder(workdir / LOCK).get("run", "")


def sweep(folder: Path, seconds: float) -> None:
    """Removes what was being written below a folder when a run was killed, where it has not changed for `seconds`, and
    nothing of runs further down that are at work."""
    until = time.time() - seconds
    for path in [path for path in folder.rglob("*.part*") if PART.fullmatch(path.name)]:
        around = path.parents[: len(path.relative_to(folder).parts) - 1]
        if any(map(is_locked, around)):
            continue
        with contextlib.suppress(FileNotFoundError):  # complete, or swept by another host, meanwhile
            if not seconds or path.stat().st_mtime < until:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _locked(path: Path, kind: int, seconds: float) -> int | None:
    """Returns the open file once this process has its lock, None where another has it for so many seconds."""
    until = time.monotonic() + seconds
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)  # NFS gives an exclusive lock to those alone that may write
        if _flock(file, kind | fcntl.LOCK_NB):
            with contextlib.suppress(FileNotFoundError):  # removed by the run that held it, meanwhile
                if os.path.samestat(os.fstat(file), path.stat()):
                    return file
        elif time.monotonic() > until:
            os.close(file)
            return None
        else:
            time.sleep(0.1)
        os.close(file)


def _flock(file: int, kind: int) -> bool:
    """Returns whether this process gets the lock of an open file; it ends with the process."""
    try:
        fcntl.flock(file, kind)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: the signs of life alone tell
        return True
    return True


def _check_other_hosts(path: Path) -> None:
    """Raises UserError where a run of another host gives signs of life in a lock file; one of this host is dead."""
    holder = _holder(path)
    if not holder or holder["host"] == host():
        return
    patience = f"waiting up to {duration(SILENCE)} for a sign of it"
    say(f"workdir {path.parent}: a run of {holder['name']} was in it; {patience}")
    until = time.monotonic() + SILENCE
    while time.monotonic() < until:
        time.sleep(min(1.0, SILENCE / 10))
        now = _holder(path)
        if now != holder and now:
            raise UserError(f"workdir {path.parent}: a run of {now['name']} works in it; wait for it or end it")
        if not now:  # it ended
            return


@contextlib.contextmanager
def _signs_of_life(path: Path, file: int) -> Iterator[None]:
    """Writes into a locked file every BEAT seconds; ends this process where another host has taken it for dead."""
    holder = {"host": host(), "name": platform.node(), "process": os.getpid(), "run": uuid.uuid4().hex, "beat": 0}
    ended = threading.Event()

    def write() -> None:
        os.pwrite(file, json.dumps(holder).encode().ljust(512), 0)  # in place: no reader finds it empty
        os.fsync(file)

    def live() -> None:
        while not ended.wait(BEAT):
            now = _holder(path)
            if now and now["run"] != holder["run"]:
                print(f"workdir {path.parent}: a run of {now['name']} took over while this one stood still; it is that "
                      "one's now", file=sys.stderr, flush=True)  # fmt: skip
                os._exit(AGAIN)
            holder["beat"] += 1
            with contextlib.suppress(OSError):  # a server that is away for a moment: the next beat may succeed
                write()

    write()
    thread = threading.Thread(target=live, name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _shared(path: Path, file: int) -> Iterator[None]:
    """Shares a lock; the last that holds it removes its file."""
    _flock(file, fcntl.LOCK_SH)
    try:
        yield
    finally:
        if _flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
            path.unlink(missing_ok=True)


def _holder(path: Path) -> dict:
    """Returns what the run that holds a lock file wrote into it, {} where none has."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def host() -> str:
    """Returns what tells this host, since it was started, from all others."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{platform.node()} {boot.read_text().strip() if boot.is_file() else ''}"


def claim(
    workdir: Path, config: Mapping, *, allow_change: bool = False, last: str = "", hint: str = ELSEWHERE,
    keys: Collection[str] | None = None, within: Path | None = None,
) -> dict:  # fmt: skip
    """Makes the folder and writes config.json and versions.json, or checks that they are of this config.

    With allow_change another config replaces the folder's, and the change is printed and recorded, unless the file
    `last` is there, with which a run of the folder's own config has ended. The one that it replaces is returned, {} for
    none. hint: what to do about another config; where `keys` are given, if no other keys of it have changed. within: a
    folder around this one that may have been moved: paths into it are the same wherever it lies.

    Raises:
      UserError: the folder cannot be made or written, or it belongs to another config (the keys are listed).
    """
    make_folder(workdir)
    config_path, versions_path = workdir / CONFIG, workdir / VERSIONS
    config = _as_written(config)
    recorded = _read(config_path) if config_path.exists() else {}
    here = _moved(recorded, config, within) if within else recorded
    changed = _changes(here, config) if config_path.exists() else {}
    if changed and last and (workdir / last).exists():
        raise UserError(f"workdir {workdir}: {last} is of another config ({_one_line(changed)}) and finished; "
                        f"{ELSEWHERE}")  # fmt: skip
    if changed and not allow_change:
        offered = keys is None or {key.partition(".")[0] for key in changed} <= set(keys)
        raise _refusal(workdir, changed, hint if offered else ELSEWHERE)
    if changed:
        say(f"workdir {workdir}: the config changes: {_one_line(changed)}")
        past = workdir / CHANGES
        write_atomically(past, (past.read_text() if past.exists() else "") + json.dumps(changed) + "\n")
    if recorded != config or not config_path.exists():
        write_atomically(config_path, json.dumps(config, indent=2, sort_keys=True) + "\n")
    if versions_path.exists():
        _say_changed_versions(workdir, _read(versions_path))
    else:
        write_atomically(versions_path, json.dumps(versions(), indent=2) + "\n")
    return recorded if changed else {}


@contextlib.contextmanager
def claimed(workdir: Path, config: Mapping, **options: Any) -> Iterator[None]:
    """Claims a folder, see `claim`, for a run in the block.

    A run that is refused for its input (UserError) leaves no claim: what lay there before stays, and a config that it
    replaced is the folder's again, or the command that the folder is of would be refused from then on.
    """
    make_folder(workdir)
    others = () if (workdir / CONFIG).exists() else os.listdir(workdir)
    replaced = claim(workdir, config, **options)
    try:
        yield
    except UserError:
        if replaced:
            claim(workdir, replaced, allow_change=True)
        disclaim(workdir, others)
        raise


def check_config(workdir: Path, config: Mapping, hint: str) -> None:
    """Raises UserError, with the keys and what to do about it, where the folder's config is another one."""
    changed = _changes(_read(workdir / CONFIG), _as_written(config))
    if changed:
        raise _refusal(workdir, changed, hint)


def disclaim(workdir: Path, others: Collection[str] = ()) -> None:
    """Removes the folder if a claim is all it holds: a run refused for its input leaves nothing behind but EXAMINED.

    others: names of what lay there before the claim, and stays.
    """
    claimed = {CONFIG, VERSIONS, CAUSES} - set(others) | {LOCK}
    if {path.name for path in workdir.iterdir()} <= {*claimed, EXAMINED, *others}:
        for name in claimed:
            buckets.remove(workdir / name)
        with contextlib.suppress(OSError):  # EXAMINED, or on NFS a name of the lock's file while it is open, is there
            workdir.rmdir()


def derived(folder: Path, name: str, causes: Mapping) -> Path:
    """Returns where a folder keeps what follows from these causes, NAME_DIGEST without a suffix.

    causes: all that it follows from, ready for JSON, the numeric versions of the code under NUMERIC_VERSIONS.
    """
    digest = hashlib.sha256(json.dumps(causes, sort_keys=True).encode()).hexdigest()
    return folder / f"{name}_{digest[:16]}"


def report_stale(path: Path, causes: Mapping) -> None:
    """Says why files beside `path` do not serve as what is about to be computed there from these causes.

    Files of older numeric versions, or without recorded causes, are removed, since nothing will ever use them again.
    Those of other inputs or another arithmetic stay, for the runs that use them.
    """
    name = path.name.rpartition("_")[0]
    ours = re.compile(rf"(({name}_)?[0-9a-f]{{16}}|{name}){re.escape(path.suffix)}")
    others = {
        other: recorded
        for other in (path.parent.iterdir() if path.parent.is_dir() else ())
        if other != path and ours.fullmatch(other.name) and _arrays_alone(other)
        for recorded in [_causes(other.with_suffix(".json"))]
        if not recorded or recorded.get(SUBJECT) == causes.get(SUBJECT)
    }
    if not others:
        return
    outdated = [other for other, recorded in others.items() if _older(recorded, causes)]
    nearest = min(others.values(), key=lambda recorded: (not recorded, len(_changes(recorded, causes))))
    removed = f"; {len(outdated)} of an older version removed" if outdated else ""
    say(f"{name} in {path.parent} are computed again ({differences(nearest, causes)}){removed}")
    for other in outdated:
        _discard(other)
        other.with_suffix(".json").unlink(missing_ok=True)


def write_causes(path: Path, causes: Mapping) -> None:
    """Writes the causes of a derived file beside it, before the file: without them it counts as an older version's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path.with_suffix(".json"), causes)


def is_finished(workdir: Path, file: str, causes: Mapping) -> bool:
    """Returns whether the last file of a stage is there and follows from these causes; says why where it does not."""
    if not (workdir / file).is_file():
        return False
    recorded = _causes(workdir / CAUSES)
    unknown = "begun again and not finished, or made by an older version"
    changed = differences(recorded, causes) if recorded else unknown
    if changed:
        say(f"{workdir / file} is made again ({changed})")
    return not changed


def changed_since_start(workdir: Path, causes: Mapping, left: Collection[str]) -> str:
    """Returns on one line how these causes differ from those that a training began with, "" where they do not.

    left: names of what a training leaves in its folder; while none of it is there the training has not begun, and the
    causes are recorded, in place of those that an earlier start found.
    """
    path = workdir / CAUSES
    if not any((workdir / name).exists() for name in left):
        workdir.mkdir(parents=True, exist_ok=True)
        _write(path, causes)
    recorded = _causes(path)
    return differences({name: recorded[name] for name in causes if name in recorded}, causes)


def say_changed_since_start(stage: str, workdir: Path, causes: Mapping, left: Collection[str]) -> bool:
    """Says where a training was begun from other causes, see `changed_since_start`, and returns whether it was.

    What it learnt stays.
    """
    others = changed_since_start(workdir, causes, left)
    if others:
        say(f"{stage}: {workdir} was started from other inputs ({others}) and is kept; train anew in another --workdir")
    return bool(others)


def mark_finished(workdir: Path, causes: Mapping) -> None:
    """Records what the last file of a stage follows from; called once that is there."""
    _write(workdir / CAUSES, causes)


def differences(recorded: Mapping, causes: Mapping) -> str:
    """Returns on one line how recorded causes differ from these, "" where they do not."""
    if not recorded:
        return "made by an older version, which did not say of what"
    return _one_line(_changes(recorded, json.loads(json.dumps(causes))))


def versions() -> dict[str, str]:
    """Returns the versions of Python, the platform and the packages that shape results, without importing them."""
    packages = {name: metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "platform": platform.platform()} | packages


def open_for_append(path: Path) -> BinaryIO:
    """Opens a file of JSON lines for appending; a last line that a killed run left half-written is cut off."""
    file, text = path.open("ab"), path.read_bytes()
    last = text[text.rfind(b"\n") + 1 :]
    if _is_json(last):  # whole, but without its end, as editors leave it
        file.write(b"\n")
    else:
        file.truncate(len(text) - len(last))
    return file


def whole_lines(path: Path) -> list[bytes]:
    """Returns the lines of a file of JSON lines that `open_for_append` keeps: not a last one that is half-written."""
    *lines, last = path.read_bytes().split(b"\n")
    return [*lines, last] if _is_json(last) else lines


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file so that readers, and a killed run, see the old content or the complete new one."""
    with writing(path) as file:
        # names of files need not be UTF-8
        file.write(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Yields a file that has the name `path` once it is complete; what is raised within leaves the old content."""
    part = _part(path)
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        buckets.put(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a write that fails does not say where
        raise
    finally:
        part.unlink(missing_ok=True)


def _part(path: Path) -> Path:
    """Returns a name beside a path that is nobody else's: processes of two hosts may have the same number."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.part")


def _discard(path: Path) -> None:
    """Removes a file or a folder that other runs may be removing as well: the one that moves it away does."""
    away = _part(path)
    with contextlib.suppress(FileNotFoundError):
        path.rename(away)
        shutil.rmtree(away) if away.is_dir() else away.unlink()


def make_folder(workdir: Path) -> None:
    """Makes a run's folder where there is none; UserError where it cannot be made or written."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        kind = "a link to nowhere" if os.path.islink(error.filename) else "a file"
        raise UserError(f"workdir {workdir}: {error.filename} is {kind}; give a folder") from error
    except OSError as error:
        raise UserError(f"workdir {workdir}: cannot be made ({error.strerror}); give a folder you may write") from error
    if not os.access(workdir, os.W_OK | os.X_OK):
        raise UserError(f"workdir {workdir}: cannot be written; give a folder you may write")


def _read(path: Path) -> dict:
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); give another --workdir or delete it") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds {type(content).__name__}, not keys with values; give another --workdir or "
                        "delete it")  # fmt: skip
    return content


def _refusal(workdir: Path, changed: Mapping[str, str], hint: str) -> UserError:
    return UserError(f"workdir {workdir} is of another config ({_one_line(changed)}); {hint}")


def _as_written(config: Mapping) -> dict:
    """Returns a config as a file gives it back: tuples are lists, and what is in a bucket has its URL."""
    return json.loads(json.dumps(buckets.as_given(config)))


def _moved(recorded: Any, config: Any, folder: Path) -> Any:
    """Returns a recorded config with the paths into a folder that a config has now, where they have the same end."""
    if isinstance(recorded, dict) and isinstance(config, dict):
        return {key: _moved(each, config.get(key), folder) for key, each in recorded.items()}
    if not isinstance(recorded, str) or not isinstance(config, str) or not Path(config).is_relative_to(folder):
        return recorded
    return config if recorded.endswith(f"/{Path(config).relative_to(folder).as_posix()}") else recorded


def _changes(recorded: dict, current: dict) -> dict[str, str]:
    """Returns {key: "old -> new"} of what differs, in order."""
    old, new = _flat(recorded), _flat(current)
    return {
        key: f"{old.get(key, '(absent)')} -> {new.get(key, '(absent)')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, "(absent)") != new.get(key, "(absent)")
    }


def _write(path: Path, causes: Mapping) -> None:
    write_atomically(path, json.dumps(causes, indent=1, sort_keys=True) + "\n")


def _causes(path: Path) -> dict:
    """Returns the causes in a file, {} where there are none that can be read."""
    try:
        recorded = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return recorded if isinstance(recorded, dict) else {}


def _arrays_alone(path: Path) -> bool:
    """Returns whether a path is an array or a folder of arrays; killed runs leave hidden files."""
    try:
        files = list(path.iterdir()) if path.is_dir() else [path]
    except FileNotFoundError:  # another run has removed it
        return False
    return all(each.suffix == ".npy" or each.name.startswith(".") for each in files)


def _older(recorded: Mapping, causes: Mapping) -> bool:
    """Returns whether recorded causes name an older numeric version."""
    then = recorded.get(NUMERIC_VERSIONS, {})
    return any(then.get(code, 0) < version for code, version in causes[NUMERIC_VERSIONS].items())


def _one_line(changed: Mapping[str, str]) -> str:
    """Returns changes on one line, the first few of many."""
    shown = [f"{key}: {change}" for key, change in changed.items()]
    more = [f"and {len(shown) - KEYS_SHOWN} more"] if len(shown) > KEYS_SHOWN else []
    return "; ".join(shown[:KEYS_SHOWN] + more)


def _flat(tree: Mapping, prefix: str = "") -> dict[str, str]:
    """Returns {"a.b": value as JSON} over the leaves of a nested dict; an empty dict is a leaf."""
    leaves = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            leaves |= _flat(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = json.dumps(value)
    return leaves


def _say_changed_versions(workdir: Path, then: dict) -> None:
    now = versions()
    changed = [f"{name} {then.get(name)} -> {now[name]}" for name in now if then.get(name) != now[name]]
    if changed:
        say(f"workdir {workdir}: started with other versions: {', '.join(changed)}")
