"""The page of `prepare`: how many images there are, what was left out and why, and what they look like."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dermjax.data.leaks import duplicates
from dermjax.data.records import SPLITS, Manifest, Record
from dermjax.data.thumbnails import Thumbnail, evenly_spaced, thumbnail
from dermjax.page import fill

TEMPLATE = Path(__file__).with_name("report.html.jinja")
SAMPLES = 9  # images shown of each class and split
GROUPS = 12  # of near-duplicates shown, those in two splits first
MEMBERS = 9  # images shown of each group
SHOWN = ("age_band", "sex", "site", "device", "fitzpatrick")
VALUES = 8  # of an attribute
ROWS = 200  # lines of a long list


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was left out, (path, reason), and the near-duplicates: int [P, 3], two records and the bits that differ."""

    skipped: tuple[tuple[str, str], ...]
    ignored: tuple[tuple[str, str], ...]
    near: np.ndarray


def page(manifest: Manifest, findings: Findings, config: dict) -> bytes:
    """The report as one self-contained HTML file in UTF-8."""
    splits = [name for name in SPLITS if manifest.split(name)]
    groups = _groups(manifest, findings.near)
    groups.sort(key=lambda group: (not _differ(group, "label"), not _differ(group, "split")))  # faults come first
    labels_of = {name: [record.label for record in manifest.split(name)] for name in splits}
    html = fill(
        TEMPLATE,
        {},
        config=config,
        labels=manifest.labels,
        splits=splits,
        counts={name: [labels.count(label) for label in manifest.labels] for name, labels in labels_of.items()},
        samples={(label, name): _samples(manifest, label, name) for label in manifest.labels for name in splits},
        copies=sum(map(len, groups)),
        groups=len(groups),
        leaking=sum(_differ(group, "split") for group in groups),
        doubtful=len(contradictions(manifest, findings.near)),
        shown=[
            [thumbnail(manifest, each, f"{each.image} ({each.split}, {each.label})") for each in group[:MEMBERS]]
            for group in groups[:GROUPS]
        ],
        aside=Counter(reason for record in manifest.records for reason in record.rejected),
        changes=Counter(change for record in manifest.records for change in record.attributes.get("decoded", ())),
        known=_known(manifest),
        artefacts=_artefacts(manifest),
        skipped=findings.skipped,
        ignored=findings.ignored,
        rows=ROWS,
    )
    return html.encode("utf-8", "backslashreplace")  # file names need not be UTF-8


def contradictions(manifest: Manifest, near: np.ndarray) -> list[tuple[Record, Record]]:
    """The pairs of near-duplicates that stand under two classes."""
    pairs = [(manifest.records[one], manifest.records[other]) for one, other in near[:, :2].tolist()]
    return [pair for pair in pairs if _differ(pair, "label")]


def _groups(manifest: Manifest, near: np.ndarray) -> list[list[Record]]:
    """The records of each group of near-duplicates, in order of their first."""
    members = defaultdict(list)
    tied = set(near[:, :2].ravel().tolist())
    for row, group in enumerate(duplicates.group(near, [[]] * len(manifest.records)).tolist()):
        if row in tied:
            members[group].append(manifest.records[row])
    return list(members.values())


def _differ(records: Sequence[Record], field: str) -> bool:
    return len({getattr(record, field) for record in records}) > 1


def _known(manifest: Manifest) -> dict[str, dict[str, int]]:
    """How many kept images have each value of each attribute that has few values, the most frequent first."""
    kept = [record.attributes for record in manifest.records if record.kept]
    values = {name: Counter(filter(None, (attributes.get(name) for attributes in kept))) for name in SHOWN}
    tones = [attributes["skin_tone"] for attributes in kept if "skin_tone" in attributes]
    values["skin tone"] = Counter(tone.get("group", "uncertain") for tone in tones)
    return {name: dict(counts.most_common(VALUES)) for name, counts in values.items() if counts}


def _artefacts(manifest: Manifest) -> dict[str, list[float]]:
    """The mean score of each artefact in each class, over the kept images that were measured."""
    kept = [record for record in manifest.records if record.kept and record.scores]
    names = sorted({name for record in kept for name in record.scores})
    of_class = {label: [record.scores for record in kept if record.label == label] for label in manifest.labels}
    if not kept or not all(of_class.values()):
        return {}
    return {name: [float(np.mean([each[name] for each in scores])) for scores in of_class.values()] for name in names}


def _samples(manifest: Manifest, label: str, split: str) -> list[Thumbnail]:
    """Thumbnails spread evenly over the records of a class and split."""
    records = manifest.split(split, label)
    chosen = evenly_spaced(records, SAMPLES)
    return [thumbnail(manifest, each, each.attributes.get("caption", each.image)) for each in chosen]
