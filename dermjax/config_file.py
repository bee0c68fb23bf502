"""Config files: `FILE[:VARIANT]` to the ConfigDict that its `get_config` returns, and the numbers it may hold."""

import runpy
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from dermjax.errors import UserError

LARGEST_SEED = 2**32 - 1  # of the whole numbers that numpy, grain and JAX take; AUTOMATIC1111 draws up to it
# the least value of a whole number by its key, whatever the stage
LEAST = dict.fromkeys(
    ("accumulate", "batch", "deep_cache", "encode_batch", "fsdp", "log_every", "looks", "normalise_over",
     "phantoms_per_class", "rank", "resamples", "sample", "smallest", "steps", "trials", "vectors", "views"), 1
) | dict.fromkeys(
    ("data", "evaluate_every", "first_seed", "fold", "folds", "gallery", "hits", "images", "images_per_class",
     "last_blocks", "limit", "patience", "phantoms", "preview_every", "prompts", "save_every", "seed", "seeds", "shots",
     "size", "startup", "validation_draws", "warmup", "watch_every"), 0
)  # fmt: skip
FREE = ("words", "quotas", "images_of", "repeats")  # their keys are users' own


def check(config: ConfigDict) -> None:
    """Raises UserError for a period, a count or a seed that cannot be meant, anywhere in a config."""
    for path, value in _numbers(config.to_dict(), "config"):
        key = path.rpartition(".")[2]
        least = LEAST.get(key, value)
        if value < least:
            raise UserError(f"{path} = {value}: give {least} or more")
        if key in ("seed", "seeds") and value > LARGEST_SEED:
            raise UserError(f"{path} = {value}: give a seed from 0 to {LARGEST_SEED}")


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


def _numbers(tree: dict, path: str) -> Iterator[tuple[str, int]]:
    """Yields the whole numbers below a path, those of a tuple each."""
    for key, value in tree.items():
        if isinstance(value, dict) and key not in FREE:
            yield from _numbers(value, f"{path}.{key}")
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, int) and not isinstance(each, bool):
                yield f"{path}.{key}", each


def _line_of(file: str, error: Exception) -> str:
    """Returns "line N: " for the last line of the config file that the exception passed through."""
    lines, trace = [], error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == file:
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f"line {lines[-1]}: " if lines else ""
