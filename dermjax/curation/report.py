"""The page of `curate`: how many images each rule hit and rejected, what was kept, and whether prompts are met.

Place in the flow: records with scores -> `page`. What a prompt requests is held against its image by sampler: the
number of lesions, their sizes, the tone of the skin, the class; rejected images count there as well, as that is about
the generator.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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

TEMPLATE = Path(__file__).with_name("report.html.jinja")
ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Steering:
    """How a sampler's n images follow their prompts, None where no prompt requests it.

    number: (images with the number requested, images with a request); sizes: by class, whether the median areas of a
    lesion rise with the sizes requested; tone: Spearman's correlation of requested and measured typology angles; label:
    (images that the classifier gives more than half to their class, images).
    """

    sampler: str
    n: int
    number: tuple[int, int] | None
    sizes: dict[str, bool]
    tone: float | None
    label: tuple[int, int] | None

    def cells(self) -> list[str]:
        """The cells of a row of the page, empty where no prompt requests it."""
        orders = {True: "in order", False: "not in order"}
        return [
            self.sampler,
            str(self.n),
            _share(self.number),
            ", ".join(f"{label} {orders[order]}" for label, order in self.sizes.items()),
            _number(self.tone) if self.tone is not None else "",
            _share(self.label),
        ]


def page(curated: Manifest, rules: Sequence[Rule], training_images: int, config: Mapping) -> str:
    """The HTML of the page, which loads nothing from outside.

    config: of `curate`; sample, size and thresholds as used, gallery: images a section, hits: a rule.
    """
    gallery, hits = config["gallery"], config["hits"]
    rejected = [record for record in curated.records if not record.kept]
    kept = {name: [each for each in curated.records if each.kept and each.label == name] for name in curated.labels}
    scores = {rule.reason: rule.score for rule in rules}
    # the records that a rule speaks against, whether that rejected them or not
    hit = {rule.reason: [each for each in curated.records if rule.speaks_against(each.scores)] for rule in rules}
    return fill(
        TEMPLATE,
        {},
        labels=curated.labels,
        made=_by_class(curated.records, curated.labels),
        total=len(curated.records),
        kept_total=len(curated.records) - len(rejected),
        rules=[
            _row(rule, _by_class(hit[rule.reason], curated.labels), known_accuracy(rule, config))
            | {"rejected": sum(rule.reason in record.rejected for record in rejected)}
            for rule in rules
        ],
        rejected_by_class=_by_class(rejected, curated.labels),
        rejected_total=len(rejected),
        rejected=[thumbnail(curated, each, _why(each, scores)) for each in evenly_spaced(rejected, gallery)],
        kept={name: [thumbnail(curated, each, "") for each in evenly_spaced(of, gallery)] for name, of in kept.items()},
        hits={
            _words(reason): (len(of), [thumbnail(curated, r, _number(r.scores[scores[reason]])) for r in of[:hits]])
            for reason, of in hit.items()
            if of
        },
        verdicts=[_verdict(curated, record) for record in curated.records if "verdict" in record.attributes],
        steering=[row.cells() for row in steering(curated.records, curated.labels)],
        training_images=training_images,
        sample=config["sample"],
    )


def count_reasons(records: Iterable[Record]) -> str:
    """The reasons with their counts in one line."""
    counts = Counter(reason for record in records for reason in record.rejected)
    counted = ", ".join(f"{count} {_words(reason)}" for reason, count in sorted(counts.items()))
    return f"rejected: {counted}" if counted else "none rejected"


def known_accuracy(rule: Rule, config: Mapping) -> list[str]:
    """What is known of a rule with this limit: on phantoms, and on photographs that were checked by eye.

    Of a rule whose limit follows from the real images, what holds where phantoms stand for these. Nothing is known at
    another size or of other thresholds.
    """
    shipped = json.loads(calibration.SHIPPED.read_text())
    if config["size"] != shipped["size"]:
        return []
    same = all(config["thresholds"][name] == value for name, value in shipped["thresholds"].items())
    phantoms, photographs = shipped["phantoms"].get(rule.reason), shipped["photographs"].get(rule.reason)
    lines = []
    if phantoms and (same if phantoms["limit"] is None else phantoms["limit"] == rule.limit):
        accuracy = f"precision {phantoms['precision']:.3f}, recall {phantoms['recall']:.3f}"
        lines.append(f"{phantoms['n']} phantoms: {accuracy}")
    if photographs and photographs["limit"] == rule.limit:
        right, checked = len(photographs["right"]), len(photographs["right"]) + len(photographs["wrong"])
        confirmed = f", {right} of {checked} looked at are right" if checked else ""
        lines.append(f"{photographs['n']} photographs: {photographs['hits']} hits{confirmed}")
    return lines


def steering(records: Sequence[Record], labels: Sequence[str]) -> list[Steering]:
    """The rows: every sampler's, and of all together where there are several; none where no record has a prompt."""
    prompted = [record for record in records if record.generation.get("prompt")]
    by_sampler = {}
    for record in prompted:
        by_sampler.setdefault(record.generation.get("sampler", ""), []).append(record)
    groups = dict(sorted(by_sampler.items())) | ({ALL: prompted} if len(by_sampler) > 1 else {})
    rows = []
    for sampler, group in groups.items():
        sizes = {label: _sizes_rise([each for each in group if each.label == label]) for label in labels}
        row = Steering(
            sampler=sampler,
            n=len(group),
            number=_met([each.scores["number_off"] == 0 for each in group if "number_off" in each.scores]),
            sizes={label: rise for label, rise in sizes.items() if rise is not None},
            tone=_tone_correlation(group),
            label=_met([each.scores["label"] > 0.5 for each in group if "label" in each.scores]),
        )
        rows += [row] if row.number or row.sizes or row.tone is not None or row.label else []
    return rows


def _met(outcomes: list[bool]) -> tuple[int, int] | None:
    return (sum(outcomes), len(outcomes)) if outcomes else None


def _sizes_rise(group: list[Record]) -> bool | None:
    """Whether the median area of a lesion rises with the size requested, None where fewer than two are requested."""
    areas = {size: [] for size in SIZES}
    for record in group:
        size = parse_prompt(record.generation["prompt"]).size
        if size and record.scores["lesions"]:
            areas[size].append(record.scores["area"] / record.scores["lesions"])
    medians = [np.median(each) for each in areas.values() if each]
    return all(low < high for low, high in pairwise(medians)) if len(medians) > 1 else None


def _tone_correlation(group: list[Record]) -> float | None:
    """Spearman's correlation, None where all requested, or all measured, are the same."""
    tones = [(record, parse_prompt(record.generation["prompt"]).tone) for record in group]
    pairs = [(np.mean(tone), record.scores["ita"]) for record, tone in tones if tone and "ita" in record.scores]
    if not pairs or any(len(set(each)) < 2 for each in zip(*pairs, strict=True)):
        return None
    return float(spearmanr(*zip(*pairs, strict=True)).statistic)


def _row(rule: Rule, by_class: list[int], known: list[str]) -> dict:
    return {
        "reason": _words(rule.reason),
        "meaning": MEANINGS[rule.reason],
        "condition": f"{_words(rule.score)} {'≥' if rule.high else '≤'} {_number(rule.limit)}",
        "noted": not rule.rejects,
        "known": known,
        "by_class": by_class,
        "total": sum(by_class),
    }


def _verdict(curated: Manifest, record: Record) -> Thumbnail:
    """The thumbnail of an image that a person has a verdict on, with the verdict."""
    verdict = record.attributes["verdict"]
    overruled = f", against {_words(', '.join(verdict['overrules']))}" if verdict["overrules"] else ""
    why = f": {verdict['why']}" if verdict["why"] else ""
    decision = "kept" if verdict["keep"] else "rejected"
    return thumbnail(curated, record, f"{decision} by {verdict['by']}{overruled}{why}")


def _why(record: Record, scores: dict[str, str]) -> str:
    """The reasons with the scores that they rest on; a reason that is not curation's stands alone."""
    return ", ".join(
        f"{_words(reason)} {_number(record.scores[scores[reason]])}" if reason in scores else reason
        for reason in record.rejected
    )


def _by_class(records: Iterable[Record], labels: Sequence[str]) -> list[int]:
    counts = Counter(record.label for record in records)
    return [counts[label] for label in labels]


def _share(met: tuple[int, int] | None) -> str:
    return f"{met[0] / met[1]:.1%} of {met[1]}" if met else ""


def _words(name: str) -> str:
    return name.replace("_", " ")


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")
