"""Parameters of a phantom in words: the only language that the base model is taught.

A small fixed grammar, lower case, at most MAXIMUM words and commas:

    dermoscopy of {number} {size} [{colour} [and {second colour}]] mole(s) [with {border} borders]
    [, {texture} [and a blue veil]] [, {tone} skin] [, with {artefact} [and {artefact} …]] [, blurred]

Number, size and artefacts are always said; a clause in brackets is left out now and then, so that partial prompts work.
Benign and malignant are never said: these words are DreamBooth's to teach. VOCABULARY holds them all the same.

What a prompt asks for that can be measured: how many lesions, of which size, on which skin, which artefacts.

Place in the flow: a prompt -> `wish` -> curation: was it drawn? The words are those of `captions`, of the groups of
skin tone in `attributes`, and some that people use besides. What a prompt does not say, it does not ask for.
"""

import re
from dataclasses import dataclass

import numpy as np

from dermjax.data.phantoms.appearance import COLOURS, SECOND_COLOURS, SIZES, TEXTURES, TONES

MAXIMUM = 26
LEFT_OUT = 0.15  # probability that an optional clause is not said

NUMBER_WORDS = {1: "one", 2: "two", 3: "three", 4: "four"}
# Upper bounds of irregularity.
BORDERS = {"smooth": 0.35, "irregular": 0.7, "jagged": 1.0}
TEXTURE_WORDS = {name: name for name in TEXTURES} | {"uniform": "uniform colour", "network": "a pigment network"}
ARTEFACT_WORDS = {
    "hairs": "hairs",
    "ruler": "a ruler",
    "dark_corners": "dark corners",
    "pen_ring": "a pen ring",
    "gel_bubbles": "gel bubbles",
}
_SPOKEN = [
    "benign",
    "malignant",
    "melanoma",
    "nevus",
    "lesion",
    "photo",
    "image",
    "a",
    "an",
    "the",
    "of",
    "on",
    "with",
    "and",
    "without",
    "no",
]


def caption(parameters: dict, rng: np.random.Generator | None) -> str:
    """The caption of `parameters`; `rng` leaves optional clauses out, None says every one of them."""
    said = [rng is None or bool(u >= LEFT_OUT) for u in (np.zeros(4) if rng is None else rng.random(4))]
    clauses = dict(zip(("texture", "border", "colour", "tone"), said, strict=True))
    words = _sentence(parameters, clauses)
    for clause in clauses:  # the least visible first, until the rest fits
        if len(words.replace(",", " ,").split()) > MAXIMUM:
            clauses[clause] = False
            words = _sentence(parameters, clauses)
    return words


def _sentence(parameters: dict, clauses: dict) -> str:
    """The caption with the clauses that are true in `clauses`."""
    number, size = parameters["number"], parameters["size_name"]
    words = ["dermoscopy of", NUMBER_WORDS[number], size]
    if clauses["colour"]:
        words += [" and ".join(filter(None, (parameters["colour"], parameters["second_colour"])))]
    words += ["mole" if number == 1 else "moles"]
    if clauses["border"]:
        words += ["with", border(parameters["irregularity"]), "borders"]
    parts = [" ".join(words)]
    if clauses["texture"]:
        parts += [TEXTURE_WORDS[parameters["texture"]] + (" and a blue veil" if parameters["veil"] else "")]
    if clauses["tone"]:
        parts += [f"{parameters['tone']} skin"]
    present = [word for name, word in ARTEFACT_WORDS.items() if parameters[name]]
    if present:
        parts += ["with " + " and ".join(present)]
    if parameters["blur"]:
        parts += ["blurred"]
    return ", ".join(parts)


def border(irregularity: float) -> str:
    """The word for the border of that irregularity (0 to 1)."""
    return next(word for word, bound in BORDERS.items() if irregularity <= bound)


def _vocabulary() -> tuple[str, ...]:
    """Every word that a caption can use, the comma, and the words that DreamBooth's prompts need."""
    phrases = [
        "dermoscopy of mole moles with borders , a blue veil skin blurred",
        *NUMBER_WORDS.values(),
        *SIZES,
        *COLOURS,
        *SECOND_COLOURS,
        *BORDERS,
        *TEXTURE_WORDS.values(),
        *TONES,
        *ARTEFACT_WORDS.values(),
        *_SPOKEN,
    ]
    return tuple(sorted({word for phrase in phrases for word in phrase.split()}))


VOCABULARY = _vocabulary()


MANY = 99
NUMBERS = {
    **{word: (number, number) for number, word in NUMBER_WORDS.items()},
    "single": (1, 1),
    "several": (2, MANY),
    "multiple": (2, MANY),
    "many": (3, MANY),
    "moles": (2, MANY),
    "lesions": (2, MANY),
}
# Individual typology angles in degrees that a word stands for: phantoms' own tones, widened to the groups of skin tone.
ANGLES = {
    "very light": (55.0, 90.0),
    "pale": (55.0, 90.0),
    "light": (41.0, 55.0),
    "intermediate": (28.0, 41.0),
    "tan": (10.0, 28.0),
    "brown": (-30.0, 10.0),
    "dark": (-90.0, -10.0),
}
# How the words that ask for an artefact begin.
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
    """number: least and most lesions; size: a word of SIZES; tone: least and most degrees. None, or "", for any.

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


def parse_prompt(prompt: str) -> Requested:
    """What the words of a prompt ask for."""
    text = prompt.lower()
    words = re.findall(r"[a-z0-9]+", text)
    numbers = [NUMBERS[word] for word in words if word in NUMBERS]
    tones = re.findall(rf"\b({'|'.join(ANGLES)}) skin\b", text)
    sizes = [word for word in words if word in SIZES]
    return Requested(
        number=numbers[0] if numbers else None,
        size=sizes[0] if sizes else "",
        tone=ANGLES[tones[0]] if tones else None,
        artefacts=frozenset(name for name, said in ARTEFACTS.items() if any(_asks(text, word) for word in said)),
    )


def _asks(text: str, word: str) -> bool:
    """Whether a text asks for a word, which "without" or "no" before it does not."""
    return any(not WITHOUT.search(text[: found.start()]) for found in re.finditer(rf"\b{word}", text))


def _beyond(value: float, bounds: tuple) -> float:
    return max(bounds[0] - value, value - bounds[1], 0)
