"""Faults planted on phantoms, to measure rules whose limits follow from real images: phantoms stand for these.

Place in the flow: seeds -> a yardstick from some phantoms, faults on others -> calibrating.

How well the detectors find what they look for: precision and recall on phantoms, whose truth is known.

Place in the flow: `dermjax curate --config=configs/curate.py:calibration` -> calibration.json in the run folder. The
one beside this file was made so, with the shipped thresholds; under "photographs" it also has which of the first hits
of each detector on real photographs a person found right. The page of `curate` shows both beside the rules.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from dermjax import progress
from dermjax.curation import measurements, rules, scoring
from dermjax.curation.rules import Thresholds
from dermjax.curation.scoring import Reference
from dermjax.data.imaging import quality
from dermjax.data.imaging.artefacts import PAINTED
from dermjax.data.leaks import copies
from dermjax.data.phantoms.appearance import ARTEFACTS, TONES
from dermjax.data.phantoms.captions import NUMBER_WORDS, parse_prompt
from dermjax.data.phantoms.painting import Phantom, phantom
from dermjax.run_folder import write_atomically

CLEAN = dict.fromkeys(ARTEFACTS, False)
INVISIBLE = 0.004  # diameter of a lesion that is half a pixel
CASTS = ((1.0, 0.6, 1.0), (0.6, 1.0, 0.7), (0.55, 0.75, 1.3), (1.0, 1.0, 0.3))  # magenta, green, blue, yellow light
SOFT = 0.008  # standard deviation of what makes a copy softer, and GRAIN of 255 levels rougher
GRAIN = 3.0


def phantom_reference(seeds: Sequence[int], size: int, thresholds: Thresholds) -> Reference:
    """What the phantoms of the first half of the seeds say is usual, held against the others."""
    made = [phantom(seed, size).image for seed in seeds]
    hashes = np.stack([copies.orientation_hashes(image) for image in made])
    half = len(made) // 2
    scores = [quality.measure(image) for image in made[:half]]
    apart = copies.nearest(hashes[half:, 0], hashes[:half])
    palette = rules.palette(scores)
    limits = rules.calibrate(thresholds, (), scores, apart, np.empty(0), palette)
    return Reference(rules=limits, palette=palette, hashes=hashes[:half])


def synthetic_faults(
    seeds: Sequence[int], size: int, by: Reference, copied: Sequence[int]
) -> Iterator[tuple[str, bool, bool]]:
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


def _scores(image: np.ndarray, by: Reference) -> dict[str, float]:
    scores = quality.measure(image)
    nearest = copies.nearest(copies.orientation_hashes(image)[:1], by.hashes)
    return scores | {"colour_cast": by.palette.cast(scores), "training_copy": int(nearest[0])}


def _copy(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image turned, mirrored, softer and rougher."""
    turned = np.rot90(image, rng.integers(4))
    turned = turned[:, ::-1] if rng.integers(2) else turned
    soft = ndimage.gaussian_filter(turned.astype(float), (SOFT * len(image),) * 2 + (0,))
    return _pixels(soft + rng.normal(0, GRAIN, image.shape))


def _pixels(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


FILE = "calibration.json"
SHIPPED = Path(__file__).with_name(FILE)
FIRST_SEED = 3_000_000  # of phantoms that nothing was chosen on
USUAL = 4  # a quarter of the phantoms stand for real images, and on as many faults are planted
SECONDS_A_PHANTOM = 0.08


@dataclass(frozen=True)
class Found:
    """How often a rule spoke (`hits`), where it should have (`true`), and both."""

    hits: int
    true: int
    both: int
    n: int

    def told(self, limit: float | None) -> dict[str, float | None]:
        """Precision, recall and F1, ready for JSON; the limit is None where it follows from real images."""
        return {
            "limit": limit,
            "n": self.n,
            "true": self.true,
            "hits": self.hits,
            "precision": round(self.both / max(self.hits, 1), 4),
            "recall": round(self.both / max(self.true, 1), 4),
            "f1": round(2 * self.both / max(self.hits + self.true, 1), 4),
        }


def run(count: int, size: int, thresholds: Thresholds, workdir: Path) -> None:
    """Measures the detectors on phantoms of `size` pixels and writes what was found."""
    progress.cost("curate", images=count, seconds=count * SECONDS_A_PHANTOM)
    with progress.bar(total=count, title="calibration", unit="phantoms", done=0) as bar:
        found = measure(range(FIRST_SEED, FIRST_SEED + count), size, thresholds, bar.update)
    shipped = json.loads(SHIPPED.read_text())
    write_atomically(workdir / FILE, json.dumps(shipped | {"size": size, "phantoms": found}, indent=1) + "\n")
    for reason, each in found.items():
        progress.say(f"{reason:14}precision {each['precision']:.3f}  recall {each['recall']:.3f}  F1 {each['f1']:.3f}")


def measure(seeds: range, size: int, thresholds: Thresholds, tick) -> dict[str, dict[str, float]]:
    """By reason, what the rules say of phantoms and what is true of these.

    Rules with limits of their own are asked about every phantom. For those that follow from real images the first
    phantoms stand for these, and faults are planted on the last (`planting`).
    """
    by = {rule.reason: rule for rule in rules.fixed(thresholds, ())}
    verdicts = {reason: [] for reason in by}
    usual = seeds[: max(len(seeds) // USUAL, 4)]
    yardstick = phantom_reference(usual, size, thresholds)
    for reason, said, truth in synthetic_faults(seeds[-len(usual) :], size, yardstick, usual[: len(usual) // 2]):
        verdicts.setdefault(reason, []).append((said, truth))
    for seed in seeds:
        made = phantom(seed, size)
        scores = measurements.measure(made.image).scores
        for reason, extra, truth in _truths(made, scores, seed):
            verdicts[reason].append((by[reason].speaks_against(scores | extra), truth))
        tick()
    limits = {reason: rule.limit for reason, rule in by.items()}
    return {reason: _counted(found).told(limits.get(reason)) for reason, found in verdicts.items()}


def _truths(made: Phantom, scores: dict, seed: int) -> Iterator[tuple[str, dict, bool]]:
    """(reason, further scores, whether the reason is true) of a phantom.

    For number and tone every other phantom gets a caption of another one.
    """
    for reason, painter in PAINTED.items():
        yield reason, {}, made.parameters[painter]
    yield "blur", {}, made.parameters["blur"]
    wrong = bool(seed % 2)
    number = _another(list(NUMBER_WORDS), made.parameters["number"], seed) if wrong else made.parameters["number"]
    yield "wrong_number", scoring.deviations(parse_prompt(f"{NUMBER_WORDS[number]} moles"), scores), wrong
    tone = _another(list(TONES), made.parameters["tone"], seed) if wrong else made.parameters["tone"]
    yield "wrong_tone", scoring.deviations(parse_prompt(f"{tone} skin"), scores), wrong


def _another(choices: list, true, seed: int):
    others = [each for each in choices if each != true]
    return others[seed // 2 % len(others)]


def _counted(found: list[tuple[bool, bool]]) -> Found:
    said, truth = np.array(found).T
    return Found(hits=int(said.sum()), true=int(truth.sum()), both=int((said & truth).sum()), n=len(found))
