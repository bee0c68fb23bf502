"""Which scores speak against an image: one limit a score, the same for every class.

Artefacts go with labels in real data, so a rule that knew the class could make the classes differ by curation alone.
Limits of artefacts are the config's own, measured on phantoms and looked at on photographs (calibration.json). Limits
of what is usual (contrast, structure, colour, distance of copies) come from the generator's own real images, so that
phantoms and photographs are each judged by their like.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

# Of limits and reasons, for curated manifests: raise it where the same scores are judged otherwise
NUMERIC_VERSION = 1
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
    "other_class": "a classifier trained on real images sees another class",
    "near_duplicate": "nearly equal to an earlier image of the set",
    "training_copy": "nearly equal to a training image",
    "person": "a person said so",
}


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

    def speaks_against(self, scores: dict[str, float]) -> bool:
        """Whether the score is on the wrong side."""
        if self.score not in scores:
            return False
        value = scores[self.score]
        return value >= self.limit if self.high else value <= self.limit


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

    def cast(self, scores: dict[str, float]) -> float:
        """The Mahalanobis distance of an image's mean colour from the centre: 1 is usual, 3 is rare."""
        offset = _chroma([scores])[0] - self.centre
        return float(np.sqrt(offset @ self.precision @ offset))


def palette(training: list[dict[str, float]]) -> Palette:
    """The palette of the training images' scores."""
    chroma = _chroma(training)
    # one unit of L*a*b* cannot be seen: it is the least spread that counts, and makes two images enough
    covariance = np.cov(chroma.T, bias=True) + np.eye(2)
    return Palette(centre=np.median(chroma, axis=0), precision=np.linalg.inv(covariance))


def fixed(thresholds: Thresholds, noted: Collection[str]) -> tuple[Rule, ...]:
    """The rules whose limits no image decides; reasons that are `noted` do not reject."""
    limits = (
        ("blur", "sharpness", thresholds.sharpness, False),
        ("hairs", "hairs", thresholds.hairs, True),
        ("ruler", "ruler", thresholds.ruler, True),
        ("dark_corners", "dark_corners", thresholds.dark_corners, True),
        ("ink", "ink", thresholds.ink, True),
        ("gel", "gel", thresholds.gel, True),
        ("wrong_number", "number_off", thresholds.number, True),
        ("wrong_tone", "tone_off", thresholds.tone, True),
    )
    return _rules(limits, noted)


def calibrate(
    thresholds: Thresholds,
    noted: Collection[str],
    training: list[dict[str, float]],
    apart: np.ndarray,
    opinions: np.ndarray,
    colours: Palette,
) -> tuple[Rule, ...]:
    """All rules. apart: how far in bits held-out images are from training images; opinions: what the classifier gives
    held-out images of their own class, empty where no classifier is asked."""
    tail = thresholds.tail
    contrast, structure = (np.quantile([each[name] for each in training], tail) for name in ("contrast", "structure"))
    cast = np.quantile([colours.cast(each) for each in training], 1 - tail)
    copy = max(0, min(thresholds.bits, np.quantile(apart, tail) - 1))
    limits = (
        ("blank", "contrast", thresholds.contrast * contrast, False),
        ("noise", "structure", thresholds.structure * structure, False),
        ("colour_cast", "colour_cast", thresholds.cast * cast, True),
    )
    last = (
        *((("other_class", "label", np.quantile(opinions, thresholds.label), False),) if len(opinions) else ()),
        ("near_duplicate", "near_duplicate", copy, False),
        ("training_copy", "training_copy", copy, False),
    )
    return _rules(limits, noted) + fixed(thresholds, noted) + _rules(last, noted)


def _rules(limits: tuple, noted: Collection[str]) -> tuple[Rule, ...]:
    return tuple(
        Rule(reason=reason, score=score, limit=float(at), high=high, rejects=reason not in noted)
        for reason, score, at, high in limits
    )


def _chroma(scores: list[dict[str, float]]) -> np.ndarray:
    return np.array([[each["chroma_a"], each["chroma_b"]] for each in scores])
