"""From scores to reasons: the rules, near-duplicates within the set, then people, whose verdicts come after everything.

Place in the flow: `scoring` -> records with scores, and hashes -> `judge` -> records with reasons. Nothing here looks
at an image, so that `dermjax merge` judges the records of all parts as one set.

Near-duplicates come last: of a group, the first image that nothing else speaks against is kept.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from dermjax.curation import reviews
from dermjax.curation.reviews import Verdict
from dermjax.curation.rules import MEANINGS, Rule
from dermjax.data.leaks import copies
from dermjax.data.phantoms.captions import parse_prompt
from dermjax.data.records import Record

NEAR = "near_duplicate"  # the reason, and its score


def judge(
    records: Callable[[], Iterable[Record]],
    hashes: np.ndarray,
    rules: Sequence[Rule],
    verdicts: Mapping[str, Verdict | None],
    tick: Callable[[int], None] = lambda images: None,
) -> Iterator[Record]:
    """Yields the scored records with the reasons against them; reasons that are not curation's stay.

    records: called twice, so that they need not be in memory. hashes: theirs, uint64 [N, 8, 4]. tick(n): see
    `copies.nearest_kept`, which takes longest.
    """
    limit = next(rule.limit for rule in rules if rule.reason == NEAR)
    alone = [rule for rule in rules if rule.reason != NEAR]
    stands = [_stands(record, alone, verdicts) for record in records()]
    near = copies.nearest_kept(hashes, limit, np.array(stands, bool), tick)
    for record, bits in zip(records(), near.tolist(), strict=True):
        scored = replace(record, scores=record.scores | {NEAR: float(bits)})
        rejected = _foreign(record) + reasons(scored, rules)
        yield reviews.apply(replace(scored, rejected=rejected), reviews.verdict_on(record, verdicts))


def reasons(record: Record, rules: Collection[Rule]) -> tuple[str, ...]:
    """The reasons of the rejecting rules that speak against a record; an artefact that was requested is none."""
    requested = parse_prompt(record.generation.get("prompt", "")).artefacts
    return tuple(
        rule.reason
        for rule in rules
        if rule.rejects and rule.speaks_against(record.scores) and rule.reason not in requested
    )


def _stands(record: Record, rules: Collection[Rule], verdicts: Mapping[str, Verdict | None]) -> bool:
    """Whether a record is kept, unless it is a near-duplicate."""
    person = reviews.verdict_on(record, verdicts)
    return person.keep if person else not (_foreign(record) or reasons(record, rules))


def _foreign(record: Record) -> tuple[str, ...]:
    """The reasons that are not curation's, also those that a recorded verdict overrules."""
    overruled = record.attributes.get("verdict", {}).get("overrules")
    known = (*record.rejected, *(overruled if isinstance(overruled, list) else ()))
    return tuple(reason for reason in dict.fromkeys(known) if reason not in MEANINGS)
