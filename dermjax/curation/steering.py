"""Do images follow their prompts? By sampler: the number of lesions, their sizes, the tone of the skin, the class.

Place in the flow: records with scores -> rows of the page of `curate`. Only what a prompt asks for is held against its
image (`wishes`); rejected images count as well, as this is about the generator.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.stats import spearmanr

from dermjax.data.appearance import SIZES
from dermjax.data.records import Record
from dermjax.data.wishes import wish

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Steering:
    """What was found of a sampler's n images, None where no prompt asked.

    number: (images with the number asked for, images asked for one); sizes: by class, whether the median areas of a
    lesion rise with the sizes asked for; tone: Spearman's correlation of asked and measured typology angles; label:
    (images that the classifier gives more than half to their class, images).
    """

    sampler: str
    n: int
    number: tuple[int, int] | None
    sizes: dict[str, bool]
    tone: float | None
    label: tuple[int, int] | None


def found(records: Sequence[Record], labels: Sequence[str]) -> list[Steering]:
    """The rows: every sampler's, and of all together where there are several; none where no record has a prompt."""
    asked = [record for record in records if record.generation.get("prompt")]
    by_sampler = {}
    for record in asked:
        by_sampler.setdefault(record.generation.get("sampler", ""), []).append(record)
    groups = dict(sorted(by_sampler.items())) | ({ALL: asked} if len(by_sampler) > 1 else {})
    rows = [_row(name, group, labels) for name, group in groups.items()]
    return [row for row in rows if row.number or row.sizes or row.tone is not None or row.label]


def _row(sampler: str, group: list[Record], labels: Sequence[str]) -> Steering:
    numbers = [record.scores["number_off"] == 0 for record in group if "number_off" in record.scores]
    said = [record.scores["label"] > 0.5 for record in group if "label" in record.scores]
    return Steering(
        sampler=sampler,
        n=len(group),
        number=(sum(numbers), len(numbers)) if numbers else None,
        sizes={label: order for label in labels if (order := _ordered(group, label)) is not None},
        tone=_tone(group),
        label=(sum(said), len(said)) if said else None,
    )


def _ordered(group: list[Record], label: str) -> bool | None:
    """Whether the median area of a lesion rises with the size asked for, None where fewer than two are asked for."""
    areas = {size: [] for size in SIZES}
    for record in group:
        size = wish(record.generation["prompt"]).size
        if record.label == label and size and record.scores["lesions"]:
            areas[size].append(record.scores["area"] / record.scores["lesions"])
    medians = [np.median(each) for each in areas.values() if each]
    return all(low < high for low, high in pairwise(medians)) if len(medians) > 1 else None


def _tone(group: list[Record]) -> float | None:
    """Spearman's correlation, None where all asked for, or measured, are the same."""
    tones = [(record, wish(record.generation["prompt"]).tone) for record in group]
    pairs = [(np.mean(tone), record.scores["ita"]) for record, tone in tones if tone and "ita" in record.scores]
    if any(len(set(each)) < 2 for each in zip(*pairs, strict=True)) or not pairs:
        return None
    return float(spearmanr(*zip(*pairs, strict=True)).statistic)
