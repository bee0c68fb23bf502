"""Configs: what the published ones say is known, what diffusers can say and we cannot is refused, all in one line."""

import copy
import inspect

import jax.numpy as jnp
import numpy as np
import pytest

from dermjax.errors import UserError
from dermjax.models import configs
from dermjax.models.classifier import describe
from dermjax.models.clip_text import ACTIVATIONS
from dermjax.models.stable_diffusion import SD15, SD21, StableDiffusion, count
from dermjax.weights.torch_layout import expected

# the UNet that Stable Diffusion 2.1 publishes says besides what the preset holds
SD21_SAYS = {"dual_cross_attention": False, "num_class_embeds": None, "only_cross_attention": False,
             "upcast_attention": True, "_diffusers_version": "0.10.0.dev0"}  # fmt: skip
INPAINTING = SD15 | {"unet": SD15["unet"] | {"in_channels": 9}}
PUBLISHED = {
    "SD 1.5": (SD15, 859_520_964, 123_060_480),
    "SD 2.1": (SD21 | {"unet": SD21["unet"] | SD21_SAYS}, 865_910_724, 340_387_840),
    "SD 1.5 inpainting": (INPAINTING, 859_535_364, 123_060_480),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_tensor_of_the_published_networks_is_pytorch_s(name):
    """Names and shapes in full size; PyTorch builds its networks without memory for their parameters."""
    torch, theirs = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    configs, unet, text = PUBLISHED[name]
    sd = StableDiffusion(configs, None, jnp.float32)
    sd.check()
    plain = {key: {k: v for k, v in config.items() if k[:1] != "_"} for key, config in configs.items()}
    with torch.device("meta"):
        networks = {
            "unet": theirs.UNet2DConditionModel(**plain["unet"]),
            "vae": theirs.AutoencoderKL(**plain["vae"]),
            "text_encoder": transformers.CLIPTextModel(transformers.CLIPTextConfig(**plain["text_encoder"])),
        }
    for key, network in networks.items():
        found = {n.removeprefix("text_model."): tuple(each.shape) for n, each in network.named_parameters()}
        ours = {n.removeprefix("text_model."): shape for n, shape in expected(sd.shapes[key]).items()}
        assert ours == found, key
    assert {key: count(sd.shapes[key]) for key in networks} == {"unet": unet, "vae": 83_653_863, "text_encoder": text}


def test_what_diffusers_converter_of_single_files_wrote_is_known():
    """It wrote null where it was told nothing; attention is the same."""
    sd = StableDiffusion(SD15 | {"unet": SD15["unet"] | {"upcast_attention": None}}, None, jnp.float32)
    sd.check()


def test_all_that_diffusers_can_say_is_known():
    """An option that is not in the table would be refused in a folder that diffusers has written."""
    theirs = pytest.importorskip("diffusers")
    for kind, table in ((theirs.UNet2DConditionModel, configs.UNET), (theirs.AutoencoderKL, configs.VAE)):
        signature = inspect.signature(kind.__init__).parameters.values()
        defaults = {each.name: each.default for each in signature if each.name != "self"}
        assert defaults.keys() == table.keys()
        on = [name for name, kind in table.items() if kind.only and not kind.fits(defaults[name])]
        assert not on, "what is not implemented is off in diffusers too"


@pytest.mark.parametrize("network, changes, said", [
    ("unet", {"mid_block_type": None}, "mid_block_type = None is not implemented; dermjax knows 'UNetMidBlock2DCross"),
    ("unet", {"class_embed_type": "timestep"}, "class_embed_type = 'timestep' is not implemented"),
    ("unet", {"num_attention_heads": 4}, "num_attention_heads = 4 is not implemented"),
    ("unet", {"dropout": 0.1}, r"dropout = 0\.1 is not implemented"),
    ("unet", {"magic": 3}, "magic = 3 is not known"),
    ("unet", {"layers_per_block": [1, 2, 2, 2]}, r"layers_per_block = \[1, 2, 2, 2\] should be a whole number"),
    ("unet", {"in_channels": "4"}, "in_channels = '4' should be a whole number"),
    ("unet", {"block_out_channels": 320}, "block_out_channels = 320 should be a list"),
    ("unet", {"attention_head_dim": [5, 10]}, r"attention_head_dim = \[5, 10\] is not one number for each of 4 blocks"),
    ("unet", {"down_block_types": ["DownBlock2D"]}, "down_block_types holds 1 blocks, block_out_channels 4"),
    ("unet", {"up_block_types": ["DownBlock2D"] * 4}, "block type 'DownBlock2D' in up_block_types is not implemented"),
    ("unet", {"norm_num_groups": 48}, "norm_num_groups = 48 does not divide a width of 320"),
    ("unet", {"act_fn": "gelu", "dropout": 0.5}, r"act_fn = 'gelu' is not .*; dropout = 0\.5 is not"),
    ("vae", {"use_quant_conv": False}, "use_quant_conv = False is not implemented"),
    ("vae", {"latents_mean": [0.0]}, r"latents_mean = \[0\.0\] is not implemented"),
    ("vae", {"scaling_factor": "1"}, "scaling_factor = '1' should be a number more than 1e-06"),
    ("text_encoder", {"hidden_act": "relu"}, "hidden_act = 'relu' is not implemented; dermjax knows quick_gelu and"),
    ("text_encoder", {"model_type": "xlm-roberta"}, "model_type = 'xlm-roberta' is not implemented"),
    ("text_encoder", {"num_attention_heads": 7}, "num_attention_heads = 7 does not divide hidden_size = 768"),
])  # fmt: skip
def test_what_we_do_not_have_is_refused(network, changes, said):
    configs = copy.deepcopy(SD15)
    configs[network] |= changes
    with pytest.raises(UserError, match=rf"^{network}/config\.json: .*{said}") as error:
        StableDiffusion(configs, None, np.float32).check()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("network, changes, said", [
    ("unet", {"in_channels": 8}, "in_channels = 8, dermjax knows 4 and, for inpainting, 9"),
    ("unet", {"out_channels": 8}, "out_channels = 8, but the autoencoder's latents have 4 channels"),
    ("vae", {"in_channels": 1}, "in_channels = 1 and out_channels = 3; images have 3"),
])  # fmt: skip
def test_networks_that_do_not_fit_each_other_are_refused(network, changes, said):
    configs = SD15 | {network: SD15[network] | changes}
    with pytest.raises(UserError, match=rf"^{network}/config\.json: {said}"):
        StableDiffusion(configs, None, np.float32).check()


WHOLE = (0, -1, 1.5, "4", [], None, True, 10**6, 10**400)
NUMBER = (0, -1.0, float("nan"), float("inf"), "1", [], None, True, 10**400)
SIZES = {
    "unet": ("cross_attention_dim", "in_channels", "layers_per_block", "norm_num_groups", "out_channels", "sample_size",
             "attention_head_dim"),
    "vae": ("in_channels", "latent_channels", "layers_per_block", "norm_num_groups", "out_channels", "sample_size"),
    "text_encoder": ("hidden_size", "intermediate_size", "max_position_embeddings", "num_attention_heads",
                     "num_hidden_layers"),
    "scheduler": ("num_train_timesteps",),
}  # fmt: skip
AMOUNTS = {"unet": ("norm_eps",), "vae": ("scaling_factor",), "text_encoder": ("layer_norm_eps",),
           "scheduler": ("beta_start", "beta_end")}  # fmt: skip
LISTS = [
    (network, key, value)
    for network in ("unet", "vae")
    for key, values in {
        "block_out_channels": ([], [0] * 4, [320, 640, 1280, -1280], [320.0] * 4, ["320"] * 4, [320] * 10**5,
                               [True] * 4, "320", None, [[320]] * 4, [2**20] * 4),
        "down_block_types": ([], [None] * 4, [1] * 4, [["DownBlock2D"]] * 4, "DownBlock2D", {"a": 1}),
        "up_block_types": ([], [None] * 4),
    }.items()
    for value in values
]  # fmt: skip
ODD = [
    *((network, key, value) for network, keys in SIZES.items() for key in keys for value in WHOLE),
    *((network, key, value) for network, keys in AMOUNTS.items() for key in keys for value in NUMBER),
    *LISTS,
    ("unet", "attention_head_dim", [5, 0, 20, 20]),
    ("unet", "attention_head_dim", ["5"] * 4),
    ("unet", "attention_head_dim", 7),
    ("unet", "freq_shift", float("nan")),
    ("unet", "freq_shift", 160),
    ("unet", "flip_sin_to_cos", "true"),
    ("unet", "use_linear_projection", 1),
    ("text_encoder", "hidden_act", ["gelu"]),
    ("text_encoder", "vocab_size", 10**9),
    ("text_encoder", "vocab_size", "49408"),
    ("scheduler", "num_train_timesteps", "1000"),
    ("scheduler", "steps_offset", None),
    ("scheduler", "steps_offset", -1),
    ("scheduler", "steps_offset", 1.0),
    ("scheduler", "beta_start", 1),
    ("scheduler", "beta_schedule", ["linear"]),
    ("scheduler", "prediction_type", None),
    ("scheduler", "prediction_type", "edm"),
    ("scheduler", "prediction_type", ["epsilon"]),
    ("scheduler", "timestep_spacing", 3),
    ("scheduler", "trained_betas", []),
    ("scheduler", "trained_betas", [0.1, 2.0]),
    ("scheduler", "trained_betas", "0.1"),
    ("scheduler", "clip_sample", "false"),
    ("scheduler", "clip_sample_range", 0),
    ("scheduler", "thresholding", None),
    ("scheduler", "rescale_betas_zero_snr", "yes"),
]


CHECKS = {
    "unet": configs.check_unet,
    "vae": configs.check_vae,
    "text_encoder": lambda config: configs.check_text(config, ACTIVATIONS),
    "scheduler": configs.check_scheduler,
}


@pytest.mark.parametrize("network, key, value", ODD, ids=lambda value: repr(value)[:30])
def test_a_value_that_cannot_be_is_one_line_that_names_its_option(network, key, value):
    """No traceback, no network that is built for ever: the checks come before anything is."""
    config = copy.deepcopy(SD15[network]) | {key: value}
    with pytest.raises(UserError, match=rf"^{network}/(scheduler_)?config\.json: .*{key}") as error:
        CHECKS[network](config)
    assert str(error.value).isprintable() and len(str(error.value)) < 2000


@pytest.mark.parametrize("network, key", [("text_encoder", "hidden_act"), ("unet", "up_block_types")])
def test_a_missing_option_is_named(network, key):
    configs = copy.deepcopy(SD15)
    del configs[network][key]
    with pytest.raises(UserError, match=rf"{network}/config\.json: .*{key}"):
        StableDiffusion(configs, None, np.float32).check()


@pytest.mark.parametrize("given", ["768", [768], None, 768.0])
def test_widths_that_are_no_numbers_are_one_line(given):
    configs = copy.deepcopy(SD15)
    configs["text_encoder"]["hidden_size"] = configs["unet"]["cross_attention_dim"] = given
    with pytest.raises(UserError, match="hidden_size"):
        StableDiffusion(configs, None, np.float32).check()


CLASSIFIERS = {
    "vit": ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size"),
    "dinov2": ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size"),
    "mobilenet_v2": ("depth_divisible_by", "min_depth", "output_stride"),
}


@pytest.mark.parametrize("kind, key, value", [
    *((kind, key, value) for kind, keys in CLASSIFIERS.items() for key in keys for value in WHOLE),
    *((kind, "layer_norm_eps", value) for kind in CLASSIFIERS for value in NUMBER),
    *(("mobilenet_v2", "depth_multiplier", value) for value in NUMBER),
    *(("mobilenet_v2", "expand_ratio", value) for value in NUMBER),
    *(("dinov2", "mlp_ratio", value) for value in NUMBER),
    ("vit", "num_attention_heads", 7), ("vit", "patch_size", 512), ("vit", "hidden_act", ["gelu"]),
], ids=lambda value: repr(value)[:30])  # fmt: skip
def test_a_classifier_that_cannot_be_is_one_line_that_names_its_option(kind, key, value):
    config = describe(kind, {key: value}, ("a", "b"), 224)
    with pytest.raises(UserError, match=rf"^folder/config\.json: .*{key}") as error:
        configs.check_classifier(config, "folder")
    assert str(error.value).isprintable() and len(str(error.value)) < 2000


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_every_classifier_of_a_preset_is_known(kind):
    configs.check_classifier(describe(kind, {}, ("a", "b"), 224), "folder")
