"""The held-out loss is one number for one model: what it is taken in, and on what, changes nothing."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax import sharding
from dermjax.diffusion import objective, schedule
from dermjax.training.state import State
from dermjax.tuning import task

DRAWS, EXAMPLES = 3, 5


def rows():
    """Five examples of one number each."""
    return {"x": np.arange(1.0, EXAMPLES + 1, dtype=np.float32), "weight": np.ones(EXAMPLES, np.float32)}


def loss(params, variables, constants, batch, key):
    """The square of an example, a parameter and noise."""
    noise = schedule.normal(objective.example_keys(key, batch["index"]), ())
    return (batch["weight"] * (batch["x"] * params["factor"] + noise) ** 2).mean(), (variables, {})


def judged(batch, grid, loss=loss):
    state = State(jnp.int32(0), {"factor": jnp.float32(0.5)}, {}, {}, {})
    return task.validation(loss, rows(), DRAWS, batch, grid)(state, {})["validation_loss"]


@pytest.mark.parametrize("batch", [1, 3, 8, 16, 40])
def test_the_loss_is_the_same_in_batches_of_any_size(batch):
    """One at a time, in batches with padding and without, and all fifteen with much of it."""
    assert judged(batch, sharding.mesh(1, 1)) == pytest.approx(judged(5, sharding.mesh(1, 1)), rel=1e-6)


def test_each_draw_of_an_example_has_noise_of_its_own():
    """The mean over draws is that of their squares: no example sees the noise of another, or its own again."""
    seen = []

    def noting(params, variables, constants, batch, key):
        noise = schedule.normal(objective.example_keys(key, batch["index"]), ())
        jax.debug.callback(lambda noise, weight: seen.extend(noise[weight > 0].tolist()), noise, batch["weight"])
        return loss(params, variables, constants, batch, key)

    found = judged(4, sharding.mesh(1, 1), noting)
    jax.effects_barrier()
    assert len(seen) == len(set(seen)) == DRAWS * EXAMPLES
    x = np.tile(rows()["x"], DRAWS)
    assert found == pytest.approx(np.mean((0.5 * x + np.array(seen)) ** 2), rel=1e-6)


def test_another_number_of_examples_or_draws_changes_no_noise():
    def noise(examples, draws):
        taken = []

        def noting(params, variables, constants, batch, key):
            taken.append(batch)
            return jnp.float32(0), (variables, {})

        with jax.disable_jit():
            state = State(jnp.int32(0), {}, {}, {}, {})
            some = {name: array[:examples] for name, array in rows().items()}
            task.validation(noting, some, draws, 1, sharding.mesh(1, 1))(state, {})
        return {(int(batch["x"][0]), place // examples): int(batch["index"][0]) for place, batch in enumerate(taken)}

    few, many = noise(2, 2), noise(5, 3)
    assert len(set(many.values())) == 15 and few == {key: many[key] for key in few}


@pytest.mark.slow
def test_two_devices_find_the_same():
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == pytest.approx([judged(8, sharding.mesh(1, 1))] * 3, rel=1e-6)


if __name__ == "__main__":
    print(json.dumps([judged(batch, sharding.mesh(2, 1)) for batch in (2, 4, 16)]))
