"""The whole way from prompt to pixels is that of diffusers' StableDiffusionPipeline: a random twin, the same noise.

The twin is read by us and written again, as a folder and as a single file, and diffusers makes its pictures of those.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax.data.tokens import load_tokenizer, tokenize
from dermjax.diffusion import samplers
from dermjax.diffusion.denoiser import Guidance
from dermjax.diffusion.schedule import normal
from dermjax.sampling.text_to_image import LatentDiffusion, text_to_image
from dermjax.weights import diffusers as ours
from dermjax.weights import single_file

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
import transformers  # noqa: E402
from diffusers.schedulers import scheduling_euler_ancestral_discrete  # noqa: E402

# diffusers' code meets numpy 2 through torch
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SCHEDULERS = {
    "Euler": diffusers.EulerDiscreteScheduler,
    "Euler a": diffusers.EulerAncestralDiscreteScheduler,
    "PLMS": diffusers.PNDMScheduler,
}
CLIP = Path(ours.__file__).parent / "clip_tokenizer"
PROMPTS = ["a benign mole", "a malignant mole"]
SIZE, STEPS = 64, 10


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def twin(request, tmp_path_factory):
    """A small random pipeline of Stable Diffusion 1.5's kind, and the folder that diffusers makes of it."""
    folder = tmp_path_factory.mktemp(request.param)
    words = load_tokenizer(CLIP)
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32),
        cross_attention_dim=32,
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    settings = transformers.CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    scheduler = diffusers.PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=request.param,
        skip_prk_steps=True,
        steps_offset=1,
    )
    networks = (vae, transformers.CLIPTextModel(settings), unet)
    for network in networks:
        for parameter in network.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, 0.0, parameter[0].numel() ** -0.5)
    vae, text, unet = networks
    pipeline = diffusers.StableDiffusionPipeline(
        vae, text, words, unet, scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipeline.save_pretrained(folder / "model")
    return pipeline, folder / "model"


@pytest.fixture(scope="module")
def forms(twin, tmp_path_factory):
    """The twin, and what diffusers loads of what we write: {form: (pipeline, folder with its scheduler)}."""
    pipeline, folder = twin
    written = tmp_path_factory.mktemp("written")
    model, params = ours.read(folder)
    ours.write(written / "model", model, params, dtype=np.float32)
    single_file.write(written / "model.safetensors", model, params, dtype=np.float32)
    kind, without = diffusers.StableDiffusionPipeline, {"safety_checker": None, "local_files_only": True}
    found = {
        "twin": (pipeline, folder),
        "our folder": (kind.from_pretrained(written / "model", **without), written / "model"),
        "our file": (
            kind.from_single_file(str(written / "model.safetensors"), config=str(written / "model"), **without),
            written / "model",
        ),
    }
    for each, _ in found.values():
        each.set_progress_bar_config(disable=True)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULERS)
def test_pixels_are_those_of_diffusers(name, twin, forms, monkeypatch):
    _, folder = twin
    model, params = ours.read(folder)
    words, seeds = load_tokenizer(model.tokenizer), jnp.array([5, 6])
    asked, negative = tokenize(words, PROMPTS), tokenize(words, ["", ""])
    sampler = samplers.get_sampler(name)
    ladder = sampler.ladder(model.configs["scheduler"], STEPS, "")
    render = text_to_image(LatentDiffusion(model, sampler, ladder, 1, None), SIZE)
    mine = np.asarray(render(params, asked, negative, seeds, Guidance(jnp.float32(3), None, None)))
    assert mine.std() > 20, "a picture, not a grey field"

    keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed)))(seeds)

    def channels_first(noise):
        return torch.from_numpy(np.array(noise)).permute(0, 3, 1, 2)

    for form, (pipeline, place) in forms.items():
        draws = iter(
            channels_first(normal(jax.vmap(jax.random.fold_in, (0, None))(keys[:, 1], s), (8, 8, 4)))
            for s in range(STEPS)
        )
        monkeypatch.setattr(
            scheduling_euler_ancestral_discrete, "randn_tensor", lambda *_, draws=draws, **__: next(draws)
        )
        pipeline.scheduler = SCHEDULERS[name].from_pretrained(place, subfolder="scheduler")
        theirs = pipeline(
            PROMPTS,
            height=SIZE,
            width=SIZE,
            num_inference_steps=STEPS,
            guidance_scale=3.0,
            negative_prompt=["", ""],
            latents=channels_first(normal(keys[:, 0], (8, 8, 4))),
            output_type="np",
        ).images
        difference = np.abs(mine - 255 * theirs)
        print(f"{name}, {form}: {difference.max():.3f} levels of 255 at most, picture's own spread {mine.std():.0f}")
        assert difference.max() <= 0.51, "nothing but the rounding to whole levels"
