"""Crops follow from the seed, the batch and the row, whoever cuts them; they stay within the picture and its detail."""

import numpy as np
import pytest

from dermjax.pretraining import photographs
from dermjax.pretraining.photographs import Source

SETTINGS = {"size": 32, "sides": (40, 64), "seed": 3}


@pytest.fixture(scope="module")
def sources():
    rng = np.random.default_rng(0)
    red, blue = (np.zeros((3, 64, 64, 3), np.uint8) for _ in range(2))
    red[..., 0], blue[..., 2] = rng.integers(100, 200, (2, 3, 64, 64))
    return [Source(red, 0.75), Source(blue, 0.25)]


def batches(sources, number, rows=range(4), **changes):
    made = photographs.crop_batches(sources, **(SETTINGS | changes), rows=np.array(rows))
    return [next(made)["image"] for _ in range(number)]


def test_they_repeat_themselves_and_change_from_batch_to_batch(sources):
    first, second = batches(sources, 2)
    again, _ = batches(sources, 2)
    assert first.shape == (4, 32, 32, 3) and first.dtype == np.float32 and np.abs(first).max() <= 1
    assert np.array_equal(first, again) and not np.array_equal(first, second)
    assert not np.array_equal(first, batches(sources, 1, seed=4)[0])


def test_a_process_cuts_the_rows_that_are_its_own(sources):
    (whole,), (some,) = batches(sources, 1), batches(sources, 1, rows=(1, 3))
    assert np.array_equal(some, whole[[1, 3]])


def test_a_resumed_run_goes_on_with_the_next_batch(sources):
    made = photographs.crop_batches(sources, **SETTINGS, rows=np.arange(4))
    _, state, expected = next(made), made.get_state(), next(made)
    other = photographs.crop_batches(sources, **SETTINGS, rows=np.arange(4))
    other.set_state(state)
    assert np.array_equal(next(other)["image"], expected["image"])


def test_the_shares_are_kept(sources):
    images = np.concatenate(batches(sources, 100))
    reddish = (images[..., 0] > images[..., 2]).mean((1, 2)) > 0.5
    assert 0.68 < reddish.mean() < 0.82  # of 400 crops, 3 deviations
    only = np.concatenate(batches([Source(sources[0].pictures[:0], 0.0), sources[1]], 5))
    assert (only[..., 2] >= only[..., 0]).all()


def test_a_crop_of_the_whole_is_the_picture_turned_and_relit():
    picture = np.random.default_rng(0).integers(40, 200, (32, 32, 3), np.uint8)
    rng = np.random.default_rng(1)
    made = photographs.relight(photographs.draw_window(32, 32, (32, 32), rng).cut(picture, 32), rng)
    turned = [np.rot90(picture, quarter)[::flip] for quarter in range(4) for flip in (1, -1)]
    matches = [np.corrcoef(made[..., 0].ravel(), each[..., 0].ravel())[0, 1] > 0.99 for each in turned]
    assert sum(matches) == 1


def test_a_small_picture_is_not_enlarged():
    fine = np.zeros((64, 64, 3), np.uint8)
    fine[::2] = 200  # lines of a pixel: any enlargement shows wider ones
    made = photographs.draw_window(64, 32, (256, 256), np.random.default_rng(0)).cut(fine, 32)
    lines = (
        np.abs(np.diff(made[..., 1].astype(int), axis=0)).mean(),
        np.abs(np.diff(made[..., 1].astype(int), axis=1)).mean(),
    )
    assert max(lines) > 100


def test_a_mask_is_cut_as_its_picture_is():
    rng = np.random.default_rng(0)
    masks = (rng.random((4, 8, 8)) < 0.5).repeat(8, 1).repeat(8, 2).astype(np.uint8) * 255
    source = Source(np.stack([masks // 2 + 40] * 3, -1), 1.0, masks)
    made = next(photographs.crop_batches([source], **SETTINGS, rows=np.arange(16)))
    assert made["mask"].shape == (16, 32, 32) and made["mask"].max() <= 1
    for image, mask in zip(made["image"], made["mask"], strict=True):
        assert np.corrcoef(image[..., 0].ravel(), mask.ravel())[0, 1] > 0.98


def test_other_light_keeps_the_order_of_levels():
    levels = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(16, 16, 3)
    lit = photographs.relight(levels, np.random.default_rng(0)).reshape(256, 3).astype(int)
    assert (np.diff(lit, axis=0) >= 0).all() and (lit[0] == 0).all() and lit[-1].min() > 150
