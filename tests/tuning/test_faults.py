"""Faults of real processes of one `tune`: each process ends on one line in a bounded time, and the command goes on."""

import os
import re
import resource
import signal
import socket
import time

import pytest

from dermjax import processes
from dermjax.errors import AGAIN
from dermjax.training import checkpoints, writers
from dermjax.weights import diffusers

pytestmark = pytest.mark.slow

SETTINGS = {"steps": 30, "save_every": 10, "log_every": 10, "watch_every": 100, "samples.images": 0}
HOST = re.escape(os.uname().nodename)
SAME = "start all again with the same command\n"
SPARE = 60.0  # seconds that a busy machine may take besides
# the command, after `{}`; in the process of the fault alone
PROGRAM = "import sys, time; from dermjax import __main__ as m, processes as p; {}; sys.exit(m.main())"
STANDS_STILL = (
    "now = p.reached; p.reached = lambda step: time.sleep(1000) if step == 15 else now(step)"  # its threads live
)
PATIENT = "p.BEHIND, p.STRAGGLING = 3.0, 10.0"


@pytest.fixture
def begin(tune):
    """begin(run, count, own, **changes): starts `tune` as so many processes, one of them with arguments of its own."""

    def start(run, count=2, own=None, program=("-m", "dermjax"), **changes):
        with socket.socket() as listener:
            listener.bind(("localhost", 0))
            address = f"localhost:{listener.getsockname()[1]}"
        joined = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
        joined["TF_CPP_MIN_LOG_LEVEL"] = "4"  # as the command sets it; JAX has lowered it for the tests' own process
        given = [{"program": program} | (own or {}).get(index, {}) for index in range(count)]
        return [
            tune(run, environment=joined | {"JAX_PROCESS_ID": str(index)}, **each, **(SETTINGS | changes))
            for index, each in enumerate(given)
        ]

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


def goes_on_to_the_same_end(begin, run, whole, **changes):
    for process in begin(run, **changes):
        _, said = process.communicate()
        assert process.returncode == 0, said
    for folder, file in diffusers.FILES.items():
        paths = [each / "model" / folder / file for each in (whole, run)]
        assert paths[0].read_bytes() == paths[1].read_bytes(), folder
    assert writers.read(whole / "metrics.jsonl") == writers.read(run / "metrics.jsonl")
    assert not (run / ".lock").exists()


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    return {}, tmp_path_factory.mktemp("whole")


@pytest.fixture
def whole(begin, wholes):
    """whole(count, **changes): the folder of a run that nothing happened to."""
    made, folder = wholes

    def get(count=2, **changes):
        key = f"{count}{changes}"
        if key not in made:
            made[key] = folder / f"run{len(made)}"
            for process in begin(made[key], count, **changes):
                _, said = process.communicate()
                assert process.returncode == 0, said
        return made[key]

    return get


@pytest.fixture
def told(capsys):
    def tell(what, results, seconds):
        with capsys.disabled():
            print(f"\n{what}: {seconds:.1f} s")
            for code, said in results:
                print(f"  {code} {said}", end="" if said else "\n")

    return tell


@pytest.mark.parametrize("count, killed", [(2, 1), (4, 2)])
def test_a_killed_process_ends_the_others(begin, whole, tmp_path, told, count, killed):
    run = tmp_path / "run"
    started = begin(run, count)
    wait_for_step(run, 10, started)
    started[killed].kill()
    results, seconds = ends(started, processes.SILENCE)
    told(f"one of {count} killed", results, seconds)
    assert results.pop(killed)[0] == -signal.SIGKILL
    for code, said in results:
        assert code == AGAIN
        line = rf"dermjax tune: no sign of process {killed} of {count} \({HOST}\) for \d+ s, since step \d+; {SAME}"
        assert re.fullmatch(line, said), said
    goes_on_to_the_same_end(begin, run, whole(count), count=count)


def test_the_killed_coordinator_ends_the_others(begin, whole, tmp_path, told):
    run = tmp_path / "run"
    started = begin(run)
    wait_for_step(run, 10, started)
    started[0].kill()
    results, seconds = ends(started, processes.GRACE)
    told("process 0 of 2 killed", results, seconds)
    assert [code for code, _ in results] == [-signal.SIGKILL, AGAIN]
    assert results[1][1] == f"dermjax tune: process 0, which joins the others, is lost; {SAME}"
    goes_on_to_the_same_end(begin, run, whole())


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_process_that_answers_no_more_ends_the_others(begin, whole, tmp_path, told, stopped):
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
    goes_on_to_the_same_end(begin, run, whole())


def test_a_straggler_is_named_and_ends_the_run(begin, whole, tmp_path, told):
    run = tmp_path / "run"
    programs = {0: {"program": ("-c", PROGRAM.format(PATIENT))}, 1: {"program": ("-c", PROGRAM.format(STANDS_STILL))}}
    started = begin(run, own=programs)
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
    goes_on_to_the_same_end(begin, run, whole())


def small_files():
    """No file may grow beyond 50 kB, which stops a checkpoint in the middle as a full disk does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))


@pytest.mark.parametrize("full", [0, 1])
def test_a_full_disk_of_one_host_is_one_line_in_both(begin, whole, tmp_path, told, full):
    """Both write their shards of a checkpoint."""
    run, shards = tmp_path / "run", {"mesh.fsdp": 2}
    started = begin(run, own={full: {"before": small_files}}, **shards)
    results, seconds = ends(started, 60)
    told(f"disk of process {full} of 2 full", results, seconds)
    assert [code for code, _ in results] == [2, 2]
    for index, (_, said) in enumerate(results):
        by = "" if index == full else rf"process {full} of 2 \({HOST}\): "
        line = f"dermjax tune: {by}.*no room for a checkpoint of .*; make room, then the same command\n"
        assert re.fullmatch(line, said), said
    assert not checkpoints.steps(run / "checkpoints")
    goes_on_to_the_same_end(begin, run, whole(**shards), **shards)


def test_a_bug_of_one_process_has_its_traceback_there_and_is_one_line_elsewhere(begin, tmp_path, told):
    bug = ("-c", PROGRAM.format("p.reached = lambda step: step < 15 or 1 / 0"))
    run = tmp_path / "run"
    started = begin(run, own={1: {"program": bug}})
    wait_for_step(run, 10, started)
    results, seconds = ends(started, 2 * processes.FAILING)
    told("a bug in process 1 of 2", results, seconds)
    (code, said), (bad, traceback) = results
    assert (code, bad) == (AGAIN, 1)
    assert (
        said == f"dermjax tune: process 1 of 2 ({os.uname().nodename}) failed (ZeroDivisionError: division by zero)\n"
    )
    assert "Traceback" in traceback and "ZeroDivisionError" in traceback
