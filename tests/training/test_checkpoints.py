"""Checkpoints are whole or not there: damage, other trees, the best of them, and a disk that is full."""

import os
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax import machine
from dermjax.errors import UserError
from dermjax.training import checkpoints, optimizers, writers
from dermjax.training.state import create


def test_a_flipped_byte_is_detected_and_the_one_before_is_offered(train, tmp_path):
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


def test_only_a_whole_checkpoint_is_offered(train, tmp_path):
    train(tmp_path, 10)
    for step in checkpoints.steps(tmp_path / "checkpoints"):
        (tmp_path / "checkpoints" / f"{step:08d}" / "iterator.json").write_text("{")
    with pytest.raises(UserError, match="none before it is whole: give another --workdir"):
        train(tmp_path, 20)


def test_the_best_checkpoint_stays_beside_the_newest(train, tmp_path):
    figures = iter([9.0, 5.0, 3.0, 4.0, 6.0, 3.5])  # before the first step, then every two

    def evaluate(state, constants):
        return {"validation_loss": next(figures)}

    train(tmp_path, 10, evaluate=evaluate, evaluate_every=2, minimise="validation_loss")
    assert checkpoints.best(tmp_path / "checkpoints") == (4, 3.0)
    assert checkpoints.steps(tmp_path / "checkpoints") == [4, 5, 10]
    seen = {r["step"]: r["validation_loss"] for r in writers.read(tmp_path / "metrics.jsonl") if "validation_loss" in r}
    assert seen == {0: 9.0, 2: 5.0, 4: 3.0, 6: 4.0, 8: 6.0, 10: 3.5}


def test_the_best_is_forgotten_with_its_damaged_checkpoint(train, tmp_path):
    figures = iter([9.0, 5.0, 4.0, 3.0, 2.0, 2.5, 2.2])
    settings = {"evaluate": lambda state, constants: {"validation_loss": next(figures)}, "minimise": "validation_loss"}
    train(tmp_path, 8, evaluate_every=2, **settings)
    folder = tmp_path / "checkpoints"
    assert checkpoints.best(folder) == (8, 2.0)
    shutil.rmtree(folder / "00000008")
    assert checkpoints.best(folder) == (6, 3.0)
    train(tmp_path, 12, evaluate_every=4, **settings)
    assert checkpoints.best(folder) == (12, 2.2) and checkpoints.steps(folder) == [10, 12]


def test_another_tree_is_refused_with_names(train, tmp_path):
    train(tmp_path, 5)
    target = create({"kernel": jnp.ones((9, 1)), "bias": jnp.zeros((1,))}, {"seen": jnp.zeros((), jnp.int32)},
                    optimizers.build("adamw", rate=1.0, warmup=0, steps=1, schedule="constant", weight_decay=0.0,
                                     clip=1.0), ema=True)  # fmt: skip
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), target)
    with pytest.raises(UserError, match=r"4 of 12 arrays do not fit: ema\.kernel is \(4, 1\), the run has \(9, 1\)"):
        checkpoints.restore(tmp_path / "checkpoints", shapes)


def test_a_half_written_checkpoint_is_swept_and_ignored(train, tmp_path):
    train(tmp_path, 5)
    (tmp_path / "checkpoints" / "00000007.part").mkdir()
    train(tmp_path, 10)
    assert not list((tmp_path / "checkpoints").glob("*.part"))


def test_a_full_disk_is_known_where_it_cannot_be_asked(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate")
    machine.probe_disk(tmp_path, 1000)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}'"):
        machine.probe_disk(tmp_path, 10**18)


@pytest.mark.parametrize("when, size", [("before a save", "4.61 MB"), ("within a save", "more than .*")])
def test_a_full_disk_is_said_and_the_checkpoint_before_is_whole(train, tmp_path, monkeypatch, when, size):
    train(tmp_path, 5)
    if when == "within a save":
        monkeypatch.setattr(machine, "probe_disk", lambda folder, needed: None)
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
