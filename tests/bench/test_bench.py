"""`dermjax bench`: its cases take turns, are kept and resumed, and what cannot be measured is said, with stand-ins."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest

from dermjax.bench import cases as cases_module
from dermjax.bench import run
from dermjax.bench.cases import CASES, MATRIX, Case
from dermjax.bench.process import Ended, Side
from dermjax.bench.run import COMPILED, EAGER, OURS, ratio, table
from dermjax.errors import UserError

# a side without JAX or PyTorch: it writes down whose turn it is, and its rounds are as long as its settings say
STAND_IN = """
import os, sys, time
from dermjax.bench.process import Work, serve

side = sys.argv.pop(1)

def sleep(turns, compiled=False):
    seconds = {"dermjax": 0.02, "PyTorch": 0.06, "torch.compile": 0.04}[side]
    def run():
        print("what a library prints")
        with open(turns, "a") as file:
            file.write(side + " ")
        time.sleep(seconds)
    return Work(run, 1e6)

def fail(**settings):
    raise ValueError("no such thing")

def exhaust(**settings):
    os.kill(os.getpid(), 9)

serve(sleep, fail, exhaust)
"""
SECONDS = {OURS: 0.02, EAGER: 0.06, COMPILED: 0.04}
BENCH = """
import json, sys
from dermjax.bench import cases, run
from dermjax.bench.cases import Case
run.PROGRAMS = json.loads(sys.argv[1])
cases.CASES["cpu"] = {name: Case(**each) for name, each in json.loads(sys.argv[2]).items()}
run.device = lambda: {"platform": "cpu", "kind": "cpu"}
run.bench(sys.argv[3], "all", 1, False)
"""


def case(kind="sleep", **options):
    options = {"packages": ("json",), "compiles": True, "memory": 1e6, "seconds": 0.1} | options
    return Case(kind=kind, settings={}, unit="nap", count=2, **options)


def on(monkeypatch, kind):
    """Has the bench find a device."""
    monkeypatch.setattr(run, "device", lambda: {"platform": "cpu" if kind == "cpu" else "gpu", "kind": kind})


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """A function that puts cases, after a product of matrices, in place of the real ones; a bench's folder."""
    script = tmp_path / "side.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(run, "PROGRAMS", {side: [str(script), side] for side in SECONDS})
    on(monkeypatch, "cpu")

    def put(**cases):
        named = {MATRIX: case(), **cases}
        settings = {"turns": str(tmp_path / "turns")}
        every = {n: replace(each, settings=settings) for n, each in named.items()}
        monkeypatch.setattr(cases_module, "CASES", {"cpu": every, "gpu": every})
        return tmp_path / "bench"

    return put


def turns(folder):
    return (folder.parent / "turns").read_text().split()


def entries(folder):
    return json.loads((folder / "bench.json").read_text())


def test_sides_take_turns_after_a_first_call_each(stand_ins, command):
    folder = stand_ins()
    code, out, error = command("bench", f"--workdir={folder}", "--rounds=3", "--torch_compile")
    assert (code, error) == (0, "")
    assert turns(folder) == [OURS, OURS, EAGER, EAGER, COMPILED, COMPILED] + [OURS, EAGER, COMPILED] * 2
    entry = entries(folder)[MATRIX]
    for side, expected in SECONDS.items():
        rounds = entry["sides"][side]["rounds"]
        assert len(rounds) == 3 and all(expected <= each["seconds"] < expected + 0.02 for each in rounds)
        assert entry["sides"][side]["first"] >= expected
        assert all(2e6 < each["peak"] < 1e9 and each["processor_seconds"] < expected for each in rounds)
    assert ratio(entry, EAGER) == pytest.approx(1 / 3, abs=0.15)
    written = (folder / "bench.md").read_text()
    assert written in out and f"| {MATRIX}, one nap | " in written
    assert sorted(path.name for path in folder.iterdir()) == ["bench.json", "bench.md", "logs"]


def test_a_round_of_a_fresh_process_is_its_first_call(stand_ins, command):
    folder = stand_ins(load=case(fresh=True, compiles=False))
    assert command("bench", f"--workdir={folder}", "--rounds=2")[0] == 0
    assert turns(folder)[-4:] == [OURS, EAGER] * 2
    assert [len(side["rounds"]) for side in entries(folder)["load"]["sides"].values()] == [2, 2]


def test_what_is_measured_is_kept_until_something_changes(stand_ins, command):
    folder = stand_ins(one=case(compiles=False), two=case(packages=(), compiles=False))
    asked = ("bench", f"--workdir={folder}", "--rounds=1")
    assert command(*asked, "--cases=one")[0] == 0
    assert list(entries(folder)) == [MATRIX, "one"]
    before = len(turns(folder))
    code, out, _ = command(*asked)
    assert code == 0 and "2 of 3 cases are measured already" in out
    assert turns(folder)[before:] == [OURS, OURS]  # two alone, which has no other side
    assert command("bench", f"--workdir={folder}", "--rounds=2", "--cases=two")[0] == 0
    assert len(entries(folder)["two"]["sides"][OURS]["rounds"]) == 2
    assert len(entries(folder)["one"]["sides"][OURS]["rounds"]) == 1


def test_another_device_is_measured_anew_and_named(stand_ins, command, monkeypatch):
    folder = stand_ins()
    for kind in ("cpu", "NVIDIA H200", "NVIDIA L4"):
        on(monkeypatch, kind)
        before = len(turns(folder)) if folder.exists() else 0
        code, out, _ = command("bench", f"--workdir={folder}", "--rounds=1")
        assert code == 0 and f"Medians, on {kind}." in out and len(turns(folder)) > before


def test_the_device_is_what_jax_finds(monkeypatch):
    assert run.device() == {"platform": "cpu", "kind": "cpu"}
    monkeypatch.setenv("JAX_PLATFORMS", "nothing")
    with pytest.raises(UserError, match=r"JAX finds no device: .*nothing"):
        run.device()
    beside = run.environment(EAGER, case(), "cpu")
    assert beside["JAX_PLATFORMS"] == "cpu"  # which PyTorch's side goes by


def test_a_killed_bench_goes_on(stand_ins, command):
    folder = stand_ins(one=case(compiles=False), two=case(compiles=False))
    cases = json.dumps({name: asdict(each) for name, each in cases_module.CASES["cpu"].items()})
    with subprocess.Popen([sys.executable, "-c", BENCH, json.dumps(run.PROGRAMS), cases, folder]) as killed:
        while not (folder / "bench.json").exists():
            assert killed.poll() is None
            time.sleep(0.01)
        os.kill(killed.pid, signal.SIGKILL)
    done, before = list(entries(folder)), len(turns(folder))
    assert done in ([MATRIX], [MATRIX, "one"])
    time.sleep(0.3)  # the side that was at work ends with its round
    assert command("bench", f"--workdir={folder}", "--rounds=1")[0] == 0
    assert list(entries(folder)) == [MATRIX, "one", "two"]
    assert len(turns(folder)) - before <= 4 * (3 - len(done)) + 1
    assert not list(folder.rglob("*.part"))


def test_what_is_not_installed_is_said_and_the_rest_is_measured(stand_ins, command):
    folder = stand_ins(one=case(packages=("no_such_package",)))
    code, out, _ = command("bench", f"--workdir={folder}", "--rounds=1")
    assert code == 0 and "PyTorch beside it needs no_such_package: pip install 'dermjax[parity]'" in out
    assert list(entries(folder)["one"]["sides"]) == [OURS]
    before = turns(folder)
    assert command("bench", f"--workdir={folder}", "--rounds=1")[0] == 0 and turns(folder) == before  # it is no fault


def test_what_does_not_fit_is_said_and_the_rest_is_measured(stand_ins, command):
    folder = stand_ins(one=case(memory=1e18), two=case(packages=()))
    code, out, error = command("bench", f"--workdir={folder}", "--rounds=1")
    assert code == 2 and "one: needs about 1e+09 GB of memory, " in error and len(error.splitlines()) == 1
    assert f"one, {EAGER}: needs about 1e+09 GB of memory, " in out
    assert entries(folder)["two"]["sides"][OURS]["rounds"]


def test_a_side_that_ends_says_why(stand_ins, command):
    folder = stand_ins(one=case("fail"), two=case("exhaust"))
    code, out, error = command("bench", f"--workdir={folder}", "--rounds=1")
    assert code == 2 and len(error.splitlines()) == 1
    assert f"one: ValueError: no such thing; see {folder}" in error
    assert "two, dermjax: killed, as the system does where memory runs out" in out
    assert "Traceback" in (folder / "logs" / "one.dermjax.txt").read_text()
    before = len(turns(folder))
    assert command("bench", f"--workdir={folder}", "--rounds=1")[0] == 2  # measured anew
    assert len(turns(folder)) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workdir=x", "--cases=nothing"], "no case is called 'nothing'; there are matrix, unet/32x32/1, "),
        (["--workdir=x", "--cases=unet,"], "no case is called ''; there are "),
        (["--workdir=x", "--rounds=0"], "--rounds=0: give 1 or more"),
        (["--rounds=1"], "--workdir is missing"),
        (["--workdir=x", "more"], "unexpected argument more"),
    ],
)
def test_what_cannot_be_meant_is_one_line_and_leaves_nothing(command, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    code, _, error = command("bench", *flags)
    assert code == 2 and message in error and len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text, said", [("{", "bench.json: not JSON"), ("[]", "holds no cases"), ('{"matrix": 1}', "holds no cases")]
)
def test_a_broken_file_of_results_is_one_line(stand_ins, command, text, said):
    folder = stand_ins()
    folder.mkdir()
    (folder / "bench.json").write_text(text)
    code, _, error = command("bench", f"--workdir={folder}")
    assert code == 2 and said in error and len(error.splitlines()) == 1


def test_cases_go_by_the_beginnings_of_their_names():
    known = CASES["cpu"]
    assert list(run.choose("all", known)) == list(known)
    assert list(run.choose("load/float32, decode", known)) == [MATRIX, "decode/256", "decode/512", "load/float32"]
    with pytest.raises(UserError, match="'x'"):
        run.choose("decode,x", known)


def test_an_interrupted_bench_leaves_no_process(stand_ins, tmp_path):
    settings = {"turns": str(tmp_path / "turns")}
    side = Side(
        run.command(OURS, case(), settings), os.environ | {"PYTHONPATH": str(run.PACKAGE.parent)}, tmp_path / "log"
    )
    assert side.round()["seconds"] > 0
    side.close()
    side.close()  # again
    with pytest.raises(Ended):
        Side([sys.executable, "-c", "raise SystemExit(3)"], os.environ, tmp_path / "log")


def test_the_table_has_a_line_a_case():
    def entry(unit, count, missing, **sides):
        return {"causes": {"missing": missing, "device": {"kind": "cpu"}}, "unit": unit, "count": count, "sides": sides}

    rounds = [{"seconds": 2.0, "peak": 10**9}, {"seconds": 4.0, "peak": 2 * 10**9}]
    slower = [{"seconds": 8.0, "peak": 10**9}, {"seconds": 8.0, "peak": 10**9}]
    matrix = entry("product", 1, [], dermjax={"rounds": rounds, "first": 3.0, "operations": 3e12})
    unet = entry(
        "evaluation",
        2,
        ["peft"],
        dermjax={"rounds": rounds, "first": 30.0, "operations": 1e12},
        PyTorch={"rounds": slower, "first": 0.01, "operations": 0.0},
        **{COMPILED: {"error": "no compiler"}},
    )
    lines = table({MATRIX: matrix, "unet": unet}).splitlines()
    assert lines[2:] == [
        "| matrix, one product | 3 s | - | - | - | - | 3 s | 2 GB | - | 100% |",
        "| unet, one evaluation | 1.5 s | 4 s | 0.38 | - | - | 30 s, 10 ms | 2 GB, 1 GB | 1.50 | 33%, 12% |",
        "",
        "Medians, on cpu. The rate is that of products of matrices, 1000 GFLOP/s.",
        "unet, torch.compile: no compiler",
        "PyTorch beside it needs peft: pip install 'dermjax[parity]'",
    ]


def test_the_command_s_process_holds_neither_side():
    code = "import sys, dermjax.bench.run; print({'jax', 'torch', 'flax'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
