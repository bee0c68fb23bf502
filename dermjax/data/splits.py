"""Which image is for training, validation or test, without leaks: what shows one lesion stays in one split.

One member decides for its group of images: of those with the widest known identity, patient before lesion before bytes,
the first in order. A hash of that identity and the seed is the group's lot in [0, 1), which gives its split. So a group
keeps its split when other groups come and go, when images are renamed or reordered, and when more photographs of the
patient or lesion that decides join it. An image with an identity that comes first decides from then on, and takes the
group to where it would be alone. No rule that knows only the images can do better: if one more member never moved a
group, {a}, {a, b} and {b} would be in one split, for any a and b. What an earlier manifest placed stays there.

The same thresholds hold for every class, hence the classes are divided alike up to chance; a split that chance leaves
without a class is given one of its groups. Stratified, a group's lot is its rank within its class and source, so that
shares are exact; then an image keeps its split only because an earlier manifest has it there.
"""

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dermjax.data.leaks import duplicates
from dermjax.data.records import SPLITS, Record
from dermjax.errors import UserError

IDENTITIES = ("sha256", "lesion_id", "patient_id")
ORIGINAL = "copied_from"  # the attribute of an altered copy that has the digest of the photograph that it shows
COPY = "near_duplicate_of_evaluation"  # why a training image is set aside
SYNTHETIC = "synthetic"  # why an archive's image is set aside: real ones are mixed with a generator's by `classify`
SHOWN = 5  # pairs in a message
ISIC_ID = re.compile(r"ISIC_\d{7}(?!\d)")  # one photograph has one, in whichever challenge or archive it is found


@dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """How images are divided.

    validation, test: shares of what they are carved from. rotation: where on the circle of lots the test share begins,
    fold / folds for a fold. folds: how many there are, 0 for none. stratified: whether the shares are exact within each
    class and source.
    """

    validation: float
    test: float
    seed: int
    rotation: float
    folds: int
    stratified: bool


def identities(record: Record) -> list[tuple[str, str]]:
    """What ties a record to others: its bytes, and those that it is a copy of, its lesion, its patient, its number in
    the ISIC archive, as known, and the publisher's list of duplicates that it stands in.

    Names that differ in case, blanks or characters that nobody sees are taken as one: a tie too many does no harm.
    """
    known = [(name, spelled_alike(getattr(record, name))) for name in IDENTITIES if getattr(record, name)]
    duplicates, name = record.attributes.get("duplicates"), record.attributes.get("linked_as", record.image)
    known += [("duplicates", duplicates)] if duplicates else []
    known += [("sha256", record.attributes[ORIGINAL])] if ORIGINAL in record.attributes else []
    return known + [("isic_id", number) for number in ISIC_ID.findall(name)[-1:]]


def spelled_alike(name: str) -> str:
    """A name without what people do not see: case, blanks, the bytes of an accent, marks without width."""
    if name.isascii():
        return " ".join(name.casefold().split())
    seen = "".join(each for each in unicodedata.normalize("NFC", name) if unicodedata.category(each) != "Cf")
    return " ".join(seen.casefold().split())


def placements(records: Sequence[Record]) -> dict[tuple[str, str], str]:
    """The split of each identity of what an earlier manifest keeps, which new images of the same lesion then join;
    UserError for a copy without hairs that does not say of which photograph it is."""
    unknown = [each.image for each in records if "hairs_removed" in each.attributes and ORIGINAL not in each.attributes]
    if unknown:
        raise UserError(f"config.previous: {unknown[0]} is a copy without hairs by an older version, which did not say "
                        "of which photograph; prepare it once more")  # fmt: skip
    return {identity: record.split for record in records if record.kept for identity in identities(record)}


def divide(
    records: Sequence[Record], near: np.ndarray, settings: SplitSettings, previous: Mapping[tuple[str, str], str]
) -> tuple[Record, ...]:
    """The records with their splits, see `assign`; synthetic ones and copies of evaluation images are rejected.

    near: int [P, >= 2], the rows of near-duplicates, which stay together. Raises UserError where one image has two
    classes, the splits that one source gives share a lesion, a class has fewer lesions than folds or splits, or folds
    are asked for of images with a test split.
    """
    records = tuple(
        replace(record, split="train", rejected=(SYNTHETIC,)) if record.synthetic else record for record in records
    )
    if settings.folds and (tested := next((each for each in records if each.split == "test"), None)):
        raise UserError(f"config.folds = {settings.folds}: {tested.image} is in a test split of its own, which every "
                        "fold would share; leave config.folds out")  # fmt: skip
    refuse_contradictions(records)
    refuse_leaks(records)
    groups = duplicates.group(near, [identities(record) for record in records])
    lesions = {(record.label, group) for record, group in zip(records, groups.tolist(), strict=True) if record.kept}
    for label, count in sorted(Counter(label for label, _ in lesions).items()):
        if count < settings.folds:  # two folds would have to test one image
            folds = f"config.folds = {settings.folds}"
            raise UserError(f"{folds}: class {label!r} has {count} distinct lesions; give no more")
    return _without_copies(assign(records, groups, settings, previous), groups)


def assign(
    records: Sequence[Record],
    groups: np.ndarray,
    settings: SplitSettings,
    previous: Mapping[tuple[str, str], str],
) -> tuple[Record, ...]:
    """The records with their splits: given ones stay, missing ones are carved out of the rest, group by group.

    groups: int [N], equal for records that must stay together. A split that a source has is not carved out of it.
    previous: the `placements` of an earlier manifest. Rejected records take no part. Raises UserError for a class that
    has too few groups, and for a group that ties images which the earlier manifest has on two sides.
    """
    given = {(record.source, record.split) for record in records}
    sources = sorted({record.source for record in records})
    wanted = [(name, share) for name, share in (("test", settings.test), ("validation", settings.validation)) if share]
    shares = {source: {name: share for name, share in wanted if (source, name) not in given} for source in sources}
    carved = [name for name, _ in wanted if all(name in open_shares for open_shares in shares.values())]
    open_groups = defaultdict(list)
    for record, group in zip(records, groups.tolist(), strict=True):
        if _is_open(record):
            open_groups[group].append(record)
    kept = {group: _previous_side(members, previous) for group, members in open_groups.items()}
    deciding = {group: _deciding(members) for group, members in open_groups.items() if not kept[group]}
    lots = {group: _lot(member, settings.seed) for group, member in deciding.items()}
    if settings.stratified:
        lots = _ranks(lots, deciding, {group: len(open_groups[group]) for group in lots})
    lots = {group: (lot - settings.rotation) % 1 for group, lot in lots.items()}
    drawn = {group: side for group, side in kept.items() if side}
    drawn |= {group: _drawn(lot, shares[deciding[group].source]) for group, lot in lots.items()}
    for label in sorted({record.label for record in records if record.kept}):
        of_class = [group for group, members in open_groups.items() if label in {member.label for member in members}]
        drawn |= _filled(label, {group: drawn[group] for group in of_class}, ["train", *carved], lots)
    return tuple(
        replace(record, split=drawn[group]) if _is_open(record) else record
        for record, group in zip(records, groups.tolist(), strict=True)
    )


def refuse_contradictions(records: Sequence[Record]) -> None:
    """UserError when the same bytes stand under two labels: one of them is wrong, and we cannot know which."""
    first, pairs = {}, []
    for record in records:
        other = first.setdefault(record.sha256, record)
        if other.label != record.label:
            pairs.append(f"{other.image} and {record.image}")
    if pairs:
        raise UserError(f"the same image under two classes: {_listed(pairs)}; remove one of each")


def refuse_leaks(records: Sequence[Record]) -> None:
    """UserError when the same bytes, lesion or patient stand in two splits that one source gives, naming both images.

    Of several sources none is wrong: what they share is for the caller to set aside.
    """
    first, pairs = {}, {}
    for record in (record for record in records if record.kept and record.split):
        for identity in identities(record):
            other = first.setdefault((record.source, identity), record)
            if other.split != record.split:
                pair = f"{other.image} ({other.split}) and {record.image} ({record.split})"
                pairs.setdefault(identity[0], []).append(pair)
    for what, of_kind in pairs.items():
        raise UserError(f"the same {what} in two splits: {_listed(of_kind)}; remove one of each or move it")


def _listed(pairs: Sequence[str]) -> str:
    more = f" and {len(pairs) - SHOWN} more" if len(pairs) > SHOWN else ""
    return ", ".join(pairs[:SHOWN]) + more


def _without_copies(assigned: tuple[Record, ...], groups: np.ndarray) -> tuple[Record, ...]:
    """The records, those rejected that show what images of a later split do (given splits only)."""
    order = [SPLITS.index(record.split) for record in assigned]
    latest = np.zeros(groups.max(initial=-1) + 1, int)
    np.maximum.at(latest, groups, order)
    return tuple(
        replace(record, rejected=(COPY,)) if record.kept and split < latest[group] else record
        for record, split, group in zip(assigned, order, groups.tolist(), strict=True)
    )


def _is_open(record: Record) -> bool:
    return record.kept and record.split in ("", "train")


def _widest(record: Record) -> tuple[str, str]:
    """A record's widest known identity and its name: patient, else lesion, else bytes."""
    return next((name, getattr(record, name)) for name in reversed(IDENTITIES) if getattr(record, name))


def _deciding(members: Sequence[Record]) -> Record:
    """The member that decides for its group, whatever the order of the records."""

    def order(member: Record) -> tuple:
        name, identity = _widest(member)
        return -IDENTITIES.index(name), identity, member.source, member.sha256

    return min(members, key=order)


def _lot(member: Record, seed: int) -> float:
    """The random number in [0, 1) of the group that a member decides for."""
    name, identity = _widest(member)
    digest = hashlib.sha256(f"{seed}/{name}/{identity}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _previous_side(members: Sequence[Record], previous: Mapping[tuple[str, str], str]) -> str:
    """The side on which an earlier manifest has a group, "" where it is new."""
    sides = {
        previous[identity]: member for member in members for identity in identities(member) if identity in previous
    }
    if len(sides) > 1:
        names = " and ".join(f"{member.image} ({side})" for side, member in sorted(sides.items()))
        raise UserError(
            f"{names} were on two sides in the earlier manifest and show the same; leave out what ties them"
        )
    return next(iter(sides), "")


def _ranks(lots: Mapping[int, float], deciding: Mapping[int, Record], images: Mapping[int, int]) -> dict[int, float]:
    """Each group's rank among its class and source, counted in images and in order of the lots, in [0, 1)."""
    strata = defaultdict(list)
    for group in sorted(lots, key=lots.get):
        strata[deciding[group].label, deciding[group].source].append(group)
    ranks = {}
    for stratum in strata.values():
        sizes = np.array([images[group] for group in stratum])
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
