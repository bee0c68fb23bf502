"""The same run on one device and on many, in one process and in two."""

import os
import subprocess
import sys

import numpy as np
import pytest

from dermjax import sharding
from dermjax.errors import UserError
from dermjax.training import checkpoints


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


ROWS = """
import numpy as np
from dermjax import sharding
whole = np.arange(72, dtype=np.float32).reshape(24, 3)
for order in (0, 1, 2, 3), (0, 2, 1, 3), (2, 0, 1, 3), (3, 1, 0, 2):
    permuted(order)
    for data, fsdp in (4, 1), (2, 2), (1, 4), (3, 1):
        grid = sharding.mesh(data, fsdp)
        own = sharding.local_rows(24, grid)
        here = [device.process_index == jax.process_index() for device in grid.devices.flat]
        np.testing.assert_array_equal(own, np.flatnonzero(np.repeat(here, 24 // grid.size)))
        placed = sharding.place({'x': whole[own]}, grid)['x']
        for shard in placed.addressable_shards:
            np.testing.assert_array_equal(shard.data, whole[shard.index])
        back = jax.jit(lambda x: x + 0, out_shardings=sharding.replicated(grid))(placed)
        np.testing.assert_array_equal(back, whole)
permuted((0, 1, 2, 3))
try:
    sharding.mesh(2, 1)
except sharding.UserError as error:
    print(error)
"""


def test_rows_lie_where_the_sharding_says_in_any_order_of_devices(permuted, joined):
    """Two processes of two devices, in four orders, as meshes with shards and with devices that one process has not."""
    said = joined(permuted([0, 1, 2, 3]) + ROWS, devices=2)
    told = "mesh 2 x 1 leaves process 1 without a device; make the mesh larger"
    assert [each.splitlines()[-1] for each in said] == [told] * 2


def test_another_newest_checkpoint_than_the_first_process_s_is_refused(tmp_path, monkeypatch):
    """As NFS shows one for a while that is no more the newest."""
    assert checkpoints.newest(tmp_path / "checkpoints") == 0
    monkeypatch.setattr(checkpoints.multihost_utils, "broadcast_one_to_all", lambda _: np.array(7))
    with pytest.raises(UserError, match="step 0 is the newest that process 0 sees, 7 that the first one does"):
        checkpoints.newest(tmp_path / "checkpoints")


def test_a_batch_that_is_not_of_this_process_s_rows_is_refused():
    class Grid:
        local_devices = (0, 1)

    with pytest.raises(ValueError, match="3 rows do not divide over 2 devices"):
        sharding.place(np.zeros((3, 1)), Grid())


@pytest.mark.parametrize(
    "order, fsdp",
    [
        pytest.param([0, 1, 2, 3], 1, id="blocks", marks=pytest.mark.slow),
        pytest.param([0, 2, 1, 3], 1, id="in turns"),
        pytest.param([3, 0, 2, 1], 2, id="shards"),
    ],
)
def test_one_process_equals_two_in_any_order_of_devices(train, tmp_path, permuted, joined, order, fsdp):
    code = (
        "sys.path.insert(0, sys.argv[1]); import pathlib, numpy as np, conftest\n"
        "folder, fsdp = pathlib.Path(sys.argv[2]), int(sys.argv[3])\n"
        "s = conftest.trained(folder, 10, devices=4 // fsdp, fsdp=fsdp)\n"
        "jax.process_index() or np.savez(folder / 'final.npz', kernel=s.params['kernel'], ema=s.ema['kernel'])"
    )
    joined(permuted(order) + code, os.path.dirname(__file__), tmp_path / "two", fsdp, devices=2)
    one, two = train(tmp_path / "one", 10), np.load(tmp_path / "two" / "final.npz")
    np.testing.assert_allclose(one.params["kernel"], two["kernel"], rtol=1e-5)
    np.testing.assert_allclose(one.ema["kernel"], two["ema"], rtol=1e-5)


def test_a_checkpoint_goes_on_in_another_order_of_devices(train, tmp_path, permuted, joined):
    code = (
        "sys.path.insert(0, sys.argv[1]); import pathlib, conftest\n"
        "conftest.trained(pathlib.Path(sys.argv[2]), 5, devices=4)"
    )
    joined(permuted([2, 0, 3, 1]) + code, os.path.dirname(__file__), tmp_path / "two", devices=2)
    one, resumed = train(tmp_path / "one", 10), train(tmp_path / "two", 10)
    np.testing.assert_allclose(one.params["kernel"], resumed.params["kernel"], rtol=1e-5)
    np.testing.assert_allclose(one.ema["kernel"], resumed.ema["kernel"], rtol=1e-5)


WITH_ONE_EACH = """
import jax.numpy as jnp, numpy as np
from dermjax import sharding
from dermjax.training import optimizers
from dermjax.training.state import create, place
grid = sharding.mesh(0, 1)
rule = optimizers.build('adamw', rate=0.1, warmup=0, steps=1, schedule='constant', weight_decay=0.0, clip=0.0)
state = create({'kernel': jnp.arange(6.0).reshape(2, 3)}, {}, rule, ema=True)
placed = place(state, sharding.tree_shardings(state, sharding.RULES, grid))
for leaf in jax.tree.leaves(placed):
    assert len(leaf.addressable_shards) == 1 and not leaf.is_fully_addressable
pointers = [leaf.addressable_shards[0].data.unsafe_buffer_pointer() for leaf in jax.tree.leaves(placed) if leaf.size]
assert len(set(pointers)) == len(pointers)
print(np.asarray(placed.params['kernel'].addressable_shards[0].data).sum())
"""


def test_processes_of_one_device_each_have_arrays_of_their_own(joined):
    """JAX 0.10's device_put gave arrays whose shards could not be read, and no run of such processes could begin."""
    assert [said.split()[-1] for said in joined(WITH_ONE_EACH, devices=1)] == ["15.0", "15.0"]
