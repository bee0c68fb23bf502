"""Faults planted on phantoms, to measure rules whose limits follow from real images: phantoms stand for these.

Place in the flow: seeds -> a yardstick from some phantoms, faults on others -> calibrating.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import ndimage

from dermjax.curation import copies, detectors, rules
from dermjax.curation.judging import Yardstick
from dermjax.curation.rules import Thresholds
from dermjax.data.appearance import ARTEFACTS
from dermjax.data.phantom import phantom

CLEAN = dict.fromkeys(ARTEFACTS, False)
INVISIBLE = 0.004  # diameter of a lesion that is half a pixel
CASTS = ((1.0, 0.6, 1.0), (0.6, 1.0, 0.7), (0.55, 0.75, 1.3), (1.0, 1.0, 0.3))  # magenta, green, blue, yellow light
SOFT = 0.008  # standard deviation of what makes a copy softer, and GRAIN of 255 levels rougher
GRAIN = 3.0


def yardstick(seeds: Sequence[int], size: int, thresholds: Thresholds) -> Yardstick:
    """What the phantoms of the first half of the seeds say is usual, held against the others."""
    made = [phantom(seed, size).image for seed in seeds]
    hashes = np.stack([copies.hash_all_ways(image) for image in made])
    half = len(made) // 2
    scores = [detectors.measure(image) for image in made[:half]]
    apart = copies.nearest(hashes[half:, 0], hashes[:half])
    palette = rules.palette(scores)
    limits = rules.calibrated(thresholds, (), scores, apart, np.empty(0), palette)
    return Yardstick(rules=limits, palette=palette, hashes=hashes[:half])


def faults(seeds: Sequence[int], size: int, by: Yardstick, copied: Sequence[int]) -> Iterator[tuple[str, bool, bool]]:
    """(reason, whether its rule speaks, whether the fault is there): on every phantom of the seeds without and with.

    copied: seeds of the yardstick's phantoms, which copies are made of.
    """
    rules_of = {rule.reason: rule for rule in by.rules}
    for number, seed in enumerate(seeds):
        rng = np.random.default_rng(seed)
        sound = phantom(seed, size).image
        planted = {
            "blank": phantom(seed, size, **CLEAN, number=1, diameters=[INVISIBLE]).image,
            "noise": _pixels(rng.normal(sound.mean((0, 1)), sound.std((0, 1)) + 20, sound.shape)),
            "colour_cast": _pixels(sound * np.array(CASTS[number % len(CASTS)])),
            "training_copy": _copy(phantom(copied[number % len(copied)], size).image, rng),
        }
        usual = _scores(sound, by)
        for reason, image in planted.items():
            yield reason, rules_of[reason].speaks_against(usual), False
            yield reason, rules_of[reason].speaks_against(_scores(image, by)), True


def _scores(image: np.ndarray, by: Yardstick) -> dict[str, float]:
    scores = detectors.measure(image)
    nearest = copies.nearest(copies.hash_all_ways(image)[:1], by.hashes)
    return scores | {"colour_cast": by.palette.cast(scores), "training_copy": int(nearest[0])}


def _copy(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image turned, mirrored, softer and rougher."""
    turned = np.rot90(image, rng.integers(4))
    turned = turned[:, ::-1] if rng.integers(2) else turned
    soft = ndimage.gaussian_filter(turned.astype(float), (SOFT * len(image),) * 2 + (0,))
    return _pixels(soft + rng.normal(0, GRAIN, image.shape))


def _pixels(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
