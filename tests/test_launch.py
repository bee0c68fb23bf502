"""The launch scripts, with a Python that only writes down what it is asked, so that nothing is installed."""

import json
import os
import re
import resource
import shutil
import socket
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = (
    "launch/demo",
    "launch/test",
    "launch/gpu",
    "launch/slurm",
    "launch/tpu_pod",
    "launch/studio",
    "launch/install.sh",
    ".ci/run",
)
# a Python of the version in the file `version` beside it: answers the checks of install.sh and logs everything else; it
# makes no environments where a file `bare` is beside it, and its pip fails while the file `broken` exists
PYTHON = """#!/bin/sh
home=$(dirname "$0")
version=$(cat "$home/version")
case "$*" in
    "-m pip --version") exit 0 ;;
    "-c import ensurepip"*) for asked; do :; done; test "$asked" = "$version" -a ! -e "$home/bare"; exit ;;
    "-c "*) echo "$version"; exit 0 ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$home/version" "$3/bin" ;;
esac
echo "$*" >> "$LOG"
case "$*" in
    "-m pip install"*) test ! -e "$LOG.broken" ;;
esac
"""
SHIM = """#!/bin/sh
echo "pyenv: the command exists in other versions" >&2
exit 127
"""


@pytest.fixture
def checkout(tmp_path):
    """A copy of what the scripts read, in a folder with a space in its name, with no .venv."""
    root = tmp_path / "a checkout"
    for name in ("launch", ".ci"):
        shutil.copytree(ROOT / name, root / name)
    shutil.copy(ROOT / "pyproject.toml", root)
    return root


def make_python(folder: Path, name: str, version: str) -> Path:
    """Puts the Python above there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "version").write_text(version)
    (folder / name).write_text(PYTHON)
    (folder / name).chmod(0o755)
    return folder / name


@pytest.fixture
def venv(tmp_path):
    """An active environment whose Python is the one above."""
    return make_python(tmp_path / "venv" / "bin", "python", "3.11").parents[1]


@pytest.fixture
def tools(tmp_path):
    """A folder with what the scripts call besides Python, to be all of PATH."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("bash", "sh", "env", "dirname", "basename", "cat", "cp", "mkdir", "sha256sum", "awk"):
        (folder / name).symlink_to(shutil.which(name))
    return folder


def call(script, *arguments, cwd, **environment):
    clean = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "DRY_RUN", "PYENV_ROOT")}
    return subprocess.run(
        [script, *arguments], cwd=cwd, env=clean | environment, capture_output=True, text=True, check=False, timeout=60
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
    assert demo == f"-m dermjax demo --workdir={checkout}/runs/demo_photographs --images=my photos --limit=5"

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
    done = call(checkout / "launch/test", "--slow", "tests/data", cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert asked(tmp_path)[0].endswith(f"--editable {checkout}[dev,parity]")
    tests, *style = asked(tmp_path)[1:]
    assert tests.startswith("-m pytest --numprocesses=auto ") and tests.endswith(" --slow tests/data")
    assert style == ["-m ruff check", "-m ruff format --check"]


def test_studio_installs_the_page_and_serves_a_folder(checkout, venv, tmp_path):
    environment = {"VIRTUAL_ENV": str(venv), "LOG": str(tmp_path / "log")}
    done = call(checkout / "launch/studio", "my runs", "--port=7999", cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert asked(tmp_path)[0].endswith(f"--editable {checkout}[web]")
    assert asked(tmp_path)[1:] == ["-m dermjax serve my runs --port=7999"]
    assert (tmp_path / "my runs").is_dir()


@pytest.mark.parametrize("listens", [True, False])
def test_studio_opens_the_browser_of_a_mac_and_waits_no_longer_than_it_lives(checkout, venv, tmp_path, listens):
    """A loop that outlived the script would hold its output open, and this call would wait for it."""
    stub = (venv / "bin/python").read_text().replace("esac\n", 'esac\ntest "$3" != serve || sleep 1\n', 1)
    (venv / "bin/python").write_text(stub)
    with socket.create_server(("127.0.0.1", 0)) as studio:
        port = studio.getsockname()[1]
        if not listens:
            studio.close()
        environment = {"VIRTUAL_ENV": str(venv), "LOG": str(tmp_path / "log"), "OSTYPE": "darwin24"}
        environment |= {"DISPLAY": "", "WAYLAND_DISPLAY": "", "SSH_CONNECTION": ""}
        done = call(checkout / "launch/studio", "runs", "--port", str(port), cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    opened = [line for line in asked(tmp_path) if "webbrowser" in line]
    assert opened == [f"-m webbrowser http://127.0.0.1:{port}/"] * listens
    assert f"-m dermjax serve runs --port={port}" in asked(tmp_path)


def test_a_flag_of_studio_without_its_value_is_one_line_and_exit_code_2(checkout, tmp_path):
    done = call(checkout / "launch/studio", "--port", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "launch/studio: --port has no value\n")


def test_the_core_is_not_installed_again_for_the_demo_after_the_tests(checkout, venv, tmp_path):
    environment = {"VIRTUAL_ENV": str(venv), "LOG": str(tmp_path / "log")}
    call(checkout / "launch/test", cwd=tmp_path, **environment)
    call(checkout / "launch/demo", cwd=tmp_path, **environment)
    assert sum("pip install" in line for line in asked(tmp_path)) == 1


@pytest.mark.parametrize(
    ("versions", "taken"),
    [(("3.11", "3.12", "3.13"), "3.13"), (("3.11", "3.12"), "3.12"), (("3.10", "3.11", "3.14"), "3.11")],
)
def test_it_makes_an_environment_with_the_newest_tested_python(checkout, tmp_path, tools, versions, taken):
    pythons = [make_python(tmp_path / version, f"python{version}", version) for version in versions]
    path = ":".join(str(folder) for folder in (*(python.parent for python in pythons), tools))
    done = call(checkout / "launch/demo", cwd=tmp_path, PATH=path, HOME=str(tmp_path), LOG=str(tmp_path / "log"))
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in asked(tmp_path)] == ["venv", "pip", "dermjax"]
    assert (checkout / ".venv" / "dermjax-core").exists()
    assert (checkout / ".venv/bin/version").read_text() == taken


def test_it_passes_by_pythons_that_make_no_environments(checkout, tmp_path, tools):
    """A shim of pyenv for a version that is not switched on, and Debian's Python without its package of venv."""
    shims = make_python(tmp_path / "shims", "python3", "3.12").parent
    (shims / "bare").touch()
    (shims / "python3.13").write_text(SHIM)
    (shims / "python3.13").chmod(0o755)
    make_python(tmp_path / "other", "python3.11", "3.11")
    path = f"{shims}:{tmp_path / 'other'}:{tools}"
    environment = {"PATH": path, "HOME": str(tmp_path), "LOG": str(tmp_path / "log")}
    assert call(checkout / "launch/demo", cwd=tmp_path, **environment).stderr == ""
    assert (checkout / ".venv/bin/version").read_text() == "3.11"


@pytest.mark.parametrize("variable", ["HOME", "PYENV_ROOT"])
def test_it_finds_pyenv_s_pythons(checkout, tmp_path, tools, variable):
    root = tmp_path / "with a space" / (".pyenv" if variable == "HOME" else "")
    make_python(root / "versions/3.12.1/bin", "python", "3.12")
    make_python(root / "versions/3.10.13/bin", "python", "3.10")
    make_python(tmp_path / "other", "python3.11", "3.11")
    environment = {"PATH": f"{tmp_path / 'other'}:{tools}", "HOME": str(tmp_path), "LOG": str(tmp_path / "log")}
    environment |= {variable: str(tmp_path / "with a space")}
    done = call(checkout / "launch/demo", cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert (checkout / ".venv/bin/version").read_text() == "3.12"


@pytest.mark.parametrize("arguments", [("--python=3.12", "--slow"), ("--slow", "--python=3.12")])
def test_test_runs_the_asked_python_in_an_environment_of_its_own(checkout, tmp_path, tools, venv, arguments):
    for version in ("3.11", "3.12", "3.13"):
        make_python(tmp_path / version, f"python{version}", version)
    path = f"{tmp_path / '3.11'}:{tmp_path / '3.12'}:{tmp_path / '3.13'}:{tools}"
    environment = {"PATH": path, "HOME": str(tmp_path), "LOG": str(tmp_path / "log"), "VIRTUAL_ENV": str(venv)}
    done = call(checkout / "launch/test", *arguments, cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert (checkout / ".venv-3.12/bin/version").read_text() == "3.12"
    assert (checkout / ".venv-3.12/dermjax-parity").exists()
    assert not (checkout / ".venv").exists() and not list(venv.glob("dermjax-*"))
    assert asked(tmp_path)[2].endswith("--dist=loadfile --slow")

    done = call(checkout / ".ci/run", "tests/data", cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert (checkout / ".venv-3.11/bin/version").read_text() == "3.11"
    assert "tests/data" in asked(tmp_path)[-3]


@pytest.mark.parametrize("version", ["3.10", "3.14", "3", "3.13 3.12", ""])
def test_a_python_that_is_not_tested_is_one_line_and_exit_code_2(checkout, tmp_path, version):
    done = call(checkout / "launch/test", f"--python={version}", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"launch/test: there is no line for Python {version}; there are 3.13 3.12 3.11\n"


def test_no_python_is_one_line_and_exit_code_2(checkout, tmp_path, tools):
    done = call(checkout / "launch/demo", cwd=tmp_path, PATH=str(tools), HOME=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == (
        "launch/demo: no Python 3.13, 3.12, 3.11 with venv and pip found; install one, or activate an environment\n"
    )
    assert not (checkout / ".venv").exists()


def test_an_active_environment_of_a_newer_python_is_used_with_a_line(checkout, tmp_path, venv):
    (venv / "bin/version").write_text("3.14")
    done = call(checkout / "launch/demo", cwd=tmp_path, VIRTUAL_ENV=str(venv), LOG=str(tmp_path / "log"))
    assert done.returncode == 0
    assert done.stderr == "launch/demo: Python 3.14 is newer than the tested 3.13 3.12 3.11\n"
    assert [line.split()[1] for line in asked(tmp_path)] == ["pip", "dermjax"]


@pytest.mark.parametrize("version", ["3.10", "3.9", "2.7"])
def test_an_active_environment_of_an_older_python_is_refused(checkout, tmp_path, venv, version):
    (venv / "bin/version").write_text(version)
    done = call(checkout / "launch/demo", cwd=tmp_path, VIRTUAL_ENV=str(venv), LOG=str(tmp_path / "log"))
    assert done.returncode == 2
    assert done.stderr.endswith(f"is {version}, older than 3.11; use another environment\n")
    assert asked(tmp_path) == []


def test_the_pins_are_for_each_tested_python():
    """Each package has one pin for a Python, and JAX's are those of its two lines."""
    requirements = pytest.importorskip("packaging.requirements")
    lines = [line for line in (ROOT / "launch/constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = [requirements.Requirement(line) for line in lines]
    for version, jax in (("3.11", "==0.10."), ("3.12", "==0.12."), ("3.13", "==0.12.")):
        taken = [pin for pin in pins if pin.marker is None or pin.marker.evaluate({"python_version": version})]
        assert len({pin.name for pin in taken}) == len(taken) == len({pin.name for pin in pins})
        assert all(str(pin.specifier).startswith(jax) for pin in taken if pin.name in ("jax", "jaxlib"))


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


@pytest.mark.parametrize(
    ("gpus", "extra"),
    [
        ("580.65.06, 9.0", "cuda13"),
        ("595.10, 12.0\n595.10, 7.5", "cuda13"),
        ("570.124.06, 9.0", "cuda12"),
        ("580.65.06, 9.0\n580.65.06, 7.0", "cuda12"),  # a Volta, which CUDA 13 has left out
        ("580.65.06, [N/A]", "cuda12"),
        ("", "cuda12"),
        (None, "cuda12"),
    ],
)
def test_a_dry_run_of_gpu(checkout, tmp_path, venv, tools, gpus, extra):
    """nvidia-smi prints a line a GPU; nothing, with exit code 9, where it has no driver; it may not be there."""
    if gpus is not None:
        smi = tools / "nvidia-smi"
        smi.write_text(f"#!/bin/sh\necho '{gpus}'\n" if gpus else "#!/bin/sh\nexit 9\n")
        smi.chmod(0o755)
    install, stage = dry(checkout, tmp_path, venv, "gpu", "tune", "--workdir=run", PATH=str(tools))
    assert install.rstrip().endswith(f"{checkout}[{extra}]")
    assert stage.rstrip().endswith("-m dermjax tune --workdir=run")


def test_an_environment_keeps_the_cuda_that_it_has(checkout, tmp_path, venv, tools):
    """Installed on a login node without a driver, then called where there is one: two plugins would be in the way."""
    environment = {"VIRTUAL_ENV": str(venv), "LOG": str(tmp_path / "log"), "PATH": str(tools)}
    assert call(checkout / "launch/gpu", cwd=tmp_path, **environment).returncode == 0
    (tools / "nvidia-smi").write_text("#!/bin/sh\necho 580.65.06, 9.0\n")
    (tools / "nvidia-smi").chmod(0o755)
    (checkout / "launch/constraints.txt").write_text("# changed\n")
    assert call(checkout / "launch/gpu", cwd=tmp_path, **environment).returncode == 0
    assert [line.endswith("[cuda12]") for line in asked(tmp_path) if " install " in line] == [True, True]


@pytest.mark.parametrize("extra", ["cuda12", "cuda13", "tpu"])
def test_the_extras_of_machines_are_jax_s(extra):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"][extra] == [f"jax[{extra}]"]


def test_a_dry_run_of_slurm(checkout, tmp_path, venv):
    (command,) = dry(checkout, tmp_path, venv, "slurm", "tune", "--workdir=run", SLURM_SUBMIT_DIR=str(checkout))[-1:]
    assert command.rstrip().endswith(f"{venv}/bin/python tune --workdir=run")


def test_slurm_gives_a_process_the_processors_of_its_task(checkout, tmp_path, venv):
    environment = {"SLURM_SUBMIT_DIR": str(checkout), "SLURM_CPUS_PER_TASK": "8"}
    (command,) = [line for line in dry(checkout, tmp_path, venv, "slurm", "tune", **environment) if "srun" in line]
    assert command.startswith("srun --cpus-per-task=8 ")


def test_slurm_gives_a_process_all_gpus_of_its_node(checkout, tmp_path, venv):
    (tmp_path / "tools").mkdir()
    srun = tmp_path / "tools" / "srun"
    srun.write_text('#!/bin/sh\nshift 2\nexec "$@"\n')  # one task, here; the flags are two
    srun.chmod(0o755)
    (venv / "bin" / "python").write_text('#!/bin/sh\necho "$JAX_LOCAL_DEVICE_IDS $*"\n')
    environment = {"VIRTUAL_ENV": str(venv), "PATH": f"{srun.parent}:{os.environ['PATH']}", "SLURM_GPUS_ON_NODE": "4"}
    done = call(checkout / "launch/slurm", "tune", "--config.name=a b", cwd=checkout, **environment)
    assert done.stdout == "0,1,2,3 -m dermjax tune --config.name=a b\n"


ARRAY = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MIN": "0"}


def test_a_task_of_a_slurm_array_makes_its_part(checkout, tmp_path, venv):
    environment = {"SLURM_SUBMIT_DIR": str(checkout), "SLURM_ARRAY_TASK_MAX": "63", "SLURM_ARRAY_TASK_COUNT": "64"}
    (command,) = dry(checkout, tmp_path, venv, "slurm", "generate", "--workdir=run", **ARRAY, **environment)[-1:]
    assert command.rstrip().endswith("generate --workdir=run --config.part=3/64")
    given = ("generate", "--config.part=5/9")
    (command,) = dry(checkout, tmp_path, venv, "slurm", *given, **ARRAY, **environment)[-1:]
    assert command.rstrip().endswith("generate --config.part=5/9")


def test_a_slurm_array_of_some_parts_is_refused(checkout, tmp_path, venv):
    environment = {"SLURM_SUBMIT_DIR": str(checkout), "SLURM_ARRAY_TASK_MAX": "3", "SLURM_ARRAY_TASK_COUNT": "1"}
    environment |= ARRAY | {"SLURM_ARRAY_TASK_MIN": "3", "VIRTUAL_ENV": str(venv)}
    done = call(checkout / "launch/slurm", "generate", cwd=tmp_path, DRY_RUN="1", **environment)
    assert done.returncode == 2
    assert done.stderr == ("launch/slurm: the array is 3-3 with 1 tasks; give 0-N without gaps, or --config.part=i/n\n")


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [(0, 0, False), (2, 0, False), (143, 0, False), (75, 0, True), (137, 2, True), (137, 3, False), (1, 0, True)],
)
def test_slurm_requeues_what_nobody_must_mend_three_times(checkout, tmp_path, venv, code, restarts, requeued):
    (tmp_path / "tools").mkdir()
    for name, script in (("srun", f"exit {code}"), ("scontrol", 'echo "scontrol $*"')):
        (tmp_path / "tools" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "tools" / name).chmod(0o755)
    environment = {"VIRTUAL_ENV": str(venv), "PATH": f"{tmp_path / 'tools'}:{os.environ['PATH']}", "SLURM_JOB_ID": "9"}
    environment |= {"SLURM_SUBMIT_DIR": str(checkout), "SLURM_RESTART_COUNT": str(restarts)}
    done = call(checkout / "launch/slurm", "tune", cwd=checkout, **environment)
    assert (done.returncode, done.stdout) == (code, "scontrol requeue 9\n" if requeued else "")


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
    assert "ready tpu; DERMJAX_DISTRIBUTED=1" in go
    assert go.rstrip().endswith("-m dermjax tune --config.name=a b")


def test_a_worker_of_a_tpu_pod_whose_install_fails_runs_nothing_and_installs_again(checkout, tmp_path, venv):
    """With a git and a gcloud that do on this machine what they would do with the worker."""
    (tmp_path / "worker").mkdir()
    (tmp_path / "tools").mkdir()
    tar = f'tar -czf "${{each#*=}}" -C "{checkout}" launch pyproject.toml'
    git = f"for each; do case $each in --output=*) {tar} ;; esac; done"
    gcloud = """cd "$WORKER"
case "$*" in *" scp "*) cp "$5" dermjax.tar.gz; exit ;; esac
for each; do case $each in --command=*) bash -c "${each#*=}"; exit ;; esac; done"""
    for name, script in (("git", git), ("gcloud", gcloud)):
        (tmp_path / "tools" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "tools" / name).chmod(0o755)
    environment = {"VIRTUAL_ENV": str(venv), "LOG": str(tmp_path / "log"), "WORKER": str(tmp_path / "worker")}
    environment["PATH"] = f"{tmp_path / 'tools'}:{os.environ['PATH']}"
    broken = tmp_path / "log.broken"
    broken.touch()
    command = (checkout / "launch/tpu_pod", "--name=pod", "--zone=z", "tune", "--config.name=a b")
    assert call(*command, cwd=tmp_path, **environment).returncode != 0
    assert len(asked(tmp_path)) == 1 and not list(venv.glob("dermjax-*"))
    broken.unlink()
    done = call(*command, cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert asked(tmp_path)[1].endswith("/worker/dermjax[tpu]")
    assert asked(tmp_path)[2:] == ["-m dermjax tune --config.name=a b"]


@pytest.mark.parametrize("extras", ["", "web"])
def test_an_install_that_fails_leaves_no_stamp_where_set_e_is_ignored(checkout, tmp_path, venv, extras):
    (tmp_path / "log.broken").touch()
    script = f"set -e; source launch/install.sh; ready {extras} && echo ready || echo failed"
    done = call("bash", "-c", script, cwd=checkout, VIRTUAL_ENV=str(venv), LOG=str(tmp_path / "log"))
    assert done.stdout == "failed\n" and not list(venv.glob("dermjax-*"))


@pytest.mark.parametrize("arguments", [(), ("--name=pod", "tune"), ("--name=pod", "--zone=z"), ("--nmae=pod", "tune")])
def test_tpu_pod_says_what_is_missing(checkout, tmp_path, arguments):
    done = call(checkout / "launch/tpu_pod", *arguments, cwd=tmp_path, DRY_RUN="1")
    assert done.returncode == 2
    assert done.stderr.startswith("launch/tpu_pod: ")
    assert done.stderr.count("\n") == 1


def test_tpu_pod_says_what_it_does_not_serve(checkout, tmp_path):
    """Who has a TPU7x has no VM to name, and gke takes the name that is said."""
    done = call(checkout / "launch/tpu_pod", "tune", cwd=tmp_path, DRY_RUN="1")
    assert "TPU7x has none, see launch/gke --tpu=tpu7x" in done.stderr
    done = gke(*IMAGE, "--hosts=4", "--tpu=tpu7x", "--topology=2x2x4", *TUNE)
    assert json.loads(done.stdout)["spec"]["replicatedJobs"]


IMAGE = ("--image=registry/dermjax:1", "--claim=shared")
TUNE = ("tune", "--config=configs/tune.py:lora", "--config.manifest=/shared/prepare", "--workdir=/shared/tune")
GENERATE = (
    "generate",
    "--config=configs/generate.py",
    "--config.model=/shared/tune/model",
    "--workdir=/shared/generate",
)
SLICE = ("--hosts=4", "--tpu=tpu-v5-lite-podslice", "--topology=4x4", "--queue=research")
MANIFESTS = {
    "jobset_tpu.json": (*IMAGE, *SLICE, *TUNE),
    "jobset_gpu.json": (*IMAGE, "--hosts=2", "--gpus=8", "--cpus=64", "--memory=512Gi", "--name=mine", *TUNE),
    "job.json": (*IMAGE, "--parts=64", "--at_once=16", "--gpus=1", "--queue=research", *GENERATE),
}


def gke(*arguments):
    return call(ROOT / "launch/gke", *arguments, cwd=ROOT, DRY_RUN="1")


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_dry_run_of_gke(name):
    """To the letter; DERMJAX_GOLDEN=1 writes the files anew, to be read before they are committed."""
    golden = ROOT / "tests/launch" / name
    done = gke(*MANIFESTS[name])
    assert done.returncode == 0, done.stderr
    if os.environ.get("DERMJAX_GOLDEN") == "1":
        golden.write_text(done.stdout)
    assert done.stdout == golden.read_text()


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_manifests_are_what_kubernetes_and_jobset_publish(name):
    """The models are made from their OpenAPI schemas: what they do not know, or of another type, does not come back."""
    models = pytest.importorskip("kubeflow_trainer_api.models")
    published = models.IoK8sApiBatchV1Job if name == "job.json" else models.JobsetV1alpha2JobSet
    manifest = json.loads((ROOT / "tests/launch" / name).read_text())
    assert published.from_dict(manifest).to_dict() == manifest
    misspelt = manifest | {"spec": manifest["spec"] | {"suspended": True}}
    assert published.from_dict(misspelt).to_dict() != misspelt


def test_what_kubernetes_would_take_for_a_variable_stays_as_it_is():
    manifest = json.loads(gke(*IMAGE, "--hosts=1", "tune", '--config.name=$(PART) "a" \\').stdout)
    (hosts,) = manifest["spec"]["replicatedJobs"]
    (container,) = hosts["template"]["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["tune", '--config.name=$$(PART) "a" \\']


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--hosts=2", "tune"), "the following arguments are required: --image, --claim"),
        ((*IMAGE, "tune"), "one of the arguments --hosts --parts is required"),
        ((*IMAGE, "--hosts=2", "--parts=3", "tune"), "argument --parts: not allowed with argument --hosts"),
        ((*IMAGE, "--hosts=0", "tune"), "argument --hosts: 0 is not a whole number from 1 on"),
        ((*IMAGE, "--hosts=2"), "the following arguments are required: stage"),
        ((*IMAGE, "--hosts=2", "--nodes=3", "tune"), "unrecognized arguments: --nodes=3"),
        ((*IMAGE, "--hosts=2", "--tpu=tpu7x", "tune"), "--tpu and --topology go together, and without --gpus"),
        ((*IMAGE, "--hosts=2", "--at_once=1", "tune"), "--at_once is of --parts"),
        ((*IMAGE, "--parts=4", "tune"), "--parts: tune has none, generate, transform, curate have; give --hosts"),
        ((*IMAGE, "--hosts=2", "--name=My", "tune"), "--name=My: give a-z, 0-9 and -, 40 characters at most"),
    ],
)
def test_gke_says_what_is_missing(arguments, message):
    done = gke(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"launch/gke: {message}") and done.stderr.count("\n") == 1


def test_gke_gives_the_manifest_to_kubectl(tmp_path):
    kubectl = tmp_path / "kubectl"
    kubectl.write_text('#!/bin/sh\necho "$*"\ncat\n')
    kubectl.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = call(ROOT / "launch/gke", *MANIFESTS["job.json"], cwd=ROOT, PATH=path)
    assert done.stdout == "apply -f -\n" + (ROOT / "tests/launch/job.json").read_text().rstrip("\n")


NODES = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
JOINED = "10.0.0.1:8476 2 1"


@pytest.mark.parametrize(
    ("environment", "joined", "part"),
    [
        (NODES | {"PARTS": ""}, JOINED, []),
        (NODES | {"PARTS": "1"}, "", ["--config.part=1/2"]),
        (NODES | {"PARTS": "", "SKYPILOT_NUM_NODES": "1", "SKYPILOT_NODE_RANK": "0"}, "", []),
    ],
)
def test_what_skypilot_runs_on_a_node(tmp_path, environment, joined, part):
    """The task's own shell, with the variables that SkyPilot sets, in a checkout whose launch/gpu says what it got."""
    yaml = pytest.importorskip("yaml")
    task = yaml.safe_load((ROOT / "launch/sky.yaml").read_text())
    assert set(task["envs"]) == {"BUCKET", "COMMAND", "PARTS"} and task["envs"]["PARTS"] == ""
    (tmp_path / "launch").mkdir()
    gpu = tmp_path / "launch/gpu"
    gpu.write_text('#!/bin/sh\necho $JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID\nprintf "%s\\n" "$@"\n')
    gpu.chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment = clean | environment | {"COMMAND": "tune --config.prompts.mole='one mole' --workdir=/shared/run"}
    done = subprocess.run(
        ["bash", "-c", task["run"]], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [
        joined, "tune", "--config.prompts.mole=one mole", "--workdir=/shared/run", *part
    ]  # fmt: skip


def test_sky_yaml_has_the_fields_of_a_task():
    """Those that are used, of SkyPilot's schema of a task, which needs all of SkyPilot."""
    yaml = pytest.importorskip("yaml")
    task = yaml.safe_load((ROOT / "launch/sky.yaml").read_text())
    assert set(task) <= {"name", "num_nodes", "workdir", "resources", "envs", "file_mounts", "volumes", "setup", "run"}
    assert set(task["resources"]) <= {"accelerators", "use_spot", "job_recovery"}
    assert task["resources"]["job_recovery"] == {"max_restarts_on_errors": 0, "recover_on_exit_codes": [75]}
    assert re.fullmatch(r"[A-Z0-9]+:\d+", task["resources"]["accelerators"])
    for script in (task["setup"], task["run"]):
        subprocess.run(["bash", "-n", "-c", script], check=True)
