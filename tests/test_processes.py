"""Processes of one run: compared at the start, and why they end; `training/test_faults` has them killed."""

import os
import socket
import subprocess
import sys

import pytest

from dermjax import processes, run_folder
from dermjax.errors import AGAIN
from dermjax.processes import Ending, Sign, ending

CONFIG = """
from ml_collections import ConfigDict

def get_config(variant=None):
    return ConfigDict({"steps": 3})
"""
STAGE = """
def run(config, workdir):
    import jax
    print(jax.process_count())
"""
# `tune` is the stage above; what is in {} happens before
COMMAND = """
import sys
from dermjax import __main__ as m, processes, run_folder
m.STAGES['tune'] = 'stage_of_the_test'
{}
sys.exit(m.main())
"""
AS_ASKED = {"TF_CPP_MIN_LOG_LEVEL": "4"}  # JAX lowers it in the environment of these tests
OTHER_SOURCE = "now = processes.versions\nprocesses.versions = lambda: now() | {'source': 'another'}"


@pytest.fixture
def joined(tmp_path):
    """joined(changed, *arguments): runs a stage as two processes, the second changed and with these arguments."""
    (tmp_path / "config.py").write_text(CONFIG)
    (tmp_path / "stage_of_the_test.py").write_text(STAGE)

    def run(changed, *arguments, both=""):
        with socket.socket() as listener:
            listener.bind(("localhost", 0))
            address = f"localhost:{listener.getsockname()[1]}"
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_PROCESSES": "2",
            "JAX_COORDINATOR_ADDRESS": address,
        }
        command = ["tune", "--config=config.py", "--workdir=run"]
        started = [
            subprocess.Popen(
                [sys.executable, "-c", COMMAND.format(both + changed * index), *command, *arguments[: index * 9]],
                cwd=tmp_path, env=environment | {"JAX_PROCESS_ID": str(index), "JAX_PLATFORMS": "cpu"} | AS_ASKED,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for index in range(2)
        ]  # fmt: skip
        told = [process.communicate(timeout=120) for process in started]
        return [(process.returncode, *said) for process, said in zip(started, told, strict=True)]

    return run


def test_other_code_on_another_host_is_one_line_in_both(joined, tmp_path):
    first, second = joined(OTHER_SOURCE)
    assert first == second
    code, said, refused = first
    host = os.uname().nodename
    source = processes.versions()["source"]
    assert (code, said) == (2, "")
    assert refused == (
        f"dermjax tune: process 1 of 2 ({host}) runs other versions than process 0 of 2 ({host}) "
        f'(source: "{source}" -> "another"); install the same on all hosts\n'
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_another_config_on_another_host_is_one_line_in_both(joined, tmp_path):
    for code, said, refused in joined("", "--config.steps=4"):
        assert (code, said) == (2, "")
        assert "(steps: 3 -> 4); give all the same command\n" in refused and refused.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_hosts_do_not_share_is_one_line_in_both(joined, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".lock").write_text('{"run": "of somebody who was killed"}')
    (first, _, told), (second, _, refused) = joined("", "--workdir=other")
    line = f"workdir {tmp_path / 'other'}: is not the first process's; give one that all hosts share\n"
    assert (first, second) == (2, 2) and refused == f"dermjax tune: {line}"
    assert told == f"dermjax tune: process 1 of 2 ({os.uname().nodename}): {line}"


@pytest.mark.slow
def test_a_second_job_in_a_workdir_is_one_line_in_all_of_its_processes(joined, tmp_path):
    with run_folder.lock(tmp_path / "run", alone=True):
        refused = joined("", both="run_folder.PATIENCE = 0.0\n")
    line = f"dermjax tune: workdir {tmp_path / 'run'}: another run works in it; wait for it or end it\n"
    assert refused == [(2, "", line)] * 2
    assert [(code, said) for code, said, _ in joined("")] == [(0, "2\n")] * 2


def name(index):
    return f"process {index} of 3"


def sign(at=100.0, moved=100.0, failed=None, **text):
    return Sign({"step": 7} | text, at, moved, failed)


AGO = 100.0 - processes.FAILING - 0.1
LONG_AGO = 100.0 - processes.SILENCE - 0.1
VERY_LONG_AGO = 100.0 - processes.STRAGGLING - 1
FAILED = Sign({"step": 7, "failed": "TypeError: no"}, 100.0, 100.0, AGO - processes.BEAT)
FULL = "workdir run: no room"


SAME = "start all again with the same command"
CASES = {
    "all well": ([sign()] * 3, None),
    "one is slow to tell": ([sign(), sign(AGO), sign()], None),
    "one is gone": (
        [sign(), sign(LONG_AGO), sign()],
        Ending(f"no sign of process 1 of 3 for 30 s, since step 7; {SAME}", AGAIN, 1, (1,)),
    ),
    "two are gone, a collective failed": (
        [sign(failed=99.0), sign(AGO, step=0), sign(AGO)],
        Ending(f"no sign of process 1 of 3, process 2 of 3 for 6 s, since the start; {SAME}", AGAIN, 1, (1, 2)),
    ),
    "one failed just now": ([sign(failed=99.0), sign(), sign()], None),
    "one failed": ([sign(), FAILED, sign()], Ending("process 1 of 3 failed (TypeError: no)", AGAIN, 1, (1,))),
    "one is refused": ([sign(), sign(), sign(line=FULL, code=2)], Ending(f"process 2 of 3: {FULL}", 2, 2, (2,))),
    "two are done": ([sign(done=True), sign(), sign(done=True)], None),
    "all are done": ([sign(done=True)] * 3, Ending("")),
    "all are at something long": ([sign(moved=VERY_LONG_AGO)] * 3, None),
    "one stands still": (
        [sign(), sign(step=6, moved=VERY_LONG_AGO), sign(moved=VERY_LONG_AGO)],
        Ending(
            "process 1 of 3 has been at step 6 for 30 min, others are at 7; see what holds it up, then start all again "
            "with the same command",
            AGAIN,
            1,
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_why_a_run_ends(case):
    signs, expected = CASES[case]
    assert ending(signs, name, 100.0) == expected
