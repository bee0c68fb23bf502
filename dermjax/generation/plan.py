"""The plan of a synthetic data set: which image is asked for with which words, seed and sampler.

A plan says how many images a class gets and what they are dealt: samplers, prompts, and words for the gaps of the
prompts, by weights and quotas or as the images of a real data set have them. The requests that it comes to are a list,
always the same for the same plan. More images a class add requests and change none.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np

from dermjax.data import records
from dermjax.data.records import Record
from dermjax.diffusion.samplers import named
from dermjax.errors import UserError
from dermjax.generation import refusals, wording
from dermjax.generation.deal import Choices, Quota, deal
from dermjax.generation.wording import LABEL, Known

SAMPLER, PROMPT = "sampler", "prompt"  # dealt as words are
IMAGES = "images"  # of a quota


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


def requests(
    prompts: Mapping[str, Sequence[str]],
    words: Choices,
    quotas: Mapping[str, Mapping[str, str | int]],
    match: str,
    negative_prompt: str,
    contrast: bool,
    samplers: Sequence[str],
    images_per_class: int,
    images_of: Mapping[str, int],
    steps: int,
    spacing: str,
    guidance: float,
    guidance_rescale: float,
    guidance_interval: Sequence[float],
    deep_cache: int,
    seed: int,
) -> list[Request]:
    """Returns the requests of a plan, class by class; prompts maps a label to the templates it is asked for with.

    Samplers, prompts and words are dealt (see `deal`); what stands several times in a list has as many shares.
    `images_of` says how many a class gets where that is not images_per_class. A quota is {"images": 100, gap: word, …},
    for one class where it names a "label". `match` is a manifest: image n of a class is to be like one of its training
    images, which take turns in a shuffled order; their attributes fill the gaps that have no words. With `contrast` the
    prompts of the other classes, in turns, stand in for the negative prompt, so that guidance leads away from what the
    classes have in common to what tells them apart. The seeds count up from `seed`, one an image: over the classes
    first, so that image n of a class keeps its seed in a larger plan.

    Raises:
      UserError: the plan asks for nothing, or for what no sampler or no gap can do.
    """
    counts = {label: images_of.get(label, images_per_class) for label in prompts}
    refusals.images(prompts, samplers, counts, images_of, seed)
    refusals.words(prompts, negative_prompt, contrast, words, quotas, counts, bool(match))
    refusals.settings(samplers, steps, spacing, guidance, guidance_rescale, guidance_interval, deep_cache)
    turns = Counter(named(name).name for name in samplers)
    like = _alike(match, prompts)
    made = []
    for place, label in enumerate(sorted(prompts)):
        choices = {SAMPLER: turns, PROMPT: Counter(prompts[label]), **words}
        others = [(other, each) for other in sorted(prompts) if other != label for each in prompts[other]]
        for n, dealt in enumerate(deal(choices, _reserved(quotas, label), counts[label])):
            known = Known(label, dealt, like[label][n % len(like[label])] if match else None)
            other, against = others[n // len(turns) % len(others)] if contrast else (label, negative_prompt)
            of_others = replace(known, label=other)
            negative = wording.contrast(against, of_others) if contrast else wording.prompt(against, known)
            made.append(
                Request(
                    image=f"images/{label}/{n:05d}.png",
                    label=label,
                    prompt=wording.prompt(dealt[PROMPT], known),
                    negative=negative,
                    seed=seed + n * len(prompts) + place,
                    sampler=dealt[SAMPLER],
                    steps=steps,
                    spacing=spacing,
                    guidance=float(guidance),
                    guidance_rescale=float(guidance_rescale),
                    guidance_interval=tuple(map(float, guidance_interval)),
                    deep_cache=deep_cache,
                    words=known.said(dealt[PROMPT]),
                )
            )
    return made


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


def _alike(match: str, labels: Collection[str]) -> dict[str, list[Record]]:
    """Returns the training images of each label in a shuffled order, {} for "" that matches none."""
    if not match:
        return {}
    training = records.read(Path(match)).split("train")  # what generated images are like goes into training
    found = {label: [record for record in training if record.label == label] for label in labels}
    for label, alike in found.items():
        if not alike:
            raise UserError(f"plan.match {match}: no training image is labelled {label!r}, as the plan asks")
    return {
        label: [alike[i] for i in np.random.default_rng(0).permutation(len(alike))] for label, alike in found.items()
    }


def _reserved(quotas: Mapping[str, Mapping[str, str | int]], label: str) -> list[Quota]:
    """Returns the quotas that a label's images must meet."""
    return [
        Quota({gap: word for gap, word in quota.items() if gap not in (LABEL, IMAGES)}, quota[IMAGES])
        for quota in quotas.values()
        if quota.get(LABEL, label) == label
    ]
