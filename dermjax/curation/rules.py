"""Which scores speak against an image: one limit a score, the same for every class.

Place in the flow: real images' scores and the config's thresholds -> `calibrate` -> rules -> `scoring`.

Artefacts go with labels in real data, so a rule that knew the class could make the classes differ by curation alone.
Limits of artefacts are the config's own, measured on phantoms and checked by eye on photographs (calibration.json).
Limits of what is usual (contrast, structure, colour, distance of copies) come from the generator's own real images, so
that phantoms and photographs are each measured by their like.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# Of limits and reasons, for curated manifests: raise it where the same scores have other reasons
# 3: no limit of the label without held-out images; 4: none at which the surest of them lie, and an image with a reason
# that is not curation's makes no other one a near-duplicate
NUMERIC_VERSION = 4
MEANINGS = {
    "blank": "nothing in the field has a border",
    "noise": "the field has no structure",
    "blur": "no fine detail",
    "colour_cast": "mean colour far from the training images’",
    "hairs": "strands of hair on the skin",
    "ruler": "a row of ticks along an edge",
    "dark_corners": "the black around a round aperture",
    "ink": "violet or blue pen on the skin",
    "gel": "round rims of bubbles in the gel",
    "wrong_number": "more or fewer lesions than the prompt says",
    "wrong_tone": "skin lighter or darker than the prompt says",
    "other_class": "a classifier of real images doubts its class more than that of nearly all held-out real images",
    "near_duplicate": "nearly equal to an earlier image of the set",
    "training_copy": "nearly equal to a training image",
    "training_likeness": "nearer to a training image in what a network sees than real images come",
    "person": "a person said so",
}

FROM_REAL = ("tail", "contrast", "structure", "cast", "bits")  # thresholds of limits that follow from real images


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Speaks for a reason when a score is at or below the limit, or at or above it where `high`.

    rejects: whether that counts against the image, or is only noted. A score that an image lacks says nothing.
    """

    reason: str
    score: str
    limit: float
    high: bool
    rejects: bool

    def speaks_against(self, scores: Mapping[str, float]) -> bool:
        """Whether the score is on the wrong side."""
        value = scores.get(self.score, np.nan)
        return bool(value >= self.limit if self.high else value <= self.limit)


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What a person decides; what depends on the real images follows from it and them.

    tail: the share of real images that counts as extreme. contrast, structure and cast: the limit as a multiple of the
    score at that tail. sharpness, hairs, ruler, dark_corners, ink, gel: the limit of the score itself. number: lesions,
    and tone: degrees of the typology angle, that an image may not be away from what its prompt says. label: the share
    of held-out real images whose own class gets a probability at or below the limit. bits: the largest hash distance of
    a copy, of 256; where held-out images lie closer, it shrinks to below them.
    """

    tail: float
    contrast: float
    structure: float
    cast: float
    sharpness: float
    hairs: float
    ruler: float
    dark_corners: float
    ink: float
    gel: float
    number: float
    tone: float
    label: float
    bits: int


@dataclass(frozen=True, kw_only=True)
class Palette:
    """The mean colours of the training images: their centre (a*, b*) and the inverse of their covariance."""

    centre: np.ndarray
    precision: np.ndarray

    def cast(self, scores: Mapping[str, float]) -> float:
        """The Mahalanobis distance of an image's mean colour from the centre: 1 is usual, 3 is rare."""
        offset = _chroma([scores])[0] - self.centre
        return float(np.sqrt(offset @ self.precision @ offset))


def palette(training: Sequence[Mapping[str, float]]) -> Palette:
    """The palette of the training images' scores."""
    chroma = _chroma(training)
    # one unit of L*a*b* cannot be seen: it is the least spread that counts, and makes two images enough
    covariance = np.cov(chroma.T, bias=True) + np.eye(2)
    return Palette(centre=np.median(chroma, axis=0), precision=np.linalg.inv(covariance))


def fixed(thresholds: Thresholds, noted: Collection[str]) -> tuple[Rule, ...]:
    """The rules whose limits no image decides; reasons that are `noted` do not reject."""
    artefacts = ("hairs", "ruler", "dark_corners", "ink", "gel")
    return (
        _rule("blur", "sharpness", thresholds.sharpness, False, noted),
        *(_rule(name, name, getattr(thresholds, name), True, noted) for name in artefacts),
        _rule("wrong_number", "number_off", thresholds.number, True, noted),
        _rule("wrong_tone", "tone_off", thresholds.tone, True, noted),
    )


def calibrate(
    thresholds: Thresholds,
    noted: Collection[str],
    training: Sequence[Mapping[str, float]],
    distances: np.ndarray,
    probabilities: np.ndarray,
    similarities: np.ndarray,
    colours: Palette,
) -> tuple[Rule, ...]:
    """All rules, by the scores of training images.

    distances: how far in bits held-out images are from training images. probabilities: what the classifier gives
    held-out images' own classes, empty where there are none or no classifier. similarities: how alike held-out images
    are to training images in their features, empty where there is no network for them.
    """
    tail = thresholds.tail
    contrast, structure = (np.quantile([each[name] for each in training], tail) for name in ("contrast", "structure"))
    cast = np.quantile([colours.cast(each) for each in training], 1 - tail)
    copy = max(0, min(thresholds.bits, np.quantile(distances, tail) - 1))
    label = _label_limit(probabilities, thresholds.label)
    likeness = np.quantile(similarities, 1 - tail) if len(similarities) else None
    return (
        _rule("blank", "contrast", thresholds.contrast * contrast, False, noted),
        _rule("noise", "structure", thresholds.structure * structure, False, noted),
        _rule("colour_cast", "colour_cast", thresholds.cast * cast, True, noted),
        *fixed(thresholds, noted),
        *([] if label is None else [_rule("other_class", "label", label, False, noted)]),
        _rule("near_duplicate", "near_duplicate", copy, False, noted),
        _rule("training_copy", "training_copy", copy, False, noted),
        *([] if likeness is None else [_rule("training_likeness", "training_likeness", likeness, True, noted)]),
    )


def _label_limit(probabilities: np.ndarray, share: float) -> float | None:
    """The probability of its own class that a share of held-out images lie at or below, None where they tell nothing.

    A classifier may be as sure of nearly all of them as numbers go: what it is as sure of is never doubted.
    """
    doubted = probabilities[probabilities < probabilities.max(initial=0)]
    return min(np.quantile(probabilities, share), doubted.max()) if len(doubted) else None


def _rule(reason: str, score: str, limit: float, high: bool, noted: Collection[str]) -> Rule:
    return Rule(reason=reason, score=score, limit=float(limit), high=high, rejects=reason not in noted)


def _chroma(scores: Sequence[Mapping[str, float]]) -> np.ndarray:
    return np.array([[each["chroma_a"], each["chroma_b"]] for each in scores])
