"""Sets of features beside real ones: what is better ranks better, and sets that are too small say so."""

import numpy as np
import pytest

from dermjax.errors import UserError
from dermjax.evaluation.images import fidelity
from dermjax.evaluation.images.fidelity import Features


@pytest.fixture(scope="module")
def real():
    """Features [900, 8] of real images: three clouds."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(900, 8)) + 4 * rng.integers(0, 3, (900, 1)) * np.eye(8)[0]


def one_class(values):
    return Features(values, np.zeros(len(values), int))


def compare(*sets):
    return fidelity.compare(*map(one_class, sets), seed=0)


def ratio(found, name):
    return found.synthetic[name].value / found.ceiling[name].value


def test_real_images_as_if_synthetic_reach_the_ceiling(real):
    found = compare(real[:300], real[300:600], real[600:])
    for name in (*fidelity.SHARES, "authentic"):
        assert ratio(found, name) == pytest.approx(1, abs=0.12), name
    assert found.synthetic["frechet"].low < 0.3 and found.synthetic["kid"].low < 0 < found.synthetic["kid"].high
    assert found.reference == 300 and found.synthetic["recall"].n == 300


def test_a_lost_mode_shows_in_recall_and_a_far_set_in_every_distance(real):
    rng = np.random.default_rng(1)
    lost = compare(real[:300], real[300:600], rng.normal(size=(300, 8)))
    assert ratio(lost, "recall") < 0.6 and ratio(lost, "coverage") < 0.6 and ratio(lost, "precision") > 0.9
    far = compare(real[:300], real[300:600], real[600:] + 3)
    for name in fidelity.DISTANCES:
        assert far.synthetic[name].low > far.ceiling[name].high, name


def test_copies_of_training_images_are_not_authentic(real):
    copied = compare(real[:300], real[300:600], real[300:600] + 1e-3)
    assert copied.synthetic["authentic"].value < 0.05 < 0.4 < copied.ceiling["authentic"].value
    assert ratio(copied, "recall") > 0.95  # nothing else shows it


def test_a_balanced_set_is_not_called_far_for_its_balance(real):
    """Classes of 85 and 15 % in what is real, even in what is synthetic, each class of one distribution."""

    def drawn(*counts):
        rng = np.random.default_rng(sum(counts))
        classes = np.repeat([0, 1], counts)
        return Features(rng.normal(size=(len(classes), 8)) + 6 * classes[:, None] * np.eye(8)[0], classes)

    found = fidelity.compare(drawn(340, 60), drawn(680, 120), drawn(400, 400), seed=0)
    assert found.synthetic["frechet"].low < 0.15 and ratio(found, "coverage") > 0.9
    assert (
        found.synthetic["precision"].n == found.ceiling["precision"].n == 470
    )  # 400 of the one class, 70 of the other


def test_as_many_training_images_are_compared_as_there_are_synthetic_ones(real):
    found = compare(real[:300], real[300:], real[600:640])
    assert found.ceiling["precision"].n == found.synthetic["precision"].n == 40


def test_sets_of_unequal_size_are_compared_at_the_number_that_both_have(real):
    """Of one distribution 40 images cover less than 300, and at 40 each as much."""
    sizes = [fidelity.counts(*(np.zeros(n, int) for n in (300, 300, size))) for size in (300, 40)]
    number = np.minimum(*sizes)
    small = compare(real[:300], real[300:600], real[600:640])
    large = fidelity.compare(*map(one_class, (real[:300], real[300:600], real[600:])), seed=0, number=number)
    assert large.counts == small.counts == number.tolist() == [40] and large.synthetic["vendi"].n == 40
    coverage = [each.synthetic["coverage"].value for each in (small, large)]
    assert (
        abs(coverage[0] - coverage[1])
        < 0.15
        < compare(real[:300], real[300:600], real[600:]).synthetic["coverage"].value - max(coverage)
    )


def test_too_few_images_are_refused_or_marked(real):
    with pytest.raises(UserError, match="4 real training and synthetic images: figures of whole sets need 10"):
        compare(real[:300], real[300:600], real[:4])
    wide = np.random.default_rng(2).normal(size=(60, 100))
    marked = fidelity.figures(wide[:30], wide[30:], seed=0)["frechet"]
    assert marked.low is None and "too few" in marked.note


@pytest.mark.parametrize(("images", "note"), [(8, "the value is no distance"), (15, "an interval takes 16"), (16, "")])
def test_a_frechet_distance_has_an_interval_where_it_would_cover(real, images, note):
    found = fidelity.figures(real[:300], real[300 : 300 + images], seed=0)["frechet"]
    assert (found.low is None) == bool(note) and note in found.note
    assert not note or f"{images} images for 8 features: too few" in found.note
