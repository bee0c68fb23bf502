"""Words assigned to images: each gets its share, alone and beside every word of the other gaps.

Nothing is drawn at random, and the words of more images begin with those of fewer.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

Choices = Mapping[str, Mapping[str, float]]  # gap -> word -> weight


@dataclass(frozen=True)
class Quota:
    """At least this many images have these words, gap -> word."""

    words: Mapping[str, str]
    images: int


def assign(choices: Choices, quotas: Sequence[Quota], count: int) -> list[dict[str, str]]:
    """Returns the word of every gap for each of `count` images.

    The share of a word is its weight over those of its gap, that of several words the product of theirs. Image by image
    and gap by gap the word is taken that is furthest behind its shares: alone, in pairs and all at once. So after any
    number of images each word and each pair have had theirs to within a few images. The images of the quotas come
    first; the rest make the shares of all right again, as far as they can.
    """
    shares = {
        gap: {word: weight / sum(weights.values()) for word, weight in weights.items() if weight}
        for gap, weights in choices.items()
    }
    reserved = [quota.words for quota in quotas for _ in range(quota.images)]
    counts: Counter = Counter()
    assigned = []
    for n in range(count):
        fixed = reserved[n] if n < len(reserved) else {}
        words: dict[str, str] = {}
        for gap, share in shares.items():
            behind = {word: _behind(counts, shares, words, gap, word, n) for word in share}
            words[gap] = fixed[gap] if gap in fixed else max(behind, key=behind.__getitem__)  # the first of equals
        gaps = list(words.items())
        counts.update(gaps)
        counts.update((*first, *second) for place, second in enumerate(gaps) for first in gaps[:place])
        counts.update(tuple(gaps[:place]) for place in range(1, len(gaps) + 1))
        assigned.append(words)
    return assigned


def _behind(counts: Counter, shares: Choices, words: Mapping[str, str], gap: str, word: str, n: int) -> float:
    """Returns how many images a word is behind its shares: alone, beside each word of image n, and beside all."""
    share = shares[gap][word]
    others = {gap_: shares[gap_].get(word_, 0) for gap_, word_ in words.items()}  # a quota's word may have no share
    alone = share * (n + 1) - counts[gap, word]
    beside = sum(others[other] * share * (n + 1) - counts[other, words[other], gap, word] for other in words)
    beside_all = prod(others.values()) * share * (n + 1) - counts[(*words.items(), (gap, word))]
    return round(alone + beside + beside_all, 9)  # equals are equal in spite of rounding
