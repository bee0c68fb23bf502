"""Copies are close however they are held, different lesions are not, and of duplicates the first stays."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from dermjax.data.leaks import copies, duplicates
from dermjax.data.phantoms.painting import phantom


@pytest.fixture(scope="module")
def lesions():
    return [phantom(seed, 128).image for seed in range(12)]


@pytest.fixture(scope="module")
def hashes(lesions):
    return np.stack([copies.orientation_hashes(image) for image in lesions])


def test_a_turned_mirrored_softened_copy_is_near_its_original(lesions, hashes):
    softened = [gaussian_filter(np.rot90(image[::-1]), (1.3, 1.3, 0)) for image in lesions]
    altered = np.stack([copies.orientation_hashes(image) for image in softened])
    apart = copies.distances(altered[:, 0], hashes)
    assert apart.shape == (12, 12)
    assert np.diag(apart).max() <= 10
    assert apart[~np.eye(12, dtype=bool)].min() > 40


def test_nearest_is_the_least_distance(hashes):
    assert (copies.nearest(hashes[:5, 0], hashes[5:]) == copies.distances(hashes[:5, 0], hashes[5:]).min(-1)).all()
    others = copies.nearest_other(hashes, np.array([0, 7]))
    assert (others > 0).all()
    assert copies.nearest_other(hashes[:1], np.array([0])).tolist() == [duplicates.BITS]


def test_of_duplicates_the_first_that_stands_is_kept(hashes):
    rows = hashes[[0, 1, 0, 0, 2]]
    everyone = np.ones(5, bool)
    assert (copies.nearest_kept(rows, 40, everyone) <= 40).tolist() == [False, False, True, True, False]
    # an image that is rejected for another reason does not take its duplicates with it
    standing = np.array([False, True, True, True, True])
    assert (copies.nearest_kept(rows, 40, standing) <= 40).tolist() == [False, False, False, True, False]
