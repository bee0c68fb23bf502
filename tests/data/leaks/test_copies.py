"""Copies are close however they are held, different lesions are not, and of duplicates the first stays."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from dermjax.data.leaks import copies, duplicates, neighbours
from dermjax.data.phantoms.painting import phantom
from dermjax.errors import UserError


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


def turned(upright):
    """The hashes of the eight orientations uint64 [N, 8, 4] of images with these hashes uint64 [N, 4]."""
    bits = np.unpackbits(upright.view(np.uint8), axis=-1)
    ways = [bits[:, order] ^ flip for order in neighbours.ORDERS for flip in neighbours.FLIPS]
    return np.ascontiguousarray(np.packbits(np.stack(ways, 1), axis=-1)).view(np.uint64)


def hashes_with_copies(count, share, limit, seed):
    """Made-up hashes of images, a share of them near an earlier one, held any way round: uint64 [N, 8, 4]."""
    rng = np.random.default_rng(seed)
    made = rng.integers(0, 2**64, (count, 4), dtype=np.uint64)
    made.view(np.uint8)[:, 0] &= 127  # the first bit says nothing
    found = turned(made)
    for row in np.flatnonzero(rng.random(count) < share):
        if row:
            bits = np.unpackbits(found[rng.integers(row), rng.integers(8)].view(np.uint8))
            bits[1 + rng.permutation(255)[: rng.integers(limit + 1)]] ^= 1
            found[row] = turned(np.packbits(bits).view(np.uint64)[None])[0]
    return found


@pytest.mark.parametrize("limit", [30, 46])
def test_tables_find_what_comparing_with_all_kept_finds(monkeypatch, limit):
    rows = hashes_with_copies(1500, 0.3, limit, seed=limit)
    eligible = np.random.default_rng(1).random(1500) < 0.9
    exact = copies.nearest_kept(rows, limit, eligible)
    assert 300 < (exact <= limit).sum() < 600 and set(exact[exact > limit]) == {duplicates.BITS}
    monkeypatch.setattr(copies, "EXACT", 0)
    monkeypatch.setattr(copies, "A_BLOCK", 100)
    np.testing.assert_array_equal(copies.nearest_kept(rows, limit, eligible), exact)


def test_a_million_of_one_image_hold_no_more_than_one(monkeypatch):
    """The tables hold what is kept: here one image of a thousand."""
    monkeypatch.setattr(copies, "EXACT", 0)
    monkeypatch.setattr(copies, "A_BLOCK", 100)
    rows = np.repeat(hashes_with_copies(1, 0, 0, seed=0), 1000, axis=0)
    found = copies.nearest_kept(rows, 46, np.ones(1000, bool))
    assert found.tolist() == [duplicates.BITS] + 999 * [0]


def test_none_eligible_and_none_at_all(monkeypatch):
    for exact in (1, 10):
        monkeypatch.setattr(copies, "EXACT", exact)
        rows = hashes_with_copies(5, 0, 0, seed=0)
        assert copies.nearest_kept(rows, 46, np.zeros(5, bool)).tolist() == 5 * [duplicates.BITS]
        assert copies.nearest_kept(rows[:0], 46, np.zeros(0, bool)).tolist() == []


def test_a_limit_that_no_memory_would_do_for_is_one_line(monkeypatch):
    monkeypatch.setattr(copies, "EXACT", 0)
    with pytest.raises(UserError, match=r"near-duplicates: 5 images within 255 bits take .* give a smaller") as caught:
        copies.nearest_kept(hashes_with_copies(5, 0, 0, seed=0), 254, np.ones(5, bool))
    assert "\n" not in str(caught.value)
