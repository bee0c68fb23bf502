"""Blurs, percentiles, closing, opening and growing are those of SciPy and NumPy, also at edges and of small images."""

import numpy as np
import pytest
from scipy import ndimage

from dermjax.data.imaging import filters
from dermjax.data.imaging.filters import blur, percentile
from dermjax.data.imaging.hair import line


@pytest.mark.parametrize(("height", "width", "radius"), [(64, 64, 2), (40, 57, 7), (21, 30, 9), (128, 128, 4)])
def test_discs_close_and_open_as_scipy_does(height, width, radius):
    image = np.random.default_rng(radius).normal(size=(height, width)).astype(np.float32)
    shape = filters.disc(radius)
    for ours, theirs in (
        (filters.close_by_disc, ndimage.grey_closing),
        (filters.open_by_disc, ndimage.grey_opening),
    ):
        np.testing.assert_array_equal(ours(image, radius), theirs(image, footprint=shape))


@pytest.mark.parametrize("side", [3, 5, 9, 13])
def test_squares_close_as_scipy_does(side):
    image = np.random.default_rng(side).normal(size=(33, 48)).astype(np.float32)
    np.testing.assert_array_equal(filters.close_by_square(image, side), ndimage.grey_closing(image, (side, side)))


@pytest.mark.parametrize("way", range(12))
def test_lines_open_masks_as_scipy_does(way):
    mask = np.random.default_rng(way).random((50, 71)) < 0.8
    shapes = [line(9, 180 * way / 12), line(15, 180 * way / 12 + 70)]
    opened = np.any([ndimage.binary_opening(mask, shape) for shape in shapes], axis=0)
    np.testing.assert_array_equal(filters.open_by_any(mask, shapes), opened)


@pytest.mark.parametrize("radius", [0.5, 1.5, 2.048, 5, 7.3])
def test_masks_grow_and_shrink_by_euclidean_distance(radius):
    mask = np.random.default_rng(int(radius)).random((44, 61)) < 0.02
    away = ndimage.distance_transform_edt(~mask)
    np.testing.assert_array_equal(filters.grow(mask, radius), away <= radius)
    within = ndimage.distance_transform_edt(np.pad(~mask, 1))[1:-1, 1:-1]
    np.testing.assert_array_equal(filters.shrink(~mask, radius), within > radius)
    assert not filters.grow(np.zeros_like(mask), radius).any()


def test_holes_are_filled_as_scipy_does():
    for seed in range(8):
        mask = np.random.default_rng(seed).random((40, 53)) < 0.62
        np.testing.assert_array_equal(filters.fill_holes(mask), ndimage.binary_fill_holes(mask))


@pytest.mark.parametrize("sigma", [0.38, 0.64, 1.024, 3.1])
def test_a_blur_is_scipys(sigma):
    plane = np.random.default_rng(0).uniform(0, 255, (40, 57)).astype(np.float32)
    np.testing.assert_allclose(blur(plane, sigma), ndimage.gaussian_filter(plane, sigma), rtol=2e-6)


@pytest.mark.parametrize("share", [0, 20, 50, 60, 62, 100])
@pytest.mark.parametrize("count", [1, 2, 10, 11, 4096])
def test_a_percentile_is_numpys(share, count):
    values = np.random.default_rng(count).normal(size=count)
    assert percentile(values, share) == pytest.approx(np.percentile(values, share), rel=1e-12)
    assert percentile(values.astype(np.float32), share) == pytest.approx(np.percentile(values, share), rel=1e-5)
