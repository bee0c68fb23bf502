"""Config files: `FILE[:VARIANT]` to the ConfigDict that its `get_config` returns."""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from dermjax.errors import UserError


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


def _line_of(file: str, error: Exception) -> str:
    """Returns "line N: " for the last line of the config file that the exception passed through."""
    lines, trace = [], error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == file:
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f"line {lines[-1]}: " if lines else ""
