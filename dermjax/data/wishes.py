"""What a prompt asks for that can be measured: how many lesions, of which size, on which skin, which artefacts.

Place in the flow: a prompt -> `wish` -> curation: was it drawn? The words are those of `captions`, of the groups of
skin tone in `attributes`, and some that people use besides. What a prompt does not say, it does not ask for.
"""

import re
from dataclasses import dataclass

from dermjax.data.appearance import SIZES
from dermjax.data.captions import NUMBER_WORDS

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
class Wish:
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


def wish(prompt: str) -> Wish:
    """What the words of a prompt ask for."""
    text = prompt.lower()
    words = re.findall(r"[a-z0-9]+", text)
    numbers = [NUMBERS[word] for word in words if word in NUMBERS]
    tones = re.findall(rf"\b({'|'.join(ANGLES)}) skin\b", text)
    sizes = [word for word in words if word in SIZES]
    return Wish(
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
