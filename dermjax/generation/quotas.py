"""Words dealt to images: each gets its share, alone and beside every word of the other gaps.

A deal has no chance in it, and a longer one begins with the shorter one.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

Choices = Mapping[str, Mapping[str, float]]  # gap -> word -> weight


@dataclass(frozen=True)
class Quota:
    """So many images, at least, have these words, gap -> word."""

    words: Mapping[str, str]
    images: int


def deal(choices: Choices, quotas: Sequence[Quota], count: int) -> list[dict[str, str]]:
    """Returns the word of every gap for each of `count` images.

    The share of a word is its weight over those of its gap, that of several words the product of theirs. Image by image
    and gap by gap the word is taken that is furthest behind its shares: alone, in pairs and all together. So after any
    number of images each word and each pair have had theirs to within a few images. The images of the quotas come
    first; the rest make the shares of the whole right again, as far as they can.
    """
    shares = {gap: _shares(weights) for gap, weights in choices.items()}
    had: Counter = Counter()
    asked = [quota.words for quota in quotas for _ in range(quota.images)]
    dealt = []
    for n in range(count):
        fixed = asked[n] if n < len(asked) else {}
        words: dict[str, str] = {}
        for gap, share in shares.items():
            behind = {word: _behind(had, shares, words, gap, word, n) for word in share}
            words[gap] = fixed[gap] if gap in fixed else max(behind, key=behind.__getitem__)  # the first of equals
        had.update(_counted(words))
        dealt.append(words)
    return dealt


def _shares(weights: Mapping[str, float]) -> dict[str, float]:
    """Returns the share of each word that has any."""
    total = sum(weights.values())
    return {word: weight / total for word, weight in weights.items() if weight}


def _behind(had: Counter, shares: Choices, words: Mapping[str, str], gap: str, word: str, n: int) -> float:
    """Returns how many images a word is behind its shares: alone, beside each word of image n, and beside all."""
    own = shares[gap][word]
    of = {gap_: shares[gap_].get(word_, 0) for gap_, word_ in words.items()}  # a quota's word may have no share
    alone = own * (n + 1) - had[gap, word]
    beside = sum(of[other] * own * (n + 1) - had[other, words[other], gap, word] for other in words)
    together = prod(of.values()) * own * (n + 1) - had[(*words.items(), (gap, word))]
    return round(alone + beside + together, 9)  # equals are equal in spite of rounding


def _counted(words: Mapping[str, str]) -> list[tuple]:
    """Returns what an image counts for: each word, each pair, and the words up to each gap."""
    gaps = list(words.items())
    pairs = [(*first, *second) for place, second in enumerate(gaps) for first in gaps[:place]]
    return [*gaps, *pairs, *(tuple(gaps[:place]) for place in range(1, len(gaps) + 1))]
