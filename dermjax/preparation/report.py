"""The page of `prepare`: what was found, what was left out and why, and what the images look like."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dermjax.data.pictures import picture
from dermjax.data.records import SPLITS, Manifest, Record
from dermjax.page import fill

TEMPLATE = Path(__file__).with_name("report.html.jinja")
SAMPLES = 9  # pictures of each class and split
PAIRS = 12  # near-duplicates shown
ROWS = 200  # lines of a long list


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was left out, (image, reason) and paths, and the near-duplicates: int [P, 3], two records and the bits."""

    skipped: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...]
    near: np.ndarray


def across_splits(manifest: Manifest, near: np.ndarray) -> list[tuple[Record, Record, int]]:
    """The near-duplicates whose images stand in two splits: a leak that equal bytes did not show."""
    return [pair for pair in _pairs(manifest, near) if pair[0].split != pair[1].split]


def page(manifest: Manifest, findings: Findings, config: dict) -> bytes:
    """The report as one self-contained HTML file in UTF-8."""
    splits = [name for name in SPLITS if manifest.split(name)]
    leaking = across_splits(manifest, findings.near)
    html = fill(
        TEMPLATE,
        {},
        config=config,
        root=manifest.root,
        labels=manifest.labels,
        splits=splits,
        counts={name: _counts(manifest, name) for name in splits},
        samples={(label, name): _samples(manifest, label, name) for label in manifest.labels for name in splits},
        near=len(findings.near),
        leaking=len(leaking),
        pairs=[
            (*(picture(manifest, record, f"{record.image} ({record.split})") for record in pair[:2]), pair[2])
            for pair in (leaking or _pairs(manifest, findings.near))[:PAIRS]
        ],
        skipped=findings.skipped,
        ignored=findings.ignored,
        rows=ROWS,
    )
    return html.encode("utf-8", "backslashreplace")  # file names need not be UTF-8


def _pairs(manifest: Manifest, near: np.ndarray) -> list[tuple[Record, Record, int]]:
    return [(manifest.records[one], manifest.records[other], bits) for one, other, bits in near.tolist()]


def _counts(manifest: Manifest, split: str) -> list[int]:
    held = [record.label for record in manifest.split(split)]
    return [held.count(label) for label in manifest.labels]


def _samples(manifest: Manifest, label: str, split: str) -> list[dict]:
    """Pictures spread evenly over the records of a class and split."""
    held = [record for record in manifest.split(split) if record.label == label]
    chosen = np.unique(np.linspace(0, len(held) - 1, min(SAMPLES, len(held))).round().astype(int))
    return [picture(manifest, held[row], held[row].attributes.get("caption", held[row].image)) for row in chosen]
