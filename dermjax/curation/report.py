"""Do images follow their prompts? By sampler: the number of lesions, their sizes, the tone of the skin, the class.

Place in the flow: records with scores -> rows of the page of `curate`. Only what a prompt asks for is held against its
image (`wishes`); rejected images count as well, as this is about the generator.

The page of `curate`: how many images each rule rejected, and what was kept and rejected, to be looked at.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from dermjax.curation import calibration
from dermjax.curation.rules import MEANINGS, Rule
from dermjax.data.phantoms.appearance import SIZES
from dermjax.data.phantoms.captions import parse_prompt
from dermjax.data.records import Manifest, Record
from dermjax.data.thumbnails import Thumbnail, evenly_spaced, thumbnail
from dermjax.page import fill

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


def steering(records: Sequence[Record], labels: Sequence[str]) -> list[Steering]:
    """The rows: every sampler's, and of all together where there are several; none where no record has a prompt."""
    asked = [record for record in records if record.generation.get("prompt")]
    by_sampler = {}
    for record in asked:
        by_sampler.setdefault(record.generation.get("sampler", ""), []).append(record)
    groups = dict(sorted(by_sampler.items())) | ({ALL: asked} if len(by_sampler) > 1 else {})
    rows = [_steering_row(name, group, labels) for name, group in groups.items()]
    return [row for row in rows if row.number or row.sizes or row.tone is not None or row.label]


def _steering_row(sampler: str, group: list[Record], labels: Sequence[str]) -> Steering:
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
        size = parse_prompt(record.generation["prompt"]).size
        if record.label == label and size and record.scores["lesions"]:
            areas[size].append(record.scores["area"] / record.scores["lesions"])
    medians = [np.median(each) for each in areas.values() if each]
    return all(low < high for low, high in pairwise(medians)) if len(medians) > 1 else None


def _tone(group: list[Record]) -> float | None:
    """Spearman's correlation, None where all asked for, or measured, are the same."""
    tones = [(record, parse_prompt(record.generation["prompt"]).tone) for record in group]
    pairs = [(np.mean(tone), record.scores["ita"]) for record, tone in tones if tone and "ita" in record.scores]
    if any(len(set(each)) < 2 for each in zip(*pairs, strict=True)) or not pairs:
        return None
    return float(spearmanr(*zip(*pairs, strict=True)).statistic)


TEMPLATE = Path(__file__).with_name("report.html.jinja")


def page(curated: Manifest, by: tuple[Rule, ...], training_images: int, gallery: int, hits: int) -> str:
    """The HTML of the page, which loads nothing from outside; gallery: pictures a section, hits: a rule."""
    rejected = [record for record in curated.records if not record.kept]
    kept = {name: [r for r in curated.records if r.kept and r.label == name] for name in curated.labels}
    scores = {rule.reason: rule.score for rule in by}
    spoken = {rule.reason: _hit(rule, curated) for rule in by}
    return fill(
        TEMPLATE,
        {},
        labels=curated.labels,
        made=[_count(curated.records, name) for name in curated.labels],
        total=len(curated.records),
        kept_total=len(curated.records) - len(rejected),
        rules=[_row(rule, curated, spoken[rule.reason]) for rule in by],
        rejected_by_class=[_count(rejected, name) for name in curated.labels],
        rejected_total=len(rejected),
        rejected=[thumbnail(curated, record, _why(record, scores)) for record in evenly_spaced(rejected, gallery)],
        kept={name: [thumbnail(curated, r, "") for r in evenly_spaced(group, gallery)] for name, group in kept.items()},
        hits={
            reason.replace("_", " "): (len(hit), [thumbnail(curated, r, _shown(r, scores[reason])) for r in hit[:hits]])
            for reason, hit in spoken.items()
            if hit
        },
        said=[_verdict(curated, record) for record in curated.records if "verdict" in record.attributes],
        steering=[_steering(row) for row in steering(curated.records, curated.labels)],
        training_images=training_images,
    )


def count_reasons(records: tuple[Record, ...]) -> str:
    """The reasons with their counts in one line."""
    counts = Counter(reason for record in records for reason in record.rejected)
    listed = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in sorted(counts.items()))
    return f"rejected: {listed}" if listed else "none rejected"


def _hit(rule: Rule, curated: Manifest) -> list[Record]:
    """The records that a rule speaks against, whether that rejected them or not."""
    return [record for record in curated.records if rule.speaks_against(record.scores)]


def _row(rule: Rule, curated: Manifest, hit: list[Record]) -> dict:
    return {
        "reason": rule.reason.replace("_", " "),
        "meaning": MEANINGS[rule.reason],
        "condition": f"{rule.score.replace('_', ' ')} {'≥' if rule.high else '≤'} {_number(rule.limit)}",
        "noted": not rule.rejects,
        "known": known_accuracy(rule),
        "by_class": [_count(hit, name) for name in curated.labels],
        "total": len(hit),
    }


def known_accuracy(rule: Rule) -> list[str]:
    """What is known of a rule with this limit: on phantoms, and on photographs that were looked at.

    Of a rule whose limit follows from the real images, what was found where phantoms stood for these.
    """
    found = json.loads(calibration.SHIPPED.read_text())
    phantoms, photographs = found["phantoms"].get(rule.reason), found["photographs"].get(rule.reason)
    lines = []
    if phantoms and phantoms["limit"] in (None, rule.limit):
        lines.append(
            f"{phantoms['n']} phantoms: precision {phantoms['precision']:.3f}, recall {phantoms['recall']:.3f}"
        )
    if photographs and photographs["limit"] == rule.limit:
        right, seen = len(photographs["right"]), len(photographs["right"]) + len(photographs["wrong"])
        looked = f", {right} of {seen} looked at are right" if seen else ""
        lines.append(f"{photographs['n']} photographs: {photographs['hits']} hits{looked}")
    return lines


def _verdict(curated: Manifest, record: Record) -> Thumbnail:
    """The picture of an image that a person spoke about, with what they said."""
    said = record.attributes["verdict"]
    overruled = f", against {', '.join(said['overrules']).replace('_', ' ')}" if said["overrules"] else ""
    why = f": {said['why']}" if said["why"] else ""
    return thumbnail(curated, record, f"{'kept' if said['keep'] else 'rejected'} by {said['by']}{overruled}{why}")


def _steering(row: Steering) -> list[str]:
    """The cells of a row, empty where no prompt asked."""
    orders = {True: "in order", False: "not in order"}
    return [
        row.sampler,
        str(row.n),
        f"{row.number[0] / row.number[1]:.1%} of {row.number[1]}" if row.number else "",
        ", ".join(f"{label} {orders[order]}" for label, order in row.sizes.items()),
        _number(row.tone) if row.tone is not None else "",
        f"{row.label[0] / row.label[1]:.1%} of {row.label[1]}" if row.label else "",
    ]


def _shown(record: Record, score: str) -> str:
    return _number(record.scores[score])


def _why(record: Record, scores: dict[str, str]) -> str:
    """The reasons with the scores that they rest on; a reason of another judge stands alone."""
    return ", ".join(
        f"{reason.replace('_', ' ')} {_number(record.scores[scores[reason]])}" if reason in scores else reason
        for reason in record.rejected
    )


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def _count(records, name: str) -> int:
    return sum(record.label == name for record in records)
