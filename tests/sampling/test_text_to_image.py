"""From tokens to pixels: one compilation, one key an image, guidance as asked."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax import sharding
from dermjax.data import images
from dermjax.diffusion import samplers
from dermjax.diffusion.denoiser import Guidance
from dermjax.errors import UserError
from dermjax.models.stable_diffusion import SD21
from dermjax.sampling.previews import colours_of, watched
from dermjax.sampling.text_to_image import LatentDiffusion, pixels, text_to_image

SCHEDULER = SD21["scheduler"]  # predicts v
PARAMS = {"unet": jnp.float32(0.5)}
PROMPTS = jnp.arange(16 * 4).reshape(16, 4) % 5
SEEDS = jnp.arange(100, 116)
COLOURS = np.eye(5, 3, dtype=np.float32)


def fake(passes, channels=4):
    """A model of a few operations under the StableDiffusion contract; `passes` collects the batch of every trace."""

    def full(weight, x, t, context):
        passes.append(x.shape[0])
        level = context.mean((1, 2))[:, None, None, None] - t[:, None, None, None] / 1000
        return jnp.tanh(weight * x[..., :4] + x[..., 4:].sum(-1, keepdims=True) + level), x

    return SimpleNamespace(
        configs={
            "scheduler": SCHEDULER,
            "vae": {"latent_channels": 4},
            "unet": {"in_channels": channels, "block_out_channels": [8, 8]},
        },
        factor=8,
        prediction=SCHEDULER["prediction_type"],
        encode_text=lambda params, tokens: tokens[..., None] / 5,
        network=lambda params: SimpleNamespace(words=lambda context: context, full=partial(full, params["unet"])),
        encode=lambda params, image: jnp.repeat(image[:, ::8, ::8], 3, -1)[..., :8],
        sample_latents=lambda moments, noise: moments[..., :4],
        decode=lambda params, latents: jnp.repeat(jnp.repeat(jnp.tanh(latents[..., :3]), 8, 1), 8, 2),
    )


def pipeline(passes, name, steps=20, channels=4):
    sampler = samplers.get_sampler(name)
    return LatentDiffusion(fake(passes, channels), sampler, sampler.ladder(SCHEDULER, steps, ""), 1, None)


def rendering(passes, name, steps=20):
    """text_to_image of the fake model at 32 px."""
    return text_to_image(pipeline(passes, name, steps), 32)


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
    """Saves the images of a process with its devices, and their previews; called in a process of its own."""
    shown = {}
    watch = partial(watched, every=8, colours=COLOURS, show=lambda step, pictures: shown.update({f"{step}": pictures}))
    render = text_to_image(replace(pipeline([], "Euler a"), watch=watch), 32)
    rows = {"tokens": PROMPTS, "negative": jnp.zeros_like(PROMPTS), "seeds": SEEDS}
    placed = sharding.place(jax.tree.map(np.asarray, rows), sharding.mesh(0, 1))
    made = render(PARAMS, **placed, guidance=guidance(3))
    jax.effects_barrier()
    np.savez(path, images=made, **shown)


@pytest.mark.slow
def test_image_i_is_the_same_on_eight_devices(tmp_path):
    made = []
    for devices in (1, 8):
        path = tmp_path / f"{devices}.npz"
        call = f"import runpy; runpy.run_path({__file__!r})['spread']({str(path)!r})"
        subprocess.run([sys.executable, "-c", call], env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}, check=True)
        made.append(np.load(path))
    one, eight = made
    assert set(one) == set(eight) == {"images", "8", "16"}
    for name in one:
        assert one[name].shape[0] == 16 and np.abs(np.int32(one[name]) - np.int32(eight[name])).max() <= 1, name


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
    assert len(passes) == 1 and render._cache_size() == 1, "one trace, one compilation, one network in the scan"
    assert not np.array_equal(made[0], made[1]) and not np.array_equal(made[1], made[2])


PHOTOGRAPHS = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), np.uint8)
ASKED = (PROMPTS[:2], jnp.zeros_like(PROMPTS[:2]), SEEDS[:2])


def kept(photographs):
    """What the fake autoencoder makes of photographs: one pixel a cell."""
    model = fake([])
    moments = model.encode(PARAMS, jnp.asarray(photographs, jnp.float32) / 127.5 - 1)
    return np.int32(pixels(model.decode(PARAMS, moments[..., :4])))


@pytest.mark.parametrize("name", ["DPM++ 2M Karras", pytest.param("PLMS", marks=pytest.mark.slow)])
def test_strength_is_how_far_an_image_goes(name):
    """At 1 of 20 steps it stays near, at all of them the noise has most of it."""
    far = []
    for strength in (0.05, 0.5, 1.0):
        render = text_to_image(pipeline([], name), 32, strength)
        made = render(PARAMS, *ASKED, guidance(2), PHOTOGRAPHS)
        assert made.shape == PHOTOGRAPHS.shape and made.dtype == jnp.uint8
        far.append(np.abs(np.int32(made) - kept(PHOTOGRAPHS)).mean())
    assert far[0] < far[1] < far[2]


@pytest.mark.parametrize(
    ("name", "channels"), [("Euler a", 4), *(pytest.param(n, 4, marks=pytest.mark.slow) for n in ("PLMS", "Heun"))]
)
@pytest.mark.parametrize("strength", [0.5, 1])
def test_inpainting_leaves_the_rest(name, channels, strength):
    mask = np.zeros((2, 32, 48), bool)
    mask[0, 8:24, 16:32] = True
    render = text_to_image(pipeline([], name, channels=channels), 32, strength)
    made = np.int32(render(PARAMS, *ASKED, guidance(2), PHOTOGRAPHS, mask))
    changed = np.abs(made - kept(PHOTOGRAPHS)).max(-1) > 1
    assert not changed[~mask].any() and changed[0, 8:24, 16:32].mean() > 0.9


def test_a_model_of_nine_channels_is_shown_the_mask_and_the_rest():
    seen = []
    taken = pipeline([], "Euler", channels=9)
    real = taken.model.network

    def watching(params):
        unet = real(params)

        def full(x, t, words):
            jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
            return unet.full(x, t, words)

        return SimpleNamespace(words=unet.words, full=full)

    taken.model.network = watching
    mask = np.zeros((2, 32, 48), np.uint8)
    mask[:, 8:16, :8] = 255
    text_to_image(taken, 32, 0.5)(PARAMS, ASKED[0], None, ASKED[2], guidance(1), PHOTOGRAPHS, mask).block_until_ready()
    jax.effects_barrier()
    assert len(seen) == 10 and seen[0].shape == (2, 4, 6, 9)
    assert seen[0][..., 4].sum() == 2 and (seen[0][:, 1, 0, 4] == 1).all(), "one cell is to be painted"
    np.testing.assert_allclose(seen[0][:, 1, 0, 5:8], 0, atol=1e-6)
    np.testing.assert_allclose(seen[9][0, 0, 0, 5:8], PHOTOGRAPHS[0, 0, 0, 0] / 127.5 - 1, atol=1e-6)


def test_a_model_of_nine_channels_needs_a_mask():
    render = text_to_image(pipeline([], "Euler", channels=9), 32, 0.5)
    for image in ((), (PHOTOGRAPHS,)):
        with pytest.raises(UserError, match=r"this model paints into pictures: give config\.init\.images and"):
            render(PARAMS, *ASKED, guidance(1), *image)


@pytest.mark.parametrize("name", ["Euler a", pytest.param("Heun", marks=pytest.mark.slow)])
def test_previews_change_nothing_and_come_every_few_steps(name):
    seen = {}

    def show(step, pictures):
        seen[int(step)] = pictures

    watch = partial(watched, every=8, colours=COLOURS, show=show)
    made = [
        text_to_image(replace(pipeline([], name), watch=each), 32)(PARAMS, *ASKED, guidance(2))
        for each in (None, watch)
    ]
    jax.effects_barrier()
    np.testing.assert_array_equal(*made)
    assert sorted(seen) == [8, 16] and all(pictures.shape == (2, 4, 4, 3) for pictures in seen.values())


def test_colours_are_those_of_the_decoder():
    """A decoder that is linear cell by cell is found exactly."""
    exact = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)

    def decode(latents):
        cells = jnp.einsum("bhwc,cd->bhwd", latents, exact[:-1], precision="highest") + exact[-1][None, None, None]
        return jnp.repeat(jnp.repeat(cells, 8, 1), 8, 2)

    np.testing.assert_allclose(colours_of(decode, 4), exact, atol=1e-5)


def test_sides_that_do_not_fit_are_named():
    render = text_to_image(pipeline([], "Euler"), 32, 0.5)
    with pytest.raises(UserError, match="mask 48x16 px: the image is 48x32 px; give a mask of its size"):
        render(PARAMS, *ASKED, guidance(1), PHOTOGRAPHS, np.zeros((2, 16, 48), bool))
    with pytest.raises(UserError, match="image 47x31 px: this model takes sides that are multiples of 8 px"):
        text_to_image(pipeline([], "Euler"), 32, 0.5)(PARAMS, *ASKED, guidance(1), PHOTOGRAPHS[:, :31, :47])
    with pytest.raises(UserError, match="image 36x36 px: this model takes sides that are multiples of 8 px"):
        text_to_image(pipeline([], "Euler"), 36)
    with pytest.raises(UserError, match="strength 2: give more than 0 and at most 1"):
        text_to_image(pipeline([], "Euler"), 32, 2)


def test_pixels_are_those_of_the_image_files():
    values = np.linspace(-1.2, 1.2, 3001, dtype=np.float32).reshape(1, -1, 1, 1)
    np.testing.assert_array_equal(pixels(jnp.asarray(values)), images.from_model(values))
    levels = np.arange(256, dtype=np.uint8).reshape(1, -1, 1, 1)
    np.testing.assert_array_equal(pixels(jnp.asarray(images.to_model(levels))), levels)


def test_steps_out_of_range():
    with pytest.raises(UserError, match="steps 0"):
        rendering([], "Euler", steps=0)
