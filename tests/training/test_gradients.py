"""What is small is summed over the devices as one array, and nothing is another number for it.

As a script it prints how many arrays two devices meet for.
"""

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax import sharding
from dermjax.training import gradients


def made():
    """A loss of twenty small arrays and a large one, and what it takes."""
    keys = jax.random.split(jax.random.key(0), 22)
    params = {f"bias{i}": jax.random.normal(keys[i], (4,)) for i in range(20)}
    params["kernel"] = jax.random.normal(keys[20], (4, gradients.SMALL // 4)) / 64
    batch = {"x": np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)}

    def loss(params, variables, constants, batch, key):
        noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), (4,)))(batch["index"])
        x = batch["x"] + noise
        for i in range(20):
            x = jnp.sin(x + params[f"bias{i}"][None])
        value = ((x @ params["kernel"]) ** 2).mean()
        return value, (variables, {"largest": jnp.abs(x).mean()})

    return loss, params, batch, jax.random.key(1)


@pytest.fixture
def problem():
    return made()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_joined_sums_are_the_same_numbers(problem, accumulate):
    loss, params, batch, key = problem
    plain = gradients.summed(jax.value_and_grad(loss, has_aux=True), accumulate, sharding.mesh(1, 1))
    found = {}
    for name, way in {"plain": plain, "joined": gradients.of(loss, accumulate, sharding.mesh(0, 1))}.items():
        found[name] = jax.jit(way)(params, {}, {}, batch, key)
    for ours, theirs in zip(*map(jax.tree.leaves, found.values()), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_two_devices_meet_once_for_small_arrays():
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["joined", "2", "plain", "23"], done.stderr


def meetings() -> None:
    """Prints the arrays that are summed over devices, with and without joining them."""
    loss, params, batch, key = made()
    grid = sharding.mesh(0, 1)
    plain = gradients.summed(jax.value_and_grad(loss, has_aux=True), 1, grid)
    for name, way in {"joined": gradients.of(loss, 1, grid), "plain": plain}.items():
        program = jax.jit(way).lower(params, {}, {}, sharding.place(batch, grid), key).compile().as_text()
        summed = [line.split("all-reduce(")[0] for line in program.splitlines() if "all-reduce(" in line]
        print(name, sum(len(re.findall(r"f32\[", line)) for line in summed))


def test_statistics_of_the_whole_batch_are_left_to_xla(problem):
    """A loss that changes variables sees all examples at once."""
    loss, params, batch, key = problem

    def counting(params, variables, constants, batch, key):
        value, (_, scalars) = loss(params, variables, constants, batch, key)
        return value, ({"seen": jnp.float32(len(batch["x"]))}, scalars)

    way = gradients.of(counting, 1, sharding.mesh(0, 1))
    (_, (variables, _)), _ = jax.jit(way)(params, {"seen": jnp.float32(0)}, {}, batch, key)
    assert variables["seen"] == 16


if __name__ == "__main__":
    meetings()
