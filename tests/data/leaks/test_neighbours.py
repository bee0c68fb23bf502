"""Near images are found by tables as by comparing all with all, whichever way they are held, and only those."""

import time

import numpy as np
import pytest

from dermjax.data.leaks import duplicates, neighbours

rng = np.random.default_rng(0)


def lesions(count, side=64):
    """uint8 [count, side, side, 3]: smoothed noise, each another one."""
    coarse = rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    return coarse.repeat(side // 16, axis=1).repeat(side // 16, axis=2)


def changed(hashes, bits):
    """The hashes with so many bits flipped, others in each; the first bit is always 0."""
    planes = np.unpackbits(hashes.view(np.uint8), axis=-1)
    for row in planes:
        row[1 + rng.permutation(255)[:bits]] ^= 1
    return np.packbits(planes, axis=-1).view(np.uint64)


def random_views(count, views=1):
    found = rng.integers(0, 2**64, (count, views, 4), dtype=np.uint64)
    found.view(np.uint8)[..., 0] &= 127
    return found


TURNS = [lambda image, k=k, m=m: np.rot90(image, k, (0, 1))[:, :: 1 - 2 * m] for k in range(4) for m in (0, 1)]


@pytest.mark.parametrize("turn", TURNS)
def test_a_turned_copy_is_near(turn):
    images = lesions(5)
    copies = np.stack([turn(image) for image in images])
    found = neighbours.near(duplicates.views(np.concatenate([images, copies])))
    np.testing.assert_array_equal(found[:, :2], np.stack([np.arange(5), np.arange(5, 10)], axis=-1))


def test_tables_find_what_comparing_all_with_all_finds(monkeypatch):
    whole = random_views(400)
    views = np.concatenate([whole, changed(whole[:200, 0], 20)[:, None], changed(whole[200:250, 0], 30)[:, None]])
    by_tables = neighbours.near(views)
    monkeypatch.setattr(neighbours, "FEW", len(views))
    np.testing.assert_array_equal(by_tables, neighbours.near(views))
    assert len(by_tables) == 250


def test_at_the_very_limit_next_to_none_are_missed_and_beyond_it_none_is_found():
    whole = random_views(1000)[:, 0]
    for bits, least, most in ((duplicates.NEAR, 990, 1000), (duplicates.NEAR + 1, 0, 0)):
        found = neighbours.near(np.concatenate([whole, changed(whole, bits)])[:, None])
        assert least <= len(found) <= most


def test_a_crop_is_near_the_whole_at_a_closer_distance(monkeypatch):
    for few in (0, 1000):
        monkeypatch.setattr(neighbours, "FEW", few)
        views = random_views(310, views=2)
        views[5, 0] = changed(views[200:201, 1], duplicates.NEAR_CROPPED - 10)[0]
        views[6, 0] = changed(views[201:202, 1], duplicates.NEAR_CROPPED + 1)[0]
        assert neighbours.near(views).tolist() == [[5, 200, duplicates.NEAR_CROPPED - 10]]


def test_of_equal_images_each_is_paired_with_the_first():
    views = random_views(400)
    views[[7, 50, 399]] = views[3]
    assert neighbours.near(views).tolist() == [[3, 7, 0], [3, 50, 0], [3, 399, 0]]


def test_small_blocks_and_nothing_at_all(monkeypatch):
    assert neighbours.near(np.empty((0, 3, 4), np.uint64)).shape == (0, 3)
    whole = random_views(320)
    views = np.concatenate([whole, changed(whole[:40, 0], 12)[:, None]])
    before = neighbours.near(views)
    monkeypatch.setattr(neighbours, "BLOCK", 50)
    np.testing.assert_array_equal(before, neighbours.near(views))


@pytest.mark.slow
def test_a_hundred_thousand_hashes_take_minutes():
    seconds = {}
    for count in (25_000, 100_000):
        views = random_views(count, views=len(duplicates.VIEWS))
        views[-100:, 0] = changed(views[:100, 0], 30)
        began = time.process_time()  # of all threads, so that what else the machine does hardly counts
        assert len(neighbours.near(views)) == 100
        seconds[count] = time.process_time() - began
    print(seconds)
    assert seconds[100_000] < 600
