"""The state dicts of timm and torchvision <-> Hugging Face's names: ViT, DINOv2's ViT, MobileNetV2.

Both sides keep PyTorch's layouts, so all there is to do is to rename; timm alone holds queries, keys and values in one
matrix. A state dict says no config: sizes are read off its shapes, the rest is what these libraries fix. Pixels are
normalised as their weights expect: MobileNetV2 and DINOv2 as ImageNet's, timm's ViT in halves.

Position embeddings of a ViT for another number of patches, resampled as PyTorch does it.

Classifier folders in Hugging Face's layout: what we write transformers loads, what it writes we load.

    config.json  preprocessor_config.json  model.safetensors

State dicts of timm and torchvision, as a file or in timm's own folder, are read as well (classifier_names.py). Files
keep the older tensor names (`attention.attention.query`) that transformers 5 renames in memory.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from einops import rearrange

from dermjax.errors import UserError
from dermjax.models import configs
from dermjax.models.classifier import ARCHITECTURES, HALVES, IMAGENET, Architecture, Classifier, describe
from dermjax.models.mobilenetv2 import STRIDES
from dermjax.models.vit import grid
from dermjax.progress import say
from dermjax.weights import safetensors, torch_layout
from dermjax.weights.diffusers import write_json
from dermjax.weights.safetensors import LazyTensor, Tensors, from_array
from dermjax.weights.tensor_files import open_file, read_json

HEAD_WIDTH = 64  # of every ViT from Ti to L
EPSILON = {"vit": 1e-6, "mobilenet_v2": 1e-5}  # of timm's LayerNorm, and of PyTorch's BatchNorm
REPEATS = (1, 2, 3, 4, 3, 3, 1)  # blocks of MobileNetV2's stages
WIDTHS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)  # multipliers that weights are published for
PARTS = ("query", "key", "value")

VIT = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.mask_token": "mask_token",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
}
VIT_LAYER = {
    "vit": {"layernorm_before": "norm1", "layernorm_after": "norm2", "attention.output.dense": "attn.proj",
            "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2"},
    "dinov2": {"norm1": "norm1", "norm2": "norm2", "attention.output.dense": "attn.proj", "mlp.fc1": "mlp.fc1",
               "mlp.fc2": "mlp.fc2", "layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma"},
}  # fmt: skip


def recognised_names(file: Tensors) -> str:
    """Returns which library's names these are: "timm vit", "timm mobilenet", "torchvision", or "" for others."""
    for name, sign in SIGNS.items():
        if sign in file:
            return name
    return ""


def read_names(file: Tensors, source: str) -> tuple[Tensors, dict, tuple]:
    """Returns a state dict under Hugging Face's names, its config, and the (mean, std) of its pixels.

    Raises:
      UserError: the names are of neither library.
    """
    kind = recognised_names(file)
    if not kind:
        raise UserError(f"{source}: neither timm's nor torchvision's ViT or MobileNetV2; give a classifier folder")
    if kind == "timm vit":
        return _read_vit(file)
    names = mobilenet_names(kind)
    tensors = {_renamed(name, {there: here for here, there in names.items()}): tensor for name, tensor in file.items()}
    last = file["conv_head.weight" if kind == "timm mobilenet" else "features.18.0.weight"].shape[1]
    multiplier = min(WIDTHS, key=lambda m: abs(320 * m - last))
    config = {"model_type": "mobilenet_v2", "depth_multiplier": multiplier, "tf_padding": False,
              "layer_norm_eps": EPSILON["mobilenet_v2"], "hidden_act": "relu6"}  # fmt: skip
    return tensors, config, IMAGENET


def write_names(tensors: Tensors, config: dict, form: str) -> Tensors:
    """Returns a classifier's tensors, under Hugging Face's names, under those of "timm" or "torchvision".

    Raises:
      UserError: the library has no such network, or the classifier differs from how the library would build it.
    """
    kind = config["model_type"]
    if form not in ("timm", "torchvision"):
        raise UserError(f"form {form!r}: there are timm and torchvision")
    if kind == "mobilenet_v2":
        if config["tf_padding"] or config["layer_norm_eps"] != EPSILON["mobilenet_v2"]:
            raise UserError(f"{form} pads as PyTorch and has epsilon 1e-5; this MobileNetV2 is TensorFlow's")
        names = mobilenet_names("torchvision" if form == "torchvision" else "timm mobilenet")
        return {_renamed(name, names): tensor for name, tensor in tensors.items()}
    if form == "torchvision":
        raise UserError("torchvision names are written for MobileNetV2 only; take --form=timm")
    if kind == "dinov2":
        raise UserError("timm's DINOv2 has a head on the class token, ours beside the patches' mean; it cannot be said")
    return _write_vit(tensors, config)


def mobilenet_names(kind: str) -> dict[str, str]:
    """Returns {Hugging Face's layer: the library's} of every convolution, normalisation and the head."""
    blocks = [(stage, number) for stage, count in enumerate(REPEATS) for number in range(count)][1:]
    assert len(blocks) == len(STRIDES)
    names = {}

    def layer(here: str, convolution: str, normalization: str) -> None:
        names[f"mobilenet_v2.{here}.convolution"] = convolution
        names[f"mobilenet_v2.{here}.normalization"] = normalization

    if kind == "torchvision":
        layer("conv_stem.first_conv", "features.0.0", "features.0.1")
        layer("conv_stem.conv_3x3", "features.1.conv.0.0", "features.1.conv.0.1")
        layer("conv_stem.reduce_1x1", "features.1.conv.1", "features.1.conv.2")
        for number in range(len(blocks)):
            at = f"features.{number + 2}.conv"
            layer(f"layer.{number}.expand_1x1", f"{at}.0.0", f"{at}.0.1")
            layer(f"layer.{number}.conv_3x3", f"{at}.1.0", f"{at}.1.1")
            layer(f"layer.{number}.reduce_1x1", f"{at}.2", f"{at}.3")
        layer("conv_1x1", "features.18.0", "features.18.1")
        return names | {"classifier": "classifier.1"}
    layer("conv_stem.first_conv", "conv_stem", "bn1")
    layer("conv_stem.conv_3x3", "blocks.0.0.conv_dw", "blocks.0.0.bn1")
    layer("conv_stem.reduce_1x1", "blocks.0.0.conv_pw", "blocks.0.0.bn2")
    for number, (stage, repeat) in enumerate(blocks):
        at = f"blocks.{stage}.{repeat}"
        layer(f"layer.{number}.expand_1x1", f"{at}.conv_pw", f"{at}.bn1")
        layer(f"layer.{number}.conv_3x3", f"{at}.conv_dw", f"{at}.bn2")
        layer(f"layer.{number}.reduce_1x1", f"{at}.conv_pwl", f"{at}.bn3")
    layer("conv_1x1", "conv_head", "bn2")
    return names | {"classifier": "classifier"}


def _read_vit(file: Tensors) -> tuple[Tensors, dict, tuple]:
    kind = "dinov2" if "blocks.0.ls1.gamma" in file else "vit"
    width, _, patch, _ = file["patch_embed.proj.weight"].shape
    inner = file["blocks.0.mlp.fc1.weight"].shape[0]
    layers = 1 + max(int(found[1]) for name in file if (found := re.match(r"blocks\.(\d+)\.", name)))
    mean = "fc_norm.weight" in file
    back = {there: f"{kind}.{here}" for here, there in VIT.items()} | {"head": "classifier"}
    back |= {"fc_norm": f"{kind}.layernorm"} if mean else {}
    tensors: Tensors = {}
    for name, tensor in file.items():
        block = re.match(r"blocks\.(\d+)\.(.+)", name)
        if kind == "dinov2" and name.startswith("head."):
            continue  # on the class token alone; ours reads the patches' mean as well
        if not block:
            tensors[_renamed(name, back)] = tensor
            continue
        at, rest = f"{kind}.encoder.layer.{block[1]}", block[2]
        if rest.startswith("attn.qkv."):
            leaf = rest.rpartition(".")[2]
            for place, part in enumerate(PARTS):
                tensors[f"{at}.attention.attention.{part}.{leaf}"] = tensor.transform(
                    (width, *tensor.shape[1:]), _third(place, width)
                )
        else:
            tensors[f"{at}.{_renamed(rest, {there: here for here, there in VIT_LAYER[kind].items()})}"] = tensor
    config = {
        "model_type": kind, "hidden_size": width, "num_hidden_layers": layers, "patch_size": patch,
        "num_attention_heads": width // HEAD_WIDTH, "layer_norm_eps": EPSILON["vit"], "hidden_act": "gelu",
        "qkv_bias": "blocks.0.attn.qkv.bias" in file,
    }  # fmt: skip
    if kind == "dinov2":
        return tensors, config | {"mlp_ratio": inner // width}, IMAGENET
    return tensors, config | {"intermediate_size": inner, "pooling": "mean" if mean else "token"}, HALVES


def _write_vit(tensors: Tensors, config: dict) -> Tensors:
    if config["layer_norm_eps"] != EPSILON["vit"]:
        raise UserError(f"timm's LayerNorm has epsilon 1e-6, this ViT's is {config['layer_norm_eps']}")
    names = {f"vit.{here}": there for here, there in VIT.items()} | {"classifier": "head"}
    names |= {"vit.layernorm": "fc_norm"} if config["pooling"] == "mean" else {}
    file: Tensors = {}
    for name, tensor in tensors.items():
        block = re.match(r"vit\.encoder\.layer\.(\d+)\.(.+)", name)
        if not block:
            file[_renamed(name, names)] = tensor
        elif block[2].startswith("attention.attention.query."):
            leaf = name.rpartition(".")[2]
            parts = [tensors[name.replace(".query.", f".{part}.")] for part in PARTS]
            file[f"blocks.{block[1]}.attn.qkv.{leaf}"] = tensor.transform(
                (3 * tensor.shape[0], *tensor.shape[1:]), _stacked(parts)
            )
        elif not block[2].startswith("attention.attention."):
            file[f"blocks.{block[1]}.{_renamed(block[2], VIT_LAYER['vit'])}"] = tensor
    return file


def _third(place: int, width: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda whole: whole[place * width : (place + 1) * width]


def _stacked(parts: list[LazyTensor]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda _: np.concatenate([part.read() for part in parts])


def _renamed(name: str, names: dict[str, str]) -> str:
    """The name with its layer replaced where `names` has it, whole or up to the last word."""
    if name in names:
        return names[name]
    layer, _, leaf = name.rpartition(".")
    return f"{names[layer]}.{leaf}" if layer in names else name


SIGNS = {
    "timm vit": "blocks.0.attn.qkv.weight",
    "timm mobilenet": "blocks.0.0.conv_dw.weight",
    "torchvision": "features.18.0.weight",
}


KEYS_CUBIC = -0.75  # the free parameter of the cubic kernel that PyTorch uses


def resize_positions(positions: np.ndarray, side: int) -> np.ndarray:
    """Returns position embeddings [1, 1 + side², D] made from [1, 1 + s², D], as transformers interpolates them.

    The class token keeps its own; the patches' grid is resampled by PyTorch's bicubic kernel without antialiasing.
    """
    first, patches = positions[:, :1], positions[:, 1:]
    old = round(patches.shape[1] ** 0.5)
    if old == side:
        return positions
    weights = bicubic(old, side)
    square = rearrange(patches, "1 (h w) D -> h w D", h=old)
    resized = np.einsum("ih,jw,hwD->ijD", weights, weights, square)
    return np.concatenate([first, rearrange(resized, "h w D -> 1 (h w) D")], axis=1).astype(positions.dtype)


def bicubic(old: int, new: int) -> np.ndarray:
    """Returns the [new, old] matrix of cubic interpolation with half-pixel centres and the border repeated."""
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    matrix = np.zeros((new, old))
    for offset in (-1, 0, 1, 2):
        column = np.floor(centres).astype(int) + offset
        np.add.at(matrix, (np.arange(new), column.clip(0, old - 1)), cubic(np.abs(centres - column)))
    return matrix


def cubic(distance: np.ndarray) -> np.ndarray:
    """Returns Keys's cubic convolution kernel (1981) at distances in [0, 2]."""
    a, d = KEYS_CUBIC, distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, far)


Trees = tuple[dict[str, Any], dict[str, Any]]  # params and variables

HEAD = "classifier"
STATISTICS = {"running_mean": "mean", "running_var": "var"}
COUNTER = "num_batches_tracked"  # PyTorch keeps one beside the statistics; nobody reads it
POSITIONS = "embeddings.position_embeddings"
# what some files hold and no classifier reads: pretraining's mask token, ViTModel's own pooler
UNREAD = ("embeddings.mask_token", "pooler.dense.weight", "pooler.dense.bias")
LANCZOS = 1  # Pillow's number; data/images.py cuts and resizes this way


def read(folder: Path, labels: tuple[str, ...], size: int, *, dtype=jnp.float32) -> tuple[Classifier, Trees]:
    """Returns a folder's, or a state dict's, classifier for these labels and images of `size` pixels, and (params,
    variables), float32.

    The head of other labels, or none, is replaced by zeros (ViT, appendix B.1.1), so that training starts from what the
    backbone knows; position embeddings are resampled when the size differs.

    Raises:
      UserError: a file is missing or broken, the architecture is not one of ours, or tensors do not fit the config.
    """
    found, file, source, pixels = contents(Path(folder))
    architecture = ARCHITECTURES.get(found.get("model_type"))
    if architecture is None:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"{folder}/config.json: model_type {found.get('model_type')!r} is not one of {known}")
    config = describe(found["model_type"], found, labels, size)
    config.pop("torch_dtype", None)  # what older files call dtype
    configs.check_classifier(config, str(folder))
    if "use_mask_token" in config:
        config["use_mask_token"] = False
    classifier = Classifier(config, *(pixels or preprocessing(Path(folder), architecture)), dtype)

    file = ours(file, architecture.backbone)
    if f"{architecture.backbone}.{POSITIONS}" in file:
        file = resized(file, f"{architecture.backbone}.{POSITIONS}", grid(config))
    if not same_labels(found, labels) or f"{HEAD}.weight" not in file:
        say(f"{folder}: its head is replaced by a new one for {', '.join(labels)}")
        file = with_new_head(file, classifier)
    params, variables = (torch_layout.flatten(tree) for tree in classifier.shapes)
    tree = torch_layout.from_torch(torch_layout.unflatten(params | variables), file, str(source), dtype=np.float32)
    flat = torch_layout.flatten(tree)
    parted = (torch_layout.unflatten({path: flat[path] for path in each}) for each in (params, variables))
    return classifier, tuple(parted)


def contents(path: Path) -> tuple[dict, Tensors, Path, tuple]:
    """Returns a classifier's config, its tensors under Hugging Face's names, their file, and the (mean, std) of its
    pixels, () where preprocessor_config.json says them."""
    found = {} if path.is_file() else read_json(path / "config.json")
    file = path if path.is_file() else path / "model.safetensors"
    if not path.is_file() and not ("architecture" in found and "model_type" not in found):
        return found, open_file(file)[0], file, ()
    tensors, told = open_file(file)  # a state dict alone, or in timm's own folder
    tensors, config, pixels = read_names(tensors, str(file))
    said = found.get("pretrained_cfg", {})
    pixels = tuple(tuple(said.get(key, value)) for key, value in zip(("mean", "std"), pixels, strict=True))
    return config | {"id2label": json.loads(told.get("id2label", "{}"))}, tensors, file, pixels


def convert(from_: str, to: str, form: str) -> None:
    """Writes a classifier folder as a state dict of timm or torchvision, with its labels in the header."""
    folder = Path(from_)
    found = read_json(folder / "config.json")
    if found.get("model_type") not in ARCHITECTURES:
        raise UserError(f"{folder}/config.json: not a classifier folder of dermjax or transformers")
    config = ARCHITECTURES[found["model_type"]].defaults | found
    tensors = write_names(open_file(folder / "model.safetensors")[0], config, form)
    safetensors.write(Path(to), tensors, {"id2label": json.dumps(found.get("id2label", {}))})
    say(f"{to}: {len(tensors)} tensors under the names of {form}")


def write(folder: Path, classifier: Classifier, params: dict, variables: dict) -> None:
    """Writes the classifier folder whole: under a temporary name first, then in place of what was there."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write_json(part / "config.json", classifier.config)
    write_json(part / "preprocessor_config.json", preprocessor(classifier))
    tensors = torch_layout.to_file(params, np.float32) | torch_layout.to_file(variables, np.float32)
    safetensors.write(part / "model.safetensors", theirs(tensors), {})
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


def ours(file: Tensors, backbone: str) -> Tensors:
    """Returns a file's tensors under the names of the whole classifier, without those that no classifier reads."""
    bare = not any(name.startswith(f"{backbone}.") for name in file)
    named = {f"{backbone}.{name}" if bare and not name.startswith(f"{HEAD}.") else name: file[name] for name in file}
    unread = {f"{backbone}.{name}" for name in UNREAD}
    kept = {name: array for name, array in named.items() if name not in unread and not name.endswith(COUNTER)}
    return {renamed(name, STATISTICS): array for name, array in kept.items()}


def theirs(tensors: Tensors) -> Tensors:
    """Returns our tensors under the file's names, with the counters that PyTorch expects."""
    back = {ours: theirs for theirs, ours in STATISTICS.items()}
    file = {renamed(name, back): tensor for name, tensor in tensors.items()}
    counters = [name.replace("running_mean", COUNTER) for name in file if name.endswith("running_mean")]
    return file | {name: from_array(np.zeros((), np.int64)) for name in counters}


def renamed(name: str, leaves: dict[str, str]) -> str:
    """Returns the name with its last word replaced where `leaves` has it."""
    parent, _, leaf = name.rpartition(".")
    return f"{parent}.{leaves.get(leaf, leaf)}"


def same_labels(config: dict, labels: tuple[str, ...]) -> bool:
    """Returns whether the config's classes are these, in this order."""
    return config.get("id2label") == {str(index): label for index, label in enumerate(labels)}


def with_new_head(file: Tensors, classifier: Classifier) -> Tensors:
    """Returns the tensors with a head of zeros in place of theirs."""
    head = {f"{HEAD}.{leaf}": np.zeros(shape.shape) for leaf, shape in classifier.shapes[0][HEAD].items()}
    return file | torch_layout.to_file(head, np.float32)


def resized(file: Tensors, name: str, side: int) -> Tensors:
    """Returns the tensors with the position embeddings resampled to side x side patches."""
    return file | {name: from_array(resize_positions(np.asarray(file[name].read(), np.float32), side))}


def preprocessing(folder: Path, architecture: Architecture) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the mean and deviation of pixels in [0, 1]; what the architecture's weights expect where no file says."""
    path = folder / "preprocessor_config.json"
    settings = read_json(path) if path.exists() else {}
    mean, std = architecture.preprocessing
    return tuple(settings.get("image_mean", mean)), tuple(settings.get("image_std", std))


def preprocessor(classifier: Classifier) -> dict:
    """Returns the preprocessor_config.json of how data/images.py and the classifier treat a photograph."""
    size = classifier.config["image_size"]
    return {
        "image_processor_type": "BitImageProcessor",  # shorter side, then centre crop
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": LANCZOS,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(classifier.mean),
        "image_std": list(classifier.std),
    }
