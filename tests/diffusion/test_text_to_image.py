"""From tokens to pixels: one compilation, one key an image, guidance as asked."""

import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax import sharding
from dermjax.data import images
from dermjax.diffusion import samplers
from dermjax.diffusion.denoiser import Guidance
from dermjax.diffusion.text_to_image import image_to_image, inpaint, pixels, text_to_image
from dermjax.errors import UserError

SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "steps_offset": 1,
}
PARAMS = {"unet": jnp.float32(0.5)}
PROMPTS = jnp.arange(16 * 4).reshape(16, 4) % 5
SEEDS = jnp.arange(100, 116)


def fake(passes):
    """A model of a few operations under the StableDiffusion contract; `passes` collects the batch of every trace."""

    def unet(params, x, t, context):
        passes.append(x.shape[0])
        return jnp.tanh(params["unet"] * x + context.mean((1, 2))[:, None, None, None] - t[:, None, None, None] / 1000)

    return SimpleNamespace(
        configs={"scheduler": SCHEDULER, "vae": {"latent_channels": 4}},
        factor=8,
        encode_text=lambda params, tokens: tokens[..., None] / 5,
        unet=unet,
        decode=lambda params, latents: jnp.repeat(jnp.repeat(jnp.tanh(latents[..., :3]), 8, 1), 8, 2),
    )


def rendering(passes, name, steps=20):
    """text_to_image of the fake model at 32 px."""
    sampler = samplers.named(name)
    return text_to_image(fake(passes), sampler, sampler.ladder(SCHEDULER, steps, ""), 32)


def guidance(scale):
    return Guidance(jnp.float32(scale), None, None)


def test_image_i_is_the_same_in_any_batch():
    """With fresh noise at every step; test_samplers has the other samplers."""
    render = rendering([], "Euler a")
    negative = jnp.zeros_like(PROMPTS)
    whole = render(PARAMS, PROMPTS, negative, SEEDS, guidance(3))
    assert whole.shape == (16, 32, 32, 3) and whole.dtype == jnp.uint8
    assert len(np.unique(np.asarray(whole).reshape(16, -1), axis=0)) == 16, "one seed, one image"
    part = slice(6, 10)
    again = render(PARAMS, PROMPTS[part], negative[part], SEEDS[part], guidance(3))
    assert np.abs(np.int32(again) - np.int32(whole[part])).max() <= 1  # 1e-5 may cross one rounding


def spread(path):
    """Saves the images of a process with its devices; called in a process of its own."""
    render = rendering([], "Euler a")
    rows = {"tokens": PROMPTS, "negative": jnp.zeros_like(PROMPTS), "seeds": SEEDS}
    placed = sharding.place(jax.tree.map(np.asarray, rows), sharding.mesh(0, 1))
    np.save(path, render(PARAMS, **placed, guidance=guidance(3)))


@pytest.mark.slow
def test_image_i_is_the_same_on_eight_devices(tmp_path):
    made = []
    for devices in (1, 8):
        path = tmp_path / f"{devices}.npy"
        call = f"import runpy; runpy.run_path({__file__!r})['spread']({str(path)!r})"
        subprocess.run([sys.executable, "-c", call], env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}, check=True)
        made.append(np.int32(np.load(path)))
    assert np.abs(made[0] - made[1]).max() <= 1


def test_guidance_of_one_is_the_unguided_image_at_half_the_cost():
    passes = []
    render = rendering(passes, "Euler")
    unguided = render(PARAMS, PROMPTS[:2], None, SEEDS[:2], guidance(1))
    guided = render(PARAMS, PROMPTS[:2], jnp.zeros_like(PROMPTS[:2]), SEEDS[:2], guidance(1))
    assert np.abs(np.int32(guided) - np.int32(unguided)).max() <= 1
    assert passes == [2, 4]


def test_guidance_steers_without_compiling_again():
    passes = []
    render = rendering(passes, "PLMS")
    made = [render(PARAMS, PROMPTS, jnp.zeros_like(PROMPTS), SEEDS, guidance(g)) for g in (1.0, 2.0, 7.0)]
    assert len(passes) == 1, "one trace for every guidance, and one network in the scan"
    assert not np.array_equal(made[0], made[1]) and not np.array_equal(made[1], made[2])


def test_pixels_are_those_of_the_image_files():
    values = np.linspace(-1.2, 1.2, 3001, dtype=np.float32)
    np.testing.assert_array_equal(pixels(jnp.asarray(values)), images.from_model(values))
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(pixels(jnp.asarray(images.to_model(levels))), levels)


def test_steps_out_of_range():
    with pytest.raises(UserError, match="steps 0"):
        rendering([], "Euler", steps=0)
