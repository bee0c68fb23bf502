"""Kinds of values that an option of a config may have, each with its words and its test.

What config.json may say, network by network, checked before anything is built: no option is ignored.

Two tables each: options that are implemented, with the kinds of their values, and options that are not, with the only
value that dermjax knows for them. Sizes have bounds far beyond any model's, so that a number with too many digits is an
error and not a network that is built for ever.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from dermjax.errors import UserError

SHOWN = 80  # characters of a value in an error


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a value may be: `said` in words, and the test for it."""

    said: str
    fits: Callable[[Any], bool]


TRUTH = Kind("true or false", lambda value: type(value) is bool)
WORD = Kind("a text", lambda value: type(value) is str)
NOTHING = Kind("null", lambda value: value is None)


def whole(least: int, most: int) -> Kind:
    """Returns the kind of whole numbers within bounds, so that no network is built that no memory holds."""
    return Kind(f"a whole number from {least} to {most}", lambda value: type(value) is int and least <= value <= most)


def number(over: float, most: float) -> Kind:
    """Returns the kind of numbers more than `over` and at most `most`, which NaN is not."""
    said = f"a number more than {over:g} and at most {most:g}"
    return Kind(said, lambda value: type(value) in (int, float) and over < value <= most)


def listed(of: Kind, most: int) -> Kind:
    """Returns the kind of lists with 1 to `most` values of a kind."""
    said = f"a list of 1 to {most}, each {of.said}"
    return Kind(said, lambda value: type(value) is list and 1 <= len(value) <= most and all(map(of.fits, value)))


def either(one: Kind, other: Kind) -> Kind:
    """Returns the kind of what is of one kind or of another."""
    return Kind(f"{one.said}, or {other.said}", lambda value: one.fits(value) or other.fits(value))


def shown(value: Any) -> str:
    """Returns a value as an error says it, in a piece of one line."""
    said = ascii(value)
    return said if len(said) <= SHOWN else f"{said[:SHOWN]}…"


LARGEST = 2**15  # of a width: SD 2.x has 1280 at most, and its text encoder 4096
MOST = 2**12  # of attention heads, groups and pixels a side
DEEPEST = 64  # layers of a transformer, of which OpenCLIP's largest has 48
BLOCKS_MOST, LAYERS_MOST = 8, 16  # of a UNet or an autoencoder, and in each block; Stable Diffusion has 4 and 2
VOCABULARY = 2**20  # tokens
TIMES = 2**16  # of training
WIDTH, COUNT, EPSILON, BETA = whole(1, LARGEST), whole(1, MOST), number(1e-16, 1), number(0, 0.9999)
BLOCKS = {
    "block_out_channels": listed(WIDTH, BLOCKS_MOST),
    "down_block_types": listed(WORD, BLOCKS_MOST),
    "up_block_types": listed(WORD, BLOCKS_MOST),
}

# upcast_attention says what we do anyway: logits and softmax of attention are float32
UNET = {
    **BLOCKS,
    "attention_head_dim": either(COUNT, listed(COUNT, BLOCKS_MOST)),
    "cross_attention_dim": WIDTH,
    "flip_sin_to_cos": TRUTH,
    "freq_shift": number(-1, 1),
    "in_channels": COUNT,
    "layers_per_block": whole(1, LAYERS_MOST),
    "norm_eps": EPSILON,
    "norm_num_groups": COUNT,
    "out_channels": COUNT,
    "sample_size": COUNT,
    "upcast_attention": TRUTH,
    "use_linear_projection": TRUTH,
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
    "force_upcast": TRUTH,
    "in_channels": COUNT,
    "latent_channels": COUNT,
    "layers_per_block": whole(1, LAYERS_MOST),
    "norm_num_groups": COUNT,
    "out_channels": COUNT,
    "sample_size": COUNT,
    "scaling_factor": number(1e-6, 1e6),
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
    "hidden_act": WORD,
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "layer_norm_eps": EPSILON,
    "max_position_embeddings": whole(3, MOST),  # start, a word, end
    "num_attention_heads": COUNT,
    "num_hidden_layers": whole(1, DEEPEST),
    "vocab_size": whole(1, VOCABULARY),
}
TEXT_FIXED = {"attention_dropout": 0.0, "dropout": 0.0, "model_type": "clip_text_model"}

CLASSIFIER = {
    "classifier_dropout_prob": number(-1, 1),
    "depth_divisible_by": COUNT,
    "depth_multiplier": number(0, 16),
    "expand_ratio": number(0, 64),  # transformers writes 6.0
    "hidden_act": WORD,
    "hidden_size": WIDTH,
    "image_size": COUNT,
    "intermediate_size": WIDTH,
    "layer_norm_eps": EPSILON,
    "min_depth": COUNT,
    "mlp_ratio": number(0, 64),
    "num_attention_heads": COUNT,
    "num_channels": whole(3, 3),
    "num_hidden_layers": whole(1, DEEPEST),
    "output_stride": whole(1, 32),
    "patch_size": COUNT,
    "qkv_bias": TRUTH,
    "tf_padding": TRUTH,
    "use_swiglu_ffn": TRUTH,
}

# What diffusers' schedulers say besides is theirs alone, or read where a ladder is laid
SCHEDULER = {
    "_class_name": WORD,
    "beta_end": BETA,
    "beta_schedule": WORD,
    "beta_start": BETA,
    "clip_sample": TRUTH,
    "clip_sample_range": number(0, 1e6),
    "dynamic_thresholding_ratio": number(0, 1),
    "final_sigmas_type": WORD,
    "num_train_timesteps": whole(2, TIMES),
    "original_inference_steps": whole(1, TIMES),
    "prediction_type": WORD,
    "rescale_betas_zero_snr": TRUTH,
    "sample_max_value": number(0, 1e6),
    "set_alpha_to_one": TRUTH,
    "steps_offset": whole(0, TIMES),
    "thresholding": TRUTH,
    "timestep_spacing": WORD,
    "trained_betas": either(listed(BETA, TIMES), NOTHING),
    "use_exponential_sigmas": TRUTH,
    "use_karras_sigmas": TRUTH,
}
PREDICTIONS = ("epsilon", "v_prediction", "sample")


def check_unet(config: Mapping[str, Any]) -> None:
    """Raises UserError with the options that the UNet does not have."""
    wrong = [*unfit(config, UNET, UNET_FIXED), *others(config, UNET, UNET_FIXED)]
    complain("unet", wrong or blocks(config, UNET_BLOCKS) or uneven(config))


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
    if not wrong and activation not in activations:
        wrong.append(f"hidden_act = {activation!r} is not implemented; dermjax knows {' and '.join(activations)}")
    complain("text_encoder", wrong)


def check_classifier(config: Mapping[str, Any], source: str) -> None:
    """Raises UserError with the sizes and options of a classifier's config that cannot be."""
    wrong = unfit(config, CLASSIFIER, {})
    width, heads = config.get("hidden_size", 1), config.get("num_attention_heads", 1)
    if not wrong and width % heads:
        wrong.append(f"num_attention_heads = {heads} does not divide hidden_size = {width}")
    if not wrong and config["image_size"] < config.get("patch_size", 1):
        wrong.append(f"patch_size = {config['patch_size']} is more than image_size = {config['image_size']}")
    complain(source, wrong)


def check_scheduler(config: Mapping[str, Any]) -> None:
    """Raises UserError with the options of a scheduler file that cannot be what they are."""
    wrong = unfit(config, SCHEDULER, {})
    prediction = config.get("prediction_type", PREDICTIONS[0])
    if not wrong and prediction not in PREDICTIONS:
        wrong.append(f"prediction_type = {prediction!r} is not one of {', '.join(PREDICTIONS)}")
    complain("scheduler", wrong, "scheduler_config.json")


def check_context(text: Mapping[str, Any], unet: Mapping[str, Any]) -> None:
    """Raises UserError where the text encoder's context is not as wide as the UNet takes it."""
    given, taken = text.get("hidden_size"), unet.get("cross_attention_dim")
    if type(given) is not int or type(taken) is not int:
        return  # what is no number is said of its own network
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


def unfit(config: Mapping[str, Any], free: Mapping[str, Kind], fixed: Mapping[str, Any]) -> list[str]:
    """Returns what is wrong with the values of known options."""
    return [
        f"{key} = {shown(config[key])} should be {kind.said}"
        for key, kind in free.items()
        if key in config and not kind.fits(config[key])
    ] + [
        f"{key} = {shown(config[key])} is not implemented; dermjax knows {known!r}"
        for key, known in fixed.items()
        if key in config and config[key] != known
    ]


def others(config: Mapping[str, Any], *known: Mapping[str, Any]) -> list[str]:
    """Returns the options that no table has; a name that begins with _ is none."""
    found = sorted(key for key in config.keys() - set().union(*known) if not key.startswith("_"))
    return [f"{ascii(key)[1:-1]} = {shown(config[key])} is not known to dermjax" for key in found]


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


def uneven(config: Mapping[str, Any]) -> list[str]:
    """Returns where the numbers of heads do not divide the widths of a UNet's blocks that attend."""
    heads, widths = config["attention_head_dim"], config["block_out_channels"]
    if isinstance(heads, list) and len(heads) != len(widths):
        return [f"attention_head_dim = {heads} is not one number for each of {len(widths)} blocks"]
    each = heads if isinstance(heads, list) else [heads] * len(widths)
    down, up = config["down_block_types"], config["up_block_types"][::-1]
    shift = config["freq_shift"]
    if widths[0] % 2 or widths[0] // 2 <= shift:
        return [f"block_out_channels begins with {widths[0]}: the embedding of times needs a larger, even number"]
    pairs = list(zip(each, widths, strict=True))
    attending = [pair for pair, *kinds in zip(pairs, down, up, strict=True) if any("Attn" in kind for kind in kinds)]
    return [
        f"attention_head_dim = {count} does not divide a width of {width}"
        for count, width in [*attending, pairs[-1]]
        if width % count
    ]


def complain(part: str, wrong: list[str], file: str = "config.json") -> None:
    """Raises UserError with all that is wrong in a config, if anything is."""
    if wrong:
        raise UserError(f"{part}/{file}: {'; '.join(wrong)}")
