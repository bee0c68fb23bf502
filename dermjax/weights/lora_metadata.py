"""What LoRA files in PEFT's form say of themselves, in the file or in a config beside it. No JAX here."""

import json
import math
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from dermjax.errors import UserError
from dermjax.weights.tensor_files import read_json

NETWORKS = ("unet", "text_encoder")
KEY = "lora_adapter_metadata"  # diffusers' JSON in the file: {"unet.lora_alpha": …}
CONFIG = "adapter_config.json"  # PEFT's, of one network, beside its file
FILES = (  # in a folder: PEFT's own, diffusers' own, ours
    "adapter_model.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.safetensors",
    "pytorch_lora_weights.bin",
    "lora.safetensors",
)
PEFT_ALPHA = 8  # where a config of PEFT's says none
# ways to start that change the model's own weights as well, so that the adapters are not for the model as it is
STARTS = ("pissa", "olora", "corda", "loftq")


def locate(path: Path) -> Path:
    """Returns the file of a LoRA that is given as a file or as a folder.

    Raises:
      UserError: the folder has none, or several of which none is named as PEFT or diffusers do.
    """
    if not path.is_dir():
        return path
    named = [path / name for name in FILES if (path / name).is_file()]
    found = named or sorted(path.glob("*.safetensors"))
    if not found or (len(found) > 1 and not named):
        how = f"{len(found)} files of tensors" if found else "no file of tensors"
        raise UserError(f"{path}: {how}, none named as PEFT or diffusers do ({FILES[0]}, {FILES[2]}); name the file")
    return found[0]


def read(path: Path, texts: dict[str, str], names: Collection[str]) -> dict[str, Any]:
    """Returns PEFT's settings by "network.setting": of a file's texts, or of PEFT's config beside a file of PEFT's.

    Raises:
      UserError: they are no JSON object.
    """
    beside = path.with_name(CONFIG)
    if KEY not in texts and beside.is_file() and any(".lora_A." in name for name in names):
        return {f"{network}.{key}": value for network in NETWORKS for key, value in read_json(beside).items()}
    try:
        said = json.loads(texts.get(KEY, "{}"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: its {KEY} is no JSON ({error}); fetch the file again") from error
    if not isinstance(said, dict):
        raise UserError(f"{path}: its {KEY} holds {type(said).__name__}, not names with values; fetch the file again")
    return said


def alphas(path: Path, said: dict[str, Any]) -> Callable[[str, int], float]:
    """Returns the function (module, rank) -> alpha by PEFT's rules, from what `read` returned.

    It is NaN for the modules of a network of which nothing is said.

    Raises:
      UserError: the settings are of another method than LoRA, or of another file.
    """
    whole = {network: _settings(said, network) for network in NETWORKS}
    for each in whole.values():
        start = str(each.get("init_lora_weights", "")).lower()
        if each.get("peft_type", "LORA") != "LORA" or each.get("use_dora") or start.startswith(STARTS):
            kind = each.get("peft_type", "LORA") if not start.startswith(STARTS) else f"started as {start}"
            raise UserError(
                f"{path}: its settings are those of {'DoRA' if each.get('use_dora') else kind}, not plain LoRA; "
                "dermjax does not do that"
            )

    def alpha(module: str, rank: int) -> float:
        network, _, rest = module.partition(".")
        each = whole[network]
        if not each:
            return math.nan
        try:
            ranks = {each.get("r", rank), *(each.get("rank_pattern") or {}).values()}
            found = float(_matching(each.get("alpha_pattern") or {}, rest, each.get("lora_alpha", PEFT_ALPHA)))
        except (TypeError, ValueError, AttributeError, re.error) as error:
            raise UserError(f"{path}: what it says of {module}'s alpha cannot be read ({error})") from error
        if not math.isfinite(found):
            raise UserError(f"{path}: what it says of {module}'s alpha is {found}; fetch the file again")
        if rank not in ranks:
            raise UserError(
                f"{path}: {module} has rank {rank}, its settings say {' or '.join(map(str, ranks))}; the file and "
                f"{CONFIG} beside it do not belong together"
            )
        return found * rank**0.5 if each.get("use_rslora") else found  # arXiv 2312.03732: alpha / sqrt(r)

    return alpha


def _settings(said: dict[str, Any], network: str) -> dict[str, Any]:
    return {key.removeprefix(f"{network}."): value for key, value in said.items() if key.startswith(f"{network}.")}


def _matching(patterns: dict[str, Any], name: str, default: Any) -> Any:
    """Returns the value of the first pattern that fits the end of a module's name, as PEFT looks it up.

    A text encoder's names begin with text_model. or not, by the version of transformers.
    """
    for pattern, value in patterns.items():
        if re.search(r"\)[*+?{]", pattern) or sum(pattern.count(each) for each in "*+{") > 4:
            raise ValueError(f"the pattern {pattern[:40]!r} could take for ever")
        if any(re.match(rf"(.*\.)?({pattern})$", each) for each in (name, name.removeprefix("text_model."))):
            return value
    return default
