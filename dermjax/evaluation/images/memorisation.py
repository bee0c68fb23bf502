"""Whether synthetic images are copies of training images, by what a frozen network sees in them.

Two photographs of one lesion, and a photograph and its altered copy, look alike to the network; photographs of
different lesions hardly ever do. The limit between them is read off held-out photographs: how near they come to the
nearest training image, though they copy none. How many copies lie beyond the limit is measured on copies that are
made: training images, altered.

Shapes: N and M images, D features, in a space of the training images (`features.Space`).
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import beta

from dermjax.evaluation.intervals import LEVEL, Estimate

LEAST_FOUND = 0.2  # share of known copies without which a share of copies means nothing
FALSE_ALARMS = 0.01  # share of held-out images that may lie beyond the limit


@dataclass(frozen=True)
class Limit:
    """The cosine similarity beyond which an image is called a copy, and how often that is right.

    false_alarms of `held_out` images that copy nothing, found of `known` copies, lie beyond it.
    """

    similarity: float
    false_alarms: int
    held_out: int
    found: int
    known: int


def similarity_limit(held_out: np.ndarray) -> float:
    """The similarity to the nearest training image beyond which FALSE_ALARMS of held-out images lie."""
    return float(np.quantile(held_out, 1 - FALSE_ALARMS, method="higher"))


def limit(held_out: np.ndarray, known_copies: np.ndarray) -> Limit:
    """The limit of held-out images, and what it knows; both are similarities to the nearest training image."""
    similarity = similarity_limit(held_out)
    return Limit(
        similarity=similarity,
        false_alarms=int((held_out > similarity).sum()),
        held_out=len(held_out),
        found=int((known_copies > similarity).sum()),
        known=len(known_copies),
    )


def share_of_copies(beyond: int, n: int, limit: Limit) -> Estimate:
    """The share of copies among n images of which `beyond` lie beyond the limit, corrected for what the limit misses.

    Rogan and Gladen 1978: (beyond / n - a) / (b - a), a and b the shares of non-copies and copies beyond the limit.
    Its interval is drawn from what is known of the three shares: Jeffreys' posterior of two of them and, as the limit
    is the k-th largest of the held-out images themselves, Beta(k, m + 1 - k) of a. It holds where images that copy
    nothing lie as near to training images as held-out ones, and copies as near as those that were made.
    """
    if limit.found / limit.known < LEAST_FOUND:
        note = f"of {limit.known} known copies this network recognises {limit.found}: it cannot tell"
        return Estimate(value=beyond / n, n=n, low=None, high=None, note=note)
    rng = np.random.default_rng(0)

    def drawn(count: int, of: int) -> np.ndarray:
        return beta.rvs(count + 0.5, of - count + 0.5, size=20_000, random_state=rng)

    def corrected(observed: np.ndarray, false: np.ndarray, true: np.ndarray) -> np.ndarray:
        return np.clip((observed - false) / np.maximum(true - false, 1e-9), 0, 1)

    rank, held_out = limit.false_alarms + 1, limit.held_out
    value = corrected(*map(np.array, (beyond / n, rank / (held_out + 1), limit.found / limit.known)))
    false = beta.rvs(rank, held_out + 1 - rank, size=20_000, random_state=rng)
    spread = corrected(drawn(beyond, n), false, drawn(limit.found, limit.known))
    low, high = np.quantile(spread, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value=float(value), n=n, low=float(low), high=float(high), note="corrected for misses")
