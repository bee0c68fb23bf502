"""Whether images show what their prompts request: how many lesions, how large, on skin of which tone.

Words of prompts are read by the grammar of `data.phantoms.captions`. Beside each word stands what is measured on the
images whose prompt has it: the number of lesions, the share of the field that one of them takes, the individual
typology angle (degrees) of the skin. All images that a model made count, those that curation rejected too.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import spearmanr

from dermjax import segmentation
from dermjax.data import images
from dermjax.data.phantoms import appearance
from dermjax.data.phantoms.captions import ANGLES, NUMBERS, Requested, parse_prompt
from dermjax.data.records import Manifest, Record
from dermjax.evaluation import intervals
from dermjax.progress import bar

SIDE = 256  # pixels at which lesions are measured
TONES = {word: ANGLES[word] for word in (*appearance.TONES, *ANGLES)}  # the words of captions first
SIZES = {word: place for place, word in enumerate(appearance.SIZES)}  # the smallest first


def measure(manifest: Manifest, records: Sequence[Record]) -> list[dict[str, float]]:
    """The `lesions`, their `area` and the `ita` of images: as `curate` left them in the manifest, else measured."""
    measured = []
    with bar(len(records), "lesions", "images", 0) as progress:
        for record in records:
            scores = record.scores
            if not {"lesions", "area"} <= scores.keys():
                lesions = segmentation.segment(images.load(manifest.path(record), SIDE))
                scores = {"lesions": lesions.count, "area": float(lesions.areas.sum())}
                scores |= {"ita": lesions.ita} if np.isfinite(lesions.ita) else {}
            measured.append(scores)
            progress.update()
    return measured


def compare(prompts: Sequence[str], scores: Sequence[dict[str, float]]) -> dict[str, dict]:
    """By what can be requested: its words with the number of images, the median measured, and the share that is right.

    `rank` is Spearman's correlation of what was requested and what is measured, None where either does not vary.
    """
    requested = [parse_prompt(prompt) for prompt in prompts]
    area = [each["area"] / max(each["lesions"], 1) if each["lesions"] else None for each in scores]
    return {
        "number": _aspect(requested, NUMBERS, lambda each: each.number, [each["lesions"] for each in scores],
                          Requested.number_off),
        "size": _aspect(requested, SIZES, lambda each: SIZES.get(each.size), area, None),
        "tone": _aspect(requested, TONES, lambda each: each.tone, [each.get("ita") for each in scores],
                        Requested.tone_off),
    }  # fmt: skip


def _aspect(
    requested: Sequence[Requested], words: dict, pick: Callable[[Requested], object], measured: Sequence[float | None],
    off: Callable[[Requested, float], float] | None,
) -> dict:  # fmt: skip
    names = {value: word for word, value in reversed(words.items())}  # of words for one thing the first
    rows = [(each, pick(each), value) for each, value in zip(requested, measured, strict=True)
            if pick(each) is not None]  # fmt: skip
    pairs = [(wanted, value) for _, wanted, value in rows if value is not None]

    def right(some: list) -> intervals.Estimate | None:
        met = [value is not None and off(each, value) == 0 for each, _, value in some] if off else []
        return intervals.share(sum(met), len(met)) if met else None

    by_word = {}
    for wanted in sorted({wanted for _, wanted, _ in rows}):
        some = [row for row in rows if row[1] == wanted]
        values = [value for _, _, value in some if value is not None]
        by_word[names[wanted]] = {
            "n": len(some), "median": float(np.median(values)) if values else None, "right": right(some),
        }  # fmt: skip
    pairs = np.array([(np.mean(wanted), value) for wanted, value in pairs]).reshape(-1, 2)
    varies = len(pairs) > 2 and all(len(set(column)) > 1 for column in pairs.T)
    rank = float(spearmanr(*pairs.T).statistic) if varies else None
    return {"words": by_word, "right": right(rows), "rank": rank}
