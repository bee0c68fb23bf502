"""The plan of a synthetic data set: which image is asked for with which words, seed and sampler.

A plan says how many images a class gets and what they take turns at; the requests that it comes to are a list, always
the same for the same plan. More images a class add requests and change none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from dermjax.diffusion import samplers
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
    guidance: float


def requests(
    prompts: Mapping[str, Sequence[str]],
    negative_prompt: str,
    samplers: Sequence[str],
    images_per_class: int,
    steps: int,
    guidance: float,
    seed: int,
) -> list[Request]:
    """Returns the requests of a plan, class by class; prompts maps a label to the words it is asked for with.

    Within a class the samplers take turns, and the prompts change when every sampler has had its turn. The seeds count
    up from `seed`, one an image: over the classes first, so that image n of a class keeps its seed in a larger plan.

    Raises:
      UserError: the plan asks for nothing, or for what no sampler can do.
    """
    _refuse(prompts, samplers, images_per_class, steps, guidance, seed)
    turns = len(samplers)
    return [
        Request(
            image=f"images/{label}/{n:05d}.png",
            label=label,
            prompt=prompts[label][n // turns % len(prompts[label])],
            negative=negative_prompt,
            seed=seed + n * len(prompts) + place,
            sampler=samplers[n % turns],
            steps=steps,
            guidance=float(guidance),
        )
        for place, label in enumerate(sorted(prompts))
        for n in range(images_per_class)
    ]


def batches(asked: Sequence[Request], missing: set[Request], size: int) -> list[list[Request]]:
    """Returns the batches, of at most `size` requests that one compiled function can make together, with any missing.

    How requests are divided follows from the plan alone, never from what is missing: a resumed run computes the same
    batches as an uninterrupted one.
    """

    def together(request: Request) -> tuple:
        return request.sampler, request.steps, request.guidance

    groups = [list(group) for _, group in groupby(sorted(asked, key=together), key=together)]
    divided = [group[start : start + size] for group in groups for start in range(0, len(group), size)]
    return [batch for batch in divided if not missing.isdisjoint(batch)]


def _refuse(
    prompts: Mapping[str, Sequence[str]],
    names: Sequence[str],
    images_per_class: int,
    steps: int,
    guidance: float,
    seed: int,
) -> None:
    """Raises UserError for a plan that cannot be carried out, naming the key."""
    wordless = [label for label, words in prompts.items() if isinstance(words, str) or not words]
    folders = [label for label in prompts if not label or "/" in label or label.startswith(".")]
    if not prompts or not names or images_per_class < 1:
        raise UserError("plan asks for nothing: give prompts, samplers and images_per_class of at least 1")
    if wordless:
        raise UserError(f"plan.prompts.{wordless[0]}: not a list of prompts; give at least one")
    if folders:
        raise UserError(f"plan.prompts: label {folders[0]!r} cannot name a folder; give another")
    for name in names:
        samplers.named(name)
    if steps < 1:
        raise UserError(f"plan.steps = {steps}: a sampler takes at least 1 step")
    if guidance < 1:
        raise UserError(f"plan.guidance = {guidance}: give 1 (none) or more")
    last = seed + images_per_class * len(prompts) - 1
    if seed < 0 or last > LARGEST_SEED:
        raise UserError(f"plan.seed = {seed}: the seeds run to {last}; they must lie within 0 and {LARGEST_SEED}")
