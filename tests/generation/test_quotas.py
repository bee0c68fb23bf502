"""Words are dealt in their shares, alone and in pairs, at every length; quotas are met and made up for."""

from collections import Counter
from itertools import combinations

import pytest

from dermjax.generation.quotas import Quota, assign

CHOICES = {
    "sampler": {"Euler": 1, "Euler a": 1, "PLMS": 1},
    "number": {"one": 2, "two": 1, "three": 1},
    "size": {"tiny": 1, "small": 1, "medium": 1, "large": 1},
    "tone": {"pale": 1, "light": 1, "intermediate": 1, "tan": 1, "dark": 1},
    "colour": {"": 2, "brown": 1, "black": 0.5, "never": 0},
}
SHARES = {gap: {word: each / sum(words.values()) for word, each in words.items()} for gap, words in CHOICES.items()}


def off(dealt, **words):
    """How many images the words are away from their share of the deal."""
    share = 1.0
    for gap, word in words.items():
        share *= SHARES[gap][word]
    return abs(sum(all(each[gap] == word for gap, word in words.items()) for each in dealt) - share * len(dealt))


@pytest.mark.parametrize("count", [1, 7, 60, 500])
def test_words_and_pairs_have_their_shares_at_every_length(count):
    dealt = assign(CHOICES, (), count)
    assert max(off(dealt, **{gap: word}) for gap in CHOICES for word in CHOICES[gap]) <= 2
    pairs = [(g, w, h, v) for g, h in combinations(CHOICES, 2) for w in CHOICES[g] for v in CHOICES[h]]
    assert max(off(dealt, **{g: w, h: v}) for g, w, h, v in pairs) <= 3


def test_every_combination_is_met():
    dealt = assign({gap: CHOICES[gap] for gap in ("sampler", "number", "tone")}, (), 120)
    of = Counter(tuple(each.values()) for each in dealt)
    assert len(of) == 3 * 3 * 5 and max(of.values()) <= 6, "at most 4 of them are due"


def test_a_longer_deal_begins_with_the_shorter_one():
    assert assign(CHOICES, (), 100)[:40] == assign(CHOICES, (), 40)


def test_equal_words_of_a_single_gap_take_turns():
    assert [each["sampler"] for each in assign({"sampler": CHOICES["sampler"]}, (), 7)] == [
        "Euler", "Euler a", "PLMS", "Euler", "Euler a", "PLMS", "Euler",
    ]  # fmt: skip


def test_quotas_come_first_and_the_rest_makes_up_for_them():
    dealt = assign(CHOICES, (Quota({"tone": "dark", "size": "large"}, 30), Quota({"colour": "never"}, 5)), 300)
    assert all((each["tone"], each["size"]) == ("dark", "large") for each in dealt[:30])
    assert sum(each["colour"] == "never" for each in dealt) == 5
    assert max(off(dealt, tone=tone) for tone in CHOICES["tone"]) <= 3, "60 of each tone all the same"
    assert max(off(dealt, size=size) for size in CHOICES["size"]) <= 3


def test_a_word_without_weight_is_never_dealt():
    assert all(each["colour"] != "never" for each in assign(CHOICES, (), 300))
