"""Previews of a batch: every so many steps a sheet of all its images in the run folder, and the step on the bar."""

from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from dermjax.diffusion.denoiser import DENOISED, Denoiser
from dermjax.diffusion.samplers import get_sampler
from dermjax.models.stable_diffusion import SCHEDULER
from dermjax.sampling.previews import image_grid, watching

MODEL = SimpleNamespace(
    configs={"vae": {"latent_channels": 4}},
    decode=lambda params, latents: jnp.repeat(jnp.repeat(latents[..., :3], 8, 1), 8, 2),
)


def test_never_is_nothing(tmp_path):
    assert watching(MODEL, {}, 0, tmp_path / "preview.png", mock.Mock()) is None


def test_a_sheet_is_written_and_the_bar_told(tmp_path):
    progress, path = mock.Mock(), tmp_path / "preview.png"
    ladder = get_sampler("Euler").ladder(SCHEDULER, 10, "")
    shown = Denoiser(lambda x, sigma: jnp.full_like(x, 0.5), DENOISED["sample"])
    watch = watching(MODEL, {}, 4, path, progress)

    @jax.jit
    def walked(x):
        return get_sampler("Euler").sample(watch(shown, ladder), x, ladder, jax.random.split(jax.random.key(0), 3))

    walked(jnp.ones((3, 2, 5, 4))).block_until_ready()
    jax.effects_barrier()
    assert [call.kwargs["step"] for call in progress.update.call_args_list] == [4, 8]
    with Image.open(path) as image:
        pixels = np.asarray(image)
    assert pixels.shape == (2 * 2 * 4, 2 * 5 * 4, 3)
    assert np.abs(pixels[:8].astype(int) - 191).max() <= 1 and (pixels[8:, 20:] == 0).all(), "the fourth is not there"


def test_images_stand_in_rows():
    pictures = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    assert image_grid(pictures)[::8, ::8, 0].tolist() == [[0, 1, 2], [3, 4, 0]]
