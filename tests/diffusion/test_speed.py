"""Stable Diffusion 1.5 beside diffusers, in turns: its pipeline at 512 px on one GPU, its networks on a CPU."""

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
cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="compares the networks of a CPU")
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


def medians(makers, rounds):
    """{name: median seconds} of functions that are called in turns, after one call each."""
    seconds = {name: [] for name in makers}
    for _ in range(1 + rounds):
        for name, make in makers.items():
            began = time.perf_counter()
            make()
            seconds[name].append(time.perf_counter() - began)
    return {name: float(np.median(each[1:])) for name, each in seconds.items()}


@pytest.fixture(scope="module")
def networks():
    """SD 1.5's UNet and autoencoder, ours with random parameters and diffusers' with its own, float32."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    sd = StableDiffusion(SD15, Path(), jnp.float32)
    params = jax.tree.map(jnp.asarray, sd.init(0))
    theirs = {
        "unet": diffusers.UNet2DConditionModel.from_config(SD15["unet"]).eval(),
        "vae": diffusers.AutoencoderKL.from_config(SD15["vae"]).eval(),
    }
    return torch, sd, params, theirs


@cpu
@pytest.mark.parametrize(
    ("batch", "side"),
    [
        (1, 32),
        pytest.param(2, 32, marks=pytest.mark.xfail(reason="0.60 and 0.62 of diffusers' time in two runs")),
        pytest.param(1, 64, marks=pytest.mark.xfail(strict=True, reason="1.04 of diffusers' time")),
        pytest.param(2, 64, marks=pytest.mark.xfail(reason="not measured")),
    ],
)
def test_an_evaluation_of_the_unet_on_a_cpu(networks, batch, side, capsys):
    """In a sampler's loop, whose words are made ready before it: the time of three more steps."""
    torch, sd, params, theirs = networks
    rng = np.random.default_rng(0)
    x, context = rng.normal(size=(batch, side, side, 4)), rng.normal(size=(batch, 77, 768))
    x, context = x.astype(np.float32), context.astype(np.float32)

    @jax.jit
    def steps(params, x, context, count):
        unet = sd.network(params)
        words, t = unet.words(context), jnp.full(batch, 500.0)
        return jax.lax.fori_loop(0, count, lambda _, x: x + 0.1 * unet.full(x, t, words)[0], x)

    def eager():
        with torch.no_grad():
            theirs["unet"](torch.from_numpy(x).permute(0, 3, 1, 2), 500, torch.from_numpy(context))

    makers = {n: lambda n=n: steps(params, x, context, n).block_until_ready() for n in (1, 4)} | {"diffusers": eager}
    found = medians(makers, ROUNDS)
    ours = (found[4] - found[1]) / 3
    with capsys.disabled():
        print(f"\nUNet, {batch} x {side} x {side}: {ours:.2f} s, {ours / found['diffusers']:.2f} times diffusers'")
    assert ours <= 0.60 * found["diffusers"]


@cpu
@pytest.mark.xfail(strict=True, reason="1.01 of diffusers' time at 256 px; see BUILD_NOTES.md, Fast on one machine")
@pytest.mark.parametrize("side", [32, 64])
def test_the_decoder_on_a_cpu(networks, side, capsys):
    """An image of 256 or of 512 px."""
    torch, sd, params, theirs = networks
    latents = np.random.default_rng(0).normal(size=(1, side, side, 4)).astype(np.float32)
    decode = jax.jit(sd.decode)

    def eager():
        with torch.no_grad():
            theirs["vae"].decode(torch.from_numpy(latents).permute(0, 3, 1, 2) / sd.scale)

    found = medians({"dermjax": lambda: decode(params, latents).block_until_ready(), "diffusers": eager}, ROUNDS)
    ratio = found["dermjax"] / found["diffusers"]
    with capsys.disabled():
        print(f"\ndecoder, {side} x {side}: {found['dermjax']:.2f} s, {ratio:.2f} times diffusers'")
    assert ratio <= 0.60
