"""Sets of features beside real ones: what is better ranks better, and sets that are too small say so."""

import numpy as np
import pytest

from dermjax.errors import UserError
from dermjax.evaluation.images import fidelity


@pytest.fixture(scope="module")
def real():
    """Features [900, 8] of real images: three clouds."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(900, 8)) + 4 * rng.integers(0, 3, (900, 1)) * np.eye(8)[0]


def test_real_images_as_if_synthetic_reach_the_ceiling(real):
    found = fidelity.compare(real[:300], real[300:600], real[600:], seed=0)
    for name in fidelity.SHARES:
        assert found.ratio(name) == pytest.approx(1, abs=0.12), name
    assert found.synthetic["frechet"].low < 0.3 and found.synthetic["kid"].low < 0 < found.synthetic["kid"].high
    assert found.reference == 300 and found.synthetic["recall"].n == 300


def test_a_lost_mode_shows_in_recall_and_a_far_set_in_every_distance(real):
    rng = np.random.default_rng(1)
    one_mode = rng.normal(size=(300, 8))
    lost = fidelity.compare(real[:300], real[300:600], one_mode, seed=0)
    assert lost.ratio("recall") < 0.6 and lost.ratio("coverage") < 0.6 and lost.ratio("precision") > 0.9
    far = fidelity.compare(real[:300], real[300:600], real[600:] + 3, seed=0)
    for name in fidelity.DISTANCES:
        assert far.synthetic[name].low > far.ceiling[name].high, name


def test_as_many_training_images_are_compared_as_there_are_synthetic_ones(real):
    found = fidelity.compare(real[:300], real[300:], real[600:640], seed=0)
    assert found.ceiling["precision"].n == found.synthetic["precision"].n == 40


def test_too_few_images_are_refused_or_marked(real):
    with pytest.raises(UserError, match="4 synthetic images: figures of whole sets need 10"):
        fidelity.compare(real[:300], real[300:600], real[:4], seed=0)
    wide = np.random.default_rng(2).normal(size=(60, 100))
    marked = fidelity.figures(wide[:30], wide[30:], seed=0)["frechet"]
    assert marked.low is None and "too few" in marked.note
