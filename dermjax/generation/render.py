"""Batches of requests to images: a short batch to a full one, and one compiled function a sampler."""

import functools
import os
from collections.abc import Callable, Collection, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from dermjax import sharding
from dermjax.diffusion import samplers
from dermjax.diffusion.denoiser import Denoiser, Guidance
from dermjax.diffusion.ladders import Ladder
from dermjax.diffusion.text_to_image import Pipeline
from dermjax.generation.plan import Request
from dermjax.generation.source import Source
from dermjax.models.stable_diffusion import StableDiffusion, count

OPERATIONS = 0.25  # of a UNet pass, a parameter and a latent cell: 0.22 in SD 1.5, 0.28 in derm-tiny
OPERATIONS_A_CORE_A_SECOND = 70e9  # measured: derm-tiny in float32 on a core with AVX2


def renderer(
    model: StableDiffusion,
    params: dict,
    tokens: Callable[[Request], np.ndarray],
    start: Source,
    watch: Callable[[Denoiser, Ladder], Denoiser] | None,
    size: int,
    batch: int,
    grid: Mesh,
) -> Callable[[Sequence[Request]], np.ndarray]:
    """Returns render(requests) -> uint8 [n, size, size, 3] for at most `batch` requests that differ in words and seed.

    Their tokens, prompt and negative prompt, must be equally many. watch: see `preview`. Every call computes a whole
    batch, so that a short one compiles nothing new.
    """
    params = jax.device_put(params, sharding.replicated(grid))

    @functools.cache
    def compiled(sampler: str, steps: int, spacing: str, deep_cache: int) -> Callable[..., jax.Array]:
        chosen = samplers.named(sampler)
        ladder = chosen.ladder(model.configs["scheduler"], steps, spacing)
        return start.function(Pipeline(model, chosen, ladder, deep_cache, watch), size)

    def render(requests: Sequence[Request]) -> np.ndarray:
        first = requests[0]
        full = [*requests, *[first] * (batch - len(requests))]
        said = np.stack([tokens(request) for request in full])
        rows = {
            "tokens": said[:, 0],
            "negative": said[:, 1] if first.guidance > 1 else None,
            "seeds": np.array([request.seed for request in full], np.int32),
            **start.rows(full, size),
        }
        placed = sharding.place(rows, grid)
        guidance = Guidance(
            scale=np.float32(first.guidance),
            rescale=np.float32(first.guidance_rescale) if first.guidance_rescale else None,
            interval=tuple(map(np.float32, first.guidance_interval)) or None,
        )
        make = compiled(first.sampler, first.steps, first.spacing, first.deep_cache)
        images = np.asarray(make(params, **placed, guidance=guidance))
        jax.effects_barrier()  # previews that are still on their way
        return images[: len(requests)]

    return render


def processor_seconds(model: StableDiffusion, params: dict, requests: Collection[Request], size: int) -> float:
    """Returns about how long a CPU takes for the requests, compilation (some seconds a sampler) left out."""
    passes = sum(samplers.named(r.sampler).count(r.steps) * (2 if r.guidance > 1 else 1) for r in requests)
    operations = passes * OPERATIONS * count(params["unet"]) * (size // model.factor) ** 2
    return operations / OPERATIONS_A_CORE_A_SECOND / (os.cpu_count() or 1)
