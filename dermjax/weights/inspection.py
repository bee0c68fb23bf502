"""`dermjax inspect PATH`: what a file or folder of weights is, from its headers alone, without loading a tensor.

No JAX here: the answer should come before JAX would be imported.
"""

import collections
from pathlib import Path

from dermjax.errors import UserError
from dermjax.weights import lora_files, tensor_files, textual_inversion
from dermjax.weights.safetensors import Tensors
from dermjax.weights.tensor_files import SHIPPED, open_file, read_json, weight_files

NETWORKS = {  # the beginnings of names in a single file
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.",),
    "text_encoder": ("cond_stage_model.", "conditioner."),
    "averages": ("model_ema.",),
}
Rows = list[tuple[str, str]]


def inspect(path: str) -> None:
    """Prints what a path is: its kind and family, and rows of what there is to know."""
    title, rows = described(SHIPPED.get(path, Path(path)))
    print(f"{path}: {title}")
    for name, text in rows:
        print(f"  {name:14}{text}")


def described(path: Path) -> tuple[str, Rows]:
    """Returns what a path is, in a few words, and rows (name, text).

    Raises:
      UserError: there is no such path, the file is broken, or it is nothing that dermjax knows.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_file():
        return a_file(path)
    if (path / "model_index.json").is_file():
        return a_pipeline(path)
    if (path / "config.json").is_file():
        return a_network(path)
    if any((path / name).is_file() for name in (*lora_files.FILES, lora_files.CONFIG)):
        return a_file(lora_files.locate_metadata(path))
    raise UserError(f"{path}: a folder without model_index.json or config.json; give a model, a classifier or a file")


def a_file(path: Path) -> tuple[str, Rows]:
    """Returns what a file is."""
    tensors, texts = open_file(path)
    kind, family = tensor_files.kind(tensors), tensor_files.family(tensors)
    form = "safetensors" if path.suffix == ".safetensors" else "PyTorch"
    if kind == tensor_files.LORA:
        return f"LoRA, {family or 'family unknown'}", lora_rows(path, tensors, texts)
    if kind == tensor_files.EMBEDDING:
        return f"embedding, {family or 'family unknown'}", [
            row
            for each in textual_inversion.read(path)
            for row in (("token", each.token), ("vectors", " x ".join(map(str, each.vectors.shape))))
        ]
    if kind == tensor_files.SINGLE_FILE:
        rows = []
        for network, prefixes in NETWORKS.items():
            part = {name: tensor for name, tensor in tensors.items() if name.startswith(prefixes)}
            if part:
                rows.append((network, size(part)))
        rows.append(("scheduler", f"not in such files; the UNet predicts {tensor_files.prediction(tensors, texts)}"))
        if "global_step" in texts:
            rows.append(("trained", f"{texts['global_step']} steps"))
        return f"single-file model, {family or 'family unknown'}, {form}", rows
    if kind == tensor_files.COMPONENT:
        return f"one network of a model, {form}", [("tensors", size(tensors))]
    return f"{form} file of unknown contents", [("tensors", size(tensors))]


def a_pipeline(path: Path) -> tuple[str, Rows]:
    """Returns what a folder in diffusers' layout is."""
    index = read_json(path / "model_index.json")
    rows, width = [("pipeline", index.get("_class_name", "?"))], 0
    for name in ("text_encoder", "unet", "vae"):
        if not (path / name / "config.json").is_file():
            rows.append((name, "missing"))
            continue
        files = weight_files(path / name, "")
        tensors = {key: each for file in files for key, each in open_file(file)[0].items()}
        rows.append((name, f"{size(tensors)}, {files[0].name}" + (f" and {len(files) - 1} more" if files[1:] else "")))
        width = read_json(path / name / "config.json").get("cross_attention_dim", width)
    scheduler = path / "scheduler" / "scheduler_config.json"
    if scheduler.is_file():
        said = read_json(scheduler)
        rows.append(("scheduler", f"{said.get('_class_name', '?')}, {said.get('prediction_type', 'epsilon')}"))
    if (path / "unet" / "config.json").is_file() and (path / "vae" / "config.json").is_file():
        unet, levels = read_json(path / "unet" / "config.json"), read_json(path / "vae" / "config.json")
        side = unet.get("sample_size", 0) * 2 ** (len(levels.get("block_out_channels", [0])) - 1)
        rows.append(("image", f"{side} x {side}" + (", inpainting" if unet.get("in_channels") == 9 else "")))
    return f"model folder, {tensor_files.WIDTHS.get(width, tensor_files.architecture(width))}", rows


def a_network(path: Path) -> tuple[str, Rows]:
    """Returns what a folder with one network is: a classifier, or a part of a model."""
    config = read_json(path / "config.json")
    files = weight_files(path, "")
    tensors = {key: each for file in files for key, each in open_file(file)[0].items()}
    rows = [("tensors", size(tensors))]
    if isinstance(config.get("id2label"), dict):
        rows.append(("labels", ", ".join(str(label) for label in config["id2label"].values())))
        rows.append(("image", f"{config.get('image_size', '?')} pixels"))
        return f"classifier, {config.get('model_type', '?')}", rows
    return f"{config.get('_class_name') or config.get('model_type', 'a network')}, one network of a model", rows


def lora_rows(path: Path, tensors: Tensors, texts: dict[str, str]) -> Rows:
    """Returns what there is to know of a LoRA: form, ranks, alphas and which networks it adapts."""
    firsts = {name: each for name, each in tensors.items() if any(word in name for word in ("lora_A", "down."))}
    ranks = collections.Counter(each.shape[0] for each in firsts.values() if each.shape)
    stored = (each for name, each in tensors.items() if name.endswith(".alpha") and each.size == 1)
    alphas = collections.Counter(float(each.read().reshape(())) for each in stored)
    if not alphas:
        said = lora_files.read_metadata(path, texts, tensors)
        values = (value for key, value in said.items() if key.endswith(".lora_alpha"))
        alphas = collections.Counter(value for value in values if isinstance(value, int | float))
    kohya = any(name.startswith("lora_") for name in tensors)
    text = sum("self_attn" in name or "mlp" in name for name in firsts)  # the UNet has none of them
    return [
        ("form", "kohya" if kohya else "PEFT"),
        ("rank", listed(ranks) or "unknown"),
        ("alpha", listed(alphas) or "that of the rank"),
        ("adapts", f"{len(firsts) - text} layers of the UNet, {text} of the text encoder"),
        ("tensors", size(tensors)),
    ]


def listed(counts: collections.Counter) -> str:
    """Returns values, the most frequent first, with how often they occur where there are several."""
    if len(counts) == 1:
        return f"{next(iter(counts)):g}"
    return ", ".join(f"{value:g} ({count} times)" for value, count in counts.most_common())


def size(tensors: Tensors) -> str:
    """Returns the number of parameters and their types."""
    kinds = collections.Counter()
    for tensor in tensors.values():
        kinds[tensor.dtype.name] += tensor.size
    return f"{sum(kinds.values()):,} parameters, {' and '.join(name for name, _ in kinds.most_common())}"
