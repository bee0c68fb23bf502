"""What LoRA files in PEFT's form say of themselves, in the file or in a config beside it. No JAX here."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dermjax.errors import UserError
from dermjax.weights.tensor_files import read_json

NETWORKS = ("unet", "text_encoder")
KEY = "lora_adapter_metadata"  # diffusers' JSON in the file: {"unet.lora_alpha": …}
PEFT_MODEL, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"  # what PEFT itself saves of one network


def read(path: Path, texts: dict[str, str]) -> dict[str, Any]:
    """Returns PEFT's settings by "network.setting": of a file's texts, or of PEFT's config beside PEFT's own file.

    Raises:
      UserError: they are no JSON object.
    """
    beside = path.with_name(PEFT_CONFIG)
    if path.name == PEFT_MODEL and beside.is_file():
        return {f"{network}.{key}": value for network in NETWORKS for key, value in read_json(beside).items()}
    try:
        said = json.loads(texts.get(KEY, "{}"))
    except ValueError as error:
        raise UserError(f"{path}: its {KEY} is no JSON ({error}); fetch the file again") from error
    if not isinstance(said, dict):
        raise UserError(f"{path}: its {KEY} holds {type(said).__name__}, not names with values; fetch the file again")
    return said


def alphas(path: Path, texts: dict[str, str]) -> Callable[[str, int], float]:
    """Returns the function (module, rank) -> alpha by PEFT's rules; the rank, where nothing is said."""
    said = read(path, texts)

    def alpha(module: str, rank: int) -> float:
        network, _, rest = module.partition(".")
        try:
            patterns = (said.get(f"{network}.alpha_pattern") or {}).items()
            fitting = (each for pattern, each in patterns if re.fullmatch(rf"(.*\.)?({pattern})", rest))
            found = float(next(fitting, said.get(f"{network}.lora_alpha", rank)))
        except (TypeError, ValueError, AttributeError, re.error) as error:
            raise UserError(f"{path}: what it says of {module}'s alpha cannot be read ({error})") from error
        return found * rank**0.5 if said.get(f"{network}.use_rslora") else found  # arXiv 2312.03732: alpha / sqrt(r)

    return alpha
