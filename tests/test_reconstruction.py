"""How an autoencoder's pictures are judged."""

import pytest

from dermjax.reconstruction import LOOKED_AT, looked_at


@pytest.mark.parametrize("count", [0, 1, LOOKED_AT, LOOKED_AT + 1, 2 * LOOKED_AT - 1, 1000])
def test_photographs_of_every_class_are_looked_at(count):
    """A manifest may have one class after the other."""
    chosen = looked_at(range(count))
    assert max(looked_at(range(count), 4), default=0) >= 0.7 * (count - 1)
    assert len(chosen) == len(set(chosen)) == min(count, LOOKED_AT)
    if count > LOOKED_AT:
        assert abs(sum(number < count / 2 for number in chosen) - LOOKED_AT / 2) <= 1
