"""The runs of the folder: what each is, how far it is, its curve and samples while it is at work, and its report."""

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

from starlette.responses import Response

from dermjax import config_file, run_folder
from dermjax.data import records
from dermjax.studio.calls import Field, Refused
from dermjax.studio.folder import Folder
from dermjax.training import writers
from dermjax.tuning.task import sample_grids

REPORT, RESULTS = "report.html", "results.json"
METRICS = "metrics.jsonl"
REPORT_BYTES = 64 * 1024 * 1024
CURVES = ("loss", "validation_loss")
POINTS = 400  # of a curve
LOOKS = 6  # at a run, of which its speed is taken
TAIL = 2000  # bytes of what a run printed that are looked at for its last line
FIELDS = {"run": Field(kind=str, summary="the name of a run, empty for the folder itself", default="", most=300)}
MARKS = {"config.json", "manifest.jsonl", REPORT}  # a folder with one of these is a run
# what a stage leaves at last; a training writes its report at every look
LEFT = {REPORT, "manifest.jsonl", "model", "classifier", RESULTS, "metrics.json", "README.md"}
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


class Watch:
    """What runs show of their training while it goes on; the first look at each tells how fast it is."""

    def __init__(self, folder: Folder):
        self.folder = folder
        self.looks: dict[Path, tuple[int, list]] = {}  # the file of a start, and steps with the time they were written

    def progress(self, run: str) -> dict:
        """The curves [[step, value], …] of a run, its step, the seconds left where two looks tell, its newest samples.

        said: the last line that it printed, "" where the studio did not start it.
        """
        path = self.folder.path(run) if run else self.folder.root
        lines, file, changed = self._metrics(path)
        step, total = max((line["step"] for line in lines), default=0), _steps(path)
        started, looks = self.looks.get(path, (file, []))
        if file != started or (looks and step < looks[-1][0]):  # a start writes a new file
            looks = []
        if not looks or step > looks[-1][0]:
            looks = [*looks, (step, changed)][-LOOKS:]
        self.looks[path] = file, looks
        now, left = state(path), None
        if now == "running" and total > step and len(looks) > 1:
            (first, began), (last, ended) = looks[len(looks) > 2], looks[-1]  # a step was compiled before the second
            left = round((ended - began) / (last - first) * (total - step), 1)
        grids = sample_grids(path)
        curves = {name: _thinned([[line["step"], line[name]] for line in lines if _is_finite(line.get(name))])
                  for name in CURVES}  # fmt: skip
        told = {"run": run, "state": now, "step": step, "steps": total or None}
        told |= {"seconds_left": left, "said": last_line(self.folder, path)}
        return told | {"curves": curves, "samples": max(grids, default=None)}

    def _metrics(self, path: Path) -> tuple[list[dict], int, float]:
        """What a run has written of its steps, into which file and when; nothing where it has just begun."""
        if not (path / METRICS).exists():
            return [], 0, 0.0
        file = self.folder.path(self.folder.name(path / METRICS))
        written = file.stat()
        if written.st_size > REPORT_BYTES:
            raise Refused("the metrics of this run are too large to be shown here", 413)
        try:
            lines = [line for line in writers.read(file) if type(line["step"]) is int]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise Refused("the metrics of this run cannot be read") from None
        return lines, written.st_ino, written.st_mtime

    def samples(self, run: str) -> Response:
        """The newest samples of a run: synthetic images, a row a prompt."""
        grids = sample_grids(self.folder.path(run) if run else self.folder.root)
        if not grids:
            raise Refused("this run has no samples yet", 404)
        file = self.folder.path(self.folder.name(grids[max(grids)]))
        return Response(file.read_bytes(), media_type="image/png")


def report(folder: Folder, path: str) -> Response:
    """The report of a run."""
    file = folder.path(path)
    if file.name != REPORT or not file.is_file():
        raise Refused("there is no such file in the folder of the runs", 404)
    if file.stat().st_size > REPORT_BYTES:
        raise Refused("this report is too large to be shown here", 413)
    headers = {"content-security-policy": REPORT_POLICY, "cross-origin-opener-policy": "unsafe-none"}
    return Response(file.read_bytes(), media_type="text/html; charset=utf-8", headers=headers)


def state(path: Path) -> str:
    """running, finished where what its stage leaves at last is there, else stopped."""
    if run_folder.is_locked(path):
        return "running"
    trials = config_of(path).get("trials")
    if type(trials) is int:  # of `sweep`, which writes its files after each
        made = _read(path / RESULTS).get("trials")
        return "finished" if isinstance(made, list) and len(made) >= trials else "stopped"
    left = LEFT - ({REPORT} if (path / METRICS).exists() else set())
    return "finished" if any((path / name).exists() for name in left) else "stopped"


def log(path: Path) -> Path:
    """The file beside a run of what it prints, where the studio started it."""
    return path.with_name(f"{path.name}.log")


def last_line(folder: Folder, path: Path) -> str:
    """The last line of a run's log, "" where it has none."""
    file = log(path)
    if path == folder.root or file.is_symlink() or not file.is_file():
        return ""
    with file.open("rb") as opened:
        opened.seek(max(file.stat().st_size - TAIL, 0))
        lines = opened.read().decode(errors="replace").splitlines()
    return folder.say("".join(each for each in (lines or [""])[-1] if each.isprintable()))


def _run(folder: Folder, path: Path, names: set[str]) -> dict:
    changed = max((path / name).lstat().st_mtime for name in names & (MARKS | {METRICS}))
    return {
        "name": folder.name(path),
        "stage": config_file.stage_of(config_of(path)) if "config.json" in names else "",
        "state": state(path),
        "changed": changed,
        "report": REPORT in names,
        "metrics": METRICS in names,
        "manifest": records.FILE in names,
    }


def config_of(path: Path) -> Mapping:
    """The config of a run, {} where it cannot be read."""
    return _read(path / "config.json")


def _read(file: Path) -> Mapping:
    """What a file of JSON says, {} where it cannot be read."""
    try:
        said = json.loads(file.read_text()) if not file.is_symlink() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, Mapping) else {}


def _steps(path: Path) -> int:
    """How many steps a run takes, 0 where its config does not say."""
    steps = config_of(path).get("steps")
    return steps if type(steps) is int and 0 < steps < 10**9 else 0


def _is_finite(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _thinned(points: list) -> list:
    """At most POINTS of the points, the last one among them."""
    every = -(-len(points) // POINTS) or 1
    return points[::-1][::every][::-1]
