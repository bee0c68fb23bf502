"""`bench`: cases in turns with PyTorch, one process a side -> bench.json and bench.md, which is also what it prints.

A case is kept in bench.json as soon as it is measured, with all that its figures follow from, so that a killed bench
goes on and one of other versions or settings measures again. This process imports neither JAX nor PyTorch: it would
hold memory and threads beside what it times.

An entry is what bench.json keeps of a case: its causes, its unit, how many of them a round does, and of each side its
rounds, its first call and its count of operations, or an error. Ratios are medians over rounds, so that a machine that
is slow for a while changes both of their numbers.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from importlib import metadata, util
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from dermjax import machine, progress, run_folder
from dermjax.bench.cases import MATRIX, Case, cases_on
from dermjax.bench.process import Ended, Side
from dermjax.errors import UserError
from dermjax.machine import GB, format_bytes

OURS, EAGER, COMPILED = "dermjax", "PyTorch", "torch.compile"
FILE, TABLE = "bench.json", "bench.md"
PACKAGE = Path(__file__).parents[1]
# PyTorch's side: in the package where it was installed from a wheel, beside it in a checkout
_INSTALLED = Path(__file__).with_name("pytorch_bench.py")
PYTORCH = ["-W", "ignore", str(_INSTALLED if _INSTALLED.is_file() else PACKAGE.parent / "launch" / "pytorch_bench.py")]
PROGRAMS = {OURS: ["-m", "dermjax.bench.ours"], EAGER: PYTORCH, COMPILED: PYTORCH}  # what Python runs for a side
PACKAGES = ("torch", "diffusers", "transformers", "peft")
INPUTS = {"batches": "photographs", "prepare": "photographs", "load": "sd15"}  # what a kind reads, made here
PHOTOGRAPHS, SIDE, WEIGHTS = 200, 224, 2.2 * GB
START = 15  # seconds until a side is ready, about


def bench(workdir: str, cases: str, rounds: int, torch_compile: bool) -> None:
    """Measures the cases whose names begin with one of `cases` (all, or names with commas) and prints the table.

    rounds: in which each side works once, after a first call; torch_compile: PyTorch compiled as well.

    Raises:
      UserError: no case has such a name, or a case of dermjax's did not end.
    """
    if rounds < 1:
        raise UserError(f"--rounds={rounds}: give 1 or more")
    found = device()
    chosen = choose(cases, cases_on(found["platform"]))
    folder = Path(workdir).expanduser().absolute()
    with run_folder.lock(folder, alone=True):
        entries = measure(chosen, rounds, torch_compile, found, folder)
        text = table(entries)
        run_folder.write_atomically(folder / TABLE, text)
        shutil.rmtree(folder / "inputs", ignore_errors=True)
        progress.say(f"\n{text}\n{folder / FILE} has every round, {folder / TABLE} this table")
    failed = [name for name, entry in entries.items() if "error" in entry["sides"][OURS]]
    if failed:
        raise UserError(f"{failed[0]}: {entries[failed[0]]['sides'][OURS]['error']}; the same command measures it anew")


def device() -> dict[str, str]:
    """Returns the platform and the kind of the device that JAX finds; a process of its own says so, and holds none."""
    code = "import jax; first = jax.devices()[0]; print(first.platform, first.device_kind, sep='\\n')"
    settings = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    done = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"JAX finds no device: {done.stderr.strip().splitlines()[-1]}")
    platform, kind = done.stdout.splitlines()[-2:]
    return {"platform": platform, "kind": kind}


def choose(names: str, known: Mapping[str, Case]) -> dict[str, Case]:
    """Returns the cases of these names or beginnings, in order, the matrix product before them."""
    wanted = [name.strip() for name in names.split(",")]
    matches = {name: [each for each in known if name == "all" or each.startswith(name)] for name in wanted}
    for name, each in matches.items():
        if not name or not each:
            raise UserError(f"--cases={names}: no case is called {name!r}; there are {', '.join(known)}")
    return {each: known[each] for each in known if each == MATRIX or any(each in cases for cases in matches.values())}


def measure(
    chosen: Mapping[str, Case], rounds: int, compiled: bool, device: Mapping[str, str], folder: Path
) -> dict[str, dict[str, Any]]:
    """Returns {case: entry}, as bench.json keeps them; what is there and follows from the same is not done again."""
    path, entries = folder / FILE, {}
    kept = read(path)
    waiting = {name: causes(case, rounds, compiled, device) for name, case in chosen.items()}
    for name in chosen:
        entry = kept.get(name, {"sides": {}})
        if entry.get("causes") == waiting[name] and not any("error" in side for side in entry["sides"].values()):
            entries[name] = entry
            del waiting[name]
    if entries and waiting:
        progress.say(f"bench: {len(entries)} of {len(chosen)} cases are measured already")
    if waiting:
        processes = {name: len(each["sides"]) for name, each in waiting.items()}
        calls = {name: (rounds + 1) * chosen[name].seconds for name in waiting}
        starts = {name: START * (rounds if chosen[name].fresh else 1) for name in waiting}
        seconds = sum(number * (calls[name] + starts[name]) for name, number in processes.items())
        most = format_bytes(max(number * chosen[name].memory for name, number in processes.items()))
        progress.cost("bench", cases=len(waiting), rounds=rounds, memory=f"up to {most} of memory", seconds=seconds)
    with progress.bar(len(chosen), "bench", "cases", len(entries)) as bar:
        for name, each in waiting.items():
            entries[name] = {
                "causes": each,
                **take_turns(name, chosen[name], each["sides"], rounds, each["device"]["platform"], folder),
            }
            run_folder.write_atomically(path, json.dumps(kept | entries, indent=1) + "\n")
            bar.update(case=name)
    return {name: entries[name] for name in chosen}


def causes(case: Case, rounds: int, compiled: bool, device: Mapping[str, str]) -> dict[str, Any]:
    """Returns all that an entry follows from, as JSON gives it back: the case, its sides, the machine, the versions."""
    missing = [package for package in case.packages if util.find_spec(package) is None]
    beside = [*[EAGER] * bool(case.packages), *[COMPILED] * (compiled and case.compiles)] if not missing else []
    installed = {name: metadata.version(name) for name in PACKAGES if util.find_spec(name)}
    causes = {"case": asdict(case), "rounds": rounds, "sides": [OURS, *beside], "missing": missing}
    causes |= {"device": device, "cores": machine.cores(), "versions": run_folder.versions() | installed}
    return json.loads(json.dumps(causes))


def take_turns(name: str, case: Case, names: list[str], rounds: int, platform: str, folder: Path) -> dict[str, Any]:
    """Returns what a case's sides took, round by round: first call, seconds, processor time, page faults, peak memory.

    A side that ends has an `error` in place of figures, and the others go on without it.
    """
    settings, logs = dict(case.settings), folder / "logs"
    if case.kind in INPUTS:
        settings["folder"] = str(inputs(folder / "inputs", INPUTS[case.kind]))
    logs.mkdir(exist_ok=True)
    sides: dict[str, dict[str, Any]] = {side: {"rounds": []} for side in names}
    running: dict[str, Side] = {}
    with ExitStack() as stack:
        for _ in range(rounds):
            for side in [side for side in names if "error" not in sides[side]]:
                try:
                    if side not in running:
                        check_memory(case)
                        log = logs / f"{name.replace('/', '_')}.{side}.txt"
                        running[side] = Side(command(side, case, settings), environment(side, case, platform), log)
                        stack.callback(running[side].close)
                        sides[side] |= running[side].ready
                    sides[side]["rounds"].append(running[side].round())
                except Ended as ended:
                    sides[side] = {"error": str(ended)}
                if case.fresh and side in running:
                    running.pop(side).close()
    return {"sides": sides, "unit": case.unit, "count": case.count}


def check_memory(case: Case) -> None:
    """Raises Ended where a process of a case would not fit."""
    free = machine.free_memory()
    if case.memory > free:
        raise Ended(f"needs about {format_bytes(case.memory)} of memory, {format_bytes(free)} are free")


def command(side: str, case: Case, settings: dict[str, Any]) -> list[str]:
    """Returns the command of a side's process."""
    if side != OURS and case.compiles:
        settings = settings | {"compiled": side == COMPILED}
    return [sys.executable, *PROGRAMS[side], case.kind, json.dumps(settings), "fresh" if case.fresh else "kept"]


def environment(side: str, case: Case, platform: str) -> dict[str, str]:
    """Returns the environment of a side's process: as many devices of a CPU as the work has, and memory as it goes."""
    environment = {key: value for key, value in os.environ.items() if key != "JAX_NUM_CPU_DEVICES"}
    environment["PYTHONPATH"] = os.pathsep.join([str(PACKAGE.parent), *filter(None, [environment.get("PYTHONPATH")])])
    if platform == "cpu":
        environment["JAX_PLATFORMS"] = platform  # PyTorch's side reads it, and takes no GPU that JAX does not
    if side == OURS:
        environment["JAX_NUM_CPU_DEVICES"] = str(case.devices or machine.cpu_devices(machine.cores()))
        environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        machine.quiet_compiler(environment, joined=False)
    return environment


def inputs(folder: Path, name: str) -> Path:
    """Returns a folder of what cases read: photographs, drawn here; weights, which our side writes where none are."""
    path = folder / name
    folder.mkdir(exist_ok=True)
    if name == "sd15" and not path.exists():
        machine.check_disk(folder, WEIGHTS, "random weights of Stable Diffusion 1.5")
    if name == "photographs" and not path.exists():
        draw(path)
    return path


def draw(path: Path) -> None:
    """Writes a folder of JPEGs with as much detail as photographs have: about 15 kB each."""
    part, rng = path.with_name(f".{path.name}.part"), np.random.default_rng(0)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for number in range(PHOTOGRAPHS):
        coarse = Image.fromarray(rng.integers(60, 230, (28, 28, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        grainy = (smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(grainy).save(part / f"{number:03d}.jpg", quality=85)
    part.rename(path)


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Returns the entries of bench.json, {} where there is none; UserError where it is broken."""
    try:
        entries = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); delete it") from error
    if not isinstance(entries, dict) or not all(isinstance(each, dict) for each in entries.values()):
        raise UserError(f"{path}: holds no cases by their names; delete it")
    return entries


def seconds(entry: Mapping, side: str) -> float | None:
    """Returns a side's median seconds of one unit, None where it has none."""
    rounds = entry["sides"].get(side, {}).get("rounds")
    return median(each["seconds"] for each in rounds) / entry["count"] if rounds else None


def ratio(entry: Mapping, other: str, figure: str = "seconds") -> float | None:
    """Returns the median over rounds of dermjax's figure over another side's, None where there is none."""
    ours, theirs = (entry["sides"].get(side, {}).get("rounds") for side in (OURS, other))
    if not ours or not theirs:
        return None
    return median(a[figure] / b[figure] for a, b in zip(ours, theirs, strict=True))


def table(entries: Mapping[str, Mapping]) -> str:
    """Returns the entries as a table in Markdown, and below it why a figure is missing."""
    matrix = entries[MATRIX]
    times = [seconds(matrix, side) for side in (OURS, EAGER)]
    rate = max((matrix["sides"][OURS].get("operations", 0.0) / each for each in times if each), default=0.0)
    compiled = any(COMPILED in entry["sides"] for entry in entries.values())
    heads = ["work", OURS, EAGER, "ratio", *[COMPILED, "ratio"] * compiled]
    heads += ["first calls", "memory", "ratio", "of the rate"]
    rows = [heads, ["---"] * len(heads), *(_row(*each, rate, compiled) for each in entries.items())]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    sides = [(name, *each) for name, entry in entries.items() for each in entry["sides"].items()]
    errors = [f"{name}, {side}: {figures['error']}" for name, side, figures in sides if "error" in figures]
    missing = sorted({package for entry in entries.values() for package in entry["causes"]["missing"]})
    if missing:
        errors.append(f"{EAGER} beside it needs {', '.join(missing)}: pip install 'dermjax[parity]'")
    note = f"Medians, on {matrix['causes']['device']['kind']}."
    note += f" The rate is that of products of matrices, {rate / 1e9:.0f} GFLOP/s." if rate else ""
    return "\n".join([*lines, "", note, *errors]) + "\n"


def _row(name: str, entry: Mapping, rate: float, compiled: bool) -> list[str]:
    shown = [side for side in (OURS, EAGER) if side in entry["sides"]]
    sides = [entry["sides"][side] for side in shown]
    peaks = [max((each["peak"] for each in side.get("rounds", ())), default=0) for side in sides]
    work = sides[0].get("operations", 0.0) / entry["count"]
    others = (EAGER, COMPILED)[: 1 + compiled]
    beside = [(_time(seconds(entry, side)), _number(ratio(entry, side))) for side in others]
    return [
        f"{name}, one {entry['unit']}",
        _time(seconds(entry, OURS)),
        *(cell for pair in beside for cell in pair),
        ", ".join(_time(side.get("first")) for side in sides),
        ", ".join(format_bytes(peak) if peak else "-" for peak in peaks),
        _number(ratio(entry, EAGER, "peak")),
        ", ".join(_share(work, seconds(entry, side), rate) for side in shown),
    ]


def _time(value: float | None) -> str:
    if not value:
        return "-"
    return f"{value:.3g} s" if value >= 0.1 else f"{value * 1e3:.3g} ms"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _share(work: float, spent: float | None, rate: float) -> str:
    return f"{work / spent / rate:.0%}" if work and spent and rate else "-"
