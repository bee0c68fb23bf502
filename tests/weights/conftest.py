"""Random PyTorch twins: small pipelines of the three styles of Stable Diffusion, saved by diffusers; made once."""

from pathlib import Path

import numpy as np
import pytest

import dermjax.weights
from dermjax.data import tokens
from dermjax.weights import diffusers as folders
from dermjax.weights import lora
from dermjax.weights.torch_layout import flatten, to_torch

CLIP = Path(dermjax.weights.__file__).parent / "clip_tokenizer"
STYLES = {
    "sd1": {
        "unet": {"attention_head_dim": 2, "use_linear_projection": False},
        "text": {"hidden_act": "quick_gelu"},
        "prediction": "epsilon",
    },
    "sd2": {
        "unet": {"attention_head_dim": [2, 4, 4], "use_linear_projection": True},
        "text": {"hidden_act": "gelu"},
        "prediction": "v_prediction",
    },
    "inpainting": {
        "unet": {"attention_head_dim": 2, "in_channels": 9},
        "text": {"hidden_act": "quick_gelu"},
        "prediction": "epsilon",
    },
}


@pytest.fixture(scope="session", params=STYLES)
def twin(request, tmp_path_factory):
    """A random PyTorch pipeline of one style, and the folder that diffusers made of it."""
    torch = pytest.importorskip("torch")
    diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")
    style = STYLES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = tokens.load_tokenizer(CLIP)
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=16, block_out_channels=(32, 64, 64), cross_attention_dim=48, layers_per_block=2, norm_num_groups=16,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), **style["unet"],
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16, 32, 32, 32), norm_num_groups=8, layers_per_block=2, latent_channels=4, sample_size=128,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, scaling_factor=0.18215,
    )  # fmt: skip
    text = transformers.CLIPTextModel(transformers.CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=77, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        **style["text"],
    ))  # fmt: skip
    scheduler = diffusers.DDIMScheduler(prediction_type=style["prediction"], beta_schedule="scaled_linear",
                                        beta_start=0.00085, beta_end=0.012, set_alpha_to_one=False,
                                        steps_offset=1, clip_sample=False)  # fmt: skip
    kind = "StableDiffusionInpaintPipeline" if request.param == "inpainting" else "StableDiffusionPipeline"
    pipeline = getattr(diffusers, kind)(
        vae,
        text,
        tokenizer,
        unet,
        scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for network in (unet, vae, text):
        for parameter in network.parameters():
            # PyTorch starts many at 0 or 1, which would hide a transposition
            torch.nn.init.normal_(parameter, 0.02 if parameter.ndim < 2 else 0.0, parameter[0].numel() ** -0.5 * 0.9)
    pipeline.save_pretrained(folder / "model")
    return pipeline, folder / "model"


@pytest.fixture
def same_weights():
    """A check that two PyTorch pipelines hold the same tensors."""
    torch = pytest.importorskip("torch")

    def check(one, other):
        for name in ("unet", "vae", "text_encoder"):
            theirs = getattr(other, name).state_dict()
            found = getattr(one, name).state_dict()
            assert found.keys() == theirs.keys()
            for key, tensor in found.items():
                assert torch.equal(tensor, theirs[key]), (name, key)

    return check


@pytest.fixture
def fused():
    """A function from a model folder and a LoRA file to diffusers' pipeline with it fused at 0.8 and our merged
    parameters, whose weights it has checked to be the same."""
    diffusers = pytest.importorskip("diffusers")

    def fuse(folder, file):
        theirs = diffusers.DiffusionPipeline.from_pretrained(folder, safety_checker=None)
        theirs.load_lora_weights(file.parent, weight_name=file.name)
        theirs.fuse_lora(lora_scale=0.8)
        theirs.unload_lora_weights()
        sd, params = folders.read(folder)
        merged = lora.merge(params, lora.read(file, sd.shapes), 0.8)
        for name in ("unet", "text_encoder"):
            state = {key.removeprefix("text_model."): each for key, each in getattr(theirs, name).state_dict().items()}
            for path, array in flatten(merged[name]).items():
                key, ours = to_torch(path, np.asarray(array))
                expected = state[key.removeprefix("text_model.")].numpy()
                np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max(), err_msg=key)
        return theirs, merged

    return fuse
