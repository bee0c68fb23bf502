"""Which scores speak against an image: one limit a score, the same for every class, drawn from the training images.

Artefacts go with labels in real data, so a rule that knew the class could make the classes differ by curation alone.
Limits come from the generator's own training images, so that phantoms and photographs are each judged by their like.
"""

from dataclasses import dataclass

import numpy as np

MEANINGS = {
    "blank": "nothing in the field has a border",
    "noise": "the field has no structure",
    "blur": "no fine detail",
    "colour_cast": "mean colour far from the training images’",
    "near_duplicate": "nearly equal to an earlier image of the set",
    "training_copy": "nearly equal to a training image",
}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Rejects for a reason when a score is at or below the limit, or at or above it where `high`."""

    reason: str
    score: str
    limit: float
    high: bool

    def speaks_against(self, scores: dict[str, float]) -> bool:
        """Whether the score is on the wrong side."""
        value = scores[self.score]
        return value >= self.limit if self.high else value <= self.limit


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What a person decides; the limits follow from it and the training images.

    tail: the share of training images that counts as extreme. contrast, structure and cast: the limit as a multiple of
    the score at that tail. blur: the sigma, as a share of the width, of the Gaussian that an image must look sharper
    than. bits: the largest hash distance of a copy, of 256; where training images lie closer, it shrinks to below them.
    """

    tail: float
    contrast: float
    structure: float
    cast: float
    blur: float
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


def calibrated(
    thresholds: Thresholds,
    training: list[dict[str, float]],
    blurred: list[float],
    apart: np.ndarray,
    colours: Palette,
) -> tuple[Rule, ...]:
    """The rules, from training images' scores, the sharpness of blurred ones, and how far in bits they are apart."""
    tail = thresholds.tail
    contrast, structure = (np.quantile([each[name] for each in training], tail) for name in ("contrast", "structure"))
    cast = np.quantile([colours.cast(each) for each in training], 1 - tail)
    copy = max(0, min(thresholds.bits, np.quantile(apart, tail) - 1))
    limits = (
        ("blank", "contrast", thresholds.contrast * contrast, False),
        ("noise", "structure", thresholds.structure * structure, False),
        ("blur", "sharpness", np.median(blurred), False),
        ("colour_cast", "colour_cast", thresholds.cast * cast, True),
        ("near_duplicate", "near_duplicate", copy, False),
        ("training_copy", "training_copy", copy, False),
    )
    return tuple(Rule(reason=reason, score=score, limit=float(at), high=high) for reason, score, at, high in limits)


def _chroma(scores: list[dict[str, float]]) -> np.ndarray:
    return np.array([[each["chroma_a"], each["chroma_b"]] for each in scores])
