"""Copies are counted, and what the limit misses is made up for."""

import numpy as np
import pytest

from dermjax.evaluation import features
from dermjax.evaluation.images import memorisation


def unit(values):
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def training():
    return unit(np.random.default_rng(0).normal(size=(5000, 24)).astype(np.float32))


def test_the_nearest_is_that_of_brute_force(training):
    images = unit(np.random.default_rng(1).normal(size=(30, 24)).astype(np.float32))
    similarity, index = features.nearest(images, training)
    np.testing.assert_array_equal(index, (images @ training.T).argmax(1))
    np.testing.assert_allclose(similarity, (images @ training.T).max(1), rtol=1e-6)


@pytest.mark.parametrize("planted", (0.0, 0.05, 0.2))
def test_a_planted_share_of_copies_is_within_its_interval(training, planted):
    rng = np.random.default_rng(2)

    def fresh(n):
        return unit(rng.normal(size=(n, 24)).astype(np.float32))

    def copies(n):
        chosen = training[rng.choice(len(training), n)]
        return unit(chosen + rng.normal(0, 0.12, chosen.shape).astype(np.float32))

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


def test_a_space_of_many_images_finds_what_a_common_tint_hides():
    """Images that differ by one strong tint, and each by weak traits of its own: from zero the tint is all."""
    rng = np.random.default_rng(4)

    def drawn(n):
        return 30 + np.concatenate([rng.normal(0, 20, (n, 2)), rng.normal(0, 0.5, (n, 22))], axis=1)

    known, held_out = drawn(800), drawn(300)
    copies = known[:300] + np.concatenate([rng.normal(0, 5, (300, 2)), rng.normal(0, 0.1, (300, 22))], axis=1)
    space = features.space_of(known)
    found = {}
    for name, look in {"from zero": unit, "space": space.unit}.items():
        seen, others, altered = (look(each).astype(np.float32) for each in (known, held_out, copies))
        found[name] = memorisation.limit(*(features.nearest(each, seen)[0] for each in (others, altered))).found
    assert found["space"] > 290 > 100 > found["from zero"]
    assert np.isfinite(features.space_of(known[:2]).unit(known[:2])).all()
