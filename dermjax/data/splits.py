"""Which image is for training, validation or test, without leaks: what shows one lesion stays on one side.

The side of a group of images is drawn by a hash of its identity and the seed, so an image keeps its side when others
are added, renamed or removed. (Only a new image that ties two old groups together can move one of them.) The same
thresholds hold for every class, hence the classes are divided alike up to chance.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dermjax.data.records import Record
from dermjax.errors import UserError

IDENTITIES = ("sha256", "lesion_id", "patient_id")


def identities(record: Record) -> list[tuple[str, str]]:
    """What ties a record to others: its bytes, its lesion, its patient, as far as they are known."""
    return [(name, getattr(record, name)) for name in IDENTITIES if getattr(record, name)]


def assign(
    records: Sequence[Record], groups: np.ndarray, *, validation: float, test: float, seed: int
) -> tuple[Record, ...]:
    """The records with their splits: given ones stay, missing ones are carved out of the rest, group by group.

    groups: int [N], equal for records that must stay together. validation, test: shares of what they are carved from.
    A split that the folder has is not carved. Raises UserError for a class that has too few groups.
    """
    given = {record.split for record in records}
    shares = {
        name: share for name, share in (("test", test), ("validation", validation)) if share and name not in given
    }
    open_groups = defaultdict(list)
    for record, group in zip(records, groups.tolist(), strict=True):
        if record.split in ("", "train"):
            open_groups[group].append(record)
    lots = {group: _lot(members, seed) for group, members in open_groups.items()}
    drawn = {group: _drawn(lot, shares) for group, lot in lots.items()}
    for label in sorted({record.label for record in records}):
        of_class = [group for group, members in open_groups.items() if label in {member.label for member in members}]
        drawn |= _filled(label, {group: drawn[group] for group in of_class}, ["train", *shares], lots)
    return tuple(
        record if record.split not in ("", "train") else replace(record, split=drawn[group])
        for record, group in zip(records, groups.tolist(), strict=True)
    )


def refuse_contradictions(records: Sequence[Record]) -> None:
    """UserError when the same bytes stand under two labels: one of them is wrong, and we cannot know which."""
    first = {}
    for record in records:
        other = first.setdefault(record.sha256, record)
        if other.label != record.label:
            raise UserError(f"the same image under two classes: {other.image} and {record.image}; remove one")


def refuse_leaks(records: Sequence[Record]) -> None:
    """UserError when the same bytes, lesion or patient stand in two splits, naming both images."""
    first = {}
    for record in records:
        for identity in identities(record):
            other = first.setdefault(identity, record)
            if other.split != record.split:
                what, here, there = identity[0], f"{other.image} ({other.split})", f"{record.image} ({record.split})"
                raise UserError(f"the same {what} in two splits: {here} and {there}; remove one or move it")


def _lot(members: Sequence[Record], seed: int) -> float:
    """The random number in [0, 1) of a group, by its widest known identity: patient, else lesion, else bytes."""
    for name in reversed(IDENTITIES):
        known = sorted(getattr(member, name) for member in members if getattr(member, name))
        if known:
            digest = hashlib.sha256(f"{seed}/{name}/{known[0]}".encode()).digest()
            return int.from_bytes(digest[:8], "big") / 2**64
    raise ValueError(f"{members[0].image}: a record without sha256 cannot be assigned to a split")


def _drawn(lot: float, shares: dict[str, float]) -> str:
    """The split whose interval of [0, 1) holds the lot; train has what the others leave."""
    for name, share in shares.items():
        if lot < share:
            return name
        lot -= share
    return "train"


def _filled(label: str, drawn: dict[int, str], wanted: Sequence[str], lots: dict[int, float]) -> dict[int, str]:
    """The drawn splits of one class, with a group moved into each split that chance left empty (small sets only)."""
    if len(drawn) < len(wanted):
        raise UserError(
            f"class {label!r}: {len(drawn)} distinct images are too few for {', '.join(wanted)}; add images"
        )
    for name in wanted:
        if name not in drawn.values():
            fullest = max(wanted, key=list(drawn.values()).count)
            moved = min((group for group in drawn if drawn[group] == fullest), key=lots.get)
            drawn = {**drawn, moved: name}
    return drawn
