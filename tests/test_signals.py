"""Told to stop, a command ends as it says: after the next step that is saved, at once when told again, in any state."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

# The command with `tune` as the stage of the test, which can be interrupted also where the tests run in the background.
COMMAND = """
import signal, sys
from pathlib import Path
from dermjax import __main__ as m, signals
signal.signal(signal.SIGINT, signal.default_int_handler)
m.STAGES['tune'] = 'stage_of_the_test'
signals.GRACE = {grace}
sys.exit(m.main())
"""
CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({"steps": 150})
"""
# one program that XLA compiles for half a minute, without a line of Python in between
COMPILING = """
import contextlib
import jax, jax.numpy as jnp
from dermjax import signals

def long(x):
    for i in range(80):
        x = jax.lax.sort(x * (i + 1), dimension=0) + jnp.cos(x * i)
    return x

def compile():
    lowered = jax.jit(long).lower(jnp.ones((8, 8)))
    print("compiling", flush=True)
    lowered.compile()
    print("compiled", flush=True)

def run(config, workdir):
    compile()
"""
IN_A_LOOP = COMPILING.replace("    compile()\n", "    with signals.deferred():\n        compile()\n")
WAITING = """
import time

def run(config, workdir):
    print("compiling", flush=True)
    time.sleep(60)
"""
# the small run of the training loop that its own tests have
TRAINING = """
import sys
sys.path.insert(0, {tests!r})
from conftest import trained

def run(config, workdir):
    print("compiling", flush=True)
    trained(workdir, config.steps, save_every=0, log_every=1)
"""


def start(folder, stage, *, grace):
    (folder / "config.py").write_text(CONFIG)
    (folder / "stage_of_the_test.py").write_text(stage)
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(grace=grace), "tune", "--config=config.py", "--workdir=run"],
        cwd=folder, env=os.environ | {"JAX_PLATFORMS": "cpu"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == "compiling\n"
    return process


def end(process):
    """What a process says from now on, and its exit code: (code, standard output, error output)."""
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_twice_it_ends_at_once_while_a_step_is_compiled(tmp_path, number):
    process = start(tmp_path, IN_A_LOOP, grace=1000)
    time.sleep(0.3)
    process.send_signal(number)
    notice = process.stdout.readline()
    assert notice == "tune: told to stop, which it does once this step is saved; told again, at once\n"
    process.send_signal(number)
    began = time.monotonic()
    word = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}[number]
    assert end(process) == (128 + number, "", f"\ndermjax tune: {word}; resume with the same command\n")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_once_it_ends_soon_while_it_compiles_what_is_no_step(tmp_path, number):
    process = start(tmp_path, COMPILING, grace=0.5)
    time.sleep(0.3)
    process.send_signal(number)
    code, out, err = end(process)
    assert (code, out) == (128 + number, "") and err.endswith("; resume with the same command\n")
    assert err.count("\n") == 2


def test_terminated_where_nothing_is_saved_it_says_how_to_go_on(tmp_path):
    process = start(tmp_path, WAITING, grace=1000)
    process.send_signal(signal.SIGTERM)
    assert end(process) == (143, "", "\ndermjax tune: terminated; resume with the same command\n")


def test_a_signal_that_the_command_was_started_to_ignore_is_ignored(tmp_path):
    stage = WAITING.replace("60", "2")
    (tmp_path / "config.py").write_text(CONFIG)
    (tmp_path / "stage_of_the_test.py").write_text(stage)
    ignoring = COMMAND.format(grace=0.1).replace("default_int_handler", "SIG_IGN")
    arguments = [sys.executable, "-c", ignoring, "tune", "--config=config.py", "--workdir=run"]
    process = subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert end(process) == (0, "", "")


@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 0, marks=pytest.mark.slow)]
)
def test_told_once_a_loop_saves_and_the_same_command_goes_on_with_one_line_a_step(tmp_path, number, expected):
    training = TRAINING.format(tests=os.path.join(os.path.dirname(__file__), "training"))
    for _ in range(2):
        process = start(tmp_path, training, grace=1000)
        metrics = tmp_path / "run" / "metrics.jsonl"
        before = metrics.read_text() if metrics.exists() else ""
        while process.poll() is None and not (metrics.exists() and len(metrics.read_text()) > len(before) + 500):
            time.sleep(0.01)
        process.send_signal(number)
        code, _, err = end(process)
        assert code == expected and "told to stop, step" in err and "of 150 is saved; resume" in err, err
    process = start(tmp_path, training, grace=1000)
    assert end(process)[0] == 0
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == list(range(1, 151))
