"""Phantoms in words, and words back into what can be measured: the only language that the base model is taught.

Place in the flow: parameters -> `caption` -> Phantom; a prompt -> `parse_prompt` -> `curate`: was it drawn?

A caption has a small fixed grammar, lower case, at most MAXIMUM words and commas:

    dermoscopy [photo] of {number} {size} [{colour} [and {second colour}]] mole(s) [with {border} borders]
    [, {texture} [and a blue veil]] [, {tone} skin] [, with {artefact} [and {artefact} …]] [, blurred]

Number, size and artefacts are always in it; a clause in brackets is left out now and then, so that partial prompts
work, and where it cannot be told of a photograph, whose captions alone have the word "photo". Benign and malignant
never are in it: these words are DreamBooth's to teach. VOCABULARY holds them all the same.

A prompt may also use the groups of `skin_tone`, and some words that people use besides. What it does not say, it does
not request.
"""

import re
from dataclasses import dataclass

import numpy as np

from dermjax.data.phantoms.appearance import COLOURS, SECOND_COLOURS, SIZES, TEXTURES, TONES

MAXIMUM = 26
LEFT_OUT = 0.15  # probability that an optional clause is left out

NUMBER_WORDS = {1: "one", 2: "two", 3: "three", 4: "four"}
# Diameters that photographs have and phantoms have not, see SIZES.
LARGER_SIZES = {"huge": (0.6, 1.0)}
# Upper bounds of irregularity.
BORDERS = {"smooth": 0.35, "irregular": 0.7, "jagged": 1.0}
TEXTURE_WORDS = {name: name for name in TEXTURES} | {"uniform": "uniform colour", "network": "a pigment network"}
ARTEFACT_WORDS = {
    "hairs": "hairs",
    "ruler": "a ruler",
    "dark_corners": "dark corners",
    "pen_ring": "a pen ring",
    "gel_bubbles": "gel bubbles",
    "sticker": "a sticker",
}
# Words of prompts that no caption uses, or not always.
PROMPT_WORDS = "benign malignant melanoma nevus lesion photo image a an the of on with and without no"
PHRASES = (
    "dermoscopy of mole moles with borders , a blue veil skin blurred",
    *(*NUMBER_WORDS.values(), *SIZES, *LARGER_SIZES, *COLOURS, *SECOND_COLOURS, *BORDERS),
    *(*TEXTURE_WORDS.values(), *TONES, *ARTEFACT_WORDS.values(), PROMPT_WORDS),
)
# Every word that a caption can use, the comma, and the words that DreamBooth's prompts need.
VOCABULARY = tuple(sorted({word for phrase in PHRASES for word in phrase.split()}))

MANY = 99
NUMBERS = {
    **{word: (number, number) for number, word in NUMBER_WORDS.items()},
    "single": (1, 1),
    **dict.fromkeys(("several", "multiple", "moles", "lesions"), (2, MANY)),
    "many": (3, MANY),
}
# Individual typology angles in degrees that a word stands for: phantoms' tones, widened to the groups of skin tone.
ANGLES = {
    "very light": (55.0, 90.0),
    "pale": (55.0, 90.0),
    "light": (41.0, 55.0),
    "intermediate": (28.0, 41.0),
    "tan": (10.0, 28.0),
    "brown": (-30.0, 10.0),
    "dark": (-90.0, -10.0),
}
# How the words that request an artefact begin.
ARTEFACTS = {
    "hairs": ("hair",),
    "ruler": ("ruler",),
    "dark_corners": ("dark corner",),
    "ink": ("ink", "pen ring", "pen mark"),
    "gel": ("gel", "bubble"),
    "blur": ("blur",),
}
WITHOUT = re.compile(r"\b(?:no|without)\s+(?:an?\s+)?$")


@dataclass(frozen=True, kw_only=True)
class Requested:
    """What a prompt requests that can be measured.

    number: least and most lesions; size: a word of SIZES; tone: least and most degrees. None, or "", for any.
    artefacts: keys of ARTEFACTS, which are names of reasons against an image.
    """

    number: tuple[int, int] | None
    size: str
    tone: tuple[float, float] | None
    artefacts: frozenset[str]

    def number_off(self, count: int) -> int:
        """How many lesions are too many or too few."""
        return _beyond(count, self.number) if self.number else 0

    def tone_off(self, angle: float) -> float:
        """How many degrees the skin is too light or too dark."""
        return _beyond(angle, self.tone) if self.tone else 0.0


def caption(parameters: dict, rng: np.random.Generator | None) -> str:
    """The caption of `parameters`; `rng` leaves optional clauses out, without one all are in it."""
    kept = np.ones(4, bool) if rng is None else rng.random(4) >= LEFT_OUT
    clauses = dict(zip(("texture", "border", "colour", "tone"), kept.tolist(), strict=True))
    words = _sentence(parameters, clauses)
    for clause in clauses:  # the least visible first, until the rest fits
        if len(words.replace(",", " ,").split()) > MAXIMUM:
            clauses[clause] = False
            words = _sentence(parameters, clauses)
    return words


def parse_prompt(prompt: str) -> Requested:
    """What the words of a prompt request; of several numbers, sizes or tones the first."""
    text = prompt.lower()
    words = re.findall(r"[a-z0-9]+", text)
    tones = re.findall(rf"\b({'|'.join(ANGLES)}) skin\b", text)
    return Requested(
        number=next((NUMBERS[word] for word in words if word in NUMBERS), None),
        size=next((word for word in words if word in SIZES), ""),
        tone=ANGLES[tones[0]] if tones else None,
        artefacts=frozenset(name for name, stems in ARTEFACTS.items() if any(_requests(text, stem) for stem in stems)),
    )


def _sentence(parameters: dict, clauses: dict[str, bool]) -> str:
    """The caption with the clauses that are true in `clauses`."""
    kind = "dermoscopy photo of" if parameters.get("photograph") else "dermoscopy of"
    words = [kind, NUMBER_WORDS[parameters["number"]], parameters["size_name"]]
    if clauses["colour"] and parameters["colour"]:
        words += [" and ".join(filter(None, (parameters["colour"], parameters["second_colour"])))]
    words += ["mole" if parameters["number"] == 1 else "moles"]
    if clauses["border"]:
        border = next(word for word, bound in BORDERS.items() if parameters["irregularity"] <= bound)
        words += ["with", border, "borders"]
    phrases = [" ".join(words)]
    if clauses["texture"] and parameters["texture"]:
        phrases += [TEXTURE_WORDS[parameters["texture"]] + (" and a blue veil" if parameters["veil"] else "")]
    if clauses["tone"] and parameters["tone"]:
        phrases += [f"{parameters['tone']} skin"]
    present = [word for name, word in ARTEFACT_WORDS.items() if parameters.get(name)]
    if present:
        phrases += ["with " + " and ".join(present)]
    if parameters["blur"]:
        phrases += ["blurred"]
    return ", ".join(phrases)


def _requests(text: str, stem: str) -> bool:
    """Whether a text has a word that begins so and does not follow "without" or "no"."""
    return any(not WITHOUT.search(text[: match.start()]) for match in re.finditer(rf"\b{stem}", text))


def _beyond(value: float, bounds: tuple[float, float]) -> float:
    return max(bounds[0] - value, value - bounds[1], 0)
