"""Distances of sets of features beside closed forms, definitions and brute force."""

import time

import numpy as np
import pytest
from scipy import linalg, stats
from scipy.spatial.distance import cdist

from dermjax.evaluation import distances
from dermjax.evaluation.intervals import jackknife


def normal(n, mean, covariance, seed=0):
    return np.random.default_rng(seed).multivariate_normal(mean, covariance, n)


@pytest.fixture(scope="module")
def sets():
    """Real [700, 6] and synthetic [500, 6] features, of which 40 are real ones a little changed."""
    rng = np.random.default_rng(1)
    real, synthetic = rng.normal(size=(700, 6)), rng.normal(0.3, 0.8, (500, 6))
    synthetic[:40] = real[:40] + rng.normal(0, 1e-3, (40, 6))
    return real, synthetic


def test_frechet_is_the_closed_form_and_that_of_a_matrix_root(sets):
    real, synthetic = sets
    first, second = np.cov(real, rowvar=False), np.cov(synthetic, rowvar=False)
    root = linalg.sqrtm(first @ second).real
    expected = np.square(real.mean(0) - synthetic.mean(0)).sum() + np.trace(first + second - 2 * root)
    assert distances.frechet(real, synthetic) == pytest.approx(expected, rel=1e-6)
    assert distances.frechet(real, real) == pytest.approx(0, abs=1e-9)
    axes = np.array([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])  # covariance 4/3, exactly
    expected = 2 * (3 - 1) ** 2 * 4 / 3 + 2 * 5**2  # two dimensions, deviations in ratio 3, means 5 apart in both
    assert distances.frechet(axes, 3 * axes + 5) == pytest.approx(expected, rel=1e-9)


def test_the_jackknife_takes_off_what_few_images_add():
    """Two samples of one normal distribution have distance 0; of 400 images each in 40 dimensions it is 2 or more."""
    one, two = (normal(400, np.zeros(40), np.eye(40), seed) for seed in (2, 3))
    assert distances.frechet(one, two) > 1.5
    estimate = jackknife(distances.frechet, (one, two), seed=0)
    assert abs(estimate.value) < 0.15 * distances.frechet(one, two)


def test_extrapolation_reaches_the_distance_of_infinitely_many_images():
    """Two samples of normals 0.1 apart in each of 40 dimensions: 0.4, where 400 images say more than 2."""
    found = []
    for seed in range(8):
        one, two = (
            normal(400, np.zeros(40), np.eye(40), 2 * seed),
            normal(400, np.full(40, 0.1), np.eye(40), 2 * seed + 1),
        )
        assert distances.frechet(one, two) > 1.5
        found.append(distances.frechet_infinite(one, two, seed))
    assert np.mean(found) == pytest.approx(0.4, abs=0.15) and np.std(found) < 0.3


def test_intervals_of_the_jackknife_cover_the_truth():
    """Of 200 pairs of samples, 95 % within a binomial's 99 % interval: 0.905 to 0.985; the truth by its closed form."""
    rng, shift = np.random.default_rng(4), np.full(6, 0.2)
    deviations = np.linspace(0.6, 1.4, 6)
    truth = np.square(shift).sum() + np.square(deviations - 1).sum()
    covered = []
    for seed in range(200):
        estimate = jackknife(
            distances.frechet, (rng.normal(size=(200, 6)), rng.normal(shift, deviations, (150, 6))), seed
        )
        covered.append(estimate.low < truth < estimate.high)
    assert 0.905 <= np.mean(covered) <= 0.985


def test_kid_is_unbiased_and_has_its_definition():
    one, two = (normal(2000, np.zeros(8), np.eye(8), seed) for seed in (4, 5))
    estimate = jackknife(distances.kid, (one, two), seed=0)
    assert estimate.low < 0 < estimate.high
    x, y = one[:50], two[:50] + 1
    kernel = [(a @ b.T / 8 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))]
    off = [(each.sum() - np.trace(each)) / (50 * 49) for each in kernel[:2]]
    assert distances.kid(x, y) == pytest.approx(sum(off) - 2 * kernel[2].mean(), rel=1e-6)


def test_mmd_has_its_definition(sets):
    x, y = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in sets)
    kernel = [np.exp(-(cdist(a, b) ** 2) / (2 * 10**2)).mean() for a, b in ((x, x), (y, y), (x, y))]
    assert distances.mmd(*sets) == pytest.approx(1000 * (kernel[0] + kernel[1] - 2 * kernel[2]), rel=1e-6)


def test_vendi_counts_different_images():
    assert distances.vendi(np.tile(np.eye(5), (20, 1))) == pytest.approx(5)
    assert distances.vendi(np.ones((30, 4))) == pytest.approx(1)
    features = np.random.default_rng(6).normal(size=(30, 50))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(unit @ unit.T / 30)
    assert distances.vendi(features) == pytest.approx(np.exp(stats.entropy(values)))


def test_neighbourhoods_are_those_of_brute_force(sets):
    real, synthetic = sets
    k = 5
    between = cdist(synthetic, real)
    own = [np.sort(cdist(each, each) + np.diag(np.full(len(each), np.inf)), axis=1) for each in sets]
    reach_of_real, reach_of_synthetic = own[0][:, k - 1], own[1][:, k - 1]
    inside = between <= reach_of_real[None]
    found = distances.neighbourhoods(real, synthetic, k)
    np.testing.assert_array_equal(found.precision, inside.any(1))
    np.testing.assert_array_equal(found.recall, (between <= reach_of_synthetic[:, None]).any(0))
    np.testing.assert_array_equal(found.density, inside.sum(1) / np.float64(k))
    np.testing.assert_array_equal(found.coverage, inside.any(0))
    np.testing.assert_array_equal(found.authentic, between.min(1) > own[0][between.argmin(1), 0])
    assert not found.authentic[:40].any()  # the copies


@pytest.mark.parametrize("tile", (7, 64, 350))
def test_tiles_change_nothing(sets, monkeypatch, tile):
    real, synthetic = (each.astype(np.float32) for each in sets)
    expected = np.sort(cdist(synthetic, real), axis=1)[:, :9] ** 2
    whole = distances.neighbourhoods(real, synthetic)
    monkeypatch.setattr(distances, "TILE", tile)
    np.testing.assert_allclose(distances.nearest(synthetic, real, 9), expected, atol=1e-5)
    for name, values in vars(distances.neighbourhoods(real, synthetic)).items():
        np.testing.assert_array_equal(values, getattr(whole, name), err_msg=name)


def test_ten_images_repeated_show_as_collapse(sets):
    real, _ = sets
    repeated = np.tile(real[:10], (50, 1)) + np.random.default_rng(7).normal(0, 0.05, (500, 6))
    found, whole = distances.neighbourhoods(real, repeated), distances.neighbourhoods(real[:350], real[350:])
    assert found.recall.mean() < 0.1 * whole.recall.mean()
    assert found.coverage.mean() < 0.3 * whole.coverage.mean()
    assert distances.vendi(repeated) < 0.8 * distances.vendi(real)


@pytest.mark.slow
def test_fifty_thousand_features_take_less_than_a_minute(capsys):
    rng = np.random.default_rng(8)
    real, synthetic = (rng.normal(size=(50_000, 768)).astype(np.float32) for _ in range(2))
    start = time.monotonic()
    distances.frechet(real, synthetic), distances.vendi(synthetic)
    distances.neighbourhoods(real, synthetic)
    took = time.monotonic() - start
    with capsys.disabled():
        print(f"\n50,000 x 768: {took:.1f} s")
    assert took < 60
