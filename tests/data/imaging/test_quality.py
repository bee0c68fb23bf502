"""Each measure on images whose answer is plain."""

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from dermjax.data.imaging import quality
from dermjax.data.imaging.colour import planes_to_lab
from dermjax.data.phantoms.painting import phantom


def field(level):
    return np.full((128, 128, 3), level, np.uint8)


def lab(image):
    return planes_to_lab(np.moveaxis(image, -1, 0))


def noise(seed):
    return np.random.default_rng(seed).integers(0, 256, (128, 128, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def lesion():
    return phantom(3, 128, number=1, size_name="medium", blur=False).image


@pytest.mark.parametrize("level", [0, 128, 255])
def test_an_even_field_has_no_contrast_no_structure_and_no_detail(level):
    found = quality.measure(field(level))
    assert found["contrast"] == pytest.approx(0, abs=1e-3)
    assert found["structure"] == 0
    assert found["sharpness"] == pytest.approx(-6, abs=0.1)


def test_a_lesion_stands_out_and_noise_does_not(lesion):
    assert quality.contrast(lab(lesion)) > 8
    assert quality.structure(lab(lesion)) > 0.2
    # white noise keeps one part in the 64 pixels of a cell
    assert quality.structure(lab(noise(0))) == pytest.approx(1 / 64, rel=0.3)


def test_a_dark_frame_is_no_lesion():
    image = field(190)
    y, x = np.mgrid[:128, :128] - 63.5
    image[np.hypot(x, y) > 70] = 0
    assert quality.contrast(lab(image)) < 1


def test_sharpness_falls_with_blur_and_not_with_contrast(lesion):
    soft = [gaussian_filter(lesion, (sigma, sigma, 0)) for sigma in (0.6, 1.3, 2.6, 5.1)]
    blurs = [quality.measure(image)["sharpness"] for image in soft]
    assert blurs == sorted(blurs, reverse=True)
    pale = np.rint(lesion * 0.5 + 110).astype(np.uint8)
    sharp, same = (quality.measure(image)["sharpness"] for image in (lesion, pale))
    assert abs(sharp - same) < 0.1
    assert sharp - blurs[-1] > 0.5


def test_measures_do_not_depend_on_how_the_image_is_held(lesion):
    turned = quality.measure(np.ascontiguousarray(np.rot90(lesion)[:, ::-1]))
    assert turned == pytest.approx(quality.measure(lesion), abs=1e-3)


def test_sharpness_does_not_follow_the_size_at_which_it_is_measured():
    """At the sizes that `curate` takes, multiples of FINE."""
    large = Image.fromarray(phantom(5, 512, blur=False).image)
    sizes = range(quality.FINE, 385, quality.FINE)
    found = [quality.sharpness(lab(np.asarray(large.resize((size, size), Image.Resampling.BOX)))) for size in sizes]
    assert max(found) - min(found) < 0.1
