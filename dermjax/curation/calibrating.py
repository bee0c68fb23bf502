"""How well the detectors find what they look for: precision and recall on phantoms, whose truth is known.

Place in the flow: `dermjax curate --config=configs/curate.py:calibration` -> calibration.json in the run folder. The
one beside this file was made so, with the shipped thresholds; under "photographs" it also has which of the first hits
of each detector on real photographs a person found right. The page of `curate` shows both beside the rules.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dermjax import progress
from dermjax.curation import judging, looking, planting, rules
from dermjax.curation.rules import Thresholds
from dermjax.data.appearance import TONES
from dermjax.data.artefact_scores import PAINTED
from dermjax.data.captions import NUMBER_WORDS
from dermjax.data.phantom import Phantom, phantom
from dermjax.data.wishes import wish
from dermjax.run_folder import write_atomically

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
        found = measured(range(FIRST_SEED, FIRST_SEED + count), size, thresholds, bar.update)
    shipped = json.loads(SHIPPED.read_text())
    write_atomically(workdir / FILE, json.dumps(shipped | {"size": size, "phantoms": found}, indent=1) + "\n")
    for reason, each in found.items():
        progress.say(f"{reason:14}precision {each['precision']:.3f}  recall {each['recall']:.3f}  F1 {each['f1']:.3f}")


def measured(seeds: range, size: int, thresholds: Thresholds, tick) -> dict[str, dict[str, float]]:
    """By reason, what the rules say of phantoms and what is true of these.

    Rules with limits of their own are asked about every phantom. For those that follow from real images the first
    phantoms stand for these, and faults are planted on the last (`planting`).
    """
    by = {rule.reason: rule for rule in rules.fixed(thresholds, ())}
    verdicts = {reason: [] for reason in by}
    usual = seeds[: max(len(seeds) // USUAL, 4)]
    yardstick = planting.yardstick(usual, size, thresholds)
    for reason, said, truth in planting.faults(seeds[-len(usual) :], size, yardstick, usual[: len(usual) // 2]):
        verdicts.setdefault(reason, []).append((said, truth))
    for seed in seeds:
        made = phantom(seed, size)
        scores = looking.at(made.image).scores
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
    yield "wrong_number", judging.away(wish(f"{NUMBER_WORDS[number]} moles"), scores), wrong
    tone = _another(list(TONES), made.parameters["tone"], seed) if wrong else made.parameters["tone"]
    yield "wrong_tone", judging.away(wish(f"{tone} skin"), scores), wrong


def _another(choices: list, true, seed: int):
    others = [each for each in choices if each != true]
    return others[seed // 2 % len(others)]


def _counted(found: list[tuple[bool, bool]]) -> Found:
    said, truth = np.array(found).T
    return Found(hits=int(said.sum()), true=int(truth.sum()), both=int((said & truth).sum()), n=len(found))
