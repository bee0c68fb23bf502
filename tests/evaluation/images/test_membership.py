"""The attack finds members that are known by heart, and nothing where there is nothing to find."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from dermjax.evaluation.images import membership
from dermjax.evaluation.images.membership import Scores


def scores(values):
    """Scores of images that each show a lesion of their own."""
    return Scores(values, np.arange(len(values)))


def test_chance_is_chance_and_its_interval_says_so():
    rng = np.random.default_rng(0)
    found = membership.attack(scores(rng.normal(size=600)), scores(rng.normal(size=1400)), seed=0)
    assert found.auroc.low < 0.5 < found.auroc.high
    assert found.found[0.01].low <= 0.01 <= found.found[0.01].high
    assert found.found[0.001].low is None and "1400 held-out images have 1 false alarms" in found.found[0.001].note


def test_areas_and_shares_are_their_definitions():
    rng = np.random.default_rng(1)
    members, others = np.round(rng.normal(0.7, 1, 300), 1), np.round(rng.normal(size=2000), 1)
    found = membership.attack(scores(members), scores(others), seed=0)
    truth = roc_auc_score(np.r_[np.ones(300), np.zeros(2000)], np.r_[members, others])
    assert found.auroc.value == pytest.approx(truth)
    threshold = np.sort(others)[-20]
    assert (others > threshold).mean() <= 0.01
    assert found.found[0.01].value == (members > threshold).mean() > 0.02


def test_intervals_of_the_area_cover_in_simulation(monkeypatch):
    """Of 200 attacks, 95 % within a binomial's 99 % interval; the truth of unit normals d apart is Phi(d / sqrt 2)."""
    monkeypatch.setattr(membership, "RESAMPLES", 300)
    rng, covered = np.random.default_rng(2), []
    for seed in range(200):
        found = membership.attack(scores(rng.normal(0.5, 1, 150)), scores(rng.normal(size=150)), seed)
        covered.append(found.auroc.low < 0.6382 < found.auroc.high)
    assert 0.905 <= np.mean(covered) <= 0.985


def test_the_share_found_is_that_at_the_rate_and_few_images_have_no_interval():
    """Normals 0.5 apart: at 1 % of false alarms 0.034 are found; at hundred others hardly more, on average."""
    rng = np.random.default_rng(3)
    found = [membership._found(rng.normal(0.5, 1, 500), np.sort(rng.normal(size=100)), 0.01) for _ in range(400)]
    assert np.mean(found) < 0.05
    few = membership.attack(scores(rng.normal(size=50)), scores(rng.normal(size=50)), seed=0)
    assert few.found[0.01].low is None and "50 held-out images cannot show 1 %" in few.found[0.01].note


def test_images_of_one_lesion_are_drawn_together():
    drawn = Scores(np.array([1.0, 1.0, 2.0]), np.array(["a", "a", "b"])).resample(np.random.default_rng(4))
    assert len(drawn) in (2, 3, 4) and (drawn == 1).sum() % 2 == 0
