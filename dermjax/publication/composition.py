"""What a data set consists of, counted: classes, prompts, words, samplers, rejections and scores."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dermjax.data.records import Manifest, Record

ALL = "all"


@dataclass(frozen=True)
class Counts:
    """How many records of each class, in the order of `labels`, and of all, have each value."""

    labels: tuple[str, ...]
    rows: dict[str, tuple[int, ...]]

    def grouped(self) -> "Counts":
        """Returns the same counts with values such as `tone: dark` beside the others of their gap."""
        return Counts(self.labels, dict(sorted(self.rows.items(), key=lambda row: row[0].partition(":")[0])))


def counted(manifest: Manifest, chosen: Sequence[Record], values: Callable[[Record], Sequence[str]]) -> Counts:
    """Returns the counts of the values of some of a manifest's records, the frequent ones first."""
    of = Counter((value, record.label) for record in chosen for value in values(record))
    totals = Counter()
    for (value, _), count in of.items():
        totals[value] += count
    order = sorted(totals, key=lambda value: (-totals[value], value))
    rows = {value: (*(of[value, label] for label in manifest.labels), totals[value]) for value in order}
    return Counts((*manifest.labels, ALL), rows)


def words(record: Record) -> list[str]:
    """Returns what the plan asked for, such as `tone: dark`."""
    return [f"{gap}: {word}" for gap, word in record.generation.get("words", {}).items()]


def origin(record: Record) -> list[str]:
    """Returns the source and the licence of a record."""
    return [f"{record.source}: {record.licence or 'licence not stated'}"]


@dataclass(frozen=True)
class Spread:
    """A score over n images: its least, 5 %, median, 95 % and greatest value."""

    n: int
    quantiles: tuple[float, ...]


def scores(chosen: Sequence[Record]) -> dict[str, Spread]:
    """Returns the spread of every score that is a number."""
    names = sorted({name for record in chosen for name in record.scores})
    found = {}
    for name in names:
        values = [record.scores[name] for record in chosen if isinstance(record.scores.get(name), int | float)]
        if values:
            quantiles = np.quantile(values, (0, 0.05, 0.5, 0.95, 1))
            found[name] = Spread(len(values), tuple(float(each) for each in quantiles))
    return found
