"""Copies are counted, and what the limit misses is made up for; the attack finds members that are known by heart."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from dermjax.evaluation import features
from dermjax.evaluation.images import memorisation
from dermjax.evaluation.images.memorisation import Scores


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


def scores(values):
    """Scores of images that each show a lesion of their own."""
    return Scores(values, np.arange(len(values)))


def test_chance_is_chance_and_its_interval_says_so():
    rng = np.random.default_rng(0)
    found = memorisation.attack(scores(rng.normal(size=600)), scores(rng.normal(size=1400)), seed=0)
    assert found.auroc.low < 0.5 < found.auroc.high
    assert found.found[0.01].low <= 0.01 <= found.found[0.01].high
    assert found.found[0.001].low is None and "1400 held-out images have 1 false alarms" in found.found[0.001].note


def test_areas_and_shares_are_their_definitions():
    rng = np.random.default_rng(1)
    members, others = np.round(rng.normal(0.7, 1, 300), 1), np.round(rng.normal(size=2000), 1)
    found = memorisation.attack(scores(members), scores(others), seed=0)
    truth = roc_auc_score(np.r_[np.ones(300), np.zeros(2000)], np.r_[members, others])
    assert found.auroc.value == pytest.approx(truth)
    threshold = np.sort(others)[-20]
    assert (others > threshold).mean() <= 0.01
    assert found.found[0.01].value == (members > threshold).mean() > 0.02


def test_intervals_of_the_area_cover_in_simulation(monkeypatch):
    """Of 200 attacks, 95 % within a binomial's 99 % interval; the truth of unit normals d apart is Phi(d / sqrt 2)."""
    monkeypatch.setattr(memorisation, "RESAMPLES", 300)
    rng, covered = np.random.default_rng(2), []
    for seed in range(200):
        found = memorisation.attack(scores(rng.normal(0.5, 1, 150)), scores(rng.normal(size=150)), seed)
        covered.append(found.auroc.low < 0.6382 < found.auroc.high)
    assert 0.905 <= np.mean(covered) <= 0.985


def test_the_share_found_is_that_at_the_rate_and_few_images_have_no_interval():
    """Normals 0.5 apart: at 1 % of false alarms 0.034 are found; at hundred others hardly more, on average."""
    rng = np.random.default_rng(3)
    found = [memorisation._found(rng.normal(0.5, 1, 500), np.sort(rng.normal(size=100)), 0.01) for _ in range(400)]
    assert np.mean(found) < 0.05
    few = memorisation.attack(scores(rng.normal(size=50)), scores(rng.normal(size=50)), seed=0)
    assert few.found[0.01].low is None and "50 held-out images cannot show 1 %" in few.found[0.01].note


def test_images_of_one_lesion_are_drawn_together():
    drawn = Scores(np.array([1.0, 1.0, 2.0]), np.array(["a", "a", "b"])).resample(np.random.default_rng(4))
    assert len(drawn) in (2, 3, 4) and (drawn == 1).sum() % 2 == 0
