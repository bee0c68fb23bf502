"""The plan of a synthetic data set: which image is asked for with which words, seed and sampler.

A plan says how many images a class gets and what they take turns at; the requests that it comes to are a list, always
the same for the same plan. More images a class add requests and change none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from dermjax.diffusion.samplers import named
from dermjax.errors import UserError

LARGEST_SEED = 2**31 - 1  # of the whole numbers that every tool takes as a seed


@dataclass(frozen=True, kw_only=True)
class Request:
    """One image that is asked for; `image` is its path under the stage's folder."""

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


def requests(
    prompts: Mapping[str, Sequence[str]],
    negative_prompt: str,
    contrast: bool,
    samplers: Sequence[str],
    images_per_class: int,
    steps: int,
    spacing: str,
    guidance: float,
    guidance_rescale: float,
    guidance_interval: Sequence[float],
    deep_cache: int,
    seed: int,
) -> list[Request]:
    """Returns the requests of a plan, class by class; prompts maps a label to the words it is asked for with.

    Within a class the samplers take turns, and the prompts change when every sampler has had its turn. With `contrast`
    the prompts of the other classes, in turns, stand in for the negative prompt, so that guidance leads away from what
    the classes have in common to what tells them apart. The seeds count
    up from `seed`, one an image: over the classes first, so that image n of a class keeps its seed in a larger plan.

    Raises:
      UserError: the plan asks for nothing, or for what no sampler can do.
    """
    _refuse(prompts, negative_prompt, contrast, samplers, images_per_class, seed)
    _refuse_settings(samplers, steps, spacing, guidance, guidance_rescale, guidance_interval, deep_cache)
    turns = len(samplers)
    others = {label: [p for other in sorted(prompts) if other != label for p in prompts[other]] for label in prompts}
    against = {label: others[label] if contrast else [negative_prompt] for label in prompts}
    return [
        Request(
            image=f"images/{label}/{n:05d}.png",
            label=label,
            prompt=prompts[label][n // turns % len(prompts[label])],
            negative=against[label][n // turns % len(against[label])],
            seed=seed + n * len(prompts) + place,
            sampler=named(samplers[n % turns]).name,
            steps=steps,
            spacing=spacing,
            guidance=float(guidance),
            guidance_rescale=float(guidance_rescale),
            guidance_interval=tuple(map(float, guidance_interval)),
            deep_cache=deep_cache,
        )
        for place, label in enumerate(sorted(prompts))
        for n in range(images_per_class)
    ]


def batches(
    asked: Sequence[Request], missing: set[Request], size: int, lengths: Mapping[Request, int]
) -> list[list[Request]]:
    """Returns the batches, of at most `size` requests that one compiled function can make together, with any missing.

    `lengths` is the number of tokens of each request: a short prompt is not lengthened by a long one beside it. How
    requests are divided follows from the plan alone, never from what is missing: a resumed run computes the same
    batches as an uninterrupted one.
    """

    def together(request: Request) -> tuple:
        # what else shapes a compiled function is the same all over a plan
        return request.sampler, request.steps, request.guidance, lengths[request]

    groups = [list(group) for _, group in groupby(sorted(asked, key=together), key=together)]
    divided = [group[start : start + size] for group in groups for start in range(0, len(group), size)]
    return [batch for batch in divided if not missing.isdisjoint(batch)]


def _refuse(
    prompts: Mapping[str, Sequence[str]],
    negative_prompt: str,
    contrast: bool,
    names: Sequence[str],
    images_per_class: int,
    seed: int,
) -> None:
    """Raises UserError for a plan that asks for no images that could be named and told apart, naming the key."""
    wordless = [label for label, words in prompts.items() if isinstance(words, str) or not words]
    folders = [label for label in prompts if not label or "/" in label or label.startswith(".")]
    if not prompts or not names or images_per_class < 1:
        raise UserError("plan asks for nothing: give prompts, samplers and images_per_class of at least 1")
    if wordless:
        raise UserError(f"plan.prompts.{wordless[0]}: not a list of prompts; give at least one")
    if folders:
        raise UserError(f"plan.prompts: label {folders[0]!r} cannot name a folder; give another")
    if contrast and (negative_prompt or len(prompts) < 2):
        raise UserError("plan.contrast takes the other classes' prompts: leave negative_prompt empty, name two classes")
    last = seed + images_per_class * len(prompts) - 1
    if seed < 0 or last > LARGEST_SEED:
        raise UserError(f"plan.seed = {seed}: the seeds run to {last}; they must lie within 0 and {LARGEST_SEED}")


def _refuse_settings(
    names: Sequence[str],
    steps: int,
    spacing: str,
    guidance: float,
    rescale: float,
    interval: Sequence[float],
    deep_cache: int,
) -> None:
    """Raises UserError for settings that no sampler can work with, naming the key."""
    for name in names:
        named(name).check(spacing)
    if steps < 1:
        raise UserError(f"plan.steps = {steps}: a sampler takes at least 1 step")
    if guidance < 1:
        raise UserError(f"plan.guidance = {guidance}: give 1 (none) or more")
    if not 0 <= rescale <= 1:
        raise UserError(f"plan.guidance_rescale = {rescale}: give 0 (none) to 1")
    if interval and (len(interval) != 2 or not 0 <= interval[0] < interval[1]):
        raise UserError(f"plan.guidance_interval = {tuple(interval)}: give two rising sigmas, or () for everywhere")
    if deep_cache < 1:
        raise UserError(f"plan.deep_cache = {deep_cache}: give 1 (none) or the evaluations that share their depths")
