"""Faults of real processes of one training: each process ends on one line in bounded time, the command goes on."""

import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dermjax import processes
from dermjax.errors import AGAIN
from dermjax.training import checkpoints, writers

pytestmark = pytest.mark.slow

HOST = re.escape(os.uname().nodename)
SAME = "start all again with the same command\n"
SPARE = 60.0  # seconds that a busy machine may take besides
CONFIG = """
from ml_collections import ConfigDict

def get_config(variant=None):
    return ConfigDict({"steps": 60, "fsdp": 1})
"""
# the loop of every training on a line, at a pace at which it can be killed between two checkpoints
STAGE = f"""
import sys, time
import jax, numpy as np
from dermjax import processes, sharding
sys.path.insert(0, {str(Path(__file__).parent)!r})
import conftest

def run(config, workdir):
    reached = processes.reached
    processes.reached = lambda step: (time.sleep(0.03), reached(step))
    if config.fsdp > 1:
        sharding.RULES = ((r"kernel$", jax.P("fsdp", None)), *sharding.RULES)
    state = conftest.trained(workdir, config.steps, devices=jax.process_count() // config.fsdp, fsdp=config.fsdp)
    kernel = jax.jit(lambda x: x, out_shardings=jax.NamedSharding(state.params["kernel"].sharding.mesh, jax.P()))(
        state.params["kernel"])
    if jax.process_index() == 0:
        np.save(workdir / "kernel.npy", np.asarray(kernel.addressable_shards[0].data))
"""
# `tune` is the stage above; what is in {{}} happens before
COMMAND = """
import sys, time
from dermjax import __main__ as m, processes as p
m.STAGES['tune'] = 'stage_of_the_test'
{}
sys.exit(m.main())
"""
STANDS_STILL = (
    "now = p.reached; p.reached = lambda step: time.sleep(1000) if step == 15 else now(step)"  # its threads live
)
PATIENT = "p.BEHIND, p.STRAGGLING = 3.0, 10.0"


@pytest.fixture
def begin(tmp_path):
    """begin(run, count, before, limit, *arguments): starts a training as so many processes.

    before: {process: code that comes first in it}; limit: {process: what it calls before it starts}.
    """
    (tmp_path / "config.py").write_text(CONFIG)
    (tmp_path / "stage_of_the_test.py").write_text(STAGE)

    def start(run, *arguments, count=2, before=(), limit=()):
        with socket.socket() as listener:
            listener.bind(("localhost", 0))
            joined = {"JAX_COORDINATOR_ADDRESS": f"localhost:{listener.getsockname()[1]}"}
        joined |= {"JAX_NUM_PROCESSES": str(count), "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
        joined["TF_CPP_MIN_LOG_LEVEL"] = "4"  # as the command sets it; JAX has lowered it for the tests' own process
        return [
            subprocess.Popen(
                [sys.executable, "-c", COMMAND.format(dict(before).get(index, "")), "tune", "--config=config.py",
                 f"--workdir={run}", *arguments],
                cwd=tmp_path, env=os.environ | joined | {"JAX_PROCESS_ID": str(index)},
                preexec_fn=dict(limit).get(index), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for index in range(count)
        ]  # fmt: skip

    return start


def wait_for_step(run, step, started):
    while max(checkpoints.steps(run / "checkpoints"), default=0) < step:
        assert all(process.poll() is None for process in started), [process.communicate() for process in started]
        time.sleep(0.01)


def ends(started, within):
    """[(exit code, standard error)] of processes that end in a bounded time, and the seconds of the last one."""
    begun = time.monotonic()
    for process in started:
        process.wait(timeout=within + SPARE)
    seconds = time.monotonic() - begun
    return [(process.returncode, process.communicate()[1]) for process in started], seconds


def goes_on_to_the_same_end(begin, run, whole, *arguments, **given):
    for folder in (whole, run):
        for process in begin(folder, *arguments, **given):
            _, said = process.communicate()
            assert process.returncode == 0, said
    np.testing.assert_array_equal(np.load(run / "kernel.npy"), np.load(whole / "kernel.npy"))
    assert writers.read(whole / "metrics.jsonl") == writers.read(run / "metrics.jsonl")
    assert not (run / ".lock").exists()


@pytest.fixture
def told(capsys):
    def tell(what, results, seconds):
        with capsys.disabled():
            print(f"\n{what}: {seconds:.1f} s")
            for code, said in results:
                print(f"  {code} {said}", end="" if said else "\n")

    return tell


@pytest.mark.parametrize("count, killed", [(2, 1), (4, 2)])
def test_a_killed_process_ends_the_others(begin, tmp_path, told, count, killed):
    run = tmp_path / "run"
    started = begin(run, count=count)
    wait_for_step(run, 10, started)
    started[killed].kill()
    results, seconds = ends(started, processes.SILENCE)
    told(f"one of {count} killed", results, seconds)
    assert results.pop(killed)[0] == -signal.SIGKILL
    for code, said in results:
        assert code == AGAIN
        line = rf"dermjax tune: no sign of process {killed} of {count} \({HOST}\) for \d+ s, since step \d+; {SAME}"
        assert re.fullmatch(line, said), said
    goes_on_to_the_same_end(begin, run, tmp_path / "whole", count=count)


def test_the_killed_coordinator_ends_the_others(begin, tmp_path, told):
    run = tmp_path / "run"
    started = begin(run)
    wait_for_step(run, 10, started)
    started[0].kill()
    results, seconds = ends(started, processes.GRACE)
    told("process 0 of 2 killed", results, seconds)
    assert [code for code, _ in results] == [-signal.SIGKILL, AGAIN]
    assert results[1][1] == f"dermjax tune: process 0, which joins the others, is lost; {SAME}"
    goes_on_to_the_same_end(begin, run, tmp_path / "whole")


def test_a_process_ends_where_nobody_reads_its_line(begin, tmp_path):
    """As where a terminal was closed, or the program that started it was killed."""
    run = tmp_path / "run"
    started = begin(run)
    wait_for_step(run, 10, started)
    for process in started:
        process.stdout.close(), process.stderr.close()
    started[0].kill()
    assert started[0].wait() == -signal.SIGKILL
    assert started[1].wait(timeout=processes.GRACE + SPARE) in (AGAIN, 1)  # 1 where it wrote something else before


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_process_that_answers_no_more_ends_the_others(begin, tmp_path, told, stopped):
    """As of a host that is suspended, or whose network is cut: no connection is closed."""
    run = tmp_path / "run"
    started = begin(run)
    wait_for_step(run, 10, started)
    started[stopped].send_signal(signal.SIGSTOP)
    other = started[1 - stopped]
    results, seconds = ends([other], processes.HEARTBEAT if stopped == 0 else processes.SILENCE)
    told(f"process {stopped} of 2 suspended", results, seconds)
    started[stopped].kill(), started[stopped].communicate()
    ((code, said),) = results
    lost = "process 0, which joins the others, is lost" if stopped == 0 else f"no sign of process 1 of 2 \\({HOST}\\)"
    assert code == AGAIN and re.fullmatch(f"dermjax tune: {lost}.*; {SAME}", said), said
    goes_on_to_the_same_end(begin, run, tmp_path / "whole")


def test_a_straggler_is_named_and_ends_the_run(begin, tmp_path, told):
    run = tmp_path / "run"
    started = begin(run, before={0: PATIENT, 1: STANDS_STILL})
    wait_for_step(run, 10, started)
    begun = time.monotonic()
    for process in started:
        process.wait(timeout=60)
    seconds = time.monotonic() - begun
    outputs = [process.communicate() for process in started]
    results = [(process.returncode, said) for process, (_, said) in zip(started, outputs, strict=True)]
    told("process 1 of 2 stands still at step 15, others may go on for 10 s", results, seconds)
    line = rf"process 1 of 2 \({HOST}\) has been at step 14 for 1\d s, others are at \d+; see what holds it up"
    for code, said in results:
        assert code == AGAIN and re.fullmatch(f"dermjax tune: {line}, then {SAME}", said), said
    assert re.search(rf"tune: process 1 of 2 \({HOST}\) is behind, at step 14\n", outputs[0][0])
    goes_on_to_the_same_end(begin, run, tmp_path / "whole")


def small_files():
    """No file may grow beyond 100 bytes, which stops a checkpoint in the middle as a full disk does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))


@pytest.mark.parametrize("full", [1])
def test_a_full_disk_of_one_host_is_one_line_in_both(begin, tmp_path, told, full):
    """Both write their shards of a checkpoint."""
    run = tmp_path / "run"
    started = begin(run, "--config.fsdp=2", limit={full: small_files})
    results, seconds = ends(started, 60)
    told(f"disk of process {full} of 2 full", results, seconds)
    assert [code for code, _ in results] == [2, 2]
    for index, (_, said) in enumerate(results):
        by = "" if index == full else rf"process {full} of 2 \({HOST}\): "
        line = f"dermjax tune: {by}.*no room for a checkpoint of .*; make room, then the same command\n"
        assert re.fullmatch(line, said), said
    assert not checkpoints.steps(run / "checkpoints")
    goes_on_to_the_same_end(begin, run, tmp_path / "whole", "--config.fsdp=2")


def test_a_bug_of_one_process_has_its_traceback_there_and_is_one_line_elsewhere(begin, tmp_path, told):
    run = tmp_path / "run"
    started = begin(run, before={1: "p.reached = lambda step: step < 15 or 1 / 0"})
    wait_for_step(run, 10, started)
    results, seconds = ends(started, 2 * processes.FAILING)
    told("a bug in process 1 of 2", results, seconds)
    (code, said), (bad, traceback) = results
    assert (code, bad) == (AGAIN, 1)
    assert (
        said == f"dermjax tune: process 1 of 2 ({os.uname().nodename}) failed (ZeroDivisionError: division by zero)\n"
    )
    assert "Traceback" in traceback and "ZeroDivisionError" in traceback
