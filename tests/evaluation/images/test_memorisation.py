"""Copies are counted, and what the limit misses is made up for."""

import numpy as np
import pytest

from dermjax.evaluation import features
from dermjax.evaluation.images import memorisation


@pytest.fixture(scope="module")
def training():
    return features.unit(np.random.default_rng(0).normal(size=(5000, 24)).astype(np.float32))


def test_the_nearest_is_that_of_brute_force(training):
    images = features.unit(np.random.default_rng(1).normal(size=(30, 24)).astype(np.float32))
    similarity, index = features.nearest(images, training)
    np.testing.assert_array_equal(index, (images @ training.T).argmax(1))
    np.testing.assert_allclose(similarity, (images @ training.T).max(1), rtol=1e-6)


@pytest.mark.parametrize("planted", (0.0, 0.05, 0.2))
def test_a_planted_share_of_copies_is_within_its_interval(training, planted):
    rng = np.random.default_rng(2)

    def fresh(n):
        return features.unit(rng.normal(size=(n, 24)).astype(np.float32))

    def copies(n):
        chosen = training[rng.choice(len(training), n)]
        return features.unit(chosen + rng.normal(0, 0.12, chosen.shape).astype(np.float32))

    held_out, known = (features.nearest(each, training)[0] for each in (fresh(400), copies(400)))
    limit = memorisation.limit(held_out, known)
    assert limit.false_alarms / limit.held_out <= 0.01 and limit.found / limit.known > 0.5
    count = round(planted * 1000)
    images = np.concatenate([copies(count), fresh(1000 - count)])
    beyond = int((features.nearest(images, training)[0] > limit.similarity).sum())
    share = memorisation.share_of_copies(beyond, 1000, limit)
    assert share.low <= planted <= share.high
    assert share.high - share.low < 0.1


@pytest.mark.parametrize("truth", (0.0, 0.08))
def test_intervals_of_the_share_cover_in_simulation(truth):
    """Of 300 sets, 95 % within a binomial's 99 % interval, or more; each has held-out images of its own."""
    rng, covered = np.random.default_rng(3), []
    for _ in range(300):
        limit = memorisation.limit(rng.normal(size=100), rng.normal(5, 1, 300))
        others = round(2000 * (1 - truth))
        images = np.concatenate([rng.normal(size=others), rng.normal(5, 1, 2000 - others)])
        share = memorisation.share_of_copies(int((images > limit.similarity).sum()), 2000, limit)
        covered.append(share.low <= truth <= share.high)
    assert np.mean(covered) >= 0.91
