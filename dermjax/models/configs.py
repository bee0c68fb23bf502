"""What config.json may say, network by network, checked before anything is built: no option is ignored.

One table a network: each option with the kind of its values, or with the only value that is implemented. Sizes have
bounds far beyond any model's, so that a number with too many digits is an error and not a network that is built for
ever.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from dermjax.errors import UserError

SHOWN = 80  # characters of a value in an error
PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a value may be: in words, and the test for it; `only` where there could be others that we do not have."""

    words: str
    fits: Callable[[Any], bool]
    only: bool = False


def only(known: Any) -> Kind:
    """Returns the kind of an option that is implemented for one value."""
    return Kind(repr(known), lambda value: value == known, only=True)


def integer(least: int, most: int) -> Kind:
    """Returns the kind of whole numbers within bounds."""
    return Kind(f"a whole number from {least} to {most}", lambda value: type(value) is int and least <= value <= most)


def number(over: float, most: float) -> Kind:
    """Returns the kind of numbers more than `over` and at most `most`, which NaN is not."""
    words = f"a number more than {over:g} and at most {most:g}"
    return Kind(words, lambda value: type(value) in (int, float) and over < value <= most)


def list_of(kind: Kind, most: int) -> Kind:
    """Returns the kind of lists with 1 to `most` values of a kind."""
    words = f"a list of 1 to {most}, each {kind.words}"
    return Kind(words, lambda value: type(value) is list and 1 <= len(value) <= most and all(map(kind.fits, value)))


def either(one: Kind, other: Kind) -> Kind:
    """Returns the kind of what is of one kind or of another."""
    return Kind(f"{one.words}, or {other.words}", lambda value: one.fits(value) or other.fits(value))


def options(*rows: tuple[Kind, str]) -> dict[str, Kind]:
    """Returns the table of a config from its rows: a kind, and the names of the options of that kind."""
    return {name: kind for kind, names in rows for name in names.split()}


BOOLEAN = Kind("true or false", lambda value: type(value) is bool)
WORD = Kind("a text", lambda value: type(value) is str)
NULL = Kind("null", lambda value: value is None)
WIDTH = integer(1, 2**15)  # SD 2.x has 1280 at most, and its text encoder 4096
COUNT = integer(1, 2**12)  # of channels, heads, groups and pixels a side
DEPTH = integer(1, 64)  # layers of a transformer, of which OpenCLIP's largest has 48
LAYERS, BLOCKS = integer(1, 16), 8  # in a block and blocks in a network; Stable Diffusion has 2 and 4
TIMES = 2**16  # of training
# of classifiers' training, in which ours drop nothing
DROPOUTS = ("attention_probs_dropout_prob", "classifier_dropout_prob", "drop_path_rate", "hidden_dropout_prob")
EPSILON, BETA = number(1e-16, 1), number(0, 0.9999)

# fmt: off
UNET = options(
    (list_of(WIDTH, BLOCKS), "block_out_channels"),
    (list_of(WORD, BLOCKS), "down_block_types up_block_types"),
    (either(COUNT, list_of(COUNT, BLOCKS)), "attention_head_dim"),
    (WIDTH, "cross_attention_dim"),
    (COUNT, "in_channels norm_num_groups out_channels sample_size"),
    (LAYERS, "layers_per_block"),
    (EPSILON, "norm_eps"),
    (number(-1, 1), "freq_shift"),
    (BOOLEAN, "flip_sin_to_cos use_linear_projection"),
    # says what we do anyway: logits and softmax of attention are float32; diffusers' converter wrote null
    (either(BOOLEAN, NULL), "upcast_attention"),
    # num_attention_heads: diffusers refuses it as well, attention_head_dim holds the number of heads
    (only(None), """addition_embed_type addition_time_embed_dim class_embed_type cross_attention_norm encoder_hid_dim
                    encoder_hid_dim_type mid_block_only_cross_attention num_attention_heads num_class_embeds
                    projection_class_embeddings_input_dim reverse_transformer_layers_per_block time_cond_proj_dim
                    time_embedding_act_fn time_embedding_dim timestep_post_act"""),
    (only(False), """center_input_sample class_embeddings_concat dual_cross_attention only_cross_attention
                     resnet_skip_time_act"""),
    (only(0.0), "dropout"),
    (only(1), "downsample_padding mid_block_scale_factor transformer_layers_per_block"),
    (only(1.0), "resnet_out_scale_factor"),
    (only(3), "conv_in_kernel conv_out_kernel"),
    (only(64), "addition_embed_type_num_heads"),
    (only("default"), "attention_type resnet_time_scale_shift"),
    (only("positional"), "time_embedding_type"),
    (only("silu"), "act_fn"),
    (only("UNetMidBlock2DCrossAttn"), "mid_block_type"),
)
VAE = options(
    (list_of(WIDTH, BLOCKS), "block_out_channels"),
    (list_of(WORD, BLOCKS), "down_block_types up_block_types"),
    (COUNT, "in_channels latent_channels norm_num_groups out_channels sample_size"),
    (LAYERS, "layers_per_block"),
    (number(1e-6, 1e6), "scaling_factor"),
    # says what we do anyway: images are decoded in a type with the range of float32
    (BOOLEAN, "force_upcast"),
    (only(None), "latents_mean latents_std shift_factor"),
    (only(True), "mid_block_add_attention use_post_quant_conv use_quant_conv"),
    (only("silu"), "act_fn"),
)
# What else transformers writes is not refused: how text is generated, and more that CLIP's text model never reads
TEXT = options(
    (WORD, "hidden_act"),
    (WIDTH, "hidden_size intermediate_size"),
    (EPSILON, "layer_norm_eps"),
    (integer(3, 2**12), "max_position_embeddings"),  # start, a word, end
    (COUNT, "num_attention_heads"),
    (DEPTH, "num_hidden_layers"),
    (integer(1, 2**20), "vocab_size"),
    (only(0.0), "attention_dropout dropout"),
    (only("clip_text_model"), "model_type"),
)
CLASSIFIER = options(
    (WORD, "hidden_act"),
    (WIDTH, "hidden_size intermediate_size"),
    (COUNT, "depth_divisible_by image_size min_depth num_attention_heads patch_size"),
    (integer(3, 3), "num_channels"),
    (integer(1, 32), "output_stride"),
    (DEPTH, "num_hidden_layers"),
    (EPSILON, "layer_norm_eps"),
    (number(-1, 1), "classifier_dropout_prob"),
    (number(0, 16), "depth_multiplier"),
    (number(0, 64), "expand_ratio mlp_ratio"),  # transformers writes 6.0
    (BOOLEAN, "qkv_bias tf_padding use_swiglu_ffn"),
)
# What diffusers' schedulers say besides is theirs alone, or read where a ladder is made
SCHEDULER = options(
    (WORD, "_class_name beta_schedule final_sigmas_type prediction_type timestep_spacing"),
    (BETA, "beta_end beta_start"),
    (either(list_of(BETA, TIMES), NULL), "trained_betas"),
    (integer(2, TIMES), "num_train_timesteps"),
    (integer(1, TIMES), "original_inference_steps"),
    (integer(0, TIMES), "steps_offset"),
    (number(0, 1), "dynamic_thresholding_ratio"),
    (number(0, 1e6), "clip_sample_range sample_max_value"),
    (BOOLEAN, """clip_sample rescale_betas_zero_snr set_alpha_to_one thresholding use_exponential_sigmas
                 use_karras_sigmas"""),
)
# fmt: on


def check_unet(config: Mapping[str, Any]) -> None:
    """Raises UserError with the options that the UNet does not have."""
    attending = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    refuse("unet", unfit(config, UNET) + unknown(config, UNET) or blocks(config, attending) or uneven(config))


def check_vae(config: Mapping[str, Any]) -> None:
    """Raises UserError with the options that the autoencoder does not have."""
    kinds = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    refuse("vae", unfit(config, VAE) + unknown(config, VAE) or blocks(config, kinds))


def check_text(config: Mapping[str, Any], activations: Mapping[str, Any]) -> None:
    """Raises UserError with the options that CLIP's text model does not have."""
    wrong = unfit(config, TEXT)
    width, heads, activation = (config[key] for key in ("hidden_size", "num_attention_heads", "hidden_act"))
    if not wrong and width % heads:
        wrong.append(f"num_attention_heads = {heads} does not divide hidden_size = {width}")
    if not wrong and activation not in activations:
        wrong.append(f"hidden_act = {activation!r} is not implemented; dermjax knows {' and '.join(activations)}")
    refuse("text_encoder", wrong)


def check_classifier(config: Mapping[str, Any], source: str) -> None:
    """Raises UserError with the sizes and options of a classifier's config that cannot be."""
    wrong = unfit(config, CLASSIFIER)
    width, heads = config.get("hidden_size", 1), config.get("num_attention_heads", 1)
    if not wrong and width % heads:
        wrong.append(f"num_attention_heads = {heads} does not divide hidden_size = {width}")
    if not wrong and config["image_size"] < config.get("patch_size", 1):
        wrong.append(f"patch_size = {config['patch_size']} is more than image_size = {config['image_size']}")
    refuse(source, wrong)


def dropouts(config: Mapping[str, Any]) -> list[str]:
    """Returns the options of a classifier's config by which something would be dropped in training."""
    return [f"{name} = {shown(config[name])}" for name in DROPOUTS if config.get(name)]


def check_scheduler(config: Mapping[str, Any]) -> None:
    """Raises UserError with the options of a scheduler file that cannot be what they are."""
    wrong = unfit(config, SCHEDULER)
    prediction = config.get("prediction_type", PREDICTIONS[0])
    if not wrong and prediction not in PREDICTIONS:
        wrong.append(f"prediction_type = {prediction!r} is not one of {', '.join(PREDICTIONS)}")
    refuse("scheduler", wrong, "scheduler_config.json")


def check_context(text: Mapping[str, Any], unet: Mapping[str, Any]) -> None:
    """Raises UserError where the text encoder's context is not as wide as the UNet takes it."""
    given, taken = text.get("hidden_size"), unet.get("cross_attention_dim")
    if type(given) is not int or type(taken) is not int:
        return  # what is no number is refused with its network's other options
    family = {768: " (SD 1.x)", 1024: " (SD 2.x)"}
    if given != taken:
        wrong = (
            f"hidden_size = {given}{family.get(given, '')}, but the UNet takes a context of {taken}"
            f"{family.get(taken, '')}; they belong to different models"
        )
        refuse("text_encoder", [wrong])


def check_channels(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    """Raises UserError where the UNet is not for the autoencoder's latents, or that is not for RGB images."""
    latent, entering, leaving = vae["latent_channels"], unet["in_channels"], unet["out_channels"]
    if (vae["in_channels"], vae["out_channels"]) != (3, 3):
        wrong = f"in_channels = {vae['in_channels']} and out_channels = {vae['out_channels']}; images have 3"
        refuse("vae", [wrong])
    if entering not in (latent, 2 * latent + 1):
        refuse("unet", [f"in_channels = {entering}, dermjax knows {latent} and, for inpainting, {2 * latent + 1}"])
    if leaving != latent:
        refuse("unet", [f"out_channels = {leaving}, but the autoencoder's latents have {latent} channels"])


def unfit(config: Mapping[str, Any], table: Mapping[str, Kind]) -> list[str]:
    """Returns what is wrong with the values of known options."""
    return [
        f"{key} = {shown(config[key])} "
        + (f"is not implemented; dermjax knows {kind.words}" if kind.only else f"should be {kind.words}")
        for key, kind in sorted(table.items())
        if key in config and not kind.fits(config[key])
    ]


def unknown(config: Mapping[str, Any], table: Mapping[str, Kind]) -> list[str]:
    """Returns the options that a table does not have; a name that begins with _ is none."""
    names = sorted(key for key in config.keys() - table.keys() if not key.startswith("_"))
    return [f"{ascii(key)[1:-1]} = {shown(config[key])} is not known to dermjax" for key in names]


def shown(value: Any) -> str:
    """Returns a value as an error shows it, in a piece of one line."""
    text = ascii(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


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


def refuse(folder: str, wrong: list[str], file: str = "config.json") -> None:
    """Raises UserError with all that is wrong in a config, if anything is."""
    if wrong:
        raise UserError(f"{folder}/{file}: {'; '.join(wrong)}")
