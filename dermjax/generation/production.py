"""From batches to files: the next round is prepared while devices work on one, and threads write what is done.

What waits is bounded, a round on the devices and one in the threads, so that memory does not grow with the plan.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice

import jax
import numpy as np

from dermjax import machine
from dermjax.diffusion.text_to_image import check_drawn
from dermjax.generation.plan import Request
from dermjax.generation.render import Batches, Started

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
