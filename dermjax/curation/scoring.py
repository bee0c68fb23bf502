"""From images to records with scores and reasons: what real images say is usual, then each image against it."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dermjax.curation import measurements, reviews, rules
from dermjax.curation.label_score import LabelScorer
from dermjax.curation.measurements import Measurement
from dermjax.curation.reviews import Verdict
from dermjax.curation.rules import MEANINGS, Palette, Rule, Thresholds
from dermjax.data.leaks import copies
from dermjax.data.phantoms.captions import Requested, parse_prompt
from dermjax.data.records import Manifest, Record

NO_SKIN = 180.0  # degrees: where a tone is asked for and no skin is seen


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What images are judged by: the rules, the palette, and the training images' hashes uint64 [M, 8, 4]."""

    rules: tuple[Rule, ...]
    palette: Palette
    hashes: np.ndarray


def held_out(real: Manifest) -> list[Record]:
    """The real images that the generator has not seen and that nothing is judged on at last: the validation split."""
    return real.split("validation")


def measure_reference(
    real: Manifest,
    size: int,
    sample: int,
    thresholds: Thresholds,
    noted: Collection[str],
    opinion: LabelScorer | None,
    tick: Callable[[], None],
) -> Reference:
    """Calibrates on the training split and on held-out images, up to `sample` of each, evenly spaced.

    Where there are no held-out images, training images stand for them: how far each is from the nearest other. All
    training images are hashed.
    """
    training, others = real.split("train"), held_out(real)
    seen = measurements.measure_real(real, training, size, tick)
    hashes = np.stack([each.hashes for each in seen])
    chosen = _spread(len(training), sample)
    scores = [seen[index].scores for index in chosen]
    if others:
        unseen = measurements.measure_real(real, [others[index] for index in _spread(len(others), sample)], size, tick)
        apart = copies.nearest(np.stack([each.hashes[0] for each in unseen]), hashes)
    else:
        apart = copies.nearest_other(hashes, chosen)
    opinions = opinion.of(real, others or training) if opinion else np.empty(0)
    palette = rules.palette(scores)
    limits = rules.calibrate(thresholds, noted, scores, apart, opinions, palette)
    return Reference(rules=limits, palette=palette, hashes=hashes)


def score(
    manifest: Manifest,
    size: int,
    by: Reference,
    opinion: LabelScorer | None,
    said: dict[str, Verdict],
    folder: Path,
    tick: Callable[[], None],
) -> tuple[Record, ...]:
    """The records with every score on each and the reasons against them; reasons of other judges stay.

    Near-duplicates come last: of a group, the first image that nothing else speaks against is kept. What a person said
    comes after everything.
    """
    looks = measurements.measure_all(manifest, manifest.records, size, folder, tick)
    asked = [parse_prompt(record.generation.get("prompt", "")) for record in manifest.records]
    scores = [_scores(look, wanted, by.palette) for look, wanted in zip(looks, asked, strict=True)]
    hashes = np.stack([look.hashes for look in looks])
    _note(scores, "training_copy", copies.nearest(hashes[:, 0], by.hashes))
    if opinion:
        _note(scores, "label", opinion.of(manifest, manifest.records))
    people = [reviews.verdict_on(record, said) for record in manifest.records]
    duplicate = next(rule for rule in by.rules if rule.reason == "near_duplicate")
    others = [rule for rule in by.rules if rule.rejects and rule is not duplicate]
    sound = [not _reasons(each, wanted, others) for each, wanted in zip(scores, asked, strict=True)]
    standing = np.array([person.keep if person else fine for person, fine in zip(people, sound, strict=True)])
    _note(scores, "near_duplicate", copies.nearest_kept(hashes, duplicate.limit, standing))
    rejecting = [rule for rule in by.rules if rule.rejects]
    judged = (
        _judged(record, each, _reasons(each, wanted, rejecting))
        for record, each, wanted in zip(manifest.records, scores, asked, strict=True)
    )
    return tuple(reviews.apply(record, person) for record, person in zip(judged, people, strict=True))


def deviations(asked: Requested, scores: dict[str, float]) -> dict[str, float]:
    """How far an image is from what its prompt asks for, as scores of their own; nothing where nothing is asked."""
    found = {}
    if asked.number:
        found["number_off"] = asked.number_off(scores["lesions"])
    if asked.tone:
        found["tone_off"] = asked.tone_off(scores["ita"]) if "ita" in scores else NO_SKIN
    return found


def _scores(look: Measurement, asked: Requested, palette: Palette) -> dict[str, float]:
    return look.scores | measurements.rounded(
        {"colour_cast": palette.cast(look.scores)} | deviations(asked, look.scores)
    )


def _reasons(scores: dict[str, float], asked: Requested, by: Collection[Rule]) -> tuple[str, ...]:
    """The reasons of the rules that speak against an image; an artefact that was asked for is none."""
    return tuple(rule.reason for rule in by if rule.speaks_against(scores) and rule.reason not in asked.artefacts)


def _judged(record: Record, scores: dict[str, float], reasons: tuple[str, ...]) -> Record:
    foreign = tuple(reason for reason in record.rejected if reason not in MEANINGS)
    return replace(record, scores=record.scores | scores, rejected=foreign + reasons)


def _note(scores: list[dict[str, float]], name: str, values: np.ndarray) -> None:
    for each, value in zip(scores, values.tolist(), strict=True):
        each |= measurements.rounded({name: value})


def _spread(count: int, sample: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, sample).round().astype(int))
