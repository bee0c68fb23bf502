"""Requests: one image that is asked for, what a sampler can be asked for, and how requests are divided into batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import inf

from dermjax.diffusion.samplers import named
from dermjax.errors import UserError
from dermjax.models.stable_diffusion import StableDiffusion


@dataclass(frozen=True, kw_only=True)
class Request:
    """One image that is asked for; `image` is its path under the stage's folder, `words` (gap, word) of its prompt."""

    image: str
    label: str
    prompt: str
    negative: str
    seed: int
    sampler: str
    steps: int
    spacing: str
    guidance: float
    guidance_rescale: float
    guidance_interval: tuple[float, ...]
    deep_cache: int
    words: tuple[tuple[str, str], ...] = ()


def check_settings(
    names: Sequence[str],
    steps: int,
    spacing: str,
    guidance: float,
    rescale: float,
    interval: Sequence[float],
    deep_cache: int,
) -> None:
    """Refuses settings that no sampler can work with."""
    for name in names:
        named(name).check(spacing)
    if steps < 1:
        raise UserError(f"plan.steps = {steps}: a sampler takes at least 1 step")
    if not 1 <= guidance < inf:
        raise UserError(f"plan.guidance = {guidance}: give 1 (none) or more")
    if not 0 <= rescale <= 1:
        raise UserError(f"plan.guidance_rescale = {rescale}: give 0 (none) to 1")
    if interval and (len(interval) != 2 or not 0 <= interval[0] < interval[1]):
        raise UserError(f"plan.guidance_interval = {tuple(interval)}: give two rising sigmas, or () for everywhere")
    if deep_cache < 1:
        raise UserError(f"plan.deep_cache = {deep_cache}: give 1 (none) or the evaluations that share their depths")


def side(size: int, sd: StableDiffusion) -> int:
    """Returns the side in pixels of the images, the model's own for 0; a part of a latent cell is a UserError."""
    if size < 0 or size % sd.factor:
        near = max(1, round(size / sd.factor)) * sd.factor
        raise UserError(f"size = {size}: this model makes multiples of {sd.factor} px; give {near}, or 0 for its own")
    return size or sd.size


def batches(asked: Sequence[Request], size: int, lengths: Mapping[Request, int]) -> list[list[Request]]:
    """Returns the batches, of at most `size` requests that one compiled function can make together.

    `lengths` is the number of tokens of each request: a short prompt is not lengthened by a long one beside it. How
    requests are divided follows from the plan alone, never from what is missing or who makes it: a resumed run, and one
    on other devices, computes the same batches as an uninterrupted one.
    """

    def together(request: Request) -> tuple:
        # what else shapes a compiled function is the same all over a plan
        return request.sampler, request.steps, request.guidance, lengths[request]

    groups = [list(group) for _, group in groupby(sorted(asked, key=together), key=together)]
    return [group[start : start + size] for group in groups for start in range(0, len(group), size)]
