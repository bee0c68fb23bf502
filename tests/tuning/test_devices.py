"""The same seed gives the same losses however a run is divided: over devices, over processes, in parts, in shards."""

import socket

import pytest

from dermjax.training import writers

# the losses of six steps and of the held-out images before, between and after them
EVERY_STEP = {"log_every": 1, "watch_every": 3, "samples.images": 0, "schedule": "constant"}
TOLERANCE = 1e-5

pytestmark = pytest.mark.slow


def finish(processes):
    for process in processes:
        _, said = process.communicate()
        assert process.returncode == 0, said


def losses(workdir):
    """{(step, name): value} of a run, all that it logged."""
    records = writers.read(workdir / "metrics.jsonl")
    return {(record["step"], name): record[name] for record in records for name in record if name != "step"}


def worst(one, other) -> float:
    assert one.keys() == other.keys() and len(one) > 12
    return max(abs(one[key] - other[key]) / abs(one[key]) for key in one if "loss" in key[1])


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@pytest.fixture
def plain(tune, tmp_path):
    """The losses on one device."""
    finish([tune(tmp_path / "plain", **EVERY_STEP)])
    return losses(tmp_path / "plain")


def test_devices_processes_parts_and_shards(tune, tmp_path, plain, capsys):
    found = {}
    for name, devices, changes in (
        ("eight devices", 8, {}),
        ("four parts of two", 1, {"accumulate": 4}),
        ("four parts on two devices", 2, {"accumulate": 4}),
        ("four shards", 4, {"mesh.fsdp": 4}),
    ):
        finish([tune(tmp_path / name, environment={"JAX_NUM_CPU_DEVICES": str(devices)}, **EVERY_STEP, **changes)])
        found[name] = worst(plain, losses(tmp_path / name))
    together = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    finish([tune(tmp_path / "processes", environment=together | {"JAX_PROCESS_ID": str(i)}, **EVERY_STEP)
            for i in range(2)])  # fmt: skip
    found["two processes"] = worst(plain, losses(tmp_path / "processes"))
    with capsys.disabled():
        print("\nlargest relative difference of a loss:", ", ".join(f"{name} {found[name]:.1g}" for name in found))
    assert max(found.values()) <= TOLERANCE


def test_a_checkpoint_of_eight_devices_goes_on_on_one_and_on_shards(tune, tmp_path, plain):
    run, eight = tmp_path / "run", {"JAX_NUM_CPU_DEVICES": "8"}
    finish([tune(run, environment=eight, **EVERY_STEP, steps=2)])
    finish([tune(run, "--allow_config_change", **EVERY_STEP, steps=4)])
    changes = EVERY_STEP | {"steps": 6, "mesh.fsdp": 4}
    finish([tune(run, "--allow_config_change", environment=eight, **changes)])
    resumed = {key: value for key, value in losses(run).items() if key in plain}
    assert resumed.keys() == plain.keys()
    assert max(abs(resumed[key] - plain[key]) / plain[key] for key in plain if "loss" in key[1]) <= TOLERANCE
