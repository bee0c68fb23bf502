"""`dermjax inspect PATH`: what a file or folder of weights is, from its headers alone, without loading a tensor.

No JAX here: the answer should come before JAX would be imported.
"""

import collections
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from dermjax.errors import UserError
from dermjax.weights import lora, tensor_files, textual_inversion
from dermjax.weights.safetensors import Tensors
from dermjax.weights.tensor_files import SHIPPED, open_file, read_folder, read_json, snapshot, weight_files

NETWORKS = {  # the beginnings of names in a single file
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.",),
    "text_encoder": ("cond_stage_model.", "conditioner."),
    "averages": ("model_ema.",),
}
Rows = list[tuple[str, str]]


def inspect(path: str) -> None:
    """Prints what a path is: its kind and family, and rows of what there is to know."""
    title, rows = describe(snapshot(SHIPPED.get(path, Path(path))))
    print(f"{path}: {title}")
    for name, text in rows:
        print(f"  {name:14}{text}")


def describe(path: Path) -> tuple[str, Rows]:
    """Returns what a path is, in a few words, and rows (name, text).

    Raises:
      UserError: there is no such path, the file is broken, or it is nothing that dermjax knows.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_file():
        return describe_file(path)
    if (path / "model_index.json").is_file():
        return describe_pipeline(path)
    if (path / "config.json").is_file():
        return describe_network(path)
    if any((path / name).is_file() for name in (*lora.FILES, lora.CONFIG)):
        return describe_file(lora.locate(path))
    if any((path / name).is_file() for name in textual_inversion.FILES):
        return describe_file(textual_inversion.locate(path))
    raise UserError(f"{path}: a folder without model_index.json or config.json; give a model, a classifier or a file")


def describe_file(path: Path) -> tuple[str, Rows]:
    """Returns what a file is."""
    tensors, texts = open_file(path)
    kind, family = tensor_files.kind(tensors), tensor_files.family(tensors) or "family unknown"
    with path.open("rb") as file:  # files of Hugging Face's cache have no suffix
        form = "safetensors" if file.read(9)[8:] == b"{" else "PyTorch"
    if kind == tensor_files.LORA:
        return f"LoRA, {family}", lora_rows(path, tensors, texts)
    if kind == tensor_files.EMBEDDING:
        rows = []
        for each in textual_inversion.read(path):
            rows += [("token", each.token), ("vectors", " x ".join(map(str, each.vectors.shape)))]
        return f"embedding, {family}", rows
    if kind == tensor_files.SINGLE_FILE:
        rows = []
        for network, prefixes in NETWORKS.items():
            part = {name: tensor for name, tensor in tensors.items() if name.startswith(prefixes)}
            rows += [(network, size(part))] if part else []
        predicted = tensor_files.config_beside(path)[1] or tensor_files.prediction(tensors, texts)
        rows.append(("scheduler", f"not in such files; the UNet predicts {predicted}"))
        rows += [("trained", f"{texts['global_step']} steps")] if "global_step" in texts else []
        return f"single-file model, {family}, {form}", rows
    title = f"one network of a model, {form}" if kind else f"{form} file of unknown contents"
    return title, [("tensors", size(tensors))]


def describe_pipeline(path: Path) -> tuple[str, Rows]:
    """Returns what a folder in diffusers' layout is."""
    rows, configs = [("pipeline", read_json(path / "model_index.json").get("_class_name", "?"))], {}
    for name in ("text_encoder", "unet", "vae"):
        if not (path / name / "config.json").is_file():
            rows.append((name, "missing"))
            continue
        configs[name] = read_json(path / name / "config.json")
        file, *more = weight_files(path / name, "")
        text = f"{size(read_folder(path / name, ''))}, {file.name}" + (f" and {len(more)} more" if more else "")
        rows.append((name, text))
    scheduler = path / "scheduler" / "scheduler_config.json"
    if scheduler.is_file():
        config = read_json(scheduler)
        rows.append(("scheduler", f"{config.get('_class_name', '?')}, {config.get('prediction_type', 'epsilon')}"))
    unet, levels = configs.get("unet", {}), configs.get("vae", {}).get("block_out_channels")
    side, width = unet.get("sample_size"), unet.get("cross_attention_dim", 0)
    if type(side) is int and isinstance(levels, list):
        side *= 2 ** (len(levels) - 1)
        rows.append(("image", f"{side} x {side}" + (", inpainting" if unet.get("in_channels") == 9 else "")))
    return f"model folder, {tensor_files.family_of_width(width if type(width) is int else 0)}", rows


def describe_network(path: Path) -> tuple[str, Rows]:
    """Returns what a folder with one network is: a classifier, or a part of a model."""
    config = read_json(path / "config.json")
    rows = [("tensors", size(read_folder(path, "")))]
    if isinstance(config.get("id2label"), dict):
        by_number = sorted(config["id2label"].items(), key=lambda pair: (len(pair[0]), pair[0]))
        rows.append(("labels", ", ".join(str(label) for _, label in by_number)))
        rows.append(("image", f"{config.get('image_size', '?')} pixels"))
        return f"classifier, {config.get('model_type', '?')}", rows
    return f"{config.get('_class_name') or config.get('model_type', 'a network')}, one network of a model", rows


def lora_rows(path: Path, tensors: Tensors, texts: dict[str, str]) -> Rows:
    """Returns what there is to know of a LoRA: form, ranks, alphas and which networks it adapts."""
    down = {name: each for name, each in tensors.items() if any(word in name for word in ("lora_A", "down."))}
    alphas = [each.read() for name, each in tensors.items() if name.endswith(".alpha") and each.size == 1]
    if not alphas:
        settings = lora.read_settings(path, texts, tensors)
        alphas = [given.get("lora_alpha") for given in settings.values()]
        alphas = [alpha for alpha in alphas if isinstance(alpha, int | float) and abs(alpha) < 2**63]
    text = sum("self_attn" in name or "mlp" in name for name in down)  # the UNet has none of them
    return [
        ("form", "kohya" if any(name.startswith("lora_") for name in tensors) else "PEFT"),
        ("rank", frequencies(each.shape[0] for each in down.values() if each.shape) or "unknown"),
        ("alpha", frequencies(float(np.reshape(alpha, ())) for alpha in alphas) or "that of the rank"),
        ("adapts", f"{len(down) - text} layers of the UNet, {text} of the text encoder"),
        ("tensors", size(tensors)),
    ]


def frequencies(values: Iterable[float]) -> str:
    """Returns values, the most frequent first, with how often they occur where there are several."""
    counts = collections.Counter(values)
    if len(counts) == 1:
        return f"{next(iter(counts)):g}"
    return ", ".join(f"{value:g} ({count} times)" for value, count in counts.most_common())


def size(tensors: Tensors) -> str:
    """Returns the number of parameters and their types."""
    counts = collections.Counter()
    for tensor in tensors.values():
        counts[tensor.dtype.name] += tensor.size
    return f"{sum(counts.values()):,} parameters, {' and '.join(name for name, _ in counts.most_common())}"
