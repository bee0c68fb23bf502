"""The autoencoder of a model, tuned on the user's own images before latents are made of them.

An autoencoder that has not seen such images, or not in this light, loses what their labels hang on, and nothing behind
it can bring that back. With "decoder" latents stay what the UNet knows; with "full" they change, and the UNet that is
tuned next learns them.
"""

import dataclasses
import sys
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from dermjax import machine, reconstruction, sharding
from dermjax.data import images
from dermjax.data.augmentation import symmetric
from dermjax.data.records import Manifest, Record
from dermjax.models.stable_diffusion import Params, StableDiffusion, count
from dermjax.progress import say
from dermjax.training import optimizers, writers
from dermjax.training.loop import LoopConfig, Task, fit
from dermjax.training.state import create
from dermjax.training.step import Loss
from dermjax.tuning.setup import Setup

MODES = ("frozen", "decoder", "full")  # what is tuned of it
WEIGHTS = {"lines": 2.0, "standout": 0.0, "edges": 1.0, "patches": 1.0, "chroma": 3.0}  # of derm-base's first phase
FOLDER = "autoencoder"
READS = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
TRAINED_A_CORE_A_SECOND = 60e9  # operations, measured: derm-tiny's in float32 on a core with AVX-512
NUMBERS_KEPT = 10  # a channel of a pixel that a residual block keeps for its gradient, measured: derm-tiny, 128 px
GRADIENT = 3  # passes that one with gradients counts for


def picture_batches(
    sources: Sequence[tuple[Manifest, Record]], epoch: np.ndarray, *, size: int, batch: int, rows: np.ndarray, seed: int
) -> grain.DatasetIterator:
    """Endless batches {"image": float32 [n, S, S, 3] in [-1, 1]}, each turned or mirrored anew; the same for one seed.

    epoch: int [M], the sources that an epoch shows. rows: those of a batch that this process makes.
    """
    order = lru_cache(maxsize=2)(lambda number: np.random.default_rng((seed, number)).permutation(epoch))

    def picture(place: int) -> np.ndarray:
        number, row = divmod(place, len(epoch))
        manifest, record = sources[order(number)[row]]
        return symmetric(images.load(manifest.path(record), size), np.random.default_rng((seed, 1, place)))

    def make(number: int) -> dict[str, np.ndarray]:
        return {"image": images.to_model(np.stack([picture(number * batch + int(row)) for row in rows]))}

    return iter(grain.MapDataset.range(sys.maxsize).map(make).to_iter_dataset(READS))


def tune(setup: Setup, config: ConfigDict, workdir: Path) -> Setup:
    """Returns the setup with the autoencoder that config.tuned.vae asks for: the model's own, or one tuned here.

    It is in workdir/autoencoder, whose checkpoints a killed run goes on from.
    """
    if config.tuned.vae == "frozen":
        return setup
    part, size, folder = config.vae, config.vae.size or setup.samples.size, workdir / FOLDER
    whole = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), setup.params["vae"])
    decoder, encoder = reconstruction.divide(whole)
    trained, frozen = (whole, {}) if config.tuned.vae == "full" else (decoder, encoder)
    shown, epoch = setup.training.instances, setup.training.epoch  # class images came out of an autoencoder already
    pictures = picture_batches(
        shown, epoch[epoch < len(shown)], size=size, batch=part.batch, seed=config.seed,
        rows=sharding.local_rows(part.batch, setup.grid),
    )  # fmt: skip
    seen = reconstruction.looked_at(setup.validation.sources)
    held_out = [images.load(manifest.path(record), size) for manifest, record in seen]
    watch = reconstruction.watch(setup.sd, np.array(held_out), size)
    optimizer = optimizers.build(
        "adamw", rate=part.rate, warmup=min(50, part.steps // 4), steps=part.steps, schedule="cosine",
        weight_decay=0.0, clip=1.0,
    )  # fmt: skip
    loop_config = LoopConfig(
        seed=config.seed, steps=part.steps, save_every=config.save_every, log_every=config.log_every,
        ema_decay=part.ema_decay, evaluate_every=config.watch_every,
    )  # fmt: skip
    task = Task("tune, autoencoder", loss(setup.sd, part.kl), optimizer, watch)
    state = fit(
        task, create({"vae": trained}, {}, optimizer, ema=part.ema_decay > 0), {"vae": frozen}, pictures, loop_config,
        mesh=setup.grid, workdir=folder,
    )  # fmt: skip
    tuned = sharding.gathered(state.smooth["vae"], setup.grid)
    machine.release_memory()
    psnr = [each["psnr"] for each in writers.read(folder / "metrics.jsonl") if "gradients" in each]
    if psnr:
        say(f"tune: held-out images come back at {psnr[-1]:.2f} dB, before at {psnr[0]:.2f} dB")
    vae = jax.tree.map(np.asarray, {"vae": frozen | tuned})
    return dataclasses.replace(setup, params=setup.params | vae)


def loss(sd: StableDiffusion, kl: float) -> Loss:
    """Returns the loss over {"vae"}, or its decoder with the encoder in the constants, and batches of "image"."""

    def learn(params: Params, variables: dict, constants: dict, batch: dict, key: jax.Array):
        vae = constants["vae"] | params["vae"]
        _, total, scalars = reconstruction.learn(sd, vae, batch, key, kl=kl, weights=WEIGHTS)
        return total, (variables, scalars)

    return learn


def memory(setup: Setup, config: ConfigDict) -> float:
    """Returns about the bytes that a step takes on each device, of the process on a CPU; 0 where it is not tuned."""
    if config.tuned.vae == "frozen":
        return 0.0
    vae, size = setup.sd.configs["vae"], config.vae.size or setup.samples.size
    cells = sum(width * (size / 2**level) ** 2 for level, width in enumerate(vae["block_out_channels"]))
    each = NUMBERS_KEPT * (2 * vae["layers_per_block"] + 1) * cells * config.vae.batch / setup.grid.size
    always = 5 * count(setup.sd.shapes["vae"])  # parameters, their average, gradients, two moments
    return 4 * (always + each) * (setup.grid.size if sharding.platform(setup.grid) == "cpu" else 1)


def processor_seconds(setup: Setup, config: ConfigDict) -> float:
    """Returns about how long a CPU takes for it, 0 where it is not tuned."""
    if config.tuned.vae == "frozen":
        return 0.0
    size = config.vae.size or setup.samples.size
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    lowered = jax.jit(partial(reconstruction.reconstruct, setup.sd)).lower(setup.sd.shapes["vae"], image)
    work = lowered.cost_analysis()["flops"]
    return GRADIENT * work * config.vae.batch * config.vae.steps / TRAINED_A_CORE_A_SECOND / machine.cores()
