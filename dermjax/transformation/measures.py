"""What is measured on lesions before and after a transformation, and whether the change is the one requested.

Area is a share of the field, all lesions together; ITA the individual typology angle of the skin, in degrees.
"""

from dataclasses import dataclass

import numpy as np

from dermjax.data import images
from dermjax.data.imaging.segmentation import Segmentation
from dermjax.data.phantoms.appearance import SIZES, TONES
from dermjax.data.phantoms.captions import NUMBER_WORDS, parse_prompt

UNCHANGED = 99.0  # decibels that equal pixels count as
MOST = max(NUMBER_WORDS)


@dataclass(frozen=True)
class Measure:
    """The number of lesions, their area, and the ITA of the skin, None where there is no skin."""

    count: int
    area: float
    ita: float | None

    def words(self) -> dict[str, str]:
        """Returns what a prompt would call it: number, size and tone, "" where there is no word."""
        across = 2 * np.sqrt(self.area / max(self.count, 1) / np.pi)
        sizes = {name: abs(across - np.mean(bounds)) for name, bounds in SIZES.items()}
        tones = (
            {name: abs(self.ita - np.mean(bounds)) for name, bounds in TONES.items()} if self.ita is not None else {}
        )
        return {
            "number": NUMBER_WORDS[min(max(self.count, 1), MOST)],
            "size": min(sizes, key=sizes.get),
            "tone": min(tones, key=tones.get) if tones else "",
        }


def measure(lesions: Segmentation) -> Measure:
    """Returns the measure of a segmented image."""
    ita = round(lesions.ita, 2) if np.isfinite(lesions.ita) else None
    return Measure(int(lesions.count), round(float(lesions.areas.sum()), 6), ita)


def met(transformation: str, before: Measure, after: Measure, tolerance: float) -> bool:
    """Returns whether the requested change was reached; where a lesion is lost it was not.

    transformation: a key of `sketches.SKETCHES`; tolerance: degrees that skin may be outside its word's.
    """
    if after.count == 0:
        return False
    if transformation == "larger":
        return after.area > before.area
    if transformation == "smaller":  # enlarged lesions may join, smaller ones have no reason to
        return after.area < before.area and after.count >= before.count
    if transformation == "more":
        return after.count > before.count
    return after.ita is not None and parse_prompt(transformation).tone_off(after.ita) <= tolerance


def decibels(before: np.ndarray, after: np.ndarray, where: np.ndarray) -> float:
    """Returns the peak signal-to-noise ratio of images uint8 [S, S, 3] over some pixels, UNCHANGED for equal ones."""
    error = np.mean((before[where].astype(float) - after[where]) ** 2) if where.any() else 0.0
    return round(min(UNCHANGED, 10 * np.log10(255**2 / error)), 2) if error else UNCHANGED


def mask_png(mask: np.ndarray) -> bytes:
    """Returns the PNG file of a mask, bool [S, S], white where it is."""
    return images.encode_png(np.repeat(mask[..., None] * np.uint8(255), 3, axis=-1))
