"""What a plan cannot ask for: a UserError of one line that names the key.

The plan of a synthetic data set: which image is asked for with which words, seed and sampler.

A plan says how many images a class gets and what they are dealt: samplers, prompts, and words for the gaps of the
prompts, by weights and quotas or as the images of a real data set have them. The requests that it comes to are a list,
always the same for the same plan. More images a class add requests and change none.

The table of a plan: what will be made, how much of it each class gets, and how it is asked for.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np

from dermjax.config_file import LARGEST_SEED
from dermjax.data import records, templates
from dermjax.data.records import Record
from dermjax.data.templates import LABEL, PromptWords
from dermjax.diffusion.samplers import named
from dermjax.errors import UserError
from dermjax.generation.quotas import Choices, Quota, deal
from dermjax.sampling.requests import Request, check_settings

TAKEN = (LABEL, "prompt", "sampler", "images")  # names that are no gap's


def check_images(
    prompts: Mapping[str, Sequence[str]],
    samplers: Sequence[str],
    counts: Mapping[str, int],
    images_of: Mapping[str, int],
    seed: int,
) -> None:
    """Refuses a plan that asks for no images that could be named and told apart."""
    wordless = [label for label, each in prompts.items() if isinstance(each, str) or not each]
    folders = [label for label in prompts if not label or "/" in label or label.startswith(".")]
    strangers = sorted(set(images_of) - set(prompts))
    if not prompts or not samplers or min(counts.values()) < 0 or not sum(counts.values()):
        raise UserError("plan asks for nothing: give prompts, samplers and images_per_class of at least 1")
    if wordless:
        raise UserError(f"plan.prompts.{wordless[0]}: not a list of prompts; give at least one")
    if folders:
        raise UserError(f"plan.prompts: label {folders[0]!r} cannot name a folder; give another")
    if strangers:
        raise UserError(f"plan.images_of.{strangers[0]}: plan.prompts has no such class, only {', '.join(prompts)}")
    last = seed + max(counts.values()) * len(prompts) - 1
    if seed < 0 or last > LARGEST_SEED:
        raise UserError(f"plan.seed = {seed}: the seeds run to {last}; they must lie within 0 and {LARGEST_SEED}")


def check_words(
    prompts: Mapping[str, Sequence[str]],
    negative_prompt: str,
    contrast: bool,
    choices: Mapping[str, Mapping[str, float]],
    quotas: Mapping[str, Mapping[str, str | int]],
    counts: Mapping[str, int],
    matched: bool,
) -> None:
    """Refuses gaps that nothing fills, words that nothing asks for, and quotas that cannot be met."""
    if contrast and (negative_prompt or len(prompts) < 2):
        raise UserError("plan.contrast takes the other classes' prompts: leave negative_prompt empty, name two classes")
    said = {gap for each in prompts.values() for template in each for gap in templates.gaps(template)} - {LABEL}
    unknown = sorted((said | set(templates.gaps(negative_prompt)) - {LABEL}) - set(choices))
    if unknown and not matched:
        known = ", ".join(f"{{{gap}}}" for gap in (LABEL, *choices))
        raise UserError(f"plan.prompts: nothing fills {{{unknown[0]}}}; there are {known}; plan.match knows more")
    for gap, weights in choices.items():
        if gap in TAKEN:
            raise UserError(f"plan.words.{gap}: this name is taken; call the gap something else")
        if gap not in said:
            raise UserError(f"plan.words.{gap}: no prompt has {{{gap}}}; put it in one, or leave its words out")
        bad = [word for word, weight in weights.items() if not 0 <= weight < inf]
        if bad:
            raise UserError(f"plan.words.{gap}.{bad[0]} = {weights[bad[0]]}: a weight is 0 or more")
        if not sum(weights.values()):
            raise UserError(f"plan.words.{gap}: no word has a weight above 0")
    for name, quota in quotas.items():
        _quota(name, quota, choices, counts)
    for label, count in counts.items():
        asked = sum(quota["images"] for quota in quotas.values() if quota.get(LABEL, label) == label)
        if asked > count:
            raise UserError(f"plan.quotas ask for {asked} images of {label}, the plan has {count}; make it larger")


def _quota(
    name: str,
    quota: Mapping[str, str | int],
    choices: Mapping[str, Mapping[str, float]],
    counts: Mapping[str, int],
) -> None:
    if not isinstance(quota.get("images"), int) or quota["images"] < 0:
        raise UserError(f"plan.quotas.{name}.images: say how many, such as 100")
    if quota.get(LABEL, next(iter(counts))) not in counts:
        raise UserError(f"plan.quotas.{name}.label = {quota[LABEL]!r}: the classes are {', '.join(counts)}")
    for gap in sorted(set(quota) - {LABEL, "images"}):
        if quota[gap] not in choices.get(gap, {}):
            there = (
                f"plan.words.{gap} has {', '.join(choices[gap])}" if gap in choices else "plan.words has no such gap"
            )
            raise UserError(f"plan.quotas.{name}.{gap} = {quota[gap]!r}: {there}")


SAMPLER, PROMPT = "sampler", "prompt"  # dealt as words are
IMAGES = "images"  # of a quota


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
    check_images(prompts, samplers, counts, images_of, seed)
    check_words(prompts, negative_prompt, contrast, words, quotas, counts, bool(match))
    check_settings(samplers, steps, spacing, guidance, guidance_rescale, guidance_interval, deep_cache)
    turns = Counter(named(name).name for name in samplers)
    like = _alike(match, prompts)
    made = []
    for place, label in enumerate(sorted(prompts)):
        choices = {SAMPLER: turns, PROMPT: Counter(prompts[label]), **words}
        others = [(other, each) for other in sorted(prompts) if other != label for each in prompts[other]]
        for n, dealt in enumerate(deal(choices, _reserved(quotas, label), counts[label])):
            known = PromptWords(label, dealt, like[label][n % len(like[label])] if match else None)
            other, against = others[n // len(turns) % len(others)] if contrast else (label, negative_prompt)
            of_others = replace(known, label=other)
            negative = templates.fill_contrast(against, of_others) if contrast else templates.fill(against, known)
            made.append(
                Request(
                    image=f"images/{label}/{n:05d}.png",
                    label=label,
                    prompt=templates.fill(dealt[PROMPT], known),
                    negative=negative,
                    seed=seed + n * len(prompts) + place,
                    sampler=dealt[SAMPLER],
                    steps=steps,
                    spacing=spacing,
                    guidance=float(guidance),
                    guidance_rescale=float(guidance_rescale),
                    guidance_interval=tuple(map(float, guidance_interval)),
                    deep_cache=deep_cache,
                    words=known.used(dealt[PROMPT]),
                )
            )
    return made


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


EXAMPLES = 3  # prompts a class


def table(asked: Sequence[Request], size: int, batch: int, devices: int) -> str:
    """Returns the table: a column a class, a row a sampler and a word, then examples of prompts."""
    first = asked[0]
    labels = sorted({request.label for request in asked})
    rows = [("", *labels, "all"), _row("images", asked, labels, lambda request: True)]
    for sampler in sorted({request.sampler for request in asked}):
        rows.append(_row(sampler, asked, labels, lambda request, name=sampler: request.sampler == name))
    for gap in sorted({gap for request in asked for gap, _ in request.words}):
        said = Counter(dict(request.words).get(gap, "") for request in asked)
        for word in sorted(said, key=lambda word: (-said[word], word)):
            title = f"{gap} {word or '(not said)'}"
            rows.append(_row(title, asked, labels, lambda r, gap=gap, word=word: dict(r.words).get(gap, "") == word))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
             for row in rows]  # fmt: skip
    told = f"{size} px, {first.steps} steps, guidance {first.guidance:g}, seeds from {min(r.seed for r in asked)}"
    shared = f"batches of {batch} on {devices} device{'s' if devices > 1 else ''} of this process"
    return "\n".join([f"{told}, {shared}", *table, *_examples(asked, labels)])


def _row(title: str, asked: Sequence[Request], labels: Sequence[str], counts) -> tuple[str, ...]:
    hit = [request.label for request in asked if counts(request)]
    return (title, *(str(hit.count(label)) for label in labels), str(len(hit)))


def _examples(asked: Sequence[Request], labels: Sequence[str]) -> list[str]:
    """Returns the first different prompts of each class, each with its negative one."""
    lines = []
    for label in labels:
        pairs = dict.fromkeys((request.prompt, request.negative) for request in asked if request.label == label)
        for prompt, negative in list(pairs)[:EXAMPLES]:
            lines.append(f"{label}: {prompt}" + (f"   not: {negative}" if negative else ""))
        if len(pairs) > EXAMPLES:
            lines.append(f"{label}: and {len(pairs) - EXAMPLES} more prompts")
    return lines
