"""The machine before JAX is there: devices of a processor, memory that is kept, processes that belong together."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from dermjax import machine
from dermjax.errors import UserError


@pytest.mark.parametrize(
    ("environment", "arguments"),
    [
        ({}, None),
        ({"SLURM_STEP_NUM_TASKS": "1", "TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"SLURM_NTASKS": "4"}, None),  # a shell in an allocation is no step of it
        ({"SLURM_STEP_NUM_TASKS": "2"}, {}),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, {}),
        ({"DERMJAX_DISTRIBUTED": "1"}, {}),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
            {
                "coordinator_address": "a:1",
                "num_processes": 2,
                "process_id": 0,
                "cluster_detection_method": "deactivate",
            },
        ),
    ],
)
def test_distributed_where_the_environment_asks_for_it(environment, arguments):
    assert machine.distributed(environment) == arguments


def test_half_a_coordination_is_refused():
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES is set and JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID not"):
        machine.distributed({"JAX_NUM_PROCESSES": "2"})
    with pytest.raises(UserError, match="JAX_PROCESS_ID=first: not a whole number"):
        machine.distributed({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "first"})
    with pytest.raises(UserError, match="JAX_PROCESS_ID=2: give 0 to 1, as JAX_NUM_PROCESSES=2"):
        machine.distributed({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"})


def test_the_processor_is_a_power_of_two_of_devices():
    assert [machine.cpu_devices(cores) for cores in (1, 2, 3, 6, 16, 96)] == [1, 2, 2, 4, 8, 8]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="about Linux")
def test_cores_are_those_that_the_process_may_use():
    asked = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from dermjax import machine; print(machine.cores())"
    )
    said = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "1" and machine.cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("of_process", "files", "cores", "free"),
    [
        ("0::/\n", {"cpu.max": "100000 100000", "memory.max": "max", "memory.current": "9"}, 1, None),
        (
            "0::/\n",
            {"memory.max": "900", "memory.current": "800", "memory.stat": "anon 200\ninactive_file 500"},
            0,
            600,
        ),
        (
            "0::/job/step\n",
            {"job/memory.max": "900", "job/memory.current": "700", "job/step/memory.max": "max"},
            0,
            200,
        ),
        ("0::/job/step\n", {"job/cpu.max": "50000 100000", "job/step/cpu.max": "max 100000"}, 1, None),
        (
            "4:memory:/docker/1\n3:cpu,cpuacct:/docker/1\n0::/\n",
            {
                "cpu/cpu.cfs_quota_us": "90000",
                "cpu/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": "900",
                "memory/memory.usage_in_bytes": "800",
                "memory/memory.stat": "total_inactive_file 500",
            },
            1,
            600,
        ),
        ("3:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 0, None),
    ],
    ids=["container", "its files", "batch job", "share of a core", "version 1", "no limit"],
)
def test_cores_and_memory_are_those_of_a_container_or_a_batch_job(
    tmp_path, monkeypatch, of_process, files, cores, free
):
    """0 cores, or no memory, stand for those without a limit."""
    monkeypatch.setattr(machine, "OF_PROCESS", tmp_path / "none")
    every, whole = machine.cores(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setattr(machine, "OF_PROCESS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "GROUPS", tmp_path / "groups")
    (tmp_path / "cgroup").write_text(of_process)
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text + "\n")
    assert machine.cores() == (cores or every)
    assert machine.free_memory() == free if free else 900 < machine.free_memory() <= whole


def test_free_memory_is_some_of_what_the_machine_has():
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < machine.free_memory() <= whole


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's malloc")
def test_memory_that_was_freed_comes_back_without_page_faults():
    again = """
import resource
from dermjax import machine
machine.keep_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        large = [b"1" * 2**26 for _ in range(3)]
        del large
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    said = subprocess.run([sys.executable, "-c", again], capture_output=True, text=True, check=True).stdout
    assert int(said.split()[1]) < 1000  # of 983,040 without it


def test_a_program_traced_twice_is_compiled_once_and_nothing_stays(tmp_path):
    twice = """
import os
from dermjax import machine
machine.compile_once(os.environ)
import jax
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
found = []
jax.monitoring.register_event_listener(lambda name, **_: found.append(name.rpartition("/")[2]))
for _ in range(2):
    jax.jit(lambda x: x @ x + 1)(jax.numpy.ones((8, 8)))
print(os.environ["JAX_COMPILATION_CACHE_DIR"], found.count("cache_hits"))
"""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run([sys.executable, "-c", twice], env=environment, capture_output=True, text=True, check=True)
    folder, hits = done.stdout.split()
    assert int(hits) >= 1 and not Path(folder).exists()
    given = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    machine.compile_once(given)
    assert given == {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
