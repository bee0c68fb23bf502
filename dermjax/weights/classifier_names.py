"""The state dicts of timm and torchvision <-> Hugging Face's names: ViT, DINOv2's ViT, MobileNetV2.

Both sides keep PyTorch's layouts, so all there is to do is to rename; timm alone holds queries, keys and values in one
matrix. A state dict says no config: sizes are read off its shapes, the rest is what these libraries fix. Pixels are
normalised as their weights expect: MobileNetV2 and DINOv2 as ImageNet's, timm's ViT in halves.
"""

import re
from collections.abc import Callable

import numpy as np

from dermjax.errors import UserError
from dermjax.models.classifier import HALVES, IMAGENET
from dermjax.models.mobilenetv2 import STRIDES
from dermjax.weights.stored import Stored, Tensors

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


def recognised(file: Tensors) -> str:
    """Returns which library's names these are: "timm vit", "timm mobilenet", "torchvision", or "" for others."""
    for name, sign in SIGNS.items():
        if sign in file:
            return name
    return ""


def read(file: Tensors, source: str) -> tuple[Tensors, dict, tuple]:
    """Returns a state dict under Hugging Face's names, its config, and the (mean, std) of its pixels.

    Raises:
      UserError: the names are of neither library.
    """
    kind = recognised(file)
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


def write(tensors: Tensors, config: dict, form: str) -> Tensors:
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
                tensors[f"{at}.attention.attention.{part}.{leaf}"] = tensor.changed(
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
            file[f"blocks.{block[1]}.attn.qkv.{leaf}"] = tensor.changed(
                (3 * tensor.shape[0], *tensor.shape[1:]), _stacked(parts)
            )
        elif not block[2].startswith("attention.attention."):
            file[f"blocks.{block[1]}.{_renamed(block[2], VIT_LAYER['vit'])}"] = tensor
    return file


def _third(place: int, width: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda whole: whole[place * width : (place + 1) * width]


def _stacked(parts: list[Stored]) -> Callable[[np.ndarray], np.ndarray]:
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
