"""Blurs and percentiles are SciPy's and NumPy's, up to the rounding of float32."""

import numpy as np
import pytest
from scipy import ndimage

from dermjax.data.imaging.planes import blur, percentile


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
