"""From images to records with scores and reasons: what the training images say is usual, then each image against it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from dermjax.curation import copies, detectors, rules
from dermjax.curation.rules import MEANINGS, Palette, Rule, Thresholds
from dermjax.data import images
from dermjax.data.records import Manifest, Record


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """What images are judged by: the rules, the palette, and the training images' hashes uint64 [M, 8, 4]."""

    rules: tuple[Rule, ...]
    palette: Palette
    hashes: np.ndarray


def yardstick(
    training: Manifest,
    taken: list[Record],
    size: int,
    sample: int,
    thresholds: Thresholds,
    tick: Callable[[], None],
) -> Yardstick:
    """Calibrates on up to `sample` of the taken training records, evenly spaced; all of them are hashed."""
    chosen = np.unique(np.linspace(0, len(taken) - 1, sample).round().astype(int))
    hashes, scores, blurred = [], [], []
    for index, record in enumerate(taken):
        image = images.load(training.path(record), size)
        hashes.append(copies.hash_all_ways(image))
        if index in chosen:
            scores.append(detectors.measure(image))
            blurred.append(detectors.measure(detectors.blurred(image, thresholds.blur))["sharpness"])
        tick()
    palette = rules.palette(scores)
    apart = copies.nearest_other(np.stack(hashes), chosen)
    limits = rules.calibrated(thresholds, scores, blurred, apart, palette)
    return Yardstick(rules=limits, palette=palette, hashes=np.stack(hashes))


def judge(manifest: Manifest, size: int, by: Yardstick, tick: Callable[[], None]) -> tuple[Record, ...]:
    """The records with every score on each and the reasons against them; reasons of other judges stay.

    Near-duplicates come last: of a group, the first image that nothing else speaks against is kept.
    """
    hashes, scores = [], []
    for record in manifest.records:
        image = images.load(manifest.path(record), size)
        hashes.append(copies.hash_all_ways(image))
        measured = detectors.measure(image)
        scores.append(measured | {"colour_cast": by.palette.cast(measured)})
        tick()
    hashes = np.stack(hashes)
    _note(scores, "training_copy", copies.nearest(hashes[:, 0], by.hashes))
    duplicate = next(rule for rule in by.rules if rule.reason == "near_duplicate")
    others = [rule for rule in by.rules if rule is not duplicate]
    standing = np.array([not any(rule.speaks_against(each) for rule in others) for each in scores])
    _note(scores, "near_duplicate", copies.nearest_kept(hashes, duplicate.limit, standing))
    return tuple(_judged(record, each, by.rules) for record, each in zip(manifest.records, scores, strict=True))


def _judged(record: Record, scores: dict[str, float], by: tuple[Rule, ...]) -> Record:
    foreign = tuple(reason for reason in record.rejected if reason not in MEANINGS)
    reasons = tuple(rule.reason for rule in by if rule.speaks_against(scores))
    return replace(record, scores=record.scores | scores, rejected=foreign + reasons)


def _note(scores: list[dict[str, float]], name: str, values: np.ndarray) -> None:
    for each, value in zip(scores, values.tolist(), strict=True):
        each[name] = value
