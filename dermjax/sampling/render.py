"""Batches of requests to images, a batch a device: one compiled function a sampler, started and not waited for.

From batches to files: the next round is prepared while devices work on one, and threads write what is done.

What waits is bounded, a round on the devices and one in the threads, so that memory does not grow with the plan.
"""

import functools
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice

import jax
import numpy as np
from jax.sharding import Mesh

from dermjax import machine, sharding
from dermjax.diffusion import samplers
from dermjax.diffusion.denoiser import Denoiser, Guidance
from dermjax.diffusion.ladders import Ladder
from dermjax.models.stable_diffusion import StableDiffusion, count, operations
from dermjax.models.unet import per_block
from dermjax.progress import say
from dermjax.sampling.init_images import Source
from dermjax.sampling.requests import Request
from dermjax.sampling.text_to_image import Pipeline, check_drawn

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


WRITERS = min(8, machine.cores())  # threads that compress and write


@dataclass(frozen=True)
class Accounts:
    """What a run made, its seconds from the first batch's start on, and how long of these the devices were at work."""

    images: int
    seconds: float
    device_seconds: float


def rounds(batches: Iterable[Sequence[Request]], devices: int, kind: Callable[[Request], object]) -> Iterator[Batches]:
    """Yields the batches in order, as many at a time as there are devices and as one compiled function can make."""
    for _, alike in groupby(batches, key=lambda batch: kind(batch[0])):
        while several := list(islice(alike, devices)):
            yield several


def produce(
    work: Iterable[Batches],
    begin: Callable[[Batches], Started],
    wanted: Collection[Request],
    write: Callable[[Request, np.ndarray], None],
    tick: Callable[[int], None],
) -> Accounts:
    """Makes every round and writes those of its images that are wanted; tick(n) counts them once they are written.

    What writing raises is raised here; an image of one colour everywhere is a UserError before its round is written.
    """
    images, device_seconds, began, idle_since = 0, 0.0, 0.0, 0.0
    with ThreadPoolExecutor(1) as watch, ThreadPoolExecutor(WRITERS) as writers:
        on_devices: tuple[Started, Future[float]] | None = None
        in_threads: list[Future] = []
        for each in [*work, None]:
            started = begin(each) if each else None
            began = began or (started.at if started else 0.0)
            following = (started, watch.submit(_ready, started.images)) if started else None
            if on_devices:
                done, ready = on_devices
                pixels = np.asarray(done.images)
                device_seconds += ready.result() - max(done.at, idle_since)
                idle_since = ready.result()
                images += _settled(in_threads, tick)
                drawn = [(request, pixels[row]) for row, request in done.requests if request in wanted]
                for request, image in drawn:
                    check_drawn(image, f"{request.image}, {request.prompt!r}")
                in_threads = [writers.submit(write, request, image) for request, image in drawn]
            on_devices = following
        images += _settled(in_threads, tick)
    jax.effects_barrier()  # previews that are still on their way
    return Accounts(images, time.monotonic() - began, device_seconds)


def _ready(images: jax.Array) -> float:
    """Returns when the images were there, to the millisecond, whatever the thread that starts the next ones is at."""
    images.block_until_ready()
    return time.monotonic()


def _settled(in_threads: Sequence[Future], tick: Callable[[int], None]) -> int:
    """Returns how many files the threads have written, all of them."""
    for each in in_threads:
        each.result()
    tick(len(in_threads))
    return len(in_threads)
