"""derm-tiny's images are the same files made by one process and by two; two devices of one process round otherwise."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dermjax.data import images, records

GENERATE = Path(__file__).parents[2] / "configs" / "generate.py"


def start(workdir, **environment):
    """Starts `generate` with the plan `tiny` in four steps: two batches of eight images."""
    flags = (f"--config={GENERATE}:tiny", f"--workdir={workdir}", "--config.plan.steps=4")
    return subprocess.Popen(
        [sys.executable, "-m", "dermjax", "generate", *flags],
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_one_device_two_devices_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        joined = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free.getsockname()[1]}", "JAX_NUM_PROCESSES": "2"}
    for devices, worked in (("1", "the device was at work"), ("2", "the 2 devices were at work")):
        process = start(tmp_path / devices, JAX_NUM_CPU_DEVICES=devices)
        said = process.communicate()[0]
        assert process.returncode == 0 and worked in said, said
    both = [start(tmp_path / "both", JAX_NUM_CPU_DEVICES="1", JAX_PROCESS_ID=str(each), **joined) for each in range(2)]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0] and all("8/8 images" in each for each in said), said
    alone, devices, processes = (records.read(tmp_path / name) for name in ("1", "2", "both"))
    assert len(alone.records) == 16
    assert processes.records == alone.records
    ones, others = (
        np.stack([images.decode(made.path(r)) for r in made.records]).astype(int) for made in (alone, devices)
    )
    off = np.abs(ones - others)  # measured: 10 of 786,432 values
    assert off.max() <= 1 and off.mean() < 1e-4
