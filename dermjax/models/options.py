"""What config.json may say, network by network, checked before anything is built: no option is ignored.

Two tables each: options that are implemented, with the types of their values, and options that are not, with the only
value that dermjax knows for them.
"""

from collections.abc import Mapping
from typing import Any

from dermjax.errors import UserError

NAMES = {bool: "true or false", int: "a whole number", float: "a number", list: "a list"}
BLOCKS = {"block_out_channels": (list,), "down_block_types": (list,), "up_block_types": (list,)}

# upcast_attention says what we do anyway: logits and softmax of attention are float32
UNET = {
    **BLOCKS,
    "attention_head_dim": (int, list),
    "cross_attention_dim": (int,),
    "flip_sin_to_cos": (bool,),
    "freq_shift": (int, float),
    "in_channels": (int,),
    "layers_per_block": (int,),
    "norm_eps": (float,),
    "norm_num_groups": (int,),
    "out_channels": (int,),
    "sample_size": (int,),
    "upcast_attention": (bool,),
    "use_linear_projection": (bool,),
}
UNET_FIXED = {
    "act_fn": "silu",
    "addition_embed_type": None,
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": None,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dropout": 0.0,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_attention_heads": None,  # diffusers refuses it as well: attention_head_dim holds the number of heads
    "num_class_embeds": None,
    "only_cross_attention": False,
    "projection_class_embeddings_input_dim": None,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": 1,
}
UNET_BLOCKS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}

# force_upcast says what we do anyway: images are decoded in a type with the range of float32
VAE = {
    **BLOCKS,
    "force_upcast": (bool,),
    "in_channels": (int,),
    "latent_channels": (int,),
    "layers_per_block": (int,),
    "norm_num_groups": (int,),
    "out_channels": (int,),
    "sample_size": (int,),
    "scaling_factor": (int, float),
}
VAE_FIXED = {
    "act_fn": "silu",
    "latents_mean": None,
    "latents_std": None,
    "mid_block_add_attention": True,
    "shift_factor": None,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}
VAE_BLOCKS = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}

# What else transformers writes is not refused: how text is generated, and more that CLIP's text model never reads
TEXT = {
    "hidden_size": (int,),
    "intermediate_size": (int,),
    "layer_norm_eps": (float,),
    "max_position_embeddings": (int,),
    "num_attention_heads": (int,),
    "num_hidden_layers": (int,),
    "vocab_size": (int,),
}
TEXT_FIXED = {"attention_dropout": 0.0, "dropout": 0.0, "model_type": "clip_text_model"}


def check_unet(config: Mapping[str, Any]) -> None:
    """Raises UserError with the options that the UNet does not have."""
    wrong = [*unfit(config, UNET, UNET_FIXED), *others(config, UNET, UNET_FIXED)]
    heads, depth = config["attention_head_dim"], config["block_out_channels"]
    if not wrong and isinstance(heads, list) and len(heads) != len(depth):
        wrong.append(f"attention_head_dim = {heads} is not one number for each of {len(depth)} blocks")
    complain("unet", wrong or blocks(config, UNET_BLOCKS))


def check_vae(config: Mapping[str, Any]) -> None:
    """Raises UserError with the options that the autoencoder does not have."""
    wrong = [*unfit(config, VAE, VAE_FIXED), *others(config, VAE, VAE_FIXED)]
    complain("vae", wrong or blocks(config, VAE_BLOCKS))


def check_text(config: Mapping[str, Any], activations: Mapping[str, Any]) -> None:
    """Raises UserError with the options that CLIP's text model does not have."""
    wrong = unfit(config, TEXT, TEXT_FIXED)
    width, heads, activation = (config[key] for key in ("hidden_size", "num_attention_heads", "hidden_act"))
    if not wrong and width % heads:
        wrong.append(f"num_attention_heads = {heads} does not divide hidden_size = {width}")
    if activation not in activations:
        wrong.append(f"hidden_act = {activation!r} is not implemented; dermjax knows {' and '.join(activations)}")
    complain("text_encoder", wrong)


def check_context(text: Mapping[str, Any], unet: Mapping[str, Any]) -> None:
    """Raises UserError where the text encoder's context is not as wide as the UNet takes it."""
    given, taken = text.get("hidden_size"), unet.get("cross_attention_dim")
    family = {768: " (SD 1.x)", 1024: " (SD 2.x)"}
    if given != taken:
        wrong = (
            f"hidden_size = {given}{family.get(given, '')}, but the UNet takes a context of {taken}"
            f"{family.get(taken, '')}; they belong to different models"
        )
        complain("text_encoder", [wrong])


def check_channels(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    """Raises UserError where the UNet is not for the autoencoder's latents, or that is not for RGB images."""
    latent, entering, leaving = vae["latent_channels"], unet["in_channels"], unet["out_channels"]
    if (vae["in_channels"], vae["out_channels"]) != (3, 3):
        complain(
            "vae",
            [f"in_channels = {vae['in_channels']} and out_channels = {vae['out_channels']}; images have 3"],
        )
    if entering not in (latent, 2 * latent + 1):
        complain("unet", [f"in_channels = {entering}, dermjax knows {latent} and, for inpainting, {2 * latent + 1}"])
    if leaving != latent:
        complain("unet", [f"out_channels = {leaving}, but the autoencoder's latents have {latent} channels"])


def unfit(config: Mapping[str, Any], free: Mapping[str, tuple], fixed: Mapping[str, Any]) -> list[str]:
    """Returns what is wrong with the values of known options."""
    return [
        f"{key} = {config[key]!r} should be {' or '.join(NAMES[kind] for kind in kinds)}"
        for key, kinds in free.items()
        if key in config and type(config[key]) not in kinds
    ] + [
        f"{key} = {config[key]!r} is not implemented; dermjax knows {known!r}"
        for key, known in fixed.items()
        if key in config and config[key] != known
    ]


def others(config: Mapping[str, Any], *known: Mapping[str, Any]) -> list[str]:
    """Returns the options that no table has; a name that begins with _ is none."""
    found = sorted(key for key in config.keys() - set().union(*known) if not key.startswith("_"))
    return [f"{key} = {config[key]!r} is not known to dermjax" for key in found]


def blocks(config: Mapping[str, Any], kinds: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Returns what is wrong with the lists of blocks; `kinds` are the types that each list may hold."""
    widths, groups = config["block_out_channels"], config["norm_num_groups"]
    wrong = [
        f"{key} holds {len(config[key])} blocks, block_out_channels {len(widths)}"
        for key in kinds
        if len(config[key]) != len(widths)
    ]
    wrong += [
        f"block type {kind!r} in {key} is not implemented; dermjax knows {' and '.join(known)}"
        for key, known in kinds.items()
        for kind in config[key]
        if kind not in known
    ]
    return wrong + [f"norm_num_groups = {groups} does not divide a width of {n}" for n in widths if n % groups]


def complain(network: str, wrong: list[str]) -> None:
    """Raises UserError with all that is wrong in a network's config, if anything is."""
    if wrong:
        raise UserError(f"{network}/config.json: {'; '.join(wrong)}")
