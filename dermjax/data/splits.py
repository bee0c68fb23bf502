"""Which image is for training, validation or test, without leaks: what shows one lesion stays on one side.

The side of a group of images is drawn by a hash of its identity and the seed, its lot in [0, 1), so an image keeps its
side when others are added, renamed or removed. The same thresholds hold for every class, hence the classes are divided
alike up to chance. Stratified, a group's lot is its rank within its class and source, so that shares are exact; then
an image keeps its side only because an earlier manifest says so. What an earlier manifest placed stays in either case.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from dermjax.data.records import Record
from dermjax.errors import UserError

IDENTITIES = ("sha256", "lesion_id", "patient_id")
ISIC_ID = re.compile(r"ISIC_\d{7}(?!\d)")  # one photograph has one, in whichever challenge or archive it is found


def identities(record: Record) -> list[tuple[str, str]]:
    """What ties a record to others: its bytes, its lesion, its patient, its number in the ISIC archive, as known."""
    known = [(name, getattr(record, name)) for name in IDENTITIES if getattr(record, name)]
    return known + [("isic_id", number) for number in ISIC_ID.findall(record.image)[-1:]]


def placements(records: Sequence[Record]) -> dict[tuple[str, str], str]:
    """The split of each identity of what an earlier manifest keeps, which new images of the same lesion then join."""
    return {identity: record.split for record in records if record.kept for identity in identities(record)}


def assign(
    records: Sequence[Record],
    groups: np.ndarray,
    *,
    validation: float,
    test: float,
    seed: int,
    turn: float,
    stratified: bool,
    placed: Mapping[tuple[str, str], str],
) -> tuple[Record, ...]:
    """The records with their splits: given ones stay, missing ones are carved out of the rest, group by group.

    groups: int [N], equal for records that must stay together. validation, test: shares of what they are carved from;
    a split that a source has is not carved out of it. turn: where on the circle of lots the test share begins, fold /
    folds for a fold. placed: of an earlier manifest. Rejected records take no part. Raises UserError for a class that
    has too few groups, and for a group that ties images which the earlier manifest has on two sides.
    """
    given = {(record.source, record.split) for record in records}
    sources = sorted({record.source for record in records})
    wanted = [(name, share) for name, share in (("test", test), ("validation", validation)) if share]
    shares = {of: {name: share for name, share in wanted if (of, name) not in given} for of in sources}
    carved = [name for name, _ in wanted if all(name in of_source for of_source in shares.values())]
    open_groups = defaultdict(list)
    for record, group in zip(records, groups.tolist(), strict=True):
        if _is_open(record):
            open_groups[group].append(record)
    kept = {group: _placed(members, placed) for group, members in open_groups.items()}
    lots = {group: _lot(members, seed) for group, members in open_groups.items() if not kept[group]}
    if stratified:
        lots = _ranks(lots, open_groups)
    lots = {group: (lot - turn) % 1 for group, lot in lots.items()}
    drawn = {group: side for group, side in kept.items() if side}
    drawn |= {group: _drawn(lot, shares[open_groups[group][0].source]) for group, lot in lots.items()}
    for label in sorted({record.label for record in records if record.kept}):
        of_class = [group for group, members in open_groups.items() if label in {member.label for member in members}]
        drawn |= _filled(label, {group: drawn[group] for group in of_class}, ["train", *carved], lots)
    return tuple(
        replace(record, split=drawn[group]) if _is_open(record) else record
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
    """UserError when the same bytes, lesion or patient stand in two splits that one source gives, naming both images.

    Of several sources none is wrong: what they share is for the caller to set aside.
    """
    first = {}
    for record in (record for record in records if record.kept and record.split):
        for identity in identities(record):
            other = first.setdefault((record.source, identity), record)
            if other.split != record.split:
                what, here, there = identity[0], f"{other.image} ({other.split})", f"{record.image} ({record.split})"
                raise UserError(f"the same {what} in two splits: {here} and {there}; remove one or move it")


def _is_open(record: Record) -> bool:
    return record.kept and record.split in ("", "train")


def _lot(members: Sequence[Record], seed: int) -> float:
    """The random number in [0, 1) of a group, by its widest known identity: patient, else lesion, else bytes."""
    for name in reversed(IDENTITIES):
        known = sorted(getattr(member, name) for member in members if getattr(member, name))
        if known:
            digest = hashlib.sha256(f"{seed}/{name}/{known[0]}".encode()).digest()
            return int.from_bytes(digest[:8], "big") / 2**64
    raise ValueError(f"{members[0].image}: a record without sha256 cannot be assigned to a split")


def _placed(members: Sequence[Record], placed: Mapping[tuple[str, str], str]) -> str:
    """The side on which an earlier manifest has a group, "" where it is new."""
    sides = {placed[identity]: member for member in members for identity in identities(member) if identity in placed}
    if len(sides) > 1:
        told = " and ".join(f"{member.image} ({side})" for side, member in sorted(sides.items()))
        raise UserError(f"{told} were on two sides in the earlier manifest and show the same; leave out what ties them")
    return next(iter(sides), "")


def _ranks(lots: Mapping[int, float], groups: Mapping[int, Sequence[Record]]) -> dict[int, float]:
    """Each group's place among its class and source, counted in images and in order of the lots, in [0, 1)."""
    strata = defaultdict(list)
    for group in sorted(lots, key=lots.get):
        strata[groups[group][0].label, groups[group][0].source].append(group)
    ranks = {}
    for stratum in strata.values():
        sizes = np.array([len(groups[group]) for group in stratum])
        ranks |= dict(zip(stratum, ((np.cumsum(sizes) - sizes / 2) / sizes.sum()).tolist(), strict=True))
    return ranks


def _drawn(lot: float, shares: dict[str, float]) -> str:
    """The split whose interval of [0, 1) holds the lot; train has what the others leave."""
    for name, share in shares.items():
        if lot < share:
            return name
        lot -= share
    return "train"


def _filled(label: str, drawn: dict[int, str], wanted: Sequence[str], lots: dict[int, float]) -> dict[int, str]:
    """The drawn splits of one class, with a new group moved into each split that chance left empty (small sets)."""
    if len(drawn) < len(wanted):
        raise UserError(
            f"class {label!r}: {len(drawn)} distinct images are too few for {', '.join(wanted)}; add images"
        )
    for name in wanted:
        if name not in drawn.values():
            movable = {group: side for group, side in drawn.items() if group in lots}
            fullest = max(wanted, key=list(movable.values()).count)
            moved = [group for group, side in movable.items() if side == fullest]
            if len([side for side in drawn.values() if side == fullest]) < 2 or not moved:
                raise UserError(f"class {label!r}: no new image is left for {name}; add images")
            drawn = {**drawn, min(moved, key=lots.get): name}
    return drawn
