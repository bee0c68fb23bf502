"""What a run of `tune` costs, printed before it computes: time, memory and disk, and which settings would fit."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dermjax import machine, sharding
from dermjax.models.cpu.attention import weights_held
from dermjax.models.stable_diffusion import count, operations
from dermjax.models.unet import per_block
from dermjax.progress import cost, say
from dermjax.sampling import render
from dermjax.tuning import autoencoder
from dermjax.tuning.setup import Setup
from dermjax.weights.torch_layout import flatten

TRAINED_A_CORE_A_SECOND = 40e9  # operations, measured: derm-tiny in float32 on a core with AVX2
GRADIENT = 3  # passes that one with gradients counts for
PROCESS = 2.0e9  # bytes of Python, JAX, what compilation leaves and compiled programs, measured
WIDTHS = 40  # numbers a channel that a layer, a resnet and a transformer, keeps of a latent cell for its gradient
REMAT_WIDTHS = 4  # of them where it keeps what came in and is computed again
CHECKPOINTS = 4  # the newest two, the best, and one that is being written


def report(setup: Setup, config: ConfigDict) -> None:
    """Prints what the run costs, and where it would not fit into the memory of this machine, what would."""
    state, _ = setup.shapes
    step = memory(setup)(setup.samples.size, config.batch / config.accumulate)
    on_vae = autoencoder.memory(setup, config) + (PROCESS if sharding.platform(setup.grid) == "cpu" else 0)
    need, have, seconds = max(step, sampling_memory(setup, config), on_vae), sharding.free_memory(setup.grid), {}
    if sharding.platform(setup.grid) == "cpu":
        seconds["seconds"] = processor_seconds(setup, config.batch * config.steps)
        seconds["seconds"] += autoencoder.processor_seconds(setup, config)
    cost(
        "tune", devices=setup.grid.size, parameters=count(state.params), images=len(setup.training.sources),
        steps=config.steps, **({} if config.tuned.vae == "frozen" else {"autoencoder_steps": config.vae.steps}),
        memory=f"about {machine.format_bytes(need)} of memory",
        room=f"up to {machine.format_bytes(files(setup, config))} of disk", **seconds,
    )  # fmt: skip
    if need > have:
        other = remedy(setup, config, have) if step > have else "with config.samples.images = 0 it fits"
        other = "with a smaller config.vae.batch or config.vae.size it fits" if need == on_vae else other
        say(f"tune: warning: {machine.format_bytes(have)} of memory are free; {other}")


def plan(setup: Setup, config: ConfigDict) -> str:
    """Returns in words what the run does."""
    tuned = ", ".join(f"{network} {mode}" for network, mode in config.tuned.items())
    classes = [f"  {label}: {prompt}" for label, prompt in config.prompts.items()]
    shown = f"{len(setup.training.sources)} images shown, {len(setup.validation.sources)} held out"
    steps = f"{config.steps} steps of {config.batch} images of {setup.samples.size} px by {config.optimizer}"
    return "\n".join([f"tune: {tuned}; {steps}; {shown}", *classes])


def processor_seconds(setup: Setup, images: int) -> float:
    """Returns about how long a CPU takes to train on so many images."""
    work = GRADIENT * operations(setup.params, (setup.samples.size // setup.sd.factor) ** 2) * images
    return work / TRAINED_A_CORE_A_SECOND / machine.cores()


def files(setup: Setup, config: ConfigDict) -> int:
    """Returns the bytes of the run's files at most: checkpoints, latents and the tuned model."""
    state, _ = setup.shapes
    moments = 2 * 2 * setup.sd.configs["vae"]["latent_channels"] * (setup.samples.size // setup.sd.factor) ** 2
    images = len(setup.training.sources) + len(setup.validation.sources)
    tuned = 16 * count(setup.sd.shapes["vae"]) * (config.tuned.vae != "frozen")
    model = count(setup.params) * jnp.dtype(config.save_dtype).itemsize if config.save_model else 0
    return CHECKPOINTS * (size(state) + tuned) + 2 * moments * images + model


def sampling_memory(setup: Setup, config: ConfigDict) -> float:
    """Returns about the bytes that the samples of an evaluation take, in all that `memory` counts; 0 without samples.

    State and frozen parameters stay where they are; the complete model is assembled beside them and draws.
    """
    images = max(setup.samples.images, config.evidence.images if config.evidence.features else 0)
    if not (images and config.watch_every):
        return 0.0
    devices = setup.grid.size
    each = replace(setup.samples, images=images).at_a_time(devices) // devices
    state, frozen = setup.shapes
    resident = size(state) / setup.grid.shape["fsdp"] + size(frozen)
    draw = render.memory(setup.sd, setup.params, setup.samples.size, setup.grid)(each)
    if sharding.platform(setup.grid) == "cpu":
        return resident * devices + draw - render.PROCESS + PROCESS
    return resident + draw


def memory(setup: Setup) -> Callable[[int, float], float]:
    """Returns need(size, images): about the bytes that a step takes on so many images of that side at one time.

    They are those of the process on a CPU, whose devices share its memory, else of each device. A step holds what is
    trained with the optimiser's state, what is frozen, the gradients, adapted kernels as the network uses them, and
    what the layers keep for their gradients.
    """
    state, frozen = setup.shapes
    on_cpu = sharding.platform(setup.grid) == "cpu"
    number = jnp.dtype(setup.sd.dtype).itemsize
    always = size(state) / setup.grid.shape["fsdp"] + 4 * count(state.params) + size(frozen)
    always += 4 * adapted_kernels(state.params.get("lora", {}))
    if on_cpu:
        always += 4 * count(state.params)  # the gradients once more, clipped
        always += 4 * count(frozen) if number < 4 else 0  # widened before they are used
        number = max(number, 4)

    def need(size: int, images: float) -> float:
        each = numbers_kept(setup, (size // setup.sd.factor) ** 2, weights=on_cpu) * number * images / setup.grid.size
        return (always + each) * setup.grid.size + PROCESS if on_cpu else always + each

    return need


def numbers_kept(setup: Setup, cells: int, weights: bool) -> float:
    """Returns about how many numbers the UNet's layers keep of an image for its gradient, attention's weights too?

    A CPU drops what rematerialisation asks for.
    """
    unet = setup.sd.configs["unet"]
    layers = 2 * unet["layers_per_block"] + 1
    remat = setup.sd.remat == "blocks" and sharding.platform(setup.grid) != "cpu"
    heads = per_block(unet["attention_head_dim"], len(unet["block_out_channels"]))
    total = 0.0
    for level, width in enumerate(unet["block_out_channels"]):
        here = cells / 4**level
        total += layers * (REMAT_WIDTHS if remat else WIDTHS) * width * here
        if weights and unet["down_block_types"][level].startswith("CrossAttn"):
            total += layers * weights_held(int(here), heads[level], width // heads[level], gradient=True)
    return total


def adapted_kernels(adapters: dict) -> int:
    """Returns the number of parameters of the kernels that are adapted."""
    flat = flatten(adapters)
    downs = [path for path in flat if path.endswith(".down")]
    return sum(math.prod(flat[down].shape[:-1]) * flat[f"{down[:-5]}.up"].shape[-1] for down in downs)


def remedy(setup: Setup, config: ConfigDict, have: float) -> str:
    """Returns what to change so that the run fits into so many bytes."""
    need, least, side = memory(setup), setup.grid.size, setup.samples.size
    parts = [n for n in range(config.accumulate + 1, config.batch // least + 1) if config.batch % (n * least) == 0]
    for accumulate in parts:
        if need(side, config.batch / accumulate) < have:
            return f"with config.accumulate = {accumulate} it fits, and learns the same"
    for smaller in range(side - side % 64 or side, 0, -64):
        if need(smaller, least) < have:
            return f"with config.batch = {least} and config.size = {smaller} it fits"
    return f"tune less, as the variant lora does, or on a machine with {machine.format_bytes(need(side, least))}"


def size(tree: Any) -> int:
    """Returns the bytes of a tree of shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
