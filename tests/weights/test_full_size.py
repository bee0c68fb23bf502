"""Stable Diffusion at its true size with random weights, beside PyTorch: each network, and pictures pixel by pixel."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax.data.tokens import load_tokenizer, tokenize
from dermjax.diffusion import samplers
from dermjax.diffusion.denoiser import Guidance
from dermjax.diffusion.schedule import normal
from dermjax.models.stable_diffusion import SD15, SD21, StableDiffusion, count
from dermjax.sampling.text_to_image import LatentDiffusion, text_to_image
from dermjax.weights import diffusers as folders
from dermjax.weights import torch_layout
from dermjax.weights.safetensors import from_array

torch = pytest.importorskip("torch")
diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")

# diffusers' code meets numpy 2 through torch
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]
TOLERANCE = 1e-4  # of the largest value
SIZE, STEPS, GUIDANCE = 256, 4, 7.0
SCHEDULERS = {"Euler": "EulerDiscreteScheduler", "DPM++ 2M": "DPMSolverMultistepScheduler"}


def options(config: dict) -> dict:
    return {key: value for key, value in config.items() if not key.startswith("_") and key != "model_type"}


def read(sd, name: str, network, prefix: str = ""):
    """Our parameters of a network of PyTorch: the arrays themselves, not copies."""
    tensors = {prefix + key: from_array(tensor.numpy()) for key, tensor in network.state_dict().items()}
    return torch_layout.from_torch(sd.shapes[name], tensors, name, dtype=np.float32)


def close(ours, theirs, what: str, capsys) -> None:
    """Asserts that two arrays are equal to the tolerance, and prints how near they are."""
    difference = np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()
    with capsys.disabled():
        print(f"\n{what}: {difference:.2g} of the largest value {np.abs(theirs).max():.2g}")
    assert difference <= TOLERANCE


@pytest.mark.parametrize(("name", "configs"), [("CLIP ViT-L", SD15), ("OpenCLIP ViT-H", SD21)])
def test_text_encoders(name, configs, randomise, capsys):
    torch.manual_seed(0)
    network = randomise(transformers.CLIPTextModel(transformers.CLIPTextConfig(**options(configs["text_encoder"]))))
    sd = StableDiffusion(configs, None, jnp.float32)
    words = np.random.default_rng(0).integers(0, 49408, (2, 77)).astype(np.int32)
    with torch.no_grad():
        exact = network(torch.tensor(words)).last_hidden_state.numpy()
    params = {"text_encoder": read(sd, "text_encoder", network, "text_model.")}
    assert count(params) == {"CLIP ViT-L": 123_060_480, "OpenCLIP ViT-H": 340_387_840}[name]
    close(jax.jit(sd.encode_text)(params, words), exact, name, capsys)


def test_autoencoder(randomise, capsys):
    torch.manual_seed(0)
    network = randomise(diffusers.AutoencoderKL(**options(SD15["vae"])))
    sd = StableDiffusion(SD15, None, jnp.float32)
    rng = np.random.default_rng(0)
    image, latents = (rng.normal(size=shape).astype(np.float32) for shape in ((1, 256, 256, 3), (1, 32, 32, 4)))
    with torch.no_grad():
        moments = network.encode(torch.tensor(image).permute(0, 3, 1, 2)).latent_dist.parameters
        decoded = network.decode(torch.tensor(latents).permute(0, 3, 1, 2)).sample
    params = {"vae": read(sd, "vae", network)}
    assert count(params) == 83_653_863
    close(jax.jit(sd.encode)(params, image), moments.permute(0, 2, 3, 1).numpy(), "encoder at 256 px", capsys)
    close(jax.jit(sd.reconstruct)(params, latents), decoded.permute(0, 2, 3, 1).numpy(), "decoder at 256 px", capsys)


@pytest.fixture(scope="module", params=["SD 1.5", "SD 2.1"])
def drawn(request, random_pipeline, tmp_path_factory):
    """diffusers' pictures of a random model by each sampler from our noise, and the folder of the model.

    (folder, {sampler: images float32 [1, 256, 256, 3] in 0..255}); PyTorch's networks are gone when ours are read.
    """
    configs = copy.deepcopy({"SD 1.5": SD15, "SD 2.1": SD21}[request.param])
    pipeline = random_pipeline(configs)
    folder = tmp_path_factory.mktemp("full_size") / "model"
    pipeline.save_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    start = np.array(normal(jax.random.split(jax.random.key(5))[:1], (SIZE // 8, SIZE // 8, 4)))
    images = {}
    for name, kind in SCHEDULERS.items():
        pipeline.scheduler = getattr(diffusers, kind).from_pretrained(folder, subfolder="scheduler")
        images[name] = 255 * pipeline(
            "a malignant mole", negative_prompt="a benign mole", height=SIZE, width=SIZE, num_inference_steps=STEPS,
            guidance_scale=GUIDANCE, latents=torch.from_numpy(start).permute(0, 3, 1, 2), output_type="np",
        ).images  # fmt: skip
    return folder, images


def test_pixels_of_the_whole_pipeline(drawn, capsys):
    """Prompt, negative prompt, guidance, four steps and the decoder at 256 px (must: at most 1 of 255 levels)."""
    folder, images = drawn
    model, params = folders.read(folder)
    words = load_tokenizer(model.tokenizer)
    requested, negative = (tokenize(words, [prompt]) for prompt in ("a malignant mole", "a benign mole"))
    for name, theirs in images.items():
        sampler = samplers.get_sampler(name)
        ladder = sampler.ladder(model.configs["scheduler"], STEPS, "")
        render = text_to_image(LatentDiffusion(model, sampler, ladder, 1, None), SIZE)
        ours = np.asarray(
            render(params, requested, negative, jnp.array([5]), Guidance(jnp.float32(GUIDANCE), None, None))
        )
        difference = np.abs(ours - theirs).max()
        with capsys.disabled():
            print(
                f"\n{folder.parent.name}, {name}: {difference:.2f} of 255 levels; the picture's spread {ours.std():.0f}"
            )
        assert ours.std() > 20, "a picture, not a grey field"
        assert difference <= 1
