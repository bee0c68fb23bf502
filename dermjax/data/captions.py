"""Parameters of a phantom in words: the only language that the base model is taught.

A small fixed grammar, lower case, at most MAXIMUM words and commas:

    dermoscopy of {number} {size} [{colour} [and {second colour}]] mole(s) [with {border} borders]
    [, {texture} [and a blue veil]] [, {tone} skin] [, with {artefact} [and {artefact} …]] [, blurred]

Number, size and artefacts are always said; a clause in brackets is left out now and then, so that partial prompts work.
Benign and malignant are never said: these words are DreamBooth's to teach. VOCABULARY holds them all the same.
"""

import numpy as np

from dermjax.data.appearance import COLOURS, SECOND_COLOURS, SIZES, TEXTURES, TONES

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
