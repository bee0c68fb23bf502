"""What a model is tuned on: images, each with its prompt, its weight and how often an epoch shows it.

A prompt is one for a class ("dermoscopy of a malignant mole") or a template over what is known of a record:

    dermoscopy of a {label} mole[ on {skin_tone.group} skin][, {site}]

A field is `label`, `source` or an attribute, a dot goes into it; a clause in brackets is left out where a record does
not have its field.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path

import numpy as np

from dermjax.data import digests, records, templates
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError

MOST = 10**7  # rows of an epoch, which are in memory
USUAL = ("benign", "malignant")  # for which configs have prompts, whether there are such classes or not


@dataclass(frozen=True)
class Concepts:
    """N examples: the image, the prompt and the weight of each, float32.

    epoch: int32 [M], the rows of one epoch, each as often as it is repeated. Over an epoch weights have the mean 1, or
    1 + prior_weight where there are class images (see `training`).
    """

    sources: list[tuple[Manifest, Record]]
    prompts: list[str]
    weights: np.ndarray
    epoch: np.ndarray

    @property
    def instances(self) -> list[tuple[Manifest, Record]]:
        """The images of the manifest that is tuned on, which come first, without the class images after them."""
        return [(manifest, record) for manifest, record in self.sources if manifest is self.sources[0][0]]

    @property
    def names(self) -> list[str]:
        """What to call the images."""
        return [record.image for _, record in self.sources]


def training(
    manifest: Manifest,
    prompts: Mapping[str, str],
    *,
    repeats: Mapping[str, int],
    balance: bool,
    prior: str,
    prior_weight: float,
) -> Concepts:
    """Returns the training split as concepts, and after it the class images of prior preservation (`generate`'s).

    repeats: how often an epoch shows a class, 1 where none is given; balance: every class as often as the largest, the
    last round of a class being a part of it; a record's attribute `weight` weighs it among the instance images.

    The loss is a mean over the examples of an epoch, instance and class images mixed. With K of M rows class images,
    these weigh prior_weight M / K and the others M / (M - K) in the mean, so that whatever the counts the loss is
    expected to be

        mean over instance images + prior_weight * mean over class images

    as in Ruiz et al. 2023 (arXiv 2208.12242, eq. 2) and diffusers' train_dreambooth.py, whose batches pair them.

    Raises:
      UserError: a label has no prompt, a template needs what a record does not have, or there is no image.
    """
    instances = manifest.split("train")
    if not instances:
        raise UserError(f"manifest {manifest.home}: no image in its training split")
    unknown = sorted(set(repeats) - set(manifest.labels))
    if unknown:
        known = ", ".join(manifest.labels)
        raise UserError(f"config.concepts.repeats.{unknown[0]}: the manifest's classes are {known}")
    for label, times in repeats.items():
        if not isinstance(times, int) or times < 0:
            raise UserError(f"config.concepts.repeats.{label} = {times}: give a whole number, 0 or more")
        if times > MOST // len(instances):
            raise UserError(f"config.concepts.repeats.{label} = {times}: an epoch has {MOST:,} images at most")
        if balance and times > 1:
            raise UserError(
                f"config.concepts.repeats.{label} = {times}: config.concepts.balance shows every class as often as the "
                "largest, however often it is repeated; give either"
            )
    instance = plain(manifest, instances, prompts)
    weights, labels = np.array([weight(record) for record in instances]), np.array([each.label for each in instances])
    rows = [
        np.repeat(np.flatnonzero(labels == label), repeats.get(label, 1)) for label in dict.fromkeys(labels.tolist())
    ]
    if not weights[np.concatenate(rows)].sum():
        raise UserError("every image has weight 0 or is repeated 0 times: nothing would be learnt")
    if balance:
        rows = [np.resize(each, max(map(len, rows))) for each in rows if len(each)]
    rows = np.concatenate(rows)
    others = class_images(prior)
    epoch = np.concatenate([np.sort(rows), len(weights) + np.arange(len(others))]).astype(np.int32)
    preserved = np.full(len(others), prior_weight * len(epoch) / max(len(others), 1))
    scaled = np.concatenate([weights / weights[rows].sum() * len(epoch), preserved])
    texts = [*instance.prompts, *(record.generation["prompt"] for _, record in others)]
    return Concepts([*instance.sources, *others], texts, scaled.astype(np.float32), epoch)


def plain(manifest: Manifest, chosen: list[Record], prompts: Mapping[str, str]) -> Concepts:
    """Returns records of a manifest as concepts of weight 1, each shown once."""
    missing = sorted({record.label for record in chosen} - set(prompts))
    if missing:
        raise UserError(f"config.prompts has no prompt for {', '.join(missing)}; add config.prompts.{missing[0]}")
    strange = sorted(set(prompts) - {*manifest.labels, *USUAL})
    if strange:
        known = ", ".join(manifest.labels)
        raise UserError(f"config.prompts.{strange[0]}: the manifest's classes are {known}; write it as one of them")
    wrong = [label for label, prompt in prompts.items() if not isinstance(prompt, str)]
    if wrong:
        raise UserError(f"config.prompts.{wrong[0]} = {prompts[wrong[0]]!r}: give text")
    asked = [(record, prompts[record.label]) for record in chosen]
    texts = [templates.check_filled(templates.fill_from_record(each, record), each) for record, each in asked]
    rows = np.arange(len(texts), dtype=np.int32)
    return Concepts([(manifest, record) for record in chosen], texts, np.ones(len(texts), np.float32), rows)


def class_images(prior: str) -> list[tuple[Manifest, Record]]:
    """Returns the images of prior preservation; one that does not name the prompt it was made for is a UserError."""
    if not prior:
        return []
    manifest = records.read(Path(prior))
    for record in manifest.split("train"):
        if not record.generation.get("prompt"):
            raise UserError(f"{prior}: {record.image} has no generation prompt; use `generate`'s manifest")
    return [(manifest, record) for record in manifest.split("train")]


def weight(record: Record) -> float:
    """Returns the attribute `weight` of a record, else 1; what is no finite number from 0 on is a UserError."""
    value = record.attributes.get("weight", 1.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < inf:
        raise UserError(f"{record.image}: attributes.weight = {value!r}; give a number from 0 on")
    return float(value)


def first_prompts(concepts: Concepts, number: int) -> list[str]:
    """Returns the first so many different prompts of every class, class by class."""
    by_class: dict[str, dict[str, None]] = {}
    for (_, record), text in zip(concepts.sources, concepts.prompts, strict=True):
        by_class.setdefault(record.label, {})[text] = None
    return [text for label in sorted(by_class) for text in list(by_class[label])[:number]]


def digest_of_images(sources: list[tuple[Manifest, Record]]) -> str:
    """Returns the digest of images, in order: 16 hex digits."""
    return digests.of_text("".join(record.sha256 for _, record in sources))
