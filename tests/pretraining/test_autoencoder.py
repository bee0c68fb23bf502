"""The autoencoder's loss sees thin dark lines, and folding the latents' spread away changes no reconstruction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax.models.stable_diffusion import TINY, StableDiffusion
from dermjax.pretraining.losses import GRAIN, normalise, roughness
from dermjax.reconstruction import LINE, thin_dark


def striped(width, brightness):
    """A light image [1, 32, 32, 3] with one upright stripe."""
    image = np.full((1, 32, 32, 3), 0.5, np.float32)
    image[:, :, 12 : 12 + width] = brightness
    return jnp.asarray(image)


@pytest.mark.parametrize("width", [1, 2, LINE - 1])
def test_a_thin_dark_line_weighs_what_it_is_darker(width):
    seen = np.asarray(thin_dark(striped(width, -0.7)))[0, :, :, 0]
    assert np.allclose(seen[:, 12 : 12 + width], 1.2, atol=1e-6)
    assert np.all(seen[:, :12] == 0)
    assert np.all(seen[:, 12 + width :] == 0)


@pytest.mark.parametrize(("width", "brightness"), [(LINE, -0.7), (2, 0.9)])
def test_what_is_wide_or_light_weighs_nothing(width, brightness):
    assert np.all(np.asarray(thin_dark(striped(width, brightness))) == 0)


def test_roughness_is_that_of_each_square_and_blind_to_what_it_is():
    image = np.zeros((1, 16, 16, 3), np.float32)
    image[:, :8, :8] += 0.2 * (np.indices((8, 8)).sum(0) % 2)[None, :, :, None]  # a chessboard in one square
    seen = np.asarray(roughness(jnp.asarray(image)))
    assert seen.shape == (1, 16 // GRAIN, 16 // GRAIN, 3)
    # 0.2 down and to the right at each pixel; beside the square, four of the eight pixels of an edge are lit
    np.testing.assert_allclose(seen[0, 0, 0], (2 * 0.2 * 56 + 2 * 0.2 * 4) / 64, rtol=1e-5)
    assert not seen[0, 1, 1].any()
    np.testing.assert_allclose(roughness(jnp.asarray(-image)), seen, rtol=1e-6)


def test_normalised_latents_have_unit_spread_and_the_same_pictures():
    sd = StableDiffusion(TINY | {"text_encoder": TINY["text_encoder"] | {"vocab_size": 300}}, None, jnp.float32)
    rng = np.random.default_rng(0)
    vae = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.1, s.shape), jnp.float32), sd.shapes["vae"])
    image = jnp.asarray(rng.uniform(-1, 1, (4, 64, 64, 3)), jnp.float32)

    @jax.jit
    def through(params):
        moments = sd.encode(params, image)
        return moments, sd.reconstruct(params, moments[..., :4])

    before, picture = through({"vae": vae})
    after, again = through(normalise({"vae": vae}, before))
    mean, log_variance = np.split(np.asarray(after, np.float64), 2, axis=-1)
    variance = np.square(mean - mean.mean((0, 1, 2))).mean((0, 1, 2)) + np.exp(log_variance).mean((0, 1, 2))
    assert np.allclose(mean.mean((0, 1, 2)), 0, atol=1e-4)
    assert np.allclose(variance, 1, atol=1e-3)
    assert np.abs(np.asarray(picture - again)).max() <= 1e-4 * np.abs(np.asarray(picture)).max()
