"""The run folder (`--workdir`): one config, one set of versions, and files that are whole or not there.

A folder belongs to the config it was started with, so that a resumed run cannot silently become another one. Where the
user allows it, the config changes and `config_changes.jsonl` says what.
"""

import json
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from dermjax.errors import UserError
from dermjax.progress import say

PACKAGES = ("dermjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
CHANGES = "config_changes.jsonl"
KEYS_SHOWN = 8


def claim(workdir: Path, config: Mapping, *, allow_change: bool = False) -> None:
    """Makes the folder and writes config.json and versions.json, or checks that they are of this config.

    With allow_change another config replaces the folder's, and the change is told and recorded.

    Raises:
      UserError: the folder cannot be made or written, or it belongs to another config (the keys are listed).
    """
    _make(workdir)
    config_path, versions_path = workdir / "config.json", workdir / "versions.json"
    asked = json.loads(json.dumps(config))  # as a file would give it back: tuples are lists
    changed = _changes(_read(config_path), asked) if config_path.exists() else {}
    if changed and not allow_change:
        hint = "give another --workdir, or --allow_config_change to go on with it"
        raise UserError(f"workdir {workdir} is of another config ({_listed(changed)}); {hint}")
    if changed:
        say(f"workdir {workdir}: the config changes: {_listed(changed)}")
        past = workdir / CHANGES
        before = past.read_text() if past.exists() else ""
        write_atomically(past, before + json.dumps(changed) + "\n")
    if changed or not config_path.exists():
        write_atomically(config_path, json.dumps(asked, indent=2, sort_keys=True) + "\n")
    if versions_path.exists():
        _tell_changed_versions(workdir, _read(versions_path))
    else:
        write_atomically(versions_path, json.dumps(versions(), indent=2) + "\n")


def disclaim(workdir: Path) -> None:
    """Takes a claim back when nothing came of it: the folder goes if the claim is all it holds, else it stays.

    So a run refused for its input leaves nothing behind, and the mended command finds the folder free.
    """
    if {path.name for path in workdir.iterdir()} <= {"config.json", "versions.json"}:
        (workdir / "config.json").unlink(missing_ok=True)
        (workdir / "versions.json").unlink(missing_ok=True)
        workdir.rmdir()


def versions() -> dict[str, str]:
    """Returns the versions of Python, the platform and the packages that shape results, without importing them."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    return found | {name: metadata.version(name) for name in PACKAGES}


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file so that readers, and a killed run, see the old content or the whole new one."""
    data = content.encode() if isinstance(content, str) else content
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a write that fails does not say where
        raise
    finally:
        part.unlink(missing_ok=True)


def _make(workdir: Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"workdir {workdir}: {error.filename} is a file; give a folder") from error
    except OSError as error:
        raise UserError(f"workdir {workdir}: cannot be made ({error.strerror}); give a folder you may write") from error
    if not os.access(workdir, os.W_OK | os.X_OK):
        raise UserError(f"workdir {workdir}: cannot be written; give a folder you may write")


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); give another --workdir or delete it") from error


def _changes(recorded: dict, asked: dict) -> dict[str, str]:
    """Returns {key: "old -> new"} of what differs, in order."""
    old, new = _flat(recorded), _flat(asked)
    return {
        key: f"{old.get(key, '(absent)')} -> {new.get(key, '(absent)')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, "(absent)") != new.get(key, "(absent)")
    }


def _listed(changed: Mapping[str, str]) -> str:
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


def _tell_changed_versions(workdir: Path, then: dict) -> None:
    now = versions()
    changed = [f"{name} {then.get(name)} -> {now[name]}" for name in now if then.get(name) != now[name]]
    if changed:
        say(f"workdir {workdir}: started with other versions: {', '.join(changed)}")
