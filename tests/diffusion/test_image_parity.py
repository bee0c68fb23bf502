"""From a picture to a picture as diffusers' image-to-image and inpainting pipelines go: random twins, the same noise.

What they draw from the autoencoder's distribution is its mean here, as in ours.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax.data.tokens import load_tokenizer, tokenize
from dermjax.diffusion import samplers
from dermjax.diffusion.denoiser import Guidance
from dermjax.diffusion.schedule import normal
from dermjax.sampling.text_to_image import LatentDiffusion, keys_of, text_to_image
from dermjax.weights import diffusers as ours

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
from diffusers.models.autoencoders import vae  # noqa: E402
from diffusers.pipelines.stable_diffusion import (  # noqa: E402
    pipeline_stable_diffusion_img2img,
    pipeline_stable_diffusion_inpaint,
)
from diffusers.schedulers import scheduling_euler_ancestral_discrete  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    # diffusers' code meets numpy 2 through torch
    pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning"),
]

SCHEDULERS = {
    "Euler": diffusers.EulerDiscreteScheduler,
    "Euler a": diffusers.EulerAncestralDiscreteScheduler,
    "Heun": diffusers.HeunDiscreteScheduler,
    "DDIM": diffusers.DDIMScheduler,
    "DPM++ 2M": diffusers.DPMSolverMultistepScheduler,
}
PROMPTS, SEEDS, STEPS = ["a benign mole", "a malignant mole"], jnp.array([5, 6]), 10
PICTURES = np.random.default_rng(0).integers(0, 256, (2, 64, 48, 3), np.uint8)
MASK = np.zeros((2, 64, 48), bool)
MASK[:, 16:48, 8:32] = True


@pytest.fixture(scope="module")
def twins(random_pipeline, tmp_path_factory):
    """A pipeline with its folder by the channels of its UNet."""
    made = {}
    for channels in (4, 9):
        folder = tmp_path_factory.mktemp(f"twin{channels}")
        made[channels] = random_pipeline(folder, channels, "v_prediction"), folder / "model"
    return made


def channels_first(image):
    return torch.from_numpy(np.array(image)).permute(0, 3, 1, 2)


@pytest.fixture
def draws(monkeypatch):
    """Gives diffusers our noise: that of the start, that of every step, and none where it draws latents."""
    start, walk = keys_of(SEEDS)
    shape = (8, 6, 4)
    fresh = iter(channels_first(normal(jax.vmap(jax.random.fold_in, (0, None))(walk, s), shape)) for s in range(STEPS))
    for module in (pipeline_stable_diffusion_img2img, pipeline_stable_diffusion_inpaint):
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: channels_first(normal(start, shape)))
    monkeypatch.setattr(scheduling_euler_ancestral_discrete, "randn_tensor", lambda *_, **__: next(fresh))
    monkeypatch.setattr(vae, "randn_tensor", lambda shape, *_, **__: torch.zeros(shape))


def same(kind, twin, name, strength, given, theirs):
    """Both ways to the pixels; given and theirs are the picture and the mask as each takes them."""
    pipeline, folder = twin
    model, params = ours.read(folder)
    words = load_tokenizer(model.tokenizer)
    sampler = samplers.get_sampler(name)
    ladder = sampler.ladder(model.configs["scheduler"], STEPS, "")
    render = text_to_image(LatentDiffusion(model, sampler, ladder, 1, None), 64, strength)
    said = tokenize(words, PROMPTS), tokenize(words, ["", ""])
    mine = np.asarray(render(params, *said, SEEDS, Guidance(jnp.float32(3), None, None), *given))

    networks = {name: part for name, part in pipeline.components.items() if name != "scheduler"}
    clip = {"clip_sample": False} if name == "DDIM" else {}  # as Stable Diffusion's file says, which others do not read
    scheduler = SCHEDULERS[name].from_pretrained(folder, subfolder="scheduler", **clip)
    other = kind(**networks, scheduler=scheduler, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    made = other(
        PROMPTS,
        negative_prompt=["", ""],
        num_inference_steps=STEPS,
        strength=strength,
        guidance_scale=3.0,
        output_type="np",
        **theirs,
    ).images
    difference = np.abs(mine - 255 * made)
    print(f"{name} from strength {strength}: {difference.max():.3f} levels of 255 at most, spread {mine.std():.0f}")
    assert mine.std() > 20, "a picture, not a grey field"
    assert difference.max() <= 0.51, "nothing but the rounding to whole levels"


def shares(pictures):
    return channels_first(pictures.astype(np.float32) / 255)


@pytest.mark.parametrize("strength", [0.3, 0.75, 1.0])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_image_to_image(name, strength, twins, draws):
    kind = diffusers.StableDiffusionImg2ImgPipeline
    same(kind, twins[4], name, strength, (PICTURES,), {"image": shares(PICTURES)})


def painted():
    mask = torch.from_numpy(MASK.astype(np.float32))[:, None]
    return {"image": shares(PICTURES), "mask_image": mask, "height": 64, "width": 48}


@pytest.mark.parametrize("strength", [0.3, 0.75, 1.0])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_inpainting_by_blending(name, strength, twins, draws):
    kind = diffusers.StableDiffusionInpaintPipeline
    same(kind, twins[4], name, strength, (PICTURES, MASK), painted())


@pytest.mark.parametrize("strength", [0.75, 1.0])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_inpainting_by_a_model_that_is_shown_the_mask(name, strength, twins, draws):
    kind = diffusers.StableDiffusionInpaintPipeline
    same(kind, twins[9], name, strength, (PICTURES, MASK), painted())
