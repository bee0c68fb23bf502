"""Closing and opening by shifted copies are SciPy's, number for number, also at edges and of small images."""

import numpy as np
import pytest
from scipy import ndimage

from dermjax.data.imaging import morphology
from dermjax.data.imaging.hair import line


@pytest.mark.parametrize(("height", "width", "radius"), [(64, 64, 2), (40, 57, 7), (21, 30, 9), (128, 128, 4)])
def test_discs_close_and_open_as_scipy_does(height, width, radius):
    image = np.random.default_rng(radius).normal(size=(height, width, 2)).astype(np.float32)
    shape = morphology.disc(radius)
    for ours, theirs in (
        (morphology.close_by_disc, ndimage.grey_closing),
        (morphology.open_by_disc, ndimage.grey_opening),
    ):
        expected = np.stack([theirs(image[..., channel], footprint=shape) for channel in range(2)], -1)
        np.testing.assert_array_equal(ours(image, radius), expected)
        np.testing.assert_array_equal(ours(image[..., 0], radius), expected[..., 0])


@pytest.mark.parametrize("side", [3, 5, 9, 13])
def test_squares_close_as_scipy_does(side):
    image = np.random.default_rng(side).normal(size=(33, 48, 3)).astype(np.float32)
    np.testing.assert_array_equal(morphology.close_by_square(image, side), ndimage.grey_closing(image, (side, side, 1)))


@pytest.mark.parametrize("way", range(12))
def test_lines_open_masks_as_scipy_does(way):
    mask = np.random.default_rng(way).random((50, 71)) < 0.8
    shape = line(9, 180 * way / 12)
    np.testing.assert_array_equal(morphology.open_by(mask, shape), ndimage.binary_opening(mask, shape))
