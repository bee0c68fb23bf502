"""Classifier folders in Hugging Face's layout: what we write transformers loads, what it writes we load.

    config.json  preprocessor_config.json  model.safetensors

State dicts of timm and torchvision, as a file or in timm's own folder, are read as well (classifier_names.py). Files
keep the older tensor names (`attention.attention.query`) that transformers 5 renames in memory.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from dermjax.errors import UserError
from dermjax.models import options
from dermjax.models.classifier import ARCHITECTURES, Architecture, Classifier, describe
from dermjax.models.positions import resize_positions
from dermjax.models.vit import grid
from dermjax.progress import say
from dermjax.weights import classifier_names, safetensors, torch_layout
from dermjax.weights.diffusers import write_json
from dermjax.weights.stored import Tensors, in_memory
from dermjax.weights.tensor_files import opened, read_json

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
    options.check_classifier(config, str(folder))
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
        return found, opened(file)[0], file, ()
    tensors, told = opened(file)  # a state dict alone, or in timm's own folder
    tensors, config, pixels = classifier_names.read(tensors, str(file))
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
    tensors = classifier_names.write(opened(folder / "model.safetensors")[0], config, form)
    safetensors.write(Path(to), tensors, {"id2label": json.dumps(found.get("id2label", {}))})
    say(f"{to}: {len(tensors)} tensors under the names of {form}")


def write(folder: Path, classifier: Classifier, params: dict, variables: dict) -> None:
    """Writes the classifier folder whole: under a temporary name first, then in place of what was there."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write_json(part / "config.json", classifier.config)
    write_json(part / "preprocessor_config.json", preprocessor(classifier))
    tensors = torch_layout.stored(params, np.float32) | torch_layout.stored(variables, np.float32)
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
    return file | {name: in_memory(np.zeros((), np.int64)) for name in counters}


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
    return file | torch_layout.stored(head, np.float32)


def resized(file: Tensors, name: str, side: int) -> Tensors:
    """Returns the tensors with the position embeddings resampled to side x side patches."""
    return file | {name: in_memory(resize_positions(np.asarray(file[name].read(), np.float32), side))}


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
