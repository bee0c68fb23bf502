"""Low-rank adapters (LoRA, arXiv 2106.09685): their tree, how they change a model, and their files.

An adapter tree has, for every adapted kernel, its path with {"down": [..., in, r], "up": [r, out]} in place of the
kernel. The change to a kernel is weight * alpha / r * down @ up; with `up` at zero the model starts as it was. The
paths may be those of one network or of a complete model, {"unet": …, "text_encoder": …}.

Files are read and written in the two forms that are in use; rank and alpha of every module are kept.

    PEFT, diffusers   unet.down_blocks.0.….to_q.lora_A.weight       alpha in the metadata, else equal to the rank
                      down_blocks.0.….to_q.lora_A.weight            the same of a network by itself (save_lora_adapter)
                      base_model.model.….to_q.lora_A.weight         alpha in adapter_config.json beside the file
    kohya             lora_unet_down_blocks_0_…_to_q.lora_down.weight    alpha as a tensor beside it
    ComfyUI           diffusion_model.input_blocks.1.1.….to_q.lora_down.weight, which is read alone

Kohya's names cannot be taken apart at their underscores without guessing, so that nothing here takes a name apart: the
modules of our own trees are spelt in every form that files have, and a file's names are looked up.

JAX is imported where arithmetic needs it: `dermjax inspect` reads files without it.
"""

import collections
import dataclasses
import json
import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dermjax.errors import UserError
from dermjax.progress import say
from dermjax.weights import ldm_names, safetensors, tensor_files, torch_layout
from dermjax.weights.safetensors import LazyTensor, Tensors
from dermjax.weights.tensor_files import open_file, read_json
from dermjax.weights.torch_layout import Tree, flatten, unflatten

if TYPE_CHECKING:
    import jax

# The paper's tool adapts the projections of both attentions and nothing else; kohya's names for the rest.
TARGETS = {
    "attention": r"(attn[12]\.(to_q|to_k|to_v|to_out\.0)|self_attn\.(q|k|v|out)_proj)\.kernel$",
    "feed_forward": r"(ff\.net\.(0\.proj|2)|mlp\.fc[12])\.kernel$",
    "convolution": r"(conv\w*|proj_in|proj_out)\.kernel$",
    "time": r"(time_emb_proj|time_embedding\.linear_[12])\.kernel$",
}
METADATA = "lora_adapter_metadata"  # diffusers' JSON in the file: {"unet.lora_alpha": …}, or {"lora_alpha": …}
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
STARTS = ("pissa", "olora", "corda", "loftq", "lora_ga")
KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
COMFYUI = {"unet": "diffusion_model.", "text_encoder": "text_encoders.{}.transformer."}
TEXT_ENCODERS = ("clip_l", "clip_h")  # of SD 1.x and of 2.x
NUMBERED = "lora_te1_"  # how tools that also know SDXL name the first of its text encoders, and the only one here
DOWN = ("lora_A", "lora_A.default", "lora_down", "lora.down", "lora_linear_layer.down")  # in PEFT, kohya, diffusers
UP = ("lora_B", "lora_B.default", "lora_up", "lora.up", "lora_linear_layer.up")
PARTS = {  # how a name ends
    **{f".{name}.weight": part for part, names in (("down", DOWN), ("up", UP)) for name in names},
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".alpha": "alpha",
}
UNSUPPORTED = {  # by a word in the name
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "lora_mid": "a Tucker decomposition (LyCORIS)",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "oft_": "OFT",
}


@dataclasses.dataclass(frozen=True)
class Lora:
    """Adapters: what is trained, and the alpha of each adapted module, which is not."""

    adapters: Tree
    alphas: dict[str, float]  # by module: the kernel's path without `.kernel`

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of each adapted module."""
        return {
            path.removesuffix(".down"): array.shape[-1]
            for path, array in flatten(self.adapters).items()
            if path.endswith(".down")
        }


def init(params: Tree, rank: int, seed: int, targets: Collection[str] = ("attention",)) -> Tree:
    """Returns the tree of fresh adapters, float32, for the kernels of the given `TARGETS`."""
    import jax
    import jax.numpy as jnp

    pattern, adapters = "|".join(TARGETS[target] for target in targets), {}
    for index, (path, kernel) in enumerate(sorted(flatten(params).items())):
        if re.search(pattern, path):
            key = jax.random.fold_in(jax.random.key(seed), index)
            module, inputs = path.removesuffix(".kernel"), kernel.shape[:-1]
            # PyTorch's Kaiming-uniform with a = sqrt(5), as PEFT starts `lora_A`: bound 1 / sqrt(fan in)
            bound = math.prod(inputs) ** -0.5
            adapters[f"{module}.down"] = jax.random.uniform(key, (*inputs, rank), minval=-bound, maxval=bound)
            adapters[f"{module}.up"] = jnp.zeros((rank, kernel.shape[-1]))
    return unflatten(adapters)


def uniform(adapters: Tree, alpha: float) -> Lora:
    """Returns the adapters with one alpha for all of them."""
    return Lora(adapters, dict.fromkeys(Lora(adapters, {}).ranks, alpha))


def merge(params: Tree, lora: Lora, weight: float) -> Tree:
    """Returns the parameters with every adapted kernel changed, `weight` 1 being as trained; differentiable.

    A kernel that is still in its file is changed when it is read.
    """
    flat, adapters = flatten(params), flatten(lora.adapters)
    for module, rank in lora.ranks.items():
        down, up = adapters[f"{module}.down"], adapters[f"{module}.up"]
        flat[f"{module}.kernel"] = adapted(flat[f"{module}.kernel"], down, up, weight * lora.alphas[module] / rank)
    return unflatten(flat)


def adapted(kernel: Any, down: "jax.Array", up: "jax.Array", scale: float) -> Any:
    """Returns kernel [..., in, out] + scale * down @ up."""
    import jax.numpy as jnp

    if isinstance(kernel, LazyTensor):
        return kernel.transform(kernel.shape, lambda array: np.asarray(adapted(array, down, up, scale)))
    return kernel + scale * jnp.einsum("...ir,ro->...io", down, up)


def locate(path: Path) -> Path:
    """Returns the file of a LoRA that is given as a file or as a folder, also one of Hugging Face's cache.

    Raises:
      UserError: the folder has none, or several of which none is named as PEFT or diffusers do.
    """
    path = tensor_files.snapshot(path)
    if not path.is_dir():
        return path
    named = [path / name for name in FILES if (path / name).is_file()]
    files = named or sorted(each for each in path.iterdir() if each.suffix.lower() == ".safetensors")
    if not files or (len(files) > 1 and not named):
        count = f"{len(files)} files of tensors" if files else "no file of tensors"
        raise UserError(f"{path}: {count}, none named as PEFT or diffusers do ({FILES[0]}, {FILES[2]}); name the file")
    return files[0]


def digest(path: Path) -> str:
    """Returns the name of a LoRA in records: 16 hex digits of its file and of PEFT's config beside it."""
    file = locate(path)
    files = (file, file.with_name(CONFIG))
    return tensor_files.digest({each.name: each for each in files if each.is_file()})


def read(path: Path, shapes: Tree) -> Lora:
    """Returns a file's adapters for a model of these shapes ({"unet": …, "text_encoder": …}), float32.

    A folder of PEFT's or diffusers' stands for the file in it. An alpha that is stated nowhere is the rank, with a
    message.

    Raises:
      UserError: the file is broken, no LoRA, of a kind that dermjax does not do, or does not fit the model.
    """
    path = locate(path)
    tensors, texts = open_file(path)
    tensor_files.require(tensor_files.LORA, tensors, str(path))
    settings = read_settings(path, texts, tensors)
    check_method(path, tensors, settings)
    kernels = {name: leaf.shape for name, leaf in flatten(shapes).items() if name.endswith(".kernel")}
    modules, wrong = by_module(tensors, spellings(shapes))
    adapters, alphas, assumed = {}, {}, 0
    for module, part in modules.items():
        kernel = kernels[f"{module}.kernel"]
        problems = misfits(module, part, kernel)
        wrong += problems
        if problems:
            continue
        rank = part["down"].shape[0]
        if "alpha" in part:
            alpha = float(part["alpha"].read().reshape(()))
            wrong += [] if 0 < alpha < math.inf else [f"{module}'s alpha is {alpha:g}, no positive number"]
        else:
            alpha = alpha_in_settings(settings, module, rank, path)
            assumed += alpha is None
        alphas[module] = float(rank) if alpha is None else alpha
        adapters[f"{module}.down"] = down(part["down"], kernel)
        adapters[f"{module}.up"] = up(part["up"])
    if wrong:
        shown = "; ".join(wrong[: torch_layout.SHOWN]) + ("; …" if len(wrong) > torch_layout.SHOWN else "")
        raise UserError(f"{path}: {len(wrong)} of {len(tensors)} tensors do not fit the model: {shown}")
    if assumed:
        say(
            f"{path}: nothing says the alpha of {assumed} of its {len(alphas)} layers; taken as their rank, which is "
            f"full strength. PEFT has it in {CONFIG} beside the file"
        )
    arrays = {name: np.ascontiguousarray(tensor.read(), np.float32) for name, tensor in adapters.items()}
    lost = next((name for name, array in arrays.items() if not np.isfinite(array).all()), "")
    if lost:
        raise UserError(f"{path}: {lost} holds what is no number, as a training that diverged leaves it; take one of "
                        "an earlier step")  # fmt: skip
    if not any(array.any() for name, array in arrays.items() if name.endswith(".down")):
        raise UserError(f"{path}: is zeros throughout, as a download that broke off leaves it; fetch the file again")
    return Lora(unflatten(arrays), alphas)


def read_settings(path: Path, texts: dict[str, str], names: Collection[str]) -> dict[str, dict[str, Any]]:
    """Returns PEFT's settings of each network: of a file's texts, or of PEFT's config beside a file of PEFT's.

    Raises:
      UserError: they are no JSON object.
    """
    beside = path.with_name(CONFIG)
    if METADATA not in texts and beside.is_file() and any(".lora_A." in name for name in names):
        return dict.fromkeys(KOHYA, read_json(beside))
    try:
        content = json.loads(texts.get(METADATA, "{}"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: its {METADATA} is no JSON ({error}); fetch the file again") from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise UserError(f"{path}: its {METADATA} holds {kind}, not names with values; fetch the file again")
    if content and not any(key.startswith(f"{network}.") for key in content for network in KOHYA):
        return dict.fromkeys(KOHYA, content)
    settings = collections.defaultdict(dict)
    for key, value in content.items():
        network, _, name = key.partition(".")
        settings[network][name] = value
    return settings


def check_method(path: Path, names: Collection[str], settings: dict[str, dict[str, Any]]) -> None:
    """Raises UserError where a file or its settings are of another method than LoRA."""
    for word, method in UNSUPPORTED.items():
        if any(word in name for name in names):
            raise UserError(f"{path}: is {method}, not plain LoRA; dermjax does not do that")
    for given in (settings[network] for network in KOHYA if network in settings):
        start = str(given.get("init_lora_weights", "")).lower()
        method = f"started as {start}" if start.startswith(STARTS) else given.get("peft_type", "LORA")
        method = "DoRA" if given.get("use_dora") else method
        if method != "LORA":
            raise UserError(f"{path}: its settings are those of {method}, not plain LoRA; dermjax does not do that")


def alpha_in_settings(settings: dict[str, dict[str, Any]], module: str, rank: int, path: Path) -> float | None:
    """Returns the alpha of a module by PEFT's rules, None where nothing is said of its network.

    Raises:
      UserError: the settings cannot be read, or are of another file.
    """
    network, _, rest = module.partition(".")
    given = settings.get(network)
    if not given:
        return None
    try:
        ranks = {given.get("r", rank), *(given.get("rank_pattern") or {}).values()}
        alpha = float(match(given.get("alpha_pattern") or {}, rest, given.get("lora_alpha", PEFT_ALPHA)))
    except (TypeError, ValueError, AttributeError, OverflowError, re.error) as error:
        raise UserError(f"{path}: what it says of {module}'s alpha cannot be read ({error})") from error
    if not 0 < alpha < math.inf:
        raise UserError(f"{path}: what it says of {module}'s alpha is {alpha:g}, no positive number; fetch the file "
                        "again")  # fmt: skip
    if rank not in ranks:
        raise UserError(
            f"{path}: {module} has rank {rank}, its settings say {' or '.join(map(str, ranks))}; the file and "
            f"{CONFIG} beside it do not belong together"
        )
    return alpha * rank**0.5 if given.get("use_rslora") else alpha  # arXiv 2312.03732: alpha / sqrt(r)


def match(patterns: dict[str, Any], name: str, default: Any) -> Any:
    """Returns the value of the first pattern that fits the end of a module's name, as PEFT looks it up.

    A text encoder's names begin with text_model. or not, by the version of transformers.
    """
    for pattern, value in patterns.items():
        if re.search(r"\)[*+?{]", pattern) or sum(pattern.count(each) for each in "*+{") > 4:
            raise ValueError(f"the pattern {pattern[:40]!r} could take for ever")
        if any(re.match(rf"(.*\.)?({pattern})$", each) for each in (name, name.removeprefix("text_model."))):
            return value
    return default


def spellings(shapes: Tree) -> dict[str, str]:
    """Returns {a module's name in some form of file: our module} for every kernel of UNet and text encoder."""
    modules = {}
    for network, prefix in KOHYA.items():
        text = network == "text_encoder"
        for rest in (path.removesuffix(".kernel") for path in flatten(shapes[network]) if path.endswith(".kernel")):
            bare = {rest, rest.removeprefix("text_model.")}  # transformers 5 names its modules without the prefix
            flat = [each + form.replace(".", "_") for each in (prefix, *[NUMBERED] * text) for form in bare]
            # diffusers until 2023: the UNet's attention in its "processor", the text's by the names of the UNet's
            parent, _, last = rest.removesuffix(".0").rpartition(".")
            bare.add(f"{parent}.to_{last.removesuffix('_proj')}" if text else f"{parent}.processor.{last}")
            # files of one network leave its name out
            dotted = [*bare, *(f"{network}.{form}" for form in bare)]
            names = [*flat, *dotted, *(f"base_model.model.{name}" for name in dotted)]
            names += [COMFYUI[network].format(each) + rest for each in TEXT_ENCODERS] if text else []
            modules |= dict.fromkeys(names, f"{network}.{rest}")
    for rest, theirs in ldm_names.unet(shapes["unet"]).items():  # kohya's form over LDM's names, and ComfyUI's
        for name in (KOHYA["unet"] + theirs.replace(".", "_"), COMFYUI["unet"] + theirs):
            modules.setdefault(name, f"unet.{rest}")
    return modules


def by_module(tensors: Tensors, modules: dict[str, str]) -> tuple[dict[str, Tensors], list[str]]:
    """Returns {our module: its "down", "up" and "alpha"}, and what belongs to none."""
    parts, wrong = collections.defaultdict(dict), []
    for name, tensor in tensors.items():
        ending = next((ending for ending in PARTS if name.endswith(ending)), "")
        module = modules.get(name.removesuffix(ending))
        if not ending or module is None:
            wrong.append(f"{name} belongs to no layer of it")
        elif PARTS[ending] in parts[module]:  # two adapters in one file, or one under two names
            wrong.append(f"{name} is a second {PARTS[ending]} of {module}")
        else:
            parts[module][PARTS[ending]] = tensor
    return parts, wrong


def misfits(module: str, part: Tensors, kernel: tuple[int, ...]) -> list[str]:
    """Returns what is wrong with the tensors of a module for a kernel of this shape."""
    if not {"down", "up"} <= part.keys():
        return [f"{module} has only {' and '.join(part)}"]
    rank = (part["down"].shape or (0,))[0]
    wrong = [f"{module}'s alpha is {part['alpha'].shape}"] if "alpha" in part and part["alpha"].size != 1 else []
    wrong += [f"{module} has rank 0"] if not rank else []
    wrong += [
        f"{module}'s {name} is {part[name].dtype}, not floating"
        for name in ("down", "up")
        if part[name].dtype.kind in "iub"
    ]
    return wrong + [
        f"{module}'s {name} is {part[name].shape}, the model asks for {shape}"
        for name, shape in (("down", (rank, kernel[-2], *kernel[:-2])), ("up", (kernel[-1], rank)))
        if squeezed(part[name].shape) != squeezed(shape)
    ]


def squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns a shape without the two axes of a 1x1 convolution."""
    return shape[:2] if shape[2:] == (1, 1) else tuple(shape)


def down(tensor: LazyTensor, kernel: tuple[int, ...]) -> LazyTensor:
    """Returns [r, in] or [r, in, h, w] of a file as [in, r] or [h, w, in, r], as the kernel has axes."""
    shape, axes = (*kernel[:-1], tensor.shape[0]), (2, 3, 1, 0) if len(tensor.shape) == 4 else (1, 0)
    return tensor.transform(shape, lambda array: array.transpose(axes).reshape(shape))


def up(tensor: LazyTensor) -> LazyTensor:
    """Returns [out, r] or [out, r, 1, 1] of a file as [r, out]."""
    out, rank = tensor.shape[:2]
    return tensor.transform((rank, out), lambda array: array.reshape(out, rank).T)


def write_peft(path: Path, lora: Lora, *, dtype) -> None:
    """Writes the file that diffusers' `load_lora_weights` and PEFT read."""
    tensors = {
        f"{module}.{name}.weight": tensor
        for module, pair in to_torch(lora, dtype).items()
        for name, tensor in zip(("lora_A", "lora_B"), pair, strict=True)
    }
    # diffusers reads ranks and alphas from this; without it, it takes alpha for the rank
    config, ranks_of_all = {}, lora.ranks
    for network in KOHYA:
        # PEFT looks for the ends of names: without text_model., which transformers 5 has not, they fit any version
        names = {
            module: module.removeprefix(f"{network}.").removeprefix("text_model.")
            for module in lora.alphas
            if module.startswith(f"{network}.")
        }
        if names:
            ranks = {name: ranks_of_all[module] for module, name in names.items()}
            alphas = {name: lora.alphas[module] for module, name in names.items()}
            rank, alpha = most_frequent(ranks), most_frequent(alphas)
            config |= {
                f"{network}.r": rank,
                f"{network}.lora_alpha": alpha,
                f"{network}.rank_pattern": {name: each for name, each in ranks.items() if each != rank},
                f"{network}.alpha_pattern": {name: each for name, each in alphas.items() if each != alpha},
                f"{network}.target_modules": sorted(ranks),
            }
    safetensors.write(path, tensors, {METADATA: json.dumps(config)})


def write_kohya(path: Path, lora: Lora, *, dtype) -> None:
    """Writes the file that AUTOMATIC1111, ComfyUI and kohya's scripts read; diffusers does as well."""
    tensors: Tensors = {}
    for module, (first, second) in to_torch(lora, dtype).items():
        network, _, rest = module.partition(".")
        name = KOHYA[network] + rest.replace(".", "_")
        tensors |= {
            f"{name}.lora_down.weight": first,
            f"{name}.lora_up.weight": second,
            f"{name}.alpha": safetensors.from_array(np.array(lora.alphas[module], np.float32)),
        }
    rank, alpha = (str(most_frequent(values)) for values in (lora.ranks, lora.alphas))
    metadata = {"ss_network_module": "networks.lora", "ss_network_dim": rank, "ss_network_alpha": alpha}
    safetensors.write(path, tensors, metadata)


def to_torch(lora: Lora, dtype) -> dict[str, tuple[LazyTensor, LazyTensor]]:
    """Returns {module: (down, up)} in the file's layout: up is a 1x1 convolution where the kernel is one."""
    flat = flatten(lora.adapters)

    def pair(module: str) -> tuple[LazyTensor, LazyTensor]:
        kernels = {"down.kernel": flat[f"{module}.down"], "up.kernel": flat[f"{module}.up"]}
        first, second = torch_layout.to_file(kernels, dtype).values()
        if len(first.shape) == 4:
            shape = (*second.shape, 1, 1)
            second = second.transform(shape, lambda array: array.reshape(shape))
        return first, second

    return {module: pair(module) for module in lora.alphas}


def most_frequent(values: dict[str, Any]) -> Any:
    """Returns the value that occurs most."""
    return collections.Counter(values.values()).most_common(1)[0][0]
