"""The page of `curate`: how many images each rule rejected, and what was kept and rejected, to be looked at."""

from collections import Counter
from pathlib import Path

from dermjax.curation.rules import MEANINGS, Rule
from dermjax.data.pictures import picture, spread
from dermjax.data.records import Manifest, Record
from dermjax.page import fill

TEMPLATE = Path(__file__).with_name("report.html.jinja")


def page(curated: Manifest, by: tuple[Rule, ...], training_images: int, gallery: int) -> str:
    """The HTML of the page, which loads nothing from outside."""
    rejected = [record for record in curated.records if not record.kept]
    kept = {name: [r for r in curated.records if r.kept and r.label == name] for name in curated.labels}
    scores = {rule.reason: rule.score for rule in by}
    return fill(
        TEMPLATE,
        {},
        labels=curated.labels,
        made=[_count(curated.records, name) for name in curated.labels],
        total=len(curated.records),
        kept_total=len(curated.records) - len(rejected),
        rules=[_row(rule, curated) for rule in by],
        rejected_by_class=[_count(rejected, name) for name in curated.labels],
        rejected_total=len(rejected),
        rejected=[picture(curated, record, _why(record, scores)) for record in spread(rejected, gallery)],
        kept={name: [picture(curated, r, "") for r in spread(group, gallery)] for name, group in kept.items()},
        training_images=training_images,
    )


def told(records: tuple[Record, ...]) -> str:
    """The reasons with their counts in one line."""
    counts = Counter(reason for record in records for reason in record.rejected)
    listed = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in sorted(counts.items()))
    return f"rejected: {listed}" if listed else "none rejected"


def _row(rule: Rule, curated: Manifest) -> dict:
    hit = [record for record in curated.records if rule.reason in record.rejected]
    return {
        "reason": rule.reason.replace("_", " "),
        "meaning": MEANINGS[rule.reason],
        "condition": f"{rule.score.replace('_', ' ')} {'≥' if rule.high else '≤'} {_number(rule.limit)}",
        "by_class": [_count(hit, name) for name in curated.labels],
        "total": len(hit),
    }


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
