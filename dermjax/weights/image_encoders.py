"""Frozen networks that describe images, from the files that others publish: what `evaluation` compares sets by.

    folder of a classifier    ViT, DINOv2, MobileNetV2: what is before the head
    folder of transformers    CLIP's image encoder, alone or within CLIP; projected where the file has a projection
    file                      InceptionV3 under the names of torchvision, as pytorch-fid's pt_inception-2015-12-05

Shapes: B batch, S side, D features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dermjax.models import classifier, clip_vision, configs, inception, nnx_tree
from dermjax.models.clip_vision import CLIPVision
from dermjax.models.nnx_tree import Params
from dermjax.weights import classifiers, processors, tensor_files, torch_layout
from dermjax.weights.safetensors import Tensors

SIZE = 224  # side in pixels at which images are shown to classifiers, as DINOv2 and ViTs are trained
FILES = ("config.json", "preprocessor_config.json")  # beside the weights
CLIP = ("clip", "clip_vision_model")  # model types
INCEPTION = "Mixed_7c.branch3x3dbl_3b.conv.weight"  # the name that its file is known by
UNREAD = ("fc.", "AuxLogits.")  # of that file


@dataclass(frozen=True, eq=False)
class ImageEncoder:
    """A network: describe(trees, images [B, size, size, 3] in [-1, 1]) -> [B, D], its trees, the digest of its files.

    The first `leading` features are of the class token, where others follow; else all.
    """

    describe: Callable[[Any, jax.Array], jax.Array]
    trees: tuple[Params, ...]
    size: int
    leading: int | None
    version: int  # of its code
    digest: str


def read(path: Path) -> ImageEncoder:
    """Returns the encoder of a folder or a file.

    Raises:
      UserError: a file is missing or broken, or the network is none of these.
    """
    path = tensor_files.snapshot(path)
    if path.is_file():
        tensors, _ = tensor_files.open_file(path)
        return _inception(path, tensors) if INCEPTION in tensors else _classifier(path, {path.name: path})
    config = tensor_files.read_json(path / "config.json")
    return (_clip if config.get("model_type") in CLIP else _classifier)(path, files(path))


def files(folder: Path) -> dict[str, Path]:
    """Returns the files of a network's folder that its answers follow from, by name."""
    settings = {name: folder / name for name in FILES if (folder / name).is_file()}
    return settings | {file.name: file for file in tensor_files.weight_files(folder, "")}


def _classifier(path: Path, files: dict[str, Path]) -> ImageEncoder:
    network, trees = classifiers.read(path, ("",), SIZE)
    leading = network.config["hidden_size"] if network.config["model_type"] == "dinov2" else None
    return ImageEncoder(
        lambda trees, image: network.lower(*trees, image, last=0), trees, SIZE, leading, classifier.NUMERIC_VERSION,
        tensor_files.digest(files),
    )  # fmt: skip


def _clip(path: Path, files: dict[str, Path]) -> ImageEncoder:
    given = tensor_files.read_json(path / "config.json")
    config = clip_vision.DEFAULTS | given.get("vision_config", given)
    config["projection_dim"] = given.get("projection_dim", config["projection_dim"])  # CLIP's own, where it is whole
    configs.check_classifier(config, str(path))
    tensors = {
        name.removeprefix("vision_model."): tensor
        for name, tensor in tensor_files.read_folder(path, "").items()
        if not name.startswith(("text_", "logit_scale")) and not name.endswith("position_ids")
    }
    projected = "visual_projection.weight" in tensors
    network = nnx_tree.split(partial(CLIPVision, config, projected=projected, dtype=jnp.float32))
    trees = (torch_layout.from_torch(network.shapes[0], tensors, str(path), dtype=np.float32),)
    normalisation = processors.read_pixels(path, CLIP[0], processors.CLIP)
    mean, std = (np.float32(each).reshape(1, 1, 1, 3) for each in normalisation)
    return ImageEncoder(
        lambda trees, image: network.merge(*trees)(((image + 1) / 2 - mean) / std), trees, config["image_size"], None,
        clip_vision.NUMERIC_VERSION, tensor_files.digest(files),
    )  # fmt: skip


def _inception(path: Path, tensors: Tensors) -> ImageEncoder:
    network = inception.network()
    kept = {
        torch_layout.rename_leaf(name, classifiers.STATISTICS): tensor
        for name, tensor in tensors.items()
        if not name.startswith(UNREAD) and not name.endswith(classifiers.COUNTER)
    }
    flat = [torch_layout.flatten(tree) for tree in network.shapes]
    whole = torch_layout.unflatten(flat[0] | flat[1])
    values = torch_layout.flatten(torch_layout.from_torch(whole, kept, str(path), dtype=np.float32))
    trees = tuple(torch_layout.unflatten({name: values[name] for name in each}) for each in flat)
    return ImageEncoder(
        lambda trees, image: network.merge(trees[0], jax.tree.map(jnp.asarray, trees[1]))(image), trees,
        inception.SIZE, None, inception.NUMERIC_VERSION, tensor_files.digest({path.name: path}),
    )  # fmt: skip
