"""The loop resumes to the same numbers, on one device and on many, and says what stops it."""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax import disk, sharding
from dermjax.data import pipelines
from dermjax.errors import Stopped, UserError
from dermjax.training import checkpoints, optimizers, precision, writers
from dermjax.training.loop import fit
from dermjax.training.state import create

pytestmark = pytest.mark.usefixtures("no_transfers")


def loss(params, variables, constants, batch, key):
    """A line fitted with noisy inputs: depends on the key, the batch and the constants."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])
    noise = 0.1 * jax.vmap(lambda key: jax.random.normal(key, batch["x"].shape[1:]))(keys)
    error = (batch["x"] + noise) @ params["kernel"] + params["bias"][None] - batch["y"] * constants["scale"]
    seen = variables["seen"] + len(batch["x"])
    return jnp.square(error).mean(), ({"seen": seen}, {"bias": params["bias"].mean()})


def train(workdir, steps, *, devices=1, rate=0.2, **changes):
    """One run of the loop, eight examples a step."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 4)).astype(np.float32)
    data = {"x": x, "y": (x @ np.arange(1, 5, dtype=np.float32))[:, None]}
    optimizer = optimizers.build("adamw", rate=rate, warmup=2, steps=20, schedule="cosine", weight_decay=0.1, clip=1.0)
    params = {"kernel": jnp.ones((4, 1)), "bias": jnp.zeros((1,))}
    settings = {
        "optimizer": optimizer, "seed": 3, "steps": steps, "ema_decay": 0.9, "accumulate": 1,
        "mesh": sharding.mesh(devices, 1), "rules": sharding.RULES, "workdir": workdir, "title": "line",
        "save_every": 5, "log_every": 3,
    }  # fmt: skip
    state = create(params, {"seen": jnp.zeros((), jnp.int32)}, optimizer, ema=True)
    constants = {"scale": jnp.array(2.0)}
    batches = pipelines.arrays(data, batch=8, seed=1, process=sharding.process())
    return fit(loss, state, constants, batches, **(settings | changes))


def test_training_fits_and_counts(tmp_path):
    state = train(tmp_path, 20)
    records = writers.read(tmp_path / "metrics.jsonl")
    assert records[-1]["loss"] < 0.7 * records[0]["loss"]
    assert int(state.step) == 20 and int(state.variables["seen"]) == 160
    assert [r["step"] for r in records] == [1, 3, 5, 6, 9, 10, 12, 15, 18, 20]
    assert list((tmp_path / "tensorboard").glob("events*"))
    assert checkpoints.steps(tmp_path / "checkpoints") == [15, 20]


@pytest.mark.parametrize("accumulate", [2, 4])
def test_a_batch_in_parts_changes_no_number(tmp_path, accumulate):
    whole = train(tmp_path / "whole", 10)
    parts = train(tmp_path / "parts", 10, accumulate=accumulate)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    last = [writers.read(tmp_path / name / "metrics.jsonl")[-1] for name in ("whole", "parts")]
    assert last[0] == pytest.approx(last[1], rel=1e-5)


def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path):
    whole = train(tmp_path / "whole", 20)
    train(tmp_path / "halves", 13)
    halves = train(tmp_path / "halves", 20)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(halves), strict=True):
        np.testing.assert_array_equal(a, b)
    final = [writers.read(tmp_path / name / "metrics.jsonl")[-1] for name in ("whole", "halves")]
    assert final[0]["step"] == final[1]["step"] == 20


def test_the_best_checkpoint_stays_beside_the_newest(tmp_path):
    figures = iter([9.0, 5.0, 3.0, 4.0, 6.0, 3.5])  # before the first step, then every two

    def evaluate(state, constants):
        return {"validation_loss": next(figures)}

    train(tmp_path, 10, evaluate=evaluate, evaluate_every=2, minimise="validation_loss")
    assert checkpoints.best(tmp_path / "checkpoints") == (4, 3.0)
    assert checkpoints.steps(tmp_path / "checkpoints") == [4, 5, 10]
    seen = {r["step"]: r["validation_loss"] for r in writers.read(tmp_path / "metrics.jsonl") if "validation_loss" in r}
    assert seen == {0: 9.0, 2: 5.0, 4: 3.0, 6: 4.0, 8: 6.0, 10: 3.5}


def test_a_copy_within_a_step_is_noticed(tmp_path, monkeypatch):
    """The guard that every test here runs under: a batch that was not placed has to be fetched by the step."""
    monkeypatch.setattr(sharding, "place", lambda batch, grid: batch)
    with pytest.raises(RuntimeError, match="Disallowed host-to-device transfer"):
        train(tmp_path, 1)


class Terminated:
    """Batches of which the fourth brings SIGTERM."""

    def __init__(self, batches):
        self.batches, self.left = batches, 4
        self.get_state, self.set_state = batches.get_state, batches.set_state

    def __next__(self):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return next(self.batches)


def test_told_to_stop_it_saves_and_goes_on_to_the_same_end(tmp_path, monkeypatch):
    whole = train(tmp_path / "whole", 20)
    arrays = pipelines.arrays
    with monkeypatch.context() as patch:
        patch.setattr(pipelines, "arrays", lambda *args, **kwargs: Terminated(arrays(*args, **kwargs)))
        with pytest.raises(Stopped, match="told to stop, step 4 of 20 is saved"):
            train(tmp_path / "told", 20)
    assert checkpoints.steps(tmp_path / "told" / "checkpoints") == [4]
    told = train(tmp_path / "told", 20)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(told), strict=True):
        np.testing.assert_array_equal(a, b)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_metrics_written_after_the_checkpoint_are_not_doubled(tmp_path):
    train(tmp_path, 10)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 12, "loss": 9.0}) + '\n{"step": 13, "lo')  # killed in the middle of a line
    train(tmp_path, 20)
    steps = [r["step"] for r in writers.read(tmp_path / "metrics.jsonl")]
    assert steps == sorted(set(steps))


class Poisoned:
    """Batches of which those of the given steps hold a number that is none; each says its rows."""

    def __init__(self, batches, bad):
        self.batches, self.bad, self.count = batches, bad, 0
        self.get_state, self.set_state = batches.get_state, batches.set_state

    def __next__(self):
        self.count += 1
        batch = next(self.batches)
        rows = np.arange(8, dtype=np.int32) + self.count
        return batch | {"row": rows, "x": batch["x"] * (np.nan if self.count in self.bad else 1)}


@pytest.fixture
def poison(monkeypatch):
    """poison(steps): the batches of these steps are poisoned from now on."""
    arrays = pipelines.arrays

    def pour(*bad):
        monkeypatch.setattr(pipelines, "arrays", lambda *args, **kwargs: Poisoned(arrays(*args, **kwargs), bad))

    return pour


def test_a_step_without_a_finite_loss_changes_nothing_and_is_counted(tmp_path, poison):
    poison(3, 4, 7)
    state = train(tmp_path, 9)
    records = {r["step"]: r for r in writers.read(tmp_path / "metrics.jsonl")}
    assert int(state.variables["seen"]) == 8 * 6 and int(state.step) == 9
    assert {k: r.get("skipped", 0) for k, r in records.items()} == {1: 0, 3: 1, 5: 1, 6: 0, 9: 1}
    assert all(np.isfinite(list(r.values())).all() for r in records.values())
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_five_in_a_row_stop_it_and_say_where_and_on_what(tmp_path, poison):
    poison(*range(7, 20))
    names = [f"image{i}.png" for i in range(40)]
    with pytest.raises(UserError) as error:
        train(tmp_path, 20, names=names)
    said = str(error.value)
    assert "line: the loss or its gradient was not finite at steps 7 to 12, on image7.png, image8.png" in said
    assert "…; lower the rate" in said and said.endswith("00000010 is good") and "\n" not in said
    assert checkpoints.steps(tmp_path / "checkpoints") == [5, 10]


def test_bfloat16_parameters_move_by_less_than_their_steps(tmp_path):
    """The rate is below half a step of bfloat16 at one, where rounding to the nearest would leave them still."""
    params = {"kernel": jnp.ones((4, 4096), jnp.bfloat16)}
    updates = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 1e-3), params)
    moved = precision.add(params, updates, jax.random.key(0))["kernel"]
    assert moved.dtype == jnp.bfloat16 and len(np.unique(np.asarray(moved, np.float32))) == 2
    assert float(moved.astype(jnp.float32).mean()) == pytest.approx(1.001, abs=2e-4)


def test_a_flipped_byte_is_detected_and_the_one_before_is_offered(tmp_path):
    train(tmp_path, 10)
    newest = tmp_path / "checkpoints" / "00000010"
    victim = max((file for file in (newest / "state").rglob("*") if file.is_file()), key=lambda f: f.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    with pytest.raises(UserError, match=r"00000010: 1 damaged.*delete it, and the same command resumes from 00000005"):
        train(tmp_path, 20)
    shutil.rmtree(newest)
    state = train(tmp_path, 20)
    whole = train(tmp_path.with_name("whole"), 20)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_only_a_whole_checkpoint_is_offered(tmp_path):
    train(tmp_path, 10)
    for step in checkpoints.steps(tmp_path / "checkpoints"):
        (tmp_path / "checkpoints" / f"{step:08d}" / "iterator.json").write_text("{")
    with pytest.raises(UserError, match="none before it is whole: give another --workdir"):
        train(tmp_path, 20)


def test_the_best_is_forgotten_with_its_damaged_checkpoint(tmp_path):
    figures = iter([9.0, 5.0, 4.0, 3.0, 2.0, 2.5, 2.2])
    settings = {"evaluate": lambda state, constants: {"validation_loss": next(figures)}, "minimise": "validation_loss"}
    train(tmp_path, 8, evaluate_every=2, **settings)
    folder = tmp_path / "checkpoints"
    assert checkpoints.best(folder) == (8, 2.0)
    shutil.rmtree(folder / "00000008")
    assert checkpoints.best(folder) == (6, 3.0)
    train(tmp_path, 12, evaluate_every=4, **settings)
    assert checkpoints.best(folder) == (12, 2.2) and checkpoints.steps(folder) == [10, 12]


def test_another_tree_is_refused_with_names(tmp_path):
    train(tmp_path, 5)
    target = create({"kernel": jnp.ones((9, 1)), "bias": jnp.zeros((1,))}, {"seen": jnp.zeros((), jnp.int32)},
                    optimizers.build("adamw", rate=1.0, warmup=0, steps=1, schedule="constant", weight_decay=0.0,
                                     clip=1.0), ema=True)  # fmt: skip
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), target)
    with pytest.raises(UserError, match=r"4 of 12 arrays do not fit: ema\.kernel is \(4, 1\), the run has \(9, 1\)"):
        checkpoints.restore(tmp_path / "checkpoints", shapes)


def test_a_half_written_checkpoint_is_swept_and_ignored(tmp_path):
    train(tmp_path, 5)
    (tmp_path / "checkpoints" / "00000007.part").mkdir()
    train(tmp_path, 10)
    assert not list((tmp_path / "checkpoints").glob("*.part"))


def test_a_full_disk_is_known_where_it_cannot_be_asked(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate")
    disk.ask(tmp_path, 1000)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}'"):
        disk.ask(tmp_path, 10**18)


@pytest.mark.parametrize("when, size", [("before a save", "4.61 MB"), ("within a save", "more than .*")])
def test_a_full_disk_is_said_and_the_checkpoint_before_is_whole(tmp_path, monkeypatch, when, size):
    train(tmp_path, 5)
    if when == "within a save":
        monkeypatch.setattr(disk, "ask", lambda folder, needed: None)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    kernel = np.random.default_rng(0).normal(size=2**20).astype(np.float32)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, before[1]))  # bytes a file: what pytest captures stays below
    try:
        state = {"kernel": jnp.asarray(kernel)}
        with pytest.raises(UserError, match=f"no room for a checkpoint of {size}, those before are whole; make room"):
            checkpoints.save(tmp_path / "checkpoints", 6, state, {}, keep=2, best=None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert checkpoints.steps(tmp_path / "checkpoints") == [5]
    assert not checkpoints.damage(tmp_path / "checkpoints" / "00000005")
    assert not list((tmp_path / "checkpoints").glob("*.part"))


def test_a_loss_that_is_not_finite_names_the_step(tmp_path, poison):
    poison(*range(1, 21))
    with pytest.raises(UserError, match="gradient was not finite at steps 1 to 5; lower the rate"):
        train(tmp_path, 20)


@pytest.mark.parametrize("rate", [float("nan"), float("inf")])
def test_a_rate_that_is_not_finite_is_refused(tmp_path, rate):
    with pytest.raises(UserError, match=f"rate {rate} is not a finite number"):
        train(tmp_path, 20, rate=rate)


def test_unknown_names_list_near_ones():
    with pytest.raises(UserError, match="did you mean adamw"):
        optimizers.build("adam", rate=1.0, warmup=0, steps=1, schedule="constant", weight_decay=0.0, clip=1.0)


def test_a_mesh_larger_than_the_machine_is_refused():
    with pytest.raises(UserError, match="needs 64 devices"):
        sharding.mesh(64, 1)


@pytest.mark.parametrize("devices", [8])
def test_one_device_equals_eight(tmp_path, devices):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import pathlib, numpy as np, test_loop;"
        "s = test_loop.train(pathlib.Path(sys.argv[2]), 10, devices=int(sys.argv[3]));"
        "np.savez(sys.argv[2] + '/final.npz', kernel=s.params['kernel'], ema=s.ema['kernel'])"
    )
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code, os.path.dirname(__file__), str(tmp_path / "many"), str(devices)],
                   env=environment, check=True, capture_output=True)  # fmt: skip
    one, many = train(tmp_path / "one", 10), np.load(tmp_path / "many" / "final.npz")
    np.testing.assert_allclose(one.params["kernel"], many["kernel"], rtol=1e-5)
    np.testing.assert_allclose(one.ema["kernel"], many["ema"], rtol=1e-5)


def test_one_process_equals_two(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import jax; jax.distributed.initialize(sys.argv[3], 2,"
        "int(sys.argv[4])); import pathlib, numpy as np, test_loop;"
        "s = test_loop.train(pathlib.Path(sys.argv[2]), 10, devices=2);"
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
