"""Batches of requests to images: a batch a device, the next round prepared while devices work, files by threads.

A round is up to a batch a device. What waits is bounded, a round on the devices and one in the threads, so that memory
does not grow with the plan. D devices, B batch, S side.
"""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh

from dermjax import machine, sharding
from dermjax.diffusion import samplers
from dermjax.diffusion.denoiser import Denoiser
from dermjax.diffusion.ladders import Ladder
from dermjax.models.cpu import eigen
from dermjax.models.cpu.attention import weights_held
from dermjax.models.stable_diffusion import Params, StableDiffusion, count, operations
from dermjax.models.unet import per_block
from dermjax.sampling.init_images import InitImages
from dermjax.sampling.model import Model
from dermjax.sampling.requests import Request
from dermjax.sampling.text_to_image import check_drawn, latent_diffusion, text_to_image

PROCESS = 0.8e9  # bytes of Python, JAX and compiled programs, measured
LAYER_WIDTHS = 30  # numbers a channel of the UNet's first level and a latent cell that are there at a time
PIXEL_WIDTHS = 4  # and a channel of the decoder's last level but one and a pixel
OPERATIONS_A_CORE_A_SECOND = 70e9  # measured: derm-tiny in float32 on a core with AVX2
WRITERS = min(8, machine.cores())  # threads that compress and write

Batches = Sequence[Sequence[Request]]


@dataclass(frozen=True)
class Started:
    """What devices are at work on: uint8 [D B, S, S, 3], whose rows some of the requests are, and since when."""

    requests: tuple[tuple[int, Request], ...]  # with their rows
    images: jax.Array
    at: float  # seconds of time.monotonic


class Renderer:
    """A model placed on the devices of a grid, and the functions that have been compiled for it.

    Every device always computes a full batch, so that a short one compiles nothing new and an image depends on the
    number of devices by no more than rounding: XLA orders some sums otherwise where there is more than one. watch:
    see `previews`.
    """

    def __init__(self, placed: Model, watch: Callable[[Denoiser, Ladder], Denoiser] | None):
        self.model, self.grid, self.watch = placed, placed.grid, watch
        self.functions: dict[tuple, Callable[..., jax.Array]] = {}
        self.compiled: dict[tuple, Callable[..., jax.Array]] = {}

    def begin(self, batches: Batches, init: InitImages, size: int, batch: int) -> Started:
        """Starts a round, at most a batch a device of requests of one kind (`Model.kind`), and does not wait for it."""
        first = batches[0][0]
        rows = tuple((d * batch + b, request) for d, each in enumerate(batches) for b, request in enumerate(each))
        full = [first] * (batch * self.grid.size)
        for row, request in rows:
            full[row] = request
        tokens = np.stack([self.model.tokens(request) for request in full])
        arrays = {
            "tokens": tokens[:, 0],
            "negative": tokens[:, 1] if first.guidance > 1 else None,
            "seeds": np.array([request.seed for request in full], np.uint32),
            **init.arrays(full, size),
        }
        arguments = sharding.place(arrays, self.grid) | {"guidance": first.weights()}
        process = (first.sampler, first.steps, first.spacing, first.deep_cache, size, init.strength)
        if process not in self.functions:
            diffusion = latent_diffusion(self.model.sd, first, self.watch)
            self.functions[process] = text_to_image(diffusion, size, init.strength)
        shapes = (*process, tokens.shape, jax.tree.structure(arguments))
        if shapes not in self.compiled:  # by itself, so that no compilation counts as a device's work
            lowered = self.functions[process].lower(self.model.params, **arguments)
            self.compiled[shapes] = lowered.compile(eigen.options())
        at = time.monotonic()
        return Started(rows, self.compiled[shapes](self.model.params, **arguments), at)


@dataclass(frozen=True)
class Accounts:
    """What a run made, its seconds from the first batch's start on, and how long of these the devices were at work."""

    images: int
    seconds: float
    device_seconds: float


def produce(
    rounds: Iterable[Batches],
    begin: Callable[[Batches], Started],
    wanted: Collection[Request],
    write: Callable[[Request, np.ndarray], None],
    tick: Callable[[int], None],
) -> Accounts:
    """Makes every round and writes those of its images that are wanted; tick(n) counts them once they are written.

    What writing raises is raised here; an image of one colour everywhere is a UserError before its round is written.
    """
    images, device_seconds, began, idle_since = 0, 0.0, 0.0, 0.0
    with ThreadPoolExecutor(1) as clock, ThreadPoolExecutor(WRITERS) as writers:
        on_devices: tuple[Started, Future[float]] | None = None
        in_threads: list[Future] = []

        def settle() -> int:
            for each in in_threads:
                each.result()
            tick(len(in_threads))
            return len(in_threads)

        for each in [*rounds, None]:
            started = begin(each) if each else None
            began = began or (started.at if started else 0.0)
            following = (started, clock.submit(_ready, started.images)) if started else None
            if on_devices:
                working, ready = on_devices
                pixels = np.asarray(working.images)
                device_seconds += ready.result() - max(working.at, idle_since)
                idle_since = ready.result()
                images += settle()
                drawn = [(request, pixels[row]) for row, request in working.requests if request in wanted]
                for request, image in drawn:
                    check_drawn(image, f"{request.image}, {request.prompt!r}")
                in_threads = [writers.submit(write, request, image) for request, image in drawn]
            on_devices = following
        images += settle()
    jax.effects_barrier()  # previews that are still on their way
    return Accounts(images, time.monotonic() - began, device_seconds)


def _ready(images: jax.Array) -> float:
    """Returns when the images were there, to the millisecond, whatever the thread that starts the next ones is at."""
    images.block_until_ready()
    return time.monotonic()


def memory(model: StableDiffusion, params: Params, size: int, grid: Mesh) -> Callable[[int], float]:
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
    heads, width = per_block(unet["attention_head_dim"], 1)[0], unet["block_out_channels"][0]
    weights = weights_held(cells, heads, width // heads, gradient=False) if on_cpu else 0
    layers = LAYER_WIDTHS * width * cells
    decoder = PIXEL_WIDTHS * model.configs["vae"]["block_out_channels"][1] * size**2
    each = number * max(2 * (layers + 2 * weights), decoder)
    return lambda batch: (held + batch * each) * grid.size + PROCESS if on_cpu else held + batch * each


def processor_seconds(model: StableDiffusion, params: Params, requests: Collection[Request], size: int) -> float:
    """Returns about how long a CPU takes for the requests, compilation (some seconds a sampler) left out."""
    passes = sum(samplers.get_sampler(r.sampler).count(r.steps) * (2 if r.guidance > 1 else 1) for r in requests)
    work = passes * operations(params, (size // model.factor) ** 2)
    return work / OPERATIONS_A_CORE_A_SECOND / machine.cores()
