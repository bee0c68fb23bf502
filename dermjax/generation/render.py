"""Batches of requests to images, a batch a device: one compiled function a sampler, started and not waited for."""

import functools
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh

from dermjax import machine, sharding
from dermjax.diffusion import samplers
from dermjax.diffusion.denoiser import Denoiser, Guidance
from dermjax.diffusion.ladders import Ladder
from dermjax.diffusion.text_to_image import Pipeline
from dermjax.generation.plan import Request
from dermjax.generation.source import Source
from dermjax.models.stable_diffusion import StableDiffusion, count, operations
from dermjax.models.unet import per_block
from dermjax.progress import say

PROCESS = 0.8e9  # bytes of Python, JAX and compiled programs, measured
LAYER_WIDTHS = 30  # numbers a channel of the UNet's first level and a latent cell that are there at a time
PIXEL_WIDTHS = 4  # and a channel of the decoder's last level but one and a pixel
OPERATIONS_A_CORE_A_SECOND = 70e9  # measured: derm-tiny in float32 on a core with AVX2

Batches = Sequence[Sequence[Request]]


@dataclass(frozen=True)
class Started:
    """What devices are at work on: uint8 [D B, S, S, 3], whose rows some of the requests are, and since when."""

    requests: tuple[tuple[int, Request], ...]  # with their rows
    images: jax.Array
    at: float  # seconds of time.monotonic


def renderer(
    model: StableDiffusion,
    params: dict,
    tokens: Callable[[Request], np.ndarray],
    start: Source,
    watch: Callable[[Denoiser, Ladder], Denoiser] | None,
    size: int,
    batch: int,
    grid: Mesh,
) -> Callable[[Batches], Started]:
    """Returns begin(batches) -> Started, for at most a batch a device of requests that differ in words and seed.

    params lie on every device of the grid. Their tokens, prompt and negative prompt, must be equally many. watch: see
    `preview`. Every device always computes `batch` images, so that a short batch compiles nothing new and an image
    depends on the number of devices by no more than rounding: XLA orders some sums otherwise where there is more than
    one.
    """

    @functools.cache
    def pipeline(sampler: str, steps: int, spacing: str, deep_cache: int) -> Callable[..., jax.Array]:
        chosen = samplers.named(sampler)
        for warning in chosen.unheeded(model.configs["scheduler"]):
            say(warning)
        ladder = chosen.ladder(model.configs["scheduler"], steps, spacing)
        return start.function(Pipeline(model, chosen, ladder, deep_cache, watch), size)

    compiled = {}

    def begin(batches: Batches) -> Started:
        first = batches[0][0]
        full = [first] * (batch * grid.size)
        asked = tuple((d * batch + b, request) for d, each in enumerate(batches) for b, request in enumerate(each))
        for row, request in asked:
            full[row] = request
        said = np.stack([tokens(request) for request in full])
        rows = {
            "tokens": said[:, 0],
            "negative": said[:, 1] if first.guidance > 1 else None,
            "seeds": np.array([request.seed for request in full], np.uint32),
            **start.rows(full, size),
        }
        placed = sharding.place(rows, grid)
        guidance = Guidance(
            scale=np.float32(first.guidance),
            rescale=np.float32(first.guidance_rescale) if first.guidance_rescale else None,
            interval=tuple(map(np.float32, first.guidance_interval)) or None,
        )
        kind = (first.sampler, first.steps, first.spacing, first.deep_cache)
        if (*kind, said.shape) not in compiled:  # by itself, so that no compilation counts as a device's work
            compiled[*kind, said.shape] = pipeline(*kind).lower(params, **placed, guidance=guidance).compile()
        at = time.monotonic()
        return Started(asked, compiled[*kind, said.shape](params, **placed, guidance=guidance), at)

    return begin


def memory(model: StableDiffusion, params: dict, size: int, grid: Mesh) -> Callable[[int], float]:
    """Returns need(batch): about the bytes that it takes to make `batch` guided images a device at a time.

    They are those of the process on a CPU, whose devices share its memory, else of each device. Beside the parameters
    the UNet needs them at its first level, for what a layer is at, the skips and attention's weights, or the decoder
    at its last.
    """
    on_cpu, unet = sharding.platform(grid) == "cpu", model.configs["unet"]
    cells, number = (size // model.factor) ** 2, np.dtype(model.dtype).itemsize
    held = 4 * count(params)
    if on_cpu and number < 4:
        held, number = held + 4 * count(params["unet"]), 4  # kernels are widened before they are used
    weights = cells**2 * per_block(unet["attention_head_dim"], 1)[0] if on_cpu else 0
    layers = LAYER_WIDTHS * unet["block_out_channels"][0] * cells
    decoder = PIXEL_WIDTHS * model.configs["vae"]["block_out_channels"][1] * size**2
    each = number * max(2 * (layers + 2 * weights), decoder)
    return lambda batch: (held + batch * each) * grid.size + PROCESS if on_cpu else held + batch * each


def processor_seconds(model: StableDiffusion, params: dict, requests: Collection[Request], size: int) -> float:
    """Returns about how long a CPU takes for the requests, compilation (some seconds a sampler) left out."""
    passes = sum(samplers.named(r.sampler).count(r.steps) * (2 if r.guidance > 1 else 1) for r in requests)
    work = passes * operations(params, (size // model.factor) ** 2)
    return work / OPERATIONS_A_CORE_A_SECOND / machine.cores()
