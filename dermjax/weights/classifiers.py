"""Classifier folders in Hugging Face's layout, and state dicts of timm and torchvision: ViT, DINOv2's ViT, MobileNetV2.

    config.json  preprocessor_config.json  model.safetensors

What we write transformers loads, but for a ViT that pools by the mean; what it writes we load. Files keep the older
tensor names (`attention.attention.query`) that transformers 5 renames in memory.

State dicts are read as a file or in timm's own folder. They keep PyTorch's layouts too, so all there is to do is to
rename; timm alone holds queries, keys and values in one matrix. A state dict has no config: sizes are read off its
shapes, the rest is what these libraries fix. Pixels are normalised as their weights expect: MobileNetV2 and DINOv2 as
ImageNet's, timm's ViT in halves.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from einops import rearrange

from dermjax.errors import UserError
from dermjax.models import configs
from dermjax.models.classifier import ARCHITECTURES, HALVES, IMAGENET, SINGLE_LABEL, Classifier, describe
from dermjax.models.nnx_tree import Params
from dermjax.models.vit import grid
from dermjax.progress import say
from dermjax.weights import model_files, processors, safetensors, torch_layout
from dermjax.weights.diffusers import replaced, write_json
from dermjax.weights.processors import Normalisation, shown
from dermjax.weights.safetensors import Tensors, from_array
from dermjax.weights.tensor_files import open_file, read_folder, read_json, snapshot, weight_files

HEAD = "classifier"
# The model type of a folder whose ViT pools by the mean. transformers' ViT would load it, read the class token instead
# and be silently wrong; a name that it does not know it refuses.
MEAN_POOLED = "vit_mean_pooled"
STATISTICS = {"running_mean": "mean", "running_var": "var"}
COUNTER = "num_batches_tracked"  # PyTorch keeps one beside the statistics; nobody reads it
POSITIONS = "embeddings.position_embeddings"
# what some files hold and no classifier reads: pretraining's mask token, ViTModel's own pooler
UNREAD = ("embeddings.mask_token", "pooler.dense.weight", "pooler.dense.bias")
KEYS_CUBIC = -0.75  # the free parameter of the cubic kernel that PyTorch uses

LIBRARIES = {  # the names that state dicts are known by
    "timm vit": "blocks.0.attn.qkv.weight",
    "timm mobilenet": "blocks.0.0.conv_dw.weight",
    "torchvision": "features.18.0.weight",
}
NEITHER = "neither timm's nor torchvision's ViT or MobileNetV2; give a classifier folder"
HEAD_WIDTH, WIDEST = 64, 1024  # of every ViT from Ti to L
HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}  # of wider ones, by their width: So400m, H, g and G
EPSILON = {"vit": 1e-6, "mobilenet_v2": 1e-5}  # of timm's LayerNorm, and of PyTorch's BatchNorm
REPEATS = (1, 2, 3, 4, 3, 3, 1)  # blocks of MobileNetV2's stages
WIDTHS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)  # multipliers that weights are published for
QKV = ("query", "key", "value")
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


def read(
    path: Path, labels: tuple[str, ...], size: int, *, dtype=jnp.float32
) -> tuple[Classifier, tuple[Params, Params]]:
    """Returns a folder's, or a state dict's, classifier for these labels and images of `size` pixels, and (params,
    variables), float32.

    The head of other labels, or none, is replaced by zeros (ViT, appendix B.1.1), so that training starts from what the
    backbone knows; position embeddings are resampled when the size differs.

    Raises:
      UserError: a file is missing or broken, the architecture is not one of ours, or tensors do not fit the config.
    """
    path = snapshot(path)
    given, tensors, file, normalisation = read_files(path)
    kind = model_type(given, path)
    architecture = ARCHITECTURES[kind]
    config = describe(kind, given, labels, size)
    config.pop("torch_dtype", None)  # what older files call dtype
    configs.check_classifier(config, str(path))
    if "use_mask_token" in config:
        config["use_mask_token"] = False
    normalisation = normalisation or processors.read_pixels(path, kind, architecture.preprocessing)
    classifier = Classifier(config, *normalisation, dtype)

    tensors = from_hugging_face(tensors, architecture.backbone)
    positions = f"{architecture.backbone}.{POSITIONS}"
    if positions in tensors:
        resized = resize_positions(np.asarray(tensors[positions].read(), np.float32), grid(config))
        tensors |= {positions: from_array(resized)}
    if given.get("id2label") != config["id2label"] or f"{HEAD}.weight" not in tensors:
        if any(labels):  # who reads features asks for no class
            say(f"{path}: its head is replaced by a new one for {', '.join(labels)}")
        head = {f"{HEAD}.{leaf}": np.zeros(like.shape) for leaf, like in classifier.shapes[0][HEAD].items()}
        tensors |= torch_layout.to_file(head, np.float32)
    params, variables = (torch_layout.flatten(tree) for tree in classifier.shapes)
    tree = torch_layout.from_torch(torch_layout.unflatten(params | variables), tensors, str(file), dtype=np.float32)
    flat = torch_layout.flatten(tree)
    trees = (torch_layout.unflatten({name: flat[name] for name in each}) for each in (params, variables))
    return classifier, tuple(trees)


def read_saved(folder: Path) -> tuple[Classifier, tuple[Params, Params]]:
    """Returns the classifier in a folder for prediction, else as `read`: of the classes that the folder names, and
    shown images as the folder's own processor shows them.

    Raises:
      UserError: as `read` and `read_labels`; the file has no head, as that of a backbone alone.
    """
    config = read_config(folder)
    labels, size = read_labels(config, folder)
    size, resize = processors.read_sizes(folder, model_type(config, folder), size)
    if f"{HEAD}.weight" not in read_folder(folder, ""):
        raise UserError(f"{folder}: has no head ({HEAD}.weight), so that it predicts nothing; train it with classify "
                        "first (config.init)")  # fmt: skip
    classifier, trees = read(folder, labels, size)
    return dataclasses.replace(classifier, resize=resize), trees


def read_config(folder: Path) -> dict:
    """Returns a folder's config.json, in which a ViT is a ViT however it pools."""
    config = read_json(folder / "config.json")
    return config | {"model_type": "vit", "pooling": "mean"} if config.get("model_type") == MEAN_POOLED else config


def model_type(config: dict, folder: Path) -> str:
    """Returns the architecture in a config.json; UserError for one that is not ours."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise UserError(f"{folder}/config.json: model_type {kind!r} is not one of {', '.join(ARCHITECTURES)}")
    return kind


def read_files(path: Path) -> tuple[dict, Tensors, Path, Normalisation | None]:
    """Returns a classifier's config, its tensors under Hugging Face's names, their file, and how pixels are normalised:
    None where preprocessor_config.json says it."""
    config = {} if path.is_file() else read_config(path)
    file, *more = [path] if path.is_file() else weight_files(path, "")
    tensors, texts = open_file(file)
    for shard in more:
        tensors |= open_file(shard)[0]
    timm = "architecture" in config and "model_type" not in config
    if not path.is_file() and not timm:
        return config, tensors, file, None
    tensors, described, (mean, std) = read_state_dict(tensors, str(file))
    pretrained = config.get("pretrained_cfg")
    pretrained = pretrained if isinstance(pretrained, dict) else {}
    if not {"mean", "std"} <= pretrained.keys():
        say(f"{file}: nothing says how its pixels are normalised; assumed are mean {shown(mean)} and deviation "
            f"{shown(std)}, as most of its kind (DeiT, DINO and MAE: {shown(IMAGENET[0])} and {shown(IMAGENET[1])}); "
            'give others in a folder, as model.safetensors and config.json: {"architecture": "NAME", "pretrained_cfg": '
            '{"mean": [R, G, B], "std": [R, G, B]}}')  # fmt: skip
    told = f"{path}/config.json: mean or std"
    mean, std, _ = processors.numbers(pretrained.get("mean", mean), pretrained.get("std", std), 1.0, told)
    try:
        labels = json.loads(texts.get("id2label", "{}"))
    except (ValueError, RecursionError):
        labels = {}  # so that the head is replaced, with a message
    return described | {"id2label": labels}, tensors, file, (tuple(mean.tolist()), tuple(std.tolist()))


def config_of_run(path: Path) -> dict:
    """Returns the config of the run of `classify` whose workdir, or classifier folder, this is; {} for any other."""
    file = (path.parent if path.name == "classifier" else path) / "config.json"
    config = read_json(file) if file.is_file() else {}
    return config if "recipe" in config else {}


def write(folder: Path, classifier: Classifier, params: Params, variables: Params) -> None:
    """Writes the classifier folder under a temporary name first, then in place of what was there; says so where
    transformers cannot load it."""
    config = classifier.config
    if config.get("pooling") == "mean":
        config = config | {"model_type": MEAN_POOLED, "architectures": []}
        say(f"{folder}: its head reads the mean of the patches, which transformers' ViT does not, so that transformers "
            "refuses it; for timm write it out with `dermjax convert_classifier`")  # fmt: skip
    with replaced(folder) as part:
        write_json(part / "config.json", config)
        write_json(part / "preprocessor_config.json", processors.describe(classifier))
        tensors = torch_layout.to_file(params, np.float32) | torch_layout.to_file(variables, np.float32)
        safetensors.write(part / "model.safetensors", to_hugging_face(tensors), {})


def convert(from_: str, to: str, form: str) -> None:
    """Writes a classifier folder as a state dict of timm or torchvision, with its labels in the header.

    Raises:
      UserError: there is no such folder, `to` is there already, or the library cannot have this classifier.
    """
    folder, target = snapshot(Path(from_)), Path(to)
    model_files.refuse_pickle(target)
    model_files.check_target(target)
    config = read_config(folder)
    if config.get("model_type") not in ARCHITECTURES:
        raise UserError(f"{folder}/config.json: not a classifier folder of dermjax or transformers")
    config = ARCHITECTURES[config["model_type"]].defaults | config
    file = from_hugging_face(read_folder(folder, ""), ARCHITECTURES[config["model_type"]].backbone)
    tensors = to_state_dict(to_hugging_face(file), config, form)
    target.parent.mkdir(parents=True, exist_ok=True)
    safetensors.write(target, tensors, {"id2label": json.dumps(config.get("id2label", {}))})
    say(f"{to}: {len(tensors)} tensors under the names of {form}")


def read_labels(config: dict, folder: Path) -> tuple[tuple[str, ...], int]:
    """Returns the class names of a saved classifier's config.json, in the order of their numbers, and its image size.

    The file may have "10" before "2", as JSON in the order of its keys has.

    Raises:
      UserError: it names no classes, not each by its number, or no size, or its logits are not for a softmax.
    """
    names, size = config.get("id2label"), config.get("image_size")
    if not names or not isinstance(names, dict) or type(size) is not int:
        raise UserError(f"{folder}/config.json: names no classes or no image size; train it with classify first")
    order = [str(index) for index in range(len(names))]
    distinct = all(type(name) is str for name in names.values()) and len(set(names.values())) == len(names)
    if names.keys() != set(order) or not distinct:
        raise UserError(f"{folder}/config.json: id2label does not name {len(names)} classes by 0 to {len(names) - 1}; "
                        "mend it")  # fmt: skip
    problem = config.get("problem_type")
    if len(names) == 1 or problem not in (None, SINGLE_LABEL):  # transformers takes a sigmoid of these, or nothing
        what = f"problem_type = {problem!r}" if len(names) > 1 else f"one class only, {names['0']}"
        raise UserError(f"{folder}/config.json: {what}: dermjax predicts one of two or more classes; train it with "
                        "classify first (config.init)")  # fmt: skip
    return tuple(names[index] for index in order), size


def from_hugging_face(file: Tensors, backbone: str) -> Tensors:
    """Returns a file's tensors under the names of our classifier, without those that no classifier reads."""
    bare = not any(name.startswith(f"{backbone}.") for name in file)
    named = {f"{backbone}.{name}" if bare and not name.startswith(f"{HEAD}.") else name: file[name] for name in file}
    unread = {f"{backbone}.{name}" for name in UNREAD}
    kept = {name: tensor for name, tensor in named.items() if name not in unread and not name.endswith(COUNTER)}
    return {torch_layout.rename_leaf(name, STATISTICS): tensor for name, tensor in kept.items()}


def to_hugging_face(tensors: Tensors) -> Tensors:
    """Returns our tensors under the file's names, with the counters that PyTorch expects."""
    back = {ours: theirs for theirs, ours in STATISTICS.items()}
    file = {torch_layout.rename_leaf(name, back): tensor for name, tensor in tensors.items()}
    counters = [name.replace("running_mean", COUNTER) for name in file if name.endswith("running_mean")]
    return file | {name: from_array(np.zeros((), np.int64)) for name in counters}


def rename_layer(name: str, names: dict[str, str]) -> str:
    """Returns the name replaced where `names` has it, as it is or without its last word."""
    if name in names:
        return names[name]
    layer, _, leaf = name.rpartition(".")
    return f"{names[layer]}.{leaf}" if layer in names else name


def read_state_dict(file: Tensors, source: str) -> tuple[Tensors, dict[str, Any], Normalisation]:
    """Returns timm's or torchvision's tensors under Hugging Face's names, their config, and how pixels are normalised.

    Raises:
      UserError: the names are of neither library.
    """
    wrapped = {name.removeprefix("model."): each for name, each in file.items() if name.startswith("model.")}
    file = wrapped or file  # the authors of DeiT and MAE save {"model": …}, Lightning an attribute `model`
    library = next((name for name, sign in LIBRARIES.items() if sign in file), "")
    if not library:
        raise UserError(f"{source}: {NEITHER}")
    if library == "timm vit":
        return read_vit(file, source)
    names = {theirs: ours for ours, theirs in mobilenet_names(library).items()}
    _, last, *_ = shape(file, "conv_head.weight" if library == "timm mobilenet" else "features.18.0.weight", 4, source)
    multiplier = min(WIDTHS, key=lambda width: abs(320 * width - last))
    config = {"model_type": "mobilenet_v2", "depth_multiplier": multiplier, "tf_padding": False,
              "layer_norm_eps": EPSILON["mobilenet_v2"], "hidden_act": "relu6"}  # fmt: skip
    return {rename_layer(name, names): tensor for name, tensor in file.items()}, config, IMAGENET


def shape(file: Tensors, name: str, axes: int, source: str) -> tuple[int, ...]:
    """Returns the shape of a tensor that sizes are read off; UserError where it has not so many axes, as in others."""
    found = file[name].shape if name in file else ()
    if len(found) != axes or 0 in found:
        raise UserError(f"{source}: {name} is {found or 'missing'}; {NEITHER}")
    return found


def to_state_dict(tensors: Tensors, config: dict[str, Any], form: str) -> Tensors:
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
        return {rename_layer(name, names): tensor for name, tensor in tensors.items()}
    if form == "torchvision":
        raise UserError("torchvision names are written for MobileNetV2 only; take --form=timm")
    if kind == "dinov2":
        raise UserError("timm's DINOv2 has a head on the class token alone; ours, which reads more, cannot be written")
    if config["layer_norm_eps"] != EPSILON["vit"]:
        raise UserError(f"timm's LayerNorm has epsilon 1e-6, this ViT's is {config['layer_norm_eps']}")
    width, number = config["hidden_size"], config["num_attention_heads"]
    if heads(width) != number:
        raise UserError(f"timm's ViT of {width} channels has {heads(width) or 'no known number of'} heads, this one "
                        f"{number}; a state dict does not say it")  # fmt: skip
    return to_timm_vit(tensors, config)


def mobilenet_names(library: str) -> dict[str, str]:
    """Returns {Hugging Face's layer: the library's} of every convolution, normalisation and the head."""
    blocks = [(stage, number) for stage, count in enumerate(REPEATS) for number in range(count)][1:]
    if library == "torchvision":
        names = {"classifier": "classifier.1"}
        layers = {
            "conv_stem.first_conv": ("features.0.0", "features.0.1"),
            "conv_stem.conv_3x3": ("features.1.conv.0.0", "features.1.conv.0.1"),
            "conv_stem.reduce_1x1": ("features.1.conv.1", "features.1.conv.2"),
            "conv_1x1": ("features.18.0", "features.18.1"),
        }
        block_layers = (".conv.0.0", ".conv.0.1"), (".conv.1.0", ".conv.1.1"), (".conv.2", ".conv.3")
        starts = [f"features.{number + 2}" for number in range(len(blocks))]
    else:
        names = {"classifier": "classifier"}
        layers = {
            "conv_stem.first_conv": ("conv_stem", "bn1"),
            "conv_stem.conv_3x3": ("blocks.0.0.conv_dw", "blocks.0.0.bn1"),
            "conv_stem.reduce_1x1": ("blocks.0.0.conv_pw", "blocks.0.0.bn2"),
            "conv_1x1": ("conv_head", "bn2"),
        }
        block_layers = (".conv_pw", ".bn1"), (".conv_dw", ".bn2"), (".conv_pwl", ".bn3")
        starts = [f"blocks.{stage}.{number}" for stage, number in blocks]
    for number, start in enumerate(starts):
        for layer, (convolution, norm) in zip(("expand_1x1", "conv_3x3", "reduce_1x1"), block_layers, strict=True):
            layers[f"layer.{number}.{layer}"] = start + convolution, start + norm
    for layer, (convolution, norm) in layers.items():
        names[f"mobilenet_v2.{layer}.convolution"] = convolution
        names[f"mobilenet_v2.{layer}.normalization"] = norm
    return names


def vit_names(kind: str, layers: int, mean: bool) -> dict[str, str]:
    """Returns {Hugging Face's layer or tensor: timm's} of a ViT, but for queries, keys and values."""
    names = {f"{kind}.{ours}": theirs for ours, theirs in VIT.items()} | {"classifier": "head"}
    names |= {f"{kind}.layernorm": "fc_norm"} if mean else {}
    for number in range(layers):
        layer, block = f"{kind}.encoder.layer.{number}", f"blocks.{number}"
        names |= {f"{layer}.{ours}": f"{block}.{theirs}" for ours, theirs in VIT_LAYER[kind].items()}
    return names


def read_vit(file: Tensors, source: str) -> tuple[Tensors, dict[str, Any], Normalisation]:
    """Returns timm's ViT or DINOv2 under Hugging Face's names, its config, and how pixels are normalised."""
    kind = "dinov2" if "blocks.0.ls1.gamma" in file else "vit"
    width, _, patch, _ = shape(file, "patch_embed.proj.weight", 4, source)
    inner, _ = shape(file, "blocks.0.mlp.fc1.weight", 2, source)
    if not heads(width):
        raise UserError(f"{source}: is {width} wide, and no ViT of timm's says how many heads that has; give a "
                        "classifier folder")  # fmt: skip
    layers = 1 + max(int(block[1]) for name in file if (block := re.match(r"blocks\.(\d{1,3})\.", name)))
    mean = "fc_norm.weight" in file
    names = {theirs: ours for ours, theirs in vit_names(kind, layers, mean).items()}
    tensors: Tensors = {}
    for name, tensor in file.items():
        fused = re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.(\w+)", name)
        if kind == "dinov2" and name.startswith("head."):
            continue  # on the class token alone; ours reads the patches' mean as well
        if not fused or tensor.shape[:1] != (3 * width,):
            tensors[rename_layer(name, names)] = tensor
            continue
        for third, part in enumerate(QKV):
            rows, size = slice(third * width, (third + 1) * width), (width, *tensor.shape[1:])
            name = f"{kind}.encoder.layer.{fused[1]}.attention.attention.{part}.{fused[2]}"
            tensors[name] = tensor.transform(size, lambda array, rows=rows: array[rows])
    config = {
        "model_type": kind, "hidden_size": width, "num_hidden_layers": layers, "patch_size": patch,
        "num_attention_heads": heads(width), "layer_norm_eps": EPSILON["vit"], "hidden_act": "gelu",
        "qkv_bias": "blocks.0.attn.qkv.bias" in file,
    }  # fmt: skip
    if kind == "dinov2":
        return tensors, config | {"mlp_ratio": inner // width}, IMAGENET
    return tensors, config | {"intermediate_size": inner, "pooling": "mean" if mean else "token"}, HALVES


def heads(width: int) -> int:
    """Returns how many heads timm's ViT of a width has, 0 where there is none of it; no tensor says it."""
    regular = width % HEAD_WIDTH == 0 and width <= WIDEST
    return width // HEAD_WIDTH if regular else HEADS.get(width, 0)


def to_timm_vit(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    """Returns a ViT's tensors under timm's names, queries, keys and values in one."""
    names, file = vit_names("vit", config["num_hidden_layers"], config["pooling"] == "mean"), {}
    for name, tensor in tensors.items():
        part = re.fullmatch(r"vit\.encoder\.layer\.(\d+)\.attention\.attention\.(\w+)\.(\w+)", name)
        if not part:
            file[rename_layer(name, names)] = tensor
        elif part[2] == "query":
            three = [tensors[name.replace(".query.", f".{each}.")] for each in QKV]
            file[f"blocks.{part[1]}.attn.qkv.{part[3]}"] = tensor.transform(
                (3 * tensor.shape[0], *tensor.shape[1:]),
                lambda _, three=three: np.concatenate([each.read() for each in three]),
            )
    return file


def resize_positions(positions: np.ndarray, side: int) -> np.ndarray:
    """Returns position embeddings [1, 1 + side², D] made from [1, 1 + s², D], as transformers interpolates them.

    The class token keeps its own; the patches' grid is resampled by PyTorch's bicubic kernel without antialiasing. What
    is of no square grid is returned as it is, and fits no network.
    """
    if positions.ndim != 3 or len(positions) != 1:
        return positions
    first, patches = positions[:, :1], positions[:, 1:]
    old = round(patches.shape[1] ** 0.5)
    if old == side or not old or old**2 != patches.shape[1]:
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
