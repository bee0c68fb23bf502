"""What LoRA files in PEFT's form say of themselves, in the file or in a config beside it. No JAX here.

LoRA files, in and out, in the two forms that are in use; rank and alpha of every module are kept.

    PEFT, diffusers   unet.down_blocks.0.….to_q.lora_A.weight       alpha in the metadata, else equal to the rank
                      base_model.model.….to_q.lora_A.weight         alpha in adapter_config.json beside the file
    kohya             lora_unet_down_blocks_0_…_to_q.lora_down.weight    alpha as a tensor beside it

Kohya's names cannot be taken apart at their underscores without guessing, so that nothing here takes a name apart: the
modules of our own trees are spelt in every form that files have, and a file's names are looked up.
"""

import collections
import json
import math
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from dermjax.errors import UserError
from dermjax.progress import say
from dermjax.weights import ldm_names, safetensors, tensor_files, torch_layout
from dermjax.weights.lora import Lora
from dermjax.weights.safetensors import LazyTensor, Tensors
from dermjax.weights.tensor_files import open_file, read_json

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


def locate_metadata(path: Path) -> Path:
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


def read_metadata(path: Path, texts: dict[str, str], names: Collection[str]) -> dict[str, Any]:
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


def alphas_of(path: Path, said: dict[str, Any]) -> Callable[[str, int], float]:
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


Tree = dict[str, Any]

KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
NUMBERED = "lora_te1_"  # how tools that also know SDXL name the first of its text encoders, and the only one here
PARTS = {  # how a name ends, in files of PEFT, kohya and diffusers' earlier forms
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".alpha": "alpha",
}
UNKNOWN = {  # what dermjax does not do, by a word in the name
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "lora_mid": "a Tucker decomposition (LyCORIS)",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "oft_": "OFT",
}


def read(path: Path, shapes: Tree) -> Lora:
    """Returns a file's adapters for a model of these shapes ({"unet": …, "text_encoder": …}), float32.

    A folder of PEFT's or diffusers' stands for the file in it. Where nothing says an alpha it is the rank, said so.

    Raises:
      UserError: the file is broken, no LoRA, of a kind that dermjax does not do, or does not fit the model.
    """
    path = locate_metadata(path)
    tensors, texts = open_file(path)
    tensor_files.require(tensor_files.LORA, tensors, str(path))
    for word, kind in UNKNOWN.items():
        if any(word in name for name in tensors):
            raise UserError(f"{path}: is {kind}, not plain LoRA; dermjax does not do that")
    kernels = {name: leaf.shape for name, leaf in torch_layout.flatten(shapes).items() if name.endswith(".kernel")}
    parts, wrong = sorted_out(tensors, spellings(shapes))
    adapters, alphas, assumed = {}, {}, 0
    said = alphas_of(path, read_metadata(path, texts, tensors))
    for module, found in parts.items():
        if not {"down", "up"} <= found.keys():
            wrong.append(f"{module} has only {' and '.join(found)}")
            continue
        kernel = kernels[f"{module}.kernel"]
        rank = (found["down"].shape or (0,))[0]
        misfit = (
            [f"{module}'s alpha is {found['alpha'].shape}"] if "alpha" in found and found["alpha"].size != 1 else []
        )
        misfit += [
            f"{module}'s {part} is {found[part].shape}, the model asks for {asked}"
            for part, asked in (("down", (rank, kernel[-2], *kernel[:-2])), ("up", (kernel[-1], rank)))
            if squeezed(found[part].shape) != squeezed(asked)
        ]
        wrong += misfit
        if not misfit:
            adapters[f"{module}.down"] = down(found["down"], kernel)
            adapters[f"{module}.up"] = up(found["up"])
            alpha = float(found["alpha"].read().reshape(())) if "alpha" in found else said(module, rank)
            if "alpha" in found and not np.isfinite(alpha):
                wrong.append(f"{module}'s alpha is {alpha}")
            assumed += not np.isfinite(alpha)
            alphas[module] = alpha if np.isfinite(alpha) else float(rank)
    if wrong:
        shown = "; ".join(wrong[: torch_layout.SHOWN]) + ("; …" if len(wrong) > torch_layout.SHOWN else "")
        raise UserError(f"{path}: {len(wrong)} of {len(tensors)} tensors do not fit the model: {shown}")
    if assumed:
        say(
            f"{path}: nothing says the alpha of {assumed} of its {len(alphas)} layers; taken as their rank, which is "
            f"full strength. PEFT has it in {CONFIG} beside the file"
        )
    read_now = {name: np.ascontiguousarray(tensor.read(), np.float32) for name, tensor in adapters.items()}
    return Lora(torch_layout.unflatten(read_now), alphas)


def digest(path: Path) -> str:
    """Returns the name of a LoRA in records: 16 hex digits of its file and of PEFT's config beside it."""
    file = locate_metadata(path)
    files = (file, file.with_name(CONFIG))
    return tensor_files.digest({each.name: each for each in files if each.is_file()})


def write_peft(path: Path, lora: Lora, *, dtype) -> None:
    """Writes the file that diffusers' `load_lora_weights` and PEFT read."""
    tensors = {
        f"{module}.{name}.weight": tensor
        for module, pair in as_torch(lora, dtype).items()
        for name, tensor in zip(("lora_A", "lora_B"), pair, strict=True)
    }
    # diffusers reads ranks and alphas from this; without it, it takes alpha for the rank
    config = {}
    for network in KOHYA:
        # PEFT looks for the ends of names: without text_model., which transformers 5 has not, they fit any version
        below = {
            module.removeprefix(f"{network}.").removeprefix("text_model."): module
            for module in lora.alphas
            if module.startswith(f"{network}.")
        }
        if below:
            ranks = {short: lora.ranks[module] for short, module in below.items()}
            alphas = {short: lora.alphas[module] for short, module in below.items()}
            rank, alpha = most(ranks), most(alphas)
            config |= {
                f"{network}.r": rank,
                f"{network}.lora_alpha": alpha,
                f"{network}.rank_pattern": {short: each for short, each in ranks.items() if each != rank},
                f"{network}.alpha_pattern": {short: each for short, each in alphas.items() if each != alpha},
                f"{network}.target_modules": sorted(below),
            }
    safetensors.write(path, tensors, {KEY: json.dumps(config)})


def write_kohya(path: Path, lora: Lora, *, dtype) -> None:
    """Writes the file that AUTOMATIC1111, ComfyUI and kohya's scripts read; diffusers does as well."""
    tensors: Tensors = {}
    for module, (first, second) in as_torch(lora, dtype).items():
        network, _, rest = module.partition(".")
        name = KOHYA[network] + rest.replace(".", "_")
        alpha = np.array(lora.alphas[module], np.float32)
        tensors |= {
            f"{name}.lora_down.weight": first,
            f"{name}.lora_up.weight": second,
            f"{name}.alpha": LazyTensor((), alpha.dtype, lambda alpha=alpha: alpha),
        }
    rank, alpha = most(lora.ranks), most(lora.alphas)
    said = {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(alpha)}
    safetensors.write(path, tensors, said)


def spellings(shapes: Tree) -> dict[str, str]:
    """Returns {a module's name in some form of file: our module} for every kernel of UNet and text encoder."""
    found = {}
    for network, prefix in KOHYA.items():
        kernels = [path for path in torch_layout.flatten(shapes[network]) if path.endswith(".kernel")]
        for rest in (path.removesuffix(".kernel") for path in kernels):
            module = f"{network}.{rest}"
            # transformers 5 names its modules without the prefix
            forms = {rest, rest.removeprefix("text_model.")}
            # diffusers until 2023: the UNet's attention in its "processor", the text's by the names of the UNet's
            parent, _, last = rest.removesuffix(".0").rpartition(".")
            text = network == "text_encoder"
            forms.add(f"{parent}.to_{last.removesuffix('_proj')}" if text else f"{parent}.processor.{last}")
            # files of one network leave its name out
            whose = [*forms, *(f"{network}.{form}" for form in forms)]
            prefixes = (prefix, NUMBERED) if text else (prefix,)
            flat = (
                each + form.replace(".", "_") for each in prefixes for form in (rest, rest.removeprefix("text_model."))
            )
            names = [*flat, *whose, *(f"base_model.model.{name}" for name in whose)]
            found |= dict.fromkeys(names, module)
    for rest, theirs in ldm_names.unet(shapes["unet"]).items():  # kohya's form over LDM's names
        found.setdefault(KOHYA["unet"] + theirs.replace(".", "_"), f"unet.{rest}")
    return found


def sorted_out(tensors: Tensors, spelt: dict[str, str]) -> tuple[dict[str, dict[str, LazyTensor]], list[str]]:
    """Returns {our module: its parts}, and what belongs to none."""
    found, wrong = collections.defaultdict(dict), []
    for name, tensor in tensors.items():
        ending = next((ending for ending in PARTS if name.endswith(ending)), "")
        module = spelt.get(name.removesuffix(ending))
        if not ending or module is None:
            wrong.append(f"{name} belongs to no layer of it")
        else:
            found[module][PARTS[ending]] = tensor
    return found, wrong


def squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns a shape without the two axes of a 1x1 convolution."""
    return shape[:2] if shape[2:] == (1, 1) else tuple(shape)


def down(tensor: LazyTensor, kernel: tuple[int, ...]) -> LazyTensor:
    """Returns [r, in] or [r, in, h, w] of a file as [in, r] or [h, w, in, r], as the kernel has axes."""
    rank = tensor.shape[0]
    shape = (*kernel[:-1], rank)
    if len(tensor.shape) == 4:
        return tensor.transform(shape, lambda array: array.transpose(2, 3, 1, 0).reshape(shape))
    return tensor.transform(shape, lambda array: array.T.reshape(shape))


def up(tensor: LazyTensor) -> LazyTensor:
    """Returns [out, r] or [out, r, 1, 1] of a file as [r, out]."""
    out, rank = tensor.shape[:2]
    return tensor.transform((rank, out), lambda array: array.reshape(out, rank).T)


def as_torch(lora: Lora, dtype) -> dict[str, tuple[LazyTensor, LazyTensor]]:
    """Returns {module: (down, up)} in the file's layout: up is a 1x1 convolution where the kernel is one."""
    flat = torch_layout.flatten(lora.adapters)

    def pair(module: str) -> tuple[LazyTensor, LazyTensor]:
        kernels = {"down.kernel": flat[f"{module}.down"], "up.kernel": flat[f"{module}.up"]}
        first, second = torch_layout.to_file(kernels, dtype).values()
        if len(first.shape) == 4:
            shape = (*second.shape, 1, 1)
            second = second.transform(shape, lambda array: array.reshape(shape))
        return first, second

    return {module: pair(module) for module in lora.alphas}


def most(values: dict[str, Any]) -> Any:
    """Returns the value that occurs most."""
    return collections.Counter(values.values()).most_common(1)[0][0]
