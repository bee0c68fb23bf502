"""The same run on one device and on many, in one process and in two."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from dermjax import sharding
from dermjax.errors import UserError


def test_a_mesh_larger_than_the_machine_is_refused():
    with pytest.raises(UserError, match="needs 64 devices"):
        sharding.mesh(64, 1)


@pytest.mark.parametrize("devices", [8])
def test_one_device_equals_eight(train, tmp_path, devices):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import pathlib, numpy as np, conftest;"
        "s = conftest.trained(pathlib.Path(sys.argv[2]), 10, devices=int(sys.argv[3]));"
        "np.savez(sys.argv[2] + '/final.npz', kernel=s.params['kernel'], ema=s.ema['kernel'])"
    )
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code, os.path.dirname(__file__), str(tmp_path / "many"), str(devices)],
                   env=environment, check=True, capture_output=True)  # fmt: skip
    one, many = train(tmp_path / "one", 10), np.load(tmp_path / "many" / "final.npz")
    np.testing.assert_allclose(one.params["kernel"], many["kernel"], rtol=1e-5)
    np.testing.assert_allclose(one.ema["kernel"], many["ema"], rtol=1e-5)


def test_one_process_equals_two(train, tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import jax; jax.distributed.initialize(sys.argv[3], 2,"
        "int(sys.argv[4])); import pathlib, numpy as np, conftest;"
        "s = conftest.trained(pathlib.Path(sys.argv[2]), 10, devices=2);"
        "int(sys.argv[4]) or np.savez(sys.argv[2] + '/final.npz', kernel=s.params['kernel'], ema=s.ema['kernel'])"
    )
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    given = [os.path.dirname(__file__), str(tmp_path / "two"), f"localhost:{port}"]
    both = [
        subprocess.Popen([sys.executable, "-c", code, *given, str(index)], env=environment, stderr=subprocess.PIPE)
        for index in range(2)
    ]
    for process in both:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said.decode()
    one, two = train(tmp_path / "one", 10), np.load(tmp_path / "two" / "final.npz")
    np.testing.assert_allclose(one.params["kernel"], two["kernel"], rtol=1e-5)
    np.testing.assert_allclose(one.ema["kernel"], two["ema"], rtol=1e-5)
