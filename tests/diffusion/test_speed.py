"""Stable Diffusion 1.5's pipeline at 512 px beside diffusers, in turns, on one GPU."""

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax.diffusion import samplers
from dermjax.diffusion.denoiser import Guidance
from dermjax.models.stable_diffusion import SD15, StableDiffusion
from dermjax.sampling.text_to_image import LatentDiffusion, text_to_image

pytestmark = pytest.mark.slow
gpu = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU; set XLA_PYTHON_CLIENT_PREALLOCATE=false")
STEPS, ROUNDS, SIZE, GUIDANCE = 20, 3, 512, 7.5


def ours(sd: StableDiffusion, tokens):
    """A function that makes a picture of each of the tokens, random weights."""

    def drawn(key, shape):  # small, so that nothing overflows
        return (0.02 * jax.random.normal(key, shape.shape)).astype(jnp.bfloat16)

    leaves, form = jax.tree.flatten(sd.shapes)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    params = jax.tree.unflatten(form, [drawn(*each) for each in zip(keys, leaves, strict=True)])
    sampler = samplers.get_sampler("Euler")
    render = text_to_image(LatentDiffusion(sd, sampler, sampler.ladder(SD15["scheduler"], STEPS, ""), 1, None), SIZE)
    seeds = np.arange(len(tokens), dtype=np.int32)
    return lambda: np.asarray(render(params, tokens, tokens, seeds, Guidance(jnp.float32(GUIDANCE), None, None)))


def theirs(torch, diffusers, transformers, tokens):
    """The same by diffusers' pipeline, in channels last."""
    torch.backends.cudnn.benchmark = True
    with torch.device("cuda"):
        networks = {
            "unet": diffusers.UNet2DConditionModel.from_config(SD15["unet"]),
            "vae": diffusers.AutoencoderKL.from_config(SD15["vae"]),
            "text_encoder": transformers.CLIPTextModel(transformers.CLIPTextConfig(**SD15["text_encoder"])),
        }
    networks = {
        name: network.to(torch.bfloat16, memory_format=torch.channels_last) for name, network in networks.items()
    }
    pipeline = diffusers.StableDiffusionPipeline(
        **networks, tokenizer=None, scheduler=diffusers.EulerDiscreteScheduler.from_config(SD15["scheduler"]),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    said = torch.tensor(tokens, device="cuda", dtype=torch.long)

    def make():
        with torch.no_grad():
            context = networks["text_encoder"](said)[0]
        return pipeline(
            prompt_embeds=context, negative_prompt_embeds=context, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
            height=SIZE, width=SIZE, output_type="np",
        ).images  # fmt: skip

    return make


@gpu
@pytest.mark.parametrize("batch", [1, 8])
def test_sampling_is_no_slower_than_in_diffusers(batch, capsys):
    """Euler, 20 steps, guidance 7.5; decoded to pixels, without a safety checker. PyTorch is not compiled."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    tokens = np.random.default_rng(0).integers(0, 49408, (batch, 77)).astype(np.int32)
    mine = ours(StableDiffusion(SD15, Path(), jnp.bfloat16), tokens)
    began = time.perf_counter()
    mine()
    compiling = time.perf_counter() - began
    makers = {"dermjax": mine, "diffusers": theirs(torch, diffusers, transformers, tokens)}
    seconds = {name: [] for name in makers}
    for _ in range(1 + ROUNDS):
        for name, make in makers.items():
            began = time.perf_counter()
            assert make().shape == (batch, SIZE, SIZE, 3)
            seconds[name].append(time.perf_counter() - began)
    found = {name: float(np.median(each[1:])) for name, each in seconds.items()}
    with capsys.disabled():
        print(f"\n{jax.devices()[0].device_kind}, {batch} images of {SIZE} px, {STEPS} guided steps, "
              f"first after {compiling:.0f} s:",
              ", ".join(f"{name} {s:.2f} s ({batch / s:.2f} images/s)" for name, s in found.items()),
              f"-> {found['dermjax'] / found['diffusers']:.2f} times diffusers' time")  # fmt: skip
    assert found["dermjax"] <= found["diffusers"]
