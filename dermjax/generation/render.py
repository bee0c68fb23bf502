"""Batches of requests to images: words to tokens, a short batch to a full one, and one compiled function a sampler."""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from jax.sharding import Mesh

from dermjax import sharding
from dermjax.data.tokens import tokens
from dermjax.diffusion import samplers
from dermjax.diffusion.text_to_image import text_to_image
from dermjax.generation.plan import Request
from dermjax.models.stable_diffusion import StableDiffusion

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


def renderer(
    model: StableDiffusion, params: dict, words: "CLIPTokenizer", size: int, batch: int, grid: Mesh
) -> Callable[[Sequence[Request]], np.ndarray]:
    """Returns render(requests) -> uint8 [n, size, size, 3] for at most `batch` requests of one sampler and guidance.

    Every call computes a whole batch, so that a short one compiles nothing new.
    """
    params = jax.device_put(params, sharding.replicated(grid))

    @functools.cache
    def compiled(sampler: str, steps: int) -> Callable[..., jax.Array]:
        return text_to_image(model, samplers.named(sampler), steps, size)

    def render(requests: Sequence[Request]) -> np.ndarray:
        first = requests[0]
        full = [*requests, *[first] * (batch - len(requests))]
        rows = {
            "tokens": tokens(words, [request.prompt for request in full]),
            "negative": tokens(words, [request.negative for request in full]) if first.guidance > 1 else None,
            "seeds": np.array([request.seed for request in full], np.int32),
        }
        placed = sharding.place(rows, grid)
        images = compiled(first.sampler, first.steps)(params, **placed, guidance=np.float32(first.guidance))
        return np.asarray(images)[: len(requests)]

    return render
