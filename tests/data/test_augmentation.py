"""Every policy keeps shape, type and range; geometry and colour are what their formulas say; mixtures add up."""

import numpy as np
import pytest
from PIL import Image

from dermjax.data import augmentation, images

SIZE = 32


@pytest.fixture
def image():
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    return np.stack([7 * x, 7 * y, 3 * (x + y)], axis=-1).astype(np.uint8)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", augmentation.POLICIES)
def test_every_policy_keeps_shape_type_and_range_and_repeats_itself(image, name):
    policy, before = augmentation.POLICIES[name], image.copy()
    for seed in range(20):
        out = policy(image, rng(seed))
        assert out.shape == image.shape and out.dtype == np.float32 and abs(out).max() <= 1
        np.testing.assert_array_equal(out, policy(image, rng(seed)))
    np.testing.assert_array_equal(image, before)


def test_mild_shows_all_eight_symmetries_and_little_else(image):
    turned = [each for k in range(4) for each in (np.rot90(image, k), np.rot90(image, k)[:, ::-1])]
    found = set()
    for seed in range(60):
        out = augmentation.mild(image, rng(seed))
        apart = [abs(out - images.to_model(each)).mean() for each in turned]
        assert min(apart) < 0.2
        found.add(int(np.argmin(apart)))
    assert found == set(range(8))


def test_the_identity_resamples_to_itself(image):
    out = np.asarray(augmentation.resample(Image.fromarray(image), np.eye(3)))
    np.testing.assert_array_equal(out, image)


def test_a_quarter_turn_and_a_mirror_are_exact(image):
    quarter = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    out = np.asarray(augmentation.resample(Image.fromarray(image), quarter))
    assert any(abs(out.astype(int) - np.rot90(image, k)).max() <= 1 for k in (1, 3))
    out = np.asarray(augmentation.resample(Image.fromarray(image), np.diag([-1.0, 1, 1])))
    np.testing.assert_array_equal(out, image[:, ::-1])


def test_no_map_reaches_beyond_what_is_mirrored():
    corners = np.array([[x, y, 1] for x in (-1, 1) for y in (-1, 1)]).T
    for seed in range(300):
        reach = augmentation.crop_map(rng(seed)) @ augmentation.turn_map(rng(seed + 1000)) @ corners
        assert abs(reach[:2]).max() < 1 + 2 * augmentation.BEYOND


def test_a_crop_stays_inside_and_has_the_area_that_is_asked_for():
    corners = np.array([[x, y, 1] for x in (-1, 1) for y in (-1, 1)]).T
    for seed in range(200):
        to_part = augmentation.crop_map(rng(seed))
        assert abs((to_part @ corners)[:2]).max() <= 1 + 1e-9
        assert augmentation.AREA[0] * 0.85 < np.linalg.det(to_part) <= augmentation.AREA[1]


def test_a_turn_of_hue_leaves_grey_alone_and_a_whole_third_swaps_the_colours():
    np.testing.assert_allclose(augmentation.hue_map(0.3) @ np.ones(3), np.ones(3))
    np.testing.assert_allclose(augmentation.hue_map(2 * np.pi / 3) @ [1, 0, 0], [0, 1, 0], atol=1e-12)


def test_strong_leaves_a_grey_image_grey():
    out = augmentation.strong(np.full((SIZE, SIZE, 3), 120, np.uint8), rng(3))
    assert np.ptp(out) < 0.02


@pytest.mark.parametrize("name", sorted(set(augmentation.OPERATIONS) - {"autocontrast", "equalize"}))
def test_randaugment_at_no_strength_changes_next_to_nothing(image, name):
    before = np.minimum(image, 254)  # solarize at 256 spares all
    out = np.asarray(augmentation.OPERATIONS[name](Image.fromarray(before), 0.0))
    np.testing.assert_array_equal(out, before)


def batch():
    label = np.arange(8, dtype=np.int32) % 3
    return {"image": label[:, None, None, None] * np.ones((8, 10, 10, 3), np.float32) / 2 - 0.5, "label": label}


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_the_targets_of_a_mixture_are_the_shares_of_what_is_seen(name):
    whole = batch()
    for seed in range(10):
        other = {key: values[rng(seed).permutation(8)] for key, values in whole.items()}
        out = augmentation.MIXTURES[name](whole, other, rng(seed), 3)
        np.testing.assert_allclose(out["targets"].sum(-1), 1, rtol=1e-6)
        seen = out["image"].mean((1, 2, 3))
        np.testing.assert_allclose(seen, out["targets"] @ (np.arange(3) / 2 - 0.5), atol=1e-5)
        np.testing.assert_array_equal(out["label"], whole["label"])
    np.testing.assert_array_equal(whole["image"], batch()["image"])


def test_no_mixture_is_the_same_batch():
    whole = batch()
    assert augmentation.unmixed(whole, whole, rng(), 3) is whole
