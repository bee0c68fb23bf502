"""What is small is summed over the devices as one array, and nothing is another number for it.

As a script, on two devices, it prints what they find.
"""

import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax import sharding
from dermjax.training import step


def made():
    """A loss of twenty small arrays and a large one, and what it takes."""
    keys = jax.random.split(jax.random.key(0), 22)
    params = {f"bias{i}": jax.random.normal(keys[i], (4,)) for i in range(20)}
    params["kernel"] = jax.random.normal(keys[20], (4, step.SMALL // 4)) / 64
    batch = {"x": np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)}

    def loss(params, variables, constants, batch, key):
        noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), (4,)))(batch["index"])
        x = batch["x"] + noise
        for i in range(20):
            x = jnp.sin(x + params[f"bias{i}"][None])
        value = ((x @ params["kernel"]) ** 2).mean()
        return value, (variables, {"largest": jnp.abs(x).mean()})

    return loss, params, batch, jax.random.key(1)


@pytest.fixture(scope="module")
def told():
    """What two devices say of themselves."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_joined_sums_are_the_same_numbers(told):
    """In one part and in two; the differences are of the largest of each array."""
    assert len(told["differences"]) == 2
    assert max(told["differences"]) < 1e-5


def test_devices_meet_once_for_small_arrays(told):
    assert told["met"] == {"joined": 2, "plain": 23}


def test_statistics_of_the_whole_batch_are_left_to_xla(told):
    """A loss that changes variables sees all examples at once."""
    assert told["seen"] == 16


def main() -> None:
    """Prints what `told` asks for, one line of JSON."""
    loss, params, batch, key = made()
    grid, gradient = sharding.mesh(0, 1), jax.value_and_grad(loss, has_aux=True)
    batch = sharding.place(batch, grid)

    def difference(accumulate: int) -> float:
        ways = step.gradient_function(loss, accumulate, grid), step.accumulate_parts(gradient, accumulate, grid)
        found = [jax.tree.leaves(jax.jit(way)(params, {}, {}, batch, key)) for way in ways]
        return max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in zip(*found, strict=True))

    def met(way) -> int:
        program = jax.jit(way).lower(params, {}, {}, batch, key).compile().as_text()
        sums = [line.split("all-reduce(")[0] for line in program.splitlines() if "all-reduce(" in line]
        return sum(len(re.findall(r"f32\[", line)) for line in sums)

    def counting(params, variables, constants, batch, key):
        value, (_, scalars) = loss(params, variables, constants, batch, key)
        return value, ({"seen": jnp.float32(len(batch["x"]))}, scalars)

    (_, (variables, _)), _ = jax.jit(step.gradient_function(counting, 1, grid))(
        params, {"seen": jnp.float32(0)}, {}, batch, key
    )
    ways = {"joined": step.gradient_function(loss, 1, grid), "plain": step.accumulate_parts(gradient, 1, grid)}
    told = {"met": {name: met(way) for name, way in ways.items()},
            "differences": [difference(1), difference(2)], "seen": float(variables["seen"])}  # fmt: skip
    print(json.dumps(told))


if __name__ == "__main__":
    main()
