"""From images to records with scores: what real images say is usual, then each image against it.

Place in the flow: real images -> `measure_reference`; a manifest -> measurements -> `score` -> `judging`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dermjax.curation import measurements, rules
from dermjax.curation.label_score import LabelScorer
from dermjax.curation.rules import Palette, Rule, Thresholds
from dermjax.data.leaks import copies
from dermjax.data.phantoms.captions import Requested, parse_prompt
from dermjax.data.records import Manifest, Record
from dermjax.evaluation.features import BLOCK, MIRRORED, FeatureExtractor, Space, nearest, space_of
from dermjax.progress import say

NO_SKIN = 180.0  # degrees off, where a tone is requested and there is no skin
HELD_OUT = "validation"  # real images that the generator has not seen and that no result is measured on


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What images are scored against: the rules, the palette, the training images' hashes uint64 [M, 8, 4] and their
    features with those of their mirror images in their `space`, float32 [2 M, D]; None where no network is given."""

    rules: tuple[Rule, ...]
    palette: Palette
    hashes: np.ndarray
    features: np.ndarray | None = None
    space: Space | None = None


@dataclass(frozen=True)
class Networks:
    """The networks that judge images besides what is measured: of their label, and of their likeness; None for none."""

    label: LabelScorer | None
    likeness: FeatureExtractor | None


def derive_reference(
    thresholds: Thresholds,
    noted: Collection[str],
    scores: Sequence[Mapping[str, float]],
    hashes: np.ndarray,
    distances: np.ndarray,
    probabilities: np.ndarray,
    similarities: np.ndarray,
) -> Reference:
    """The reference that follows from training images' scores and hashes; the others are as `rules.calibrate` says."""
    palette = rules.palette(scores)
    limits = rules.calibrate(thresholds, noted, scores, distances, probabilities, similarities, palette)
    return Reference(rules=limits, palette=palette, hashes=hashes)


def measure_reference(
    real: Manifest,
    size: int,
    sample: int,
    thresholds: Thresholds,
    noted: Collection[str],
    networks: Networks,
    tick: Callable[[], None],
) -> Reference:
    """The reference of the training split and of held-out images, up to `sample` of each, evenly spaced.

    Where there are no held-out images, training images stand for them, how far each is from the nearest other, and no
    rule is on the label. All training images are hashed.
    """
    training, held_out = real.split("train"), real.split(HELD_OUT)
    measured = measurements.measure_real(real, training, size, tick)
    hashes, chosen = np.stack([each.hashes for each in measured]), _evenly_spaced(len(training), sample)
    if held_out:
        others = [held_out[index] for index in _evenly_spaced(len(held_out), sample)]
        upright = np.stack([each.hashes[0] for each in measurements.measure_real(real, others, size, tick)])
        distances = copies.nearest(upright, hashes)
    else:
        distances = copies.nearest_other(hashes, chosen)
    label, network, similarities = networks.label, networks.likeness, np.empty(0)
    features = space = None
    # of training images it is sure as it has learnt them, and of classes that it does not know it says nothing
    judged = [record for record in held_out if label and record.label in label.classifier.labels]
    probabilities = label.probabilities(real, judged) if label else np.empty(0)
    if network:
        features = features_of(network, real, training, mirrored=True)
        space = space_of(features)
        features = space.unit(features)
        unseen = space.unit(features_of(network, real, held_out, mirrored=False)) if held_out else None
        similarities = nearest_other(features) if unseen is None else nearest(unseen, features)[0]
    scores = [measured[index].scores for index in chosen]
    reference = derive_reference(thresholds, noted, scores, hashes, distances, probabilities, similarities)
    if label and not any(rule.score == "label" for rule in reference.rules):
        why = f"it is as sure as numbers go of every {HELD_OUT} image" if judged else f"no {HELD_OUT} images"
        say(f"curate: {why}, so that no limit of the label is known: scores have it, and no image is rejected for it")
    return replace(reference, features=features, space=space)


def score(
    manifest: Manifest,
    size: int,
    reference: Reference,
    networks: Networks,
    folder: Path,
    tick: Callable[[], None],
) -> tuple[tuple[Record, ...], np.ndarray]:
    """The records with every score of an image by itself, and their hashes uint64 [N, 8, 4] (see `judging`)."""
    records = manifest.records
    measured = measurements.measure_all(manifest, records, size, folder, tick)
    requested = [parse_prompt(record.generation.get("prompt", "")) for record in records]
    scores = []
    for each, wanted in zip(measured, requested, strict=True):
        added = {"colour_cast": reference.palette.cast(each.scores)} | deviations(wanted, each.scores)
        scores.append(each.scores | measurements.rounded(added))
    hashes = np.stack([each.hashes for each in measured])
    _add(scores, "training_copy", copies.nearest(hashes[:, 0], reference.hashes))
    if networks.label:
        _add(scores, "label", networks.label.probabilities(manifest, records))
    if networks.likeness:
        features = reference.space.unit(features_of(networks.likeness, manifest, records, mirrored=False))
        _add(scores, "training_likeness", nearest(features, reference.features)[0])
    scored = (replace(each, scores=each.scores | found) for each, found in zip(records, scores, strict=True))
    return tuple(scored), hashes


def deviations(requested: Requested, scores: Mapping[str, float]) -> dict[str, float]:
    """How far an image is from what its prompt requests, as scores; nothing where nothing is requested."""
    off = {}
    if requested.number:
        off["number_off"] = requested.number_off(scores["lesions"])
    if requested.tone:
        off["tone_off"] = requested.tone_off(scores["ita"]) if "ita" in scores else NO_SKIN
    return off


def _add(scores: list[dict[str, float]], name: str, values: np.ndarray) -> None:
    for each, value in zip(scores, values.tolist(), strict=True):
        each |= measurements.rounded({name: value})


def _evenly_spaced(count: int, sample: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(sample, count)).round().astype(int))


def features_of(
    network: FeatureExtractor, manifest: Manifest, records: Sequence[Record], *, mirrored: bool
) -> np.ndarray:
    """The features of images, float32 [N, D], and then those of their mirror images: [2 N, D]."""
    views = ("", MIRRORED) if mirrored else ("",)  # tuning shows both
    return np.concatenate([network.features(manifest, records, view=view) for view in views])


def nearest_other(training: np.ndarray) -> np.ndarray:
    """The similarity of each of M training images to the nearest other one, of [2 M, D] with their mirror images."""
    count, blocks = len(training) // 2, []
    for start in range(0, count, BLOCK):
        index = np.arange(start, min(start + BLOCK, count))
        alike = training[index] @ training.T
        alike[index - start, index] = alike[index - start, index + count] = -1
        blocks.append(alike.max(1))
    return np.concatenate(blocks)
