"""derm-tiny in bfloat16: with every sampler, in few steps and in as many as there are, pictures and not black ones."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from dermjax.data.tokens import load_tokenizer, tokenize
from dermjax.diffusion import samplers
from dermjax.diffusion.denoiser import Guidance
from dermjax.sampling.text_to_image import LatentDiffusion, text_to_image
from dermjax.weights import diffusers

pytestmark = pytest.mark.slow
SIZE, SEEDS = 64, np.arange(2)


@pytest.fixture(scope="module")
def tiny():
    """The model, its parameters, and the words of two images."""
    model, params = diffusers.read(diffusers.locate("derm-tiny"))
    words = load_tokenizer(model.tokenizer)
    prompts = [f"a dermoscopy photo of a {kind} mole" for kind in ("benign", "malignant")]
    return model, params, (tokenize(words, prompts), tokenize(words, ["", ""]))


def made(tiny, dtype, name, steps):
    model, params, said = tiny
    sampler = samplers.get_sampler(name)
    ladder = sampler.ladder(model.configs["scheduler"], steps, "")
    render = text_to_image(LatentDiffusion(replace(model, dtype=dtype), sampler, ladder, 1, None), SIZE)
    return np.int32(render(params, *said, SEEDS, Guidance(jnp.float32(3.5), None, None)))


@pytest.mark.parametrize("steps", [4, 1000])
@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_no_image_is_black(name, steps, tiny):
    if name == "LCM" and steps > 50:
        pytest.skip("it takes at most the 50 steps that it was distilled at")
    images = made(tiny, jnp.bfloat16, name, steps)
    spread, mean = images.std((1, 2, 3)), images.mean((1, 2, 3))
    print(f"{name} {steps}: mean {mean.round()}, spread {spread.round()}")
    assert spread.min() > 5 and mean.min() > 20


def test_images_are_those_of_float32(tiny):
    """Rather than another seed's."""
    images, other = (made(tiny, dtype, "Euler a", 20) for dtype in (jnp.bfloat16, jnp.float32))
    off, apart = np.abs(images - other).mean(), np.abs(images - other[::-1]).mean()
    print(f"Euler a: {off:.1f} levels from float32's, {apart:.1f} from the other image")
    assert off < apart / 2
