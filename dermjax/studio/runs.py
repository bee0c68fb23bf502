"""The runs of the folder: what each is, how far it is, and its report."""

import contextlib
import fcntl
import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from starlette.responses import Response

from dermjax import config_file
from dermjax.data import records
from dermjax.studio.calls import Refused
from dermjax.studio.folder import Folder

REPORT = "report.html"
REPORT_BYTES = 64 * 1024 * 1024
MARKS = {"config.json", "manifest.jsonl", REPORT}  # a folder with one of these is a run
LEFT = {REPORT, "manifest.jsonl", "model", "classifier", "results.json", "metrics.json"}  # what a stage leaves at last
VARIANTS = ("prepare", "pretrain", "tune", "sweep", "generate", "transform", "mask", "curate", "curate:calibration",
            "classify", "publish", "evaluate", "evaluate:images", "study", "demo")  # fmt: skip
# A report is a page of its own, which keeps the policy in its head and gets an origin of its own: it can ask for
# nothing here, whatever is written in it.
REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def listed(folder: Folder) -> dict:
    """The runs, newest first: name, stage, state (running, finished, stopped), changed (seconds), and what is there."""
    found = []
    for path, names in folder.folders():
        if names & MARKS:
            with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                found.append(_run(folder, path, names))
    return {"runs": sorted(found, key=lambda run: -run["changed"])}


def report(folder: Folder, path: str) -> Response:
    """The report of a run."""
    file = folder.path(path)
    if file.name != REPORT or not file.is_file():
        raise Refused("there is no such file in the folder of the runs", 404)
    if file.stat().st_size > REPORT_BYTES:
        raise Refused("this report is too large to be shown here", 413)
    headers = {"content-security-policy": REPORT_POLICY, "cross-origin-opener-policy": "unsafe-none"}
    return Response(file.read_bytes(), media_type="text/html; charset=utf-8", headers=headers)


def _run(folder: Folder, path: Path, names: set[str]) -> dict:
    changed = max((path / name).lstat().st_mtime for name in names & (MARKS | {"metrics.jsonl"}))
    return {
        "name": folder.name(path),
        "stage": _stage(path) if "config.json" in names else "",
        "state": "running" if _is_locked(path) else "finished" if names & LEFT else "stopped",
        "changed": changed,
        "report": REPORT in names,
        "manifest": records.FILE in names,
    }


def _stage(path: Path) -> str:
    """The stage whose config has the most keys in common with that of the run, "" where none is like it."""
    try:
        config = json.loads((path / "config.json").read_text()) if not (path / "config.json").is_symlink() else {}
    except (OSError, ValueError, RecursionError):
        return ""
    keys = set(config) if isinstance(config, Mapping) else set()
    likeness = {stage: len(keys & known) / max(len(keys | known), 1) for stage, known in _keys().items()}
    best = max(likeness, key=likeness.__getitem__)
    return best.partition(":")[0] if likeness[best] > 0.5 else ""


@cache
def _keys() -> dict[str, set[str]]:
    """The keys of the configs that ship with dermjax."""
    named = {name: name.split(":") for name in VARIANTS}
    return {name: set(config_file.load(":".join([f"{config_file.PRESETS / file}.py", *variant])))
            for name, (file, *variant) in named.items()}  # fmt: skip


def _is_locked(path: Path) -> bool:
    """Whether a run works in a folder, as `run_folder.lock` locks it; a shared lock of ours disturbs none."""
    try:
        opened = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(opened)
