"""The launch scripts, with a Python that only writes down what it is asked, so that nothing is installed."""

import os
import resource
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ("launch/demo", "launch/test", "launch/gpu", "launch/slurm", "launch/tpu_pod", "launch/install.sh", ".ci/run")
# answers the checks of install.sh and logs everything else; pip fails while the file `broken` exists
PYTHON = """#!/bin/sh
home=$(dirname "$0")
case "$*" in
    "-m pip --version" | "-c "*) exit 0 ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
esac
echo "$*" >> "$LOG"
case "$*" in
    "-m pip install"*) test ! -e "$LOG.broken" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    """A copy of what the scripts read, in a folder with a space in its name, with no .venv."""
    root = tmp_path / "a checkout"
    for name in ("launch", ".ci"):
        shutil.copytree(ROOT / name, root / name)
    shutil.copy(ROOT / "pyproject.toml", root)
    return root


@pytest.fixture
def venv(tmp_path):
    """An active environment whose Python is the one above."""
    bin_folder = tmp_path / "venv" / "bin"
    bin_folder.mkdir(parents=True)
    (bin_folder / "python").write_text(PYTHON)
    (bin_folder / "python").chmod(0o755)
    return bin_folder.parent


def call(script, *arguments, cwd, **environment):
    clean = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "DRY_RUN")}
    return subprocess.run(
        [script, *arguments], cwd=cwd, env=clean | environment, capture_output=True, text=True, check=False
    )


def seconds_of_children():
    """Processor time of the finished subprocesses; the clock would depend on what else the machine does."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def asked(tmp_path):
    """What the logging Python was asked so far."""
    log = tmp_path / "log"
    return log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize("script", SCRIPTS)
def test_bash_parses_it(script):
    subprocess.run(["bash", "-n", ROOT / script], check=True)


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script != "launch/install.sh"])
def test_it_is_executable_strict_and_tells_how_to_call_it(script):
    text = (ROOT / script).read_text()
    assert os.access(ROOT / script, os.X_OK)
    assert text.startswith("#!/usr/bin/env bash\n# ")
    assert "\nset -euo pipefail\n" in text
    assert script == ".ci/run" or "DRY_RUN=1" in text


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_agrees(script):
    subprocess.run(["shellcheck", "-x", "--severity=warning", ROOT / script], cwd=ROOT / "launch", check=True)


def test_demo_installs_once_and_passes_its_arguments_on(checkout, venv, tmp_path):
    environment = {"VIRTUAL_ENV": str(venv), "LOG": str(tmp_path / "log")}
    first = call(checkout / "launch/demo", "--images=my photos", "--limit=5", cwd=tmp_path, **environment)
    assert first.returncode == 0, first.stderr
    install, demo = asked(tmp_path)
    assert install == f"-m pip install --constraint {checkout}/launch/constraints.txt --editable {checkout}"
    assert demo == f"-m dermjax demo --workdir={checkout}/runs/demo --images=my photos --limit=5"

    before = seconds_of_children()
    call(checkout / "launch/demo", cwd=tmp_path, **environment)
    assert seconds_of_children() - before < 1
    assert asked(tmp_path)[2:] == [f"-m dermjax demo --workdir={checkout}/runs/demo"]


@pytest.mark.parametrize("changed", ["pyproject.toml", "launch/constraints.txt"])
def test_a_change_of_what_is_to_be_installed_installs_again(checkout, venv, tmp_path, changed):
    environment = {"VIRTUAL_ENV": str(venv), "LOG": str(tmp_path / "log")}
    call(checkout / "launch/demo", cwd=tmp_path, **environment)
    with (checkout / changed).open("a") as file:
        file.write("# changed\n")
    call(checkout / "launch/demo", cwd=tmp_path, **environment)
    assert sum("pip install" in line for line in asked(tmp_path)) == 2


def test_a_failed_install_is_tried_again(checkout, venv, tmp_path):
    environment = {"VIRTUAL_ENV": str(venv), "LOG": str(tmp_path / "log")}
    broken = tmp_path / "log.broken"
    broken.touch()
    assert call(checkout / "launch/demo", cwd=tmp_path, **environment).returncode != 0
    assert len(asked(tmp_path)) == 1
    broken.unlink()
    assert call(checkout / "launch/demo", cwd=tmp_path, **environment).returncode == 0
    assert [line.split()[2] for line in asked(tmp_path)] == ["install", "install", "demo"]


def test_test_installs_the_oracle_runs_pytest_then_ruff(checkout, venv, tmp_path):
    environment = {"VIRTUAL_ENV": str(venv), "LOG": str(tmp_path / "log")}
    done = call(checkout / ".ci/run", "--slow", "tests/data", cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert asked(tmp_path)[0].endswith(f"--editable {checkout}[dev,parity]")
    tests, *style = asked(tmp_path)[1:]
    assert tests.startswith("-m pytest --numprocesses=auto ") and tests.endswith(" --slow tests/data")
    assert style == ["-m ruff check", "-m ruff format --check"]


def test_the_core_is_not_installed_again_for_the_demo_after_the_tests(checkout, venv, tmp_path):
    environment = {"VIRTUAL_ENV": str(venv), "LOG": str(tmp_path / "log")}
    call(checkout / "launch/test", cwd=tmp_path, **environment)
    call(checkout / "launch/demo", cwd=tmp_path, **environment)
    assert sum("pip install" in line for line in asked(tmp_path)) == 1


def test_without_an_active_environment_it_makes_one(checkout, venv, tmp_path):
    shutil.copy(venv / "bin/python", venv / "bin/python3.11")
    path = f"{venv / 'bin'}:{os.environ['PATH']}"
    done = call(checkout / "launch/demo", cwd=tmp_path, PATH=path, LOG=str(tmp_path / "log"))
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in asked(tmp_path)] == ["venv", "pip", "dermjax"]
    assert (checkout / ".venv" / "dermjax-core").exists()


def test_no_python_is_one_line_and_exit_code_2(checkout, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "env", "dirname", "basename", "cat", "sha256sum"):
        (tools / name).symlink_to(shutil.which(name))
    done = call(checkout / "launch/demo", cwd=tmp_path, PATH=str(tools))
    assert done.returncode == 2
    assert done.stderr == (
        "launch/demo: no Python 3.11 or newer found; install one, or activate an environment that has it\n"
    )
    assert not (checkout / ".venv").exists()


def test_an_active_environment_that_is_gone_is_one_line_and_exit_code_2(checkout, tmp_path):
    done = call(checkout / "launch/demo", cwd=tmp_path, VIRTUAL_ENV=str(tmp_path / "gone"))
    assert done.returncode == 2
    assert "has no pip; deactivate it" in done.stderr
    assert done.stderr.count("\n") == 1


def dry(checkout, tmp_path, venv, script, *arguments, **environment):
    """The commands that a dry run prints; it runs and leaves nothing."""
    environment |= {"VIRTUAL_ENV": str(venv), "LOG": str(tmp_path / "log"), "DRY_RUN": "1"}
    done = call(checkout / "launch" / script, *arguments, cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert asked(tmp_path) == []
    assert not list(venv.glob("dermjax-*"))
    return done.stdout.replace("\\", "").splitlines()


def test_dry_runs_of_demo_and_test(checkout, tmp_path, venv):
    assert [line.split()[2] for line in dry(checkout, tmp_path, venv, "demo")] == ["pip", "dermjax"]
    assert [line.split()[2] for line in dry(checkout, tmp_path, venv, "test")] == ["pip", "pytest", "ruff", "ruff"]


def test_a_dry_run_of_gpu(checkout, tmp_path, venv):
    install, stage = dry(checkout, tmp_path, venv, "gpu", "tune", "--workdir=run")
    assert install.rstrip().endswith(f"{checkout}[cuda]")
    assert stage.rstrip().endswith("-m dermjax tune --workdir=run")


def test_a_dry_run_of_slurm(checkout, tmp_path, venv):
    (command,) = dry(checkout, tmp_path, venv, "slurm", "tune", "--workdir=run", SLURM_SUBMIT_DIR=str(checkout))[-1:]
    assert command.rstrip().endswith(f"{venv}/bin/python tune --workdir=run")


def test_slurm_gives_a_process_all_gpus_of_its_node(checkout, tmp_path, venv):
    (tmp_path / "tools").mkdir()
    srun = tmp_path / "tools" / "srun"
    srun.write_text('#!/bin/sh\nshift 2\nexec "$@"\n')  # one task, here
    srun.chmod(0o755)
    (venv / "bin" / "python").write_text('#!/bin/sh\necho "$JAX_LOCAL_DEVICE_IDS $*"\n')
    environment = {"VIRTUAL_ENV": str(venv), "PATH": f"{srun.parent}:{os.environ['PATH']}", "SLURM_GPUS_ON_NODE": "4"}
    done = call(checkout / "launch/slurm", "tune", "--config.name=a b", cwd=checkout, **environment)
    assert done.stdout == "0,1,2,3 -m dermjax tune --config.name=a b\n"


def test_slurm_away_from_the_root_is_refused(checkout, tmp_path):
    done = call(checkout / "launch/slurm", "tune", cwd=tmp_path, SLURM_SUBMIT_DIR=str(tmp_path))
    assert done.returncode == 2
    assert "call sbatch there" in done.stderr


def test_a_dry_run_of_tpu_pod(checkout, tmp_path, venv):
    where = ("--name=pod", "--zone=somewhere")
    archive, copy, go = dry(checkout, tmp_path, venv, "tpu_pod", *where, "tune", "--config.name=a b")
    assert archive.startswith("git ")
    assert "tpu-vm scp " in copy
    assert "tpu-vm ssh pod --worker=all --zone=somewhere" in go
    assert "ready tpu && DERMJAX_DISTRIBUTED=1" in go
    assert go.rstrip().endswith("-m dermjax tune --config.name=a b")


@pytest.mark.parametrize("arguments", [(), ("--name=pod", "tune"), ("--name=pod", "--zone=z"), ("--nmae=pod", "tune")])
def test_tpu_pod_says_what_is_missing(checkout, tmp_path, arguments):
    done = call(checkout / "launch/tpu_pod", *arguments, cwd=tmp_path, DRY_RUN="1")
    assert done.returncode == 2
    assert done.stderr.startswith("launch/tpu_pod: ")
    assert done.stderr.count("\n") == 1
