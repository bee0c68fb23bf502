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


@pytest.fixture(scope="module")
def plain(tune, tmp_path_factory):
    """The losses on one device."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    finish([tune(folder, **EVERY_STEP)])
    return losses(folder)


DIVISIONS = {  # devices of each process, processes, and changes of the config
    "eight devices": (8, 1, {}),
    "four parts of two": (1, 1, {"accumulate": 4}),
    "four parts on two devices": (2, 1, {"accumulate": 4}),
    "four shards": (4, 1, {"mesh.fsdp": 4}),
    "two processes": (1, 2, {}),
    "two processes of two devices, two shards": (2, 2, {"mesh.fsdp": 2}),
}


@pytest.mark.parametrize("division", DIVISIONS)
def test_a_divided_run_has_the_same_losses(tune, tmp_path, plain, division, capsys):
    devices, processes, changes = DIVISIONS[division]
    here = {"JAX_NUM_CPU_DEVICES": str(devices)}
    if processes > 1:
        here |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": str(processes)}
    own = [here | ({"JAX_PROCESS_ID": str(index)} if processes > 1 else {}) for index in range(processes)]
    finish([tune(tmp_path / "run", environment=each, **EVERY_STEP, **changes) for each in own])
    found = worst(plain, losses(tmp_path / "run"))
    with capsys.disabled():
        print(f"\n{division}: losses differ by {found:.1g} of themselves at most")
    assert found <= TOLERANCE


def test_a_checkpoint_of_eight_devices_goes_on_on_one_and_on_shards(tune, tmp_path, plain):
    run, eight = tmp_path / "run", {"JAX_NUM_CPU_DEVICES": "8"}
    finish([tune(run, environment=eight, **EVERY_STEP, steps=2)])
    finish([tune(run, "--allow_config_change", **EVERY_STEP, steps=4)])
    changes = EVERY_STEP | {"steps": 6, "mesh.fsdp": 4}
    finish([tune(run, "--allow_config_change", environment=eight, **changes)])
    resumed = {key: value for key, value in losses(run).items() if key in plain}
    assert resumed.keys() == plain.keys()
    assert max(abs(resumed[key] - plain[key]) / plain[key] for key in plain if "loss" in key[1]) <= TOLERANCE
