"""What is measured on a lesion before and after a transformation, against what was asked.

Area is a share of the field, all lesions together; ITA the individual typology angle of the skin, in degrees.
"""

from dataclasses import asdict, dataclass

import numpy as np

from dermjax.data.imaging.segmentation import Segmentation
from dermjax.data.phantoms.appearance import SIZES, TONES
from dermjax.data.phantoms.captions import NUMBER_WORDS, parse_prompt

UNCHANGED = 99.0  # decibels that equal pixels count as
MOST = max(NUMBER_WORDS)


@dataclass(frozen=True)
class Measure:
    """Lesions, their area, and the ITA of the skin, None where no skin is seen."""

    count: int
    area: float
    ita: float | None

    def words(self) -> dict[str, str]:
        """What a prompt would call it: number, size and tone, "" where there is no word."""
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

    def told(self) -> dict:
        """The measure ready for JSON."""
        return asdict(self)


def measured(seen: Segmentation) -> Measure:
    """The measure of a segmented image."""
    ita = round(seen.ita, 2) if np.isfinite(seen.ita) else None
    return Measure(int(seen.count), round(float(seen.areas.sum()), 6), ita)


def met(asked: str, before: Measure, after: Measure, tolerance: float) -> bool:
    """Whether a transformation went where it was asked to; a lesion that is lost went nowhere.

    asked: a key of `sketches.SKETCHES`; tolerance: degrees that skin may be outside of what its word stands for.
    """
    if after.count == 0:
        return False
    if asked == "larger":
        return after.area > before.area
    if asked == "smaller":  # enlarged lesions may join, smaller ones have no reason to
        return after.area < before.area and after.count >= before.count
    if asked == "more":
        return after.count > before.count
    return after.ita is not None and parse_prompt(asked).tone_off(after.ita) <= tolerance


def decibels(before: np.ndarray, after: np.ndarray, where: np.ndarray) -> float:
    """The peak signal-to-noise ratio of two images uint8 [S, S, 3] over some pixels, UNCHANGED where they are equal."""
    error = np.mean((before[where].astype(float) - after[where]) ** 2) if where.any() else 0.0
    return round(min(UNCHANGED, 10 * np.log10(255**2 / error)), 2) if error else UNCHANGED
