"""How well the rules find what they are for: precision and recall on phantoms, whose truth is known.

Place in the flow: `dermjax curate --config=configs/curate.py:calibration` -> calibration.json in the run folder. The
one beside this file was made so, with the shipped thresholds; under "photographs" it also has which of the first hits
of each rule on real photographs a person confirmed. The page of `curate` shows both beside the rules with these
limits, at this size.

Rules whose limits follow from real images are measured with phantoms in the place of these: some give the reference,
and on others synthetic faults are laid.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from dermjax import progress
from dermjax.curation import measurements, rules, scoring
from dermjax.curation.rules import Rule, Thresholds
from dermjax.curation.scoring import Reference
from dermjax.data.imaging import quality
from dermjax.data.imaging.artefacts import PAINTED
from dermjax.data.leaks import copies
from dermjax.data.phantoms.appearance import ARTEFACTS, TONES
from dermjax.data.phantoms.captions import NUMBER_WORDS, parse_prompt
from dermjax.data.phantoms.painting import phantom
from dermjax.run_folder import write_atomically

FILE = "calibration.json"
SHIPPED = Path(__file__).with_name(FILE)
FIRST_SEED = 3_000_000  # of phantoms that nothing was chosen on
USUAL = 4  # a quarter of the phantoms stand for real images, and as many get faults
SECONDS_A_PHANTOM = 0.08

CLEAN = dict.fromkeys(ARTEFACTS, False)
INVISIBLE = 0.004  # diameter of a lesion that is half a pixel
CASTS = ((1.0, 0.6, 1.0), (0.6, 1.0, 0.7), (0.55, 0.75, 1.3), (1.0, 1.0, 0.3))  # magenta, green, blue, yellow light
SOFT = 0.008  # standard deviation of what makes a copy softer, and GRAIN of 255 levels rougher
GRAIN = 3.0


def run(count: int, size: int, thresholds: Thresholds, workdir: Path) -> None:
    """Measures the rules on phantoms of `size` pixels and writes FILE."""
    progress.cost("curate", images=count, seconds=count * SECONDS_A_PHANTOM)
    with progress.bar(total=count, title="calibration", unit="phantoms", done=0) as bar:
        accuracies = measure(range(FIRST_SEED, FIRST_SEED + count), size, thresholds, bar.update)
    shipped = json.loads(SHIPPED.read_text())
    measured = {"size": size, "thresholds": {name: getattr(thresholds, name) for name in rules.FROM_REAL}}
    write_atomically(workdir / FILE, json.dumps(shipped | measured | {"phantoms": accuracies}, indent=1) + "\n")
    for reason, each in accuracies.items():
        progress.say(f"{reason:14}precision {each['precision']:.3f}  recall {each['recall']:.3f}  F1 {each['f1']:.3f}")


def measure(
    seeds: range, size: int, thresholds: Thresholds, tick: Callable[[], None]
) -> dict[str, dict[str, float | None]]:
    """The accuracy of each rule by its reason: of those with limits of their own on every phantom."""
    fixed = {rule.reason: rule for rule in rules.fixed(thresholds, ())}
    outcomes = {reason: [] for reason in fixed}
    usual = seeds[: max(len(seeds) // USUAL, 4)]
    reference = phantom_reference(usual, size, thresholds)
    for reason, hit, true in synthetic_faults(seeds[-len(usual) :], size, reference, usual[: len(usual) // 2]):
        outcomes.setdefault(reason, []).append((hit, true))
    for seed in seeds:
        painted = phantom(seed, size)
        scores = measurements.measure(painted.image).scores
        for reason, added, true in _truths(painted.parameters, scores, seed):
            outcomes[reason].append((fixed[reason].speaks_against(scores | added), true))
        tick()
    return {reason: _accuracy(fixed.get(reason), each) for reason, each in outcomes.items()}


def phantom_reference(seeds: Sequence[int], size: int, thresholds: Thresholds) -> Reference:
    """The reference of the phantoms of the first half of the seeds, with the others as held-out images."""
    images = [phantom(seed, size).image for seed in seeds]
    hashes, half = np.stack([copies.orientation_hashes(image) for image in images]), len(images) // 2
    scores = [quality.measure(image) for image in images[:half]]
    distances = copies.nearest(hashes[half:, 0], hashes[:half])
    return scoring.derive_reference(thresholds, (), scores, hashes[:half], distances, np.empty(0), np.empty(0))


def synthetic_faults(
    seeds: Sequence[int], size: int, reference: Reference, copied: Sequence[int]
) -> Iterator[tuple[str, bool, bool]]:
    """(reason, whether its rule hits, whether the fault is there): on every phantom of the seeds without and with.

    copied: seeds of the reference's phantoms, which copies are made of.
    """
    by_reason = {rule.reason: rule for rule in reference.rules}
    for number, seed in enumerate(seeds):
        rng = np.random.default_rng(seed)
        sound = phantom(seed, size).image
        faulty = {
            "blank": phantom(seed, size, **CLEAN, number=1, diameters=[INVISIBLE]).image,
            "noise": _pixels(rng.normal(sound.mean((0, 1)), sound.std((0, 1)) + 20, sound.shape)),
            "colour_cast": _pixels(sound * np.array(CASTS[number % len(CASTS)])),
            "training_copy": _copy(phantom(copied[number % len(copied)], size).image, rng),
        }
        usual = _scores(sound, reference)
        for reason, image in faulty.items():
            yield reason, by_reason[reason].speaks_against(usual), False
            yield reason, by_reason[reason].speaks_against(_scores(image, reference)), True


def _scores(image: np.ndarray, reference: Reference) -> dict[str, float]:
    scores = quality.measure(image)
    nearest = copies.nearest(copies.orientation_hashes(image)[:1], reference.hashes)
    return scores | {"colour_cast": reference.palette.cast(scores), "training_copy": int(nearest[0])}


def _copy(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image turned, mirrored, softer and rougher."""
    turned = np.rot90(image, rng.integers(4))
    turned = turned[:, ::-1] if rng.integers(2) else turned
    soft = ndimage.gaussian_filter(turned.astype(float), (SOFT * len(image),) * 2 + (0,))
    return _pixels(soft + rng.normal(0, GRAIN, image.shape))


def _pixels(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _truths(parameters: dict, scores: dict[str, float], seed: int) -> Iterator[tuple[str, dict[str, float], bool]]:
    """(reason, further scores, whether the reason is true) of a phantom; one of an odd seed gets a wrong prompt."""
    for reason, parameter in PAINTED.items():
        yield reason, {}, parameters[parameter]
    yield "blur", {}, parameters["blur"]
    number, tone, wrong = parameters["number"], parameters["tone"], bool(seed % 2)
    if wrong:
        number, tone = _another(list(NUMBER_WORDS), number, seed), _another(list(TONES), tone, seed)
    yield "wrong_number", scoring.deviations(parse_prompt(f"{NUMBER_WORDS[number]} moles"), scores), wrong
    yield "wrong_tone", scoring.deviations(parse_prompt(f"{tone} skin"), scores), wrong


def _another(choices: list, true: object, seed: int) -> object:
    others = [each for each in choices if each != true]
    return others[seed // 2 % len(others)]


def _accuracy(rule: Rule | None, outcomes: list[tuple[bool, bool]]) -> dict[str, float | None]:
    """Precision, recall and F1 of (hit, true), ready for JSON; without a rule the limit follows from real images."""
    hit, true = np.array(outcomes).T
    hits, positives, both = int(hit.sum()), int(true.sum()), int((hit & true).sum())
    return {
        "limit": rule.limit if rule else None,
        "n": len(outcomes),
        "true": positives,
        "hits": hits,
        "precision": round(both / max(hits, 1), 4),
        "recall": round(both / max(positives, 1), 4),
        "f1": round(2 * both / max(hits + positives, 1), 4),
    }
