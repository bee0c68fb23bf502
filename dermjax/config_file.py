"""Config files: `FILE[:VARIANT]` to the ConfigDict that its `get_config` returns, and the numbers it may hold."""

import runpy
from collections.abc import Iterator, Mapping
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dermjax.errors import UserError

# the configs of the stages: in the package where it was installed from a wheel, beside it in a checkout
_INSTALLED = Path(__file__).with_name("configs")
PRESETS = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[1] / "configs"
VARIANTS = ("prepare", "pretrain", "tune", "sweep", "generate", "transform", "mask", "curate", "curate:calibration",
            "classify", "publish", "evaluate", "evaluate:images", "study", "demo")  # fmt: skip
LARGEST_SEED = 2**32 - 1  # of the whole numbers that numpy, grain and JAX take; AUTOMATIC1111 draws up to it
# what the numbers of a key may be, whatever the stage
RANGES = {
    "1 or more": (
        lambda value: value >= 1,
        ("accumulate", "batch", "deep_cache", "draws", "encode_batch", "fsdp", "guidance", "hidden_size",
         "intermediate_size", "log_every", "looks", "normalise_over", "num_attention_heads", "num_hidden_layers",
         "patch_size", "phantoms_per_class", "prompts", "rank", "resamples", "sample", "smallest", "steps", "trials",
         "vectors", "ways"),
    ),
    "1 to 1000": (lambda value: 1 <= value <= 1000, ("views",)),
    "0 or more": (
        lambda value: value >= 0,
        ("adversary", "bits", "cast", "chroma", "clip", "contrast", "dark_corners", "data", "edges", "evaluate_every",
         "features", "first_seed", "fold", "folds", "gallery", "gel", "guidance_interval",
         "hairs", "hits", "huber", "images", "images_per_class", "ink", "kl",
         "last_blocks", "limit", "lines", "number", "offset_noise", "patches", "patience", "phantoms", "preview_every",
         "prior_weight", "rate", "ruler", "save_every", "shard", "shots", "size", "snr_gamma", "standout", "startup",
         "structure", "text_rate", "texture", "tone", "tone_tolerance", "validation_draws", "warmup", "watch_every",
         "weight_decay"),
    ),
    "more than 0": (
        lambda value: value > 0,
        ("alpha", "depth_multiplier", "factor", "high", "layer_decay", "low", "strength", "strengths",
         "synthetic_weight"),
    ),
    "0.01 to 100": (lambda value: 0.01 <= value <= 100, ("timestep_bias",)),
    "0 to 1": (
        lambda value: 0 <= value <= 1,
        ("caption_dropout", "empty_share", "guidance_rescale", "label", "most_copies", "photographs_share",
         "prompt_dropout", "synthetic_fraction", "tail", "test", "validation"),
    ),
    "0 or more and less than 1": (lambda value: 0 <= value < 1, ("ema_decay", "label_smoothing")),
    f"a seed from 0 to {LARGEST_SEED}": (lambda value: 0 <= value <= LARGEST_SEED, ("seed", "seeds")),
    "a number": (lambda value: True, ("lora_weight", "sharpness")),
}  # fmt: skip
ELEMENTS = {  # what keys of tuples hold
    "texts": (str, ("arms", "embeddings", "samplers")),
    "numbers": (int | float, ("guidance_interval", "seeds", "shots", "strengths")),
}
FREE = ("words", "quotas", "images_of", "repeats", "rare", "without", "sets")  # their keys are users' own
# what is below these differs between configs of one stage: classes, runs, phases of a training
VARIED = (*FREE, "prompts", "runs", "tests", "classifiers", "architecture", "autoencoder", "decoder", "space")


def check(config: ConfigDict) -> None:
    """Raises UserError for a number that cannot be meant, anywhere in a config; one that is none, or without end, too;
    and for a tuple of texts that holds a number, or the other way round.

    What depends on more than one option, or on the data, is the stage's to check.
    """
    known = {key: given for given, (_, keys) in RANGES.items() for key in keys}
    for path, value in _leaves(config.to_dict(), "config"):
        key = path.rpartition(".")[2]
        for given, (kind, keys) in ELEMENTS.items():
            if key in keys and not isinstance(value, kind):
                raise UserError(f"{path} = {value!r}: give {given}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        given = known.get(key, "a number")
        inside, _ = RANGES[given]
        if not (isfinite(value) and inside(value)):
            raise UserError(f"{path} = {value}: give {given}")


def preset(stage: str, variant: str) -> ConfigDict:
    """Returns a variant of the config of a stage that ships with dermjax."""
    return load(f"{PRESETS / stage}.py:{variant}")


def stage_of(config: Mapping) -> str:
    """Returns the stage whose config has the most keys in common with this one, "" where none is like it."""
    return _nearest(config).partition(":")[0]


def check_stage(config: ConfigDict, stage: str, path: str) -> None:
    """Raises UserError for a config of another stage, whose keys this one does not have, and for one of this stage that
    lacks a key or has a value of another type than the config that ships with dermjax."""
    found = _nearest(config)
    if found.partition(":")[0] not in ("", stage):
        raise UserError(f"config {path}: is one of `{found.partition(':')[0]}`; give one of `{stage}`, such as "
                        f"configs/{stage}.py")  # fmt: skip
    if found:
        try:
            check_types(config, _shipped()[found])
        except UserError as error:
            raise UserError(f"config {path}: {error}") from error


def check_types(config: ConfigDict, shipped: ConfigDict, path: str = "config") -> None:
    """Raises UserError for a key of the shipped config that another one of its stage lacks, or has of another type, and
    for a key that the shipped one does not know."""
    unknown = [key for key in config if key not in shipped]
    if unknown:
        raise UserError(f"unknown config key {path}.{unknown[0]}; there are: {', '.join(shipped)}")
    for key, known in shipped.items():
        if key not in config:
            raise UserError(f"{path}.{key} is missing; add it, {_like(known)}")
        value = config[key]
        kinds = {float: (float, int), tuple: (tuple, list), list: (tuple, list)}.get(type(known), (type(known),))
        if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(known, bool):
            raise UserError(f"{path}.{key} = {value!r}: give {_like(known)}")
        if isinstance(known, ConfigDict) and key not in VARIED:
            check_types(value, known, f"{path}.{key}")


def _like(known: Any) -> str:
    """Returns what a key may hold, on one line."""
    return f"keys and values like {known.to_dict()}" if isinstance(known, ConfigDict) else f"a value like {known!r}"


def _nearest(config: Mapping) -> str:
    """Returns the shipped config that has the most keys in common with this one, "" where none is like it."""
    keys = set(config)
    likeness = {name: len(keys & set(each)) / max(len(keys | set(each)), 1) for name, each in _shipped().items()}
    best = max(likeness, key=likeness.__getitem__)
    return best if likeness[best] > 0.5 else ""


@cache
def _shipped() -> dict[str, ConfigDict]:
    """The configs that ship with dermjax."""
    named = {name: name.split(":") for name in VARIANTS}
    return {name: load(":".join([f"{PRESETS / file}.py", *variant])) for name, (file, *variant) in named.items()}


def change(config: ConfigDict, changes: Mapping[str, Any], path: str = "config") -> None:
    """Sets keys of a config; those of a mapping are set one by one, those of FREE replace what is there.

    Raises:
      UserError: there is no such key, or a value of another type.
    """
    for key, value in changes.items():
        if key not in config:
            raise UserError(f"unknown config key {path}.{key}; there are: {', '.join(config)}")
        if isinstance(value, Mapping) and isinstance(config[key], ConfigDict) and key not in (*FREE, "prompts"):
            change(config[key], value, f"{path}.{key}")
            continue
        try:
            config[key] = ConfigDict(value) if isinstance(value, Mapping) else value
        except TypeError as error:
            raise UserError(f"{path}.{key} = {value!r}: give {_like(config[key])}") from error


def load(path: str) -> ConfigDict:
    """Returns what `get_config` of a config file returns; `FILE:VARIANT` passes the variant to it.

    Raises:
      UserError: no such file, no get_config in it, or an exception in it, named with its line.
    """
    file, *variant = path.split(":", 1)
    if not Path(file).is_file():
        raise UserError(f"config {file}: no such file")
    try:
        config = runpy.run_path(file)["get_config"](*variant)
    except UserError:
        raise
    except Exception as error:  # whatever a config file does wrong is for its author to mend
        raise UserError(f"config {path}: {_line_of(file, error)}{type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"config {path}: get_config returned {type(config).__name__}, not a ConfigDict")
    return config


def _leaves(tree: dict, path: str) -> Iterator[tuple[str, Any]]:
    """Yields the values below a path, those of a tuple each."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}.{key}") if key not in FREE else ()
            continue
        for each in value if isinstance(value, tuple | list) else (value,):
            yield f"{path}.{key}", each


def _line_of(file: str, error: Exception) -> str:
    """Returns "line N: " for the last line of the config file that the exception passed through."""
    lines, trace = [], error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == file:
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f"line {lines[-1]}: " if lines else ""
