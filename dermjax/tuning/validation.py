"""The loss on held-out real images at fixed noise: the signal that tells learning from memorising.

The training loss falls when images are learnt by heart too; this one rises then. It is the plain loss whatever the
training weighs, so that runs of different settings can be compared by it.
"""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from dermjax import sharding
from dermjax.training.loop import Loss
from dermjax.training.state import State

PLAIN = {"timestep_bias": 1.0, "prompt_dropout": 0.0, "offset_noise": 0.0, "snr_gamma": 0.0, "huber": 0.0}
SEED = 0  # every run is judged at the same noise
MOST = 2**20  # examples that have noise of their own in each draw


def evaluator(loss: Loss, rows: dict[str, np.ndarray], draws: int, batch: int, mesh: Mesh) -> Callable:
    """Returns evaluate(state, constants) -> {"validation_loss": float}, the mean over `draws` noises an image.

    rows are those of a training batch, one an image [N, …]; loss is the tuning loss with the settings PLAIN. Noise and
    times follow from SEED, an image's place among the N and the number of the draw, not from batches or devices, so two
    evaluations differ by the parameters only. Without rows or draws it returns {}.
    """
    if not rows or not draws:
        return lambda state, constants: {}
    examples = len(rows["weight"])
    count = examples * draws
    place = np.arange(-(-count // batch) * batch)
    draw, example = np.divmod(place, examples)
    chosen = {name: array[example] for name, array in rows.items()}
    chosen |= {"weight": (place < count).astype(np.float32), "index": (draw * MOST + example).astype(np.uint32)}

    def one(params, constants, part):
        return loss(params, {}, constants, part, jax.random.key(SEED))[0]

    step = jax.jit(one, out_shardings=sharding.replicated(mesh))

    def evaluate(state: State, constants: dict) -> dict[str, float]:
        total = 0.0
        for at in range(0, len(place), batch):
            part = {name: array[at : at + batch][sharding.own(batch, mesh)] for name, array in chosen.items()}
            total += batch * float(step(state.smooth, constants, sharding.place(part, mesh)))
        return {"validation_loss": total / count}

    return evaluate
