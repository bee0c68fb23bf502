"""A small run of the loop, the same for every test of this folder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax import sharding
from dermjax.data import pipelines
from dermjax.training import optimizers
from dermjax.training.loop import LoopConfig, Task, fit
from dermjax.training.state import create


def loss(params, variables, constants, batch, key):
    """A line fitted with noisy inputs: depends on the key, the batch and the constants."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])
    noise = 0.1 * jax.vmap(lambda key: jax.random.normal(key, batch["x"].shape[1:]))(keys)
    error = (batch["x"] + noise) @ params["kernel"] + params["bias"][None] - batch["y"] * constants["scale"]
    seen = variables["seen"] + len(batch["x"])
    return jnp.square(error).mean(), ({"seen": seen}, {"bias": params["bias"].mean()})


def trained(workdir, steps, *, devices=1, fsdp=1, rate=0.2, **changes):
    """One run of the loop, eight examples a step; other processes import it from here."""
    rng, mesh = np.random.default_rng(0), sharding.mesh(devices, fsdp)
    x = rng.normal(size=(64, 4)).astype(np.float32)
    data = {"x": x, "y": (x @ np.arange(1, 5, dtype=np.float32))[:, None]}
    optimizer = optimizers.build("adamw", rate=rate, warmup=2, steps=20, schedule="cosine", weight_decay=0.1, clip=1.0)
    params = {"kernel": jnp.ones((4, 1)), "bias": jnp.zeros((1,))}
    task = {"title": "line", "loss": loss, "optimizer": optimizer}
    config = {"seed": 3, "steps": steps, "ema_decay": 0.9, "save_every": 5, "log_every": 3}
    for name, value in changes.items():
        (task if name in Task.__dataclass_fields__ else config)[name] = value
    state = create(params, {"seen": jnp.zeros((), jnp.int32)}, optimizer, ema=True)
    constants = {"scale": jnp.array(2.0)}
    batches = pipelines.array_batches(data, batch=8, seed=1, rows=sharding.local_rows(8, mesh))
    return fit(Task(**task), state, constants, batches, LoopConfig(**config), mesh=mesh, workdir=workdir)


@pytest.fixture
def train(no_transfers):
    """A function that trains in a folder for some steps and returns the state; steps may not copy by themselves."""
    return trained
