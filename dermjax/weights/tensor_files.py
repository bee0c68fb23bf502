"""Files of tensors: which ones a folder has, how they are opened, and what each is: a model, a LoRA, an embedding.

A file is known by its first bytes, what it holds by the names and shapes of its tensors. No JAX here, so that `dermjax
inspect` answers at once.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dermjax.errors import UserError
from dermjax.weights import safetensors, torch_pickle
from dermjax.weights.safetensors import Tensors

FOLDER = Path(__file__).parent
SHIPPED = {"derm-base": FOLDER / "derm_base", "derm-tiny": FOLDER / "derm_tiny"}  # models that come with dermjax
SUFFIXES = (".safetensors", ".bin")
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # a component's file, in diffusers and transformers

SINGLE_FILE, LORA, EMBEDDING, COMPONENT = "a single-file model", "a LoRA", "an embedding", "one network of a model"
WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 1280: "SDXL refiner", 2048: "SDXL"}
SUPPORTED = ("Stable Diffusion 1.x", "Stable Diffusion 2.x")
ADAPTED = re.compile(r"lora_(A|B|down|up|mid|linear_layer)\b|\.lora\.|_lora\.|hada_w|lokr_w|oft_blocks|dora_scale")
OTHERS = {
    "SDXL": re.compile(r"^conditioner\.embedders\.[01]\.|^lora_te2_|^text_encoder_2\.|\badd_embedding\."),
    "Stable Diffusion 3": re.compile(r"joint_(transformer_)?blocks[._]"),
    "Flux": re.compile(r"double_blocks[._]|single_(transformer_)?blocks[._]"),
    "of a family without a UNet, as Stable Diffusion 3 and Flux": re.compile(r"^(base_model\.model\.)?transformer\."),
}
EMBEDDING_NAMES = {"emb_params", "clip_l", "clip_g"}  # AUTOMATIC1111's safetensors; SDXL's two

PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction"}  # ModelSpec's word, diffusers' word
SPELLINGS = PREDICTIONS | dict.fromkeys(("v_prediction", "v-prediction", "vpred"), "v_prediction") | {"eps": "epsilon"}
PREDICTION_KEYS = ("modelspec.prediction_type", "modelspec.predict_key")  # since ModelSpec 1.0, and before
CONFIG_LENGTH = 2**16  # characters of LDM's configs that are read; they have 2,000
VELOCITY, PURE_NOISE = "v_pred", "ztsnr"  # names whose presence tells, in ComfyUI's and AUTOMATIC1111's merges
# ComfyUI tells v-prediction from epsilon in SD 2.x files by the spread of this bias (supported_models.py, SD20)
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
TELLING, SPREAD = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias", 0.09


def open_file(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Returns the tensors of a file, unread, and the texts beside them.

    Raises:
      UserError: the file is missing, empty, damaged, or something else, such as a web page saved in its place.
    """
    refuse_special(path)
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if head[8:9] == b"{":
        return safetensors.read(path)
    if head.startswith((torch_pickle.ZIP, torch_pickle.LEGACY)):
        return torch_pickle.read(path)
    problem = "not a readable safetensors or PyTorch file; fetch the file again"
    if not head:
        problem = "is empty; fetch the file again"
    elif head.startswith(b"GGUF"):
        problem = "is a GGUF file of quantised tensors, which dermjax does not read; give the model as safetensors"
    elif head.lstrip().startswith(b"{"):
        problem = "is JSON, no file of tensors; give the folder that it lies in"
    elif head.startswith(b"version https://git-lfs"):
        problem = "is a git-lfs pointer, not the file it stands for; run `git lfs pull`"
    elif head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        problem = "is a web page, saved in place of the file; fetch the file again, signed in where that is asked"
    raise UserError(f"{path}: {problem}")


def refuse_special(path: Path) -> None:
    """Raises UserError for a named pipe, a socket or a device: reading it might never end."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path}: is a named pipe, a socket or a device; give a file")


def snapshot(folder: Path) -> Path:
    """Returns the files of a repository where a folder is that of one in Hugging Face's cache, else the folder.

    There snapshots/COMMIT has the files, and refs/main the commit; without that it is the only one.
    """
    main, known = folder / "refs" / "main", folder / "snapshots"
    commits = sorted(path.name for path in known.iterdir()) if known.is_dir() else []
    if commits and main.is_file():
        commits = [each for each in commits if each == main.read_text(errors="replace").strip()]
    return known / commits[0] if len(commits) == 1 and (known / commits[0]).is_dir() else folder


def weight_files(folder: Path, variant: str) -> list[Path]:
    """Returns the files with a component's weights: one, or the shards that its index names.

    Raises:
      UserError: there is none, or there are several variants and `variant` is empty.
    """
    infix = f".{variant}" if variant else ""
    for suffix in SUFFIXES:
        for stem in STEMS:
            file, index = folder / f"{stem}{infix}{suffix}", folder / f"{stem}{suffix}.index{infix}.json"
            if file.is_file():
                return [file]
            if index.is_file():
                return [folder / name for name in shard_names(index)]
    files = (file for stem in STEMS for file in folder.glob(f"{stem}.*.*") if file.suffix in SUFFIXES)
    others = {file.name.split(".")[1] for file in files}
    others |= {file.name.split(".")[-2] for stem in STEMS for file in folder.glob(f"{stem}.safetensors.index.*.json")}
    others = {name.split("-")[0] for name in others} - {"safetensors"}
    if not variant and len(others) == 1:
        return weight_files(folder, *others)
    hint = "fetch the folder again"
    if others:
        hint = f"there are the variants {', '.join(sorted(others))}: write one out with `dermjax convert --variant=`"
    raise UserError(f"{folder}: no {' or '.join(stem + infix + '.safetensors' for stem in STEMS[:2])}; {hint}")


def weights_in(folder: Path) -> list[Path]:
    """Returns the files of weights in a folder, of every variant, and their indices; none where there are none."""
    found = (file for stem in STEMS for suffix in SUFFIXES for file in sorted(folder.glob(f"{stem}*{suffix}*")))
    return [file for file in found if file.is_file()]


def shard_names(index: Path) -> list[str]:
    """Returns the file names, without folders and sorted, that an index gives for its tensors."""
    shards = read_json(index).get("weight_map")
    names = list(shards.values()) if isinstance(shards, dict) else [None]
    # what is not printable no system has as a name: NUL, half a surrogate pair
    if not all(isinstance(name, str) and name.isprintable() and Path(name).name not in ("", "..") for name in names):
        raise UserError(f"{index}: no weight_map with the files of the tensors; fetch the folder again")
    return sorted({Path(name).name for name in names})


def read_folder(folder: Path, variant: str) -> Tensors:
    """Returns the tensors, unread, of all files with a component's weights."""
    return {name: tensor for file in weight_files(folder, variant) for name, tensor in open_file(file)[0].items()}


def digest(files: Mapping[str, Path]) -> str:
    """Returns the first 16 hex digits of the SHA-256 of a file or, of several, over their names and their SHA-256."""
    digests = {}
    for name, path in files.items():
        with path.open("rb") as stream:
            digests[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    if len(digests) == 1:
        return next(iter(digests.values()))[:16]
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:16]


def read_json(path: Path) -> dict:
    """Returns the object in a JSON file, or raises UserError naming the file."""
    refuse_special(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds {type(content).__name__} where an object with names is asked for")
    return content


def kind(tensors: Tensors) -> str:
    """Returns SINGLE_FILE, LORA, EMBEDDING or COMPONENT; empty where a file is none of them."""
    if any(ADAPTED.search(name) for name in tensors):
        return LORA
    if any(name.startswith(("model.diffusion_model.", "model_ema.", "cond_stage_model.")) for name in tensors):
        return SINGLE_FILE
    if EMBEDDING_NAMES & tensors.keys() or any(name.startswith("string_to_param.") for name in tensors):
        return EMBEDDING
    widths = {tensor.shape[-1:] if 0 < len(tensor.shape) <= 2 else None for tensor in tensors.values()}
    layers = any(re.search(r"(^|\.)(weights?|bias)$", name) for name in tensors)
    if len(widths) == 1 and None not in widths and (len(tensors) == 1 or not layers):
        return EMBEDDING  # diffusers' form: {token: vectors}, of one word or of several
    if any(re.match(r"(conv_in|encoder\.conv_in|(text_model\.)?embeddings\.\w+)\.weight$", name) for name in tensors):
        return COMPONENT
    return ""


def family(tensors: Tensors) -> str:
    """Returns the family of a model, a LoRA or an embedding; empty where nothing tells."""
    for name, pattern in OTHERS.items():
        if any(pattern.search(key) for key in tensors):
            return name
    if "clip_g" in tensors:
        return "SDXL"
    width = context_width(tensors)
    return family_of_width(width) if width else ""


def family_of_width(width: int) -> str:
    """Returns the family whose text context has this width."""
    return WIDTHS.get(width, f"Stable Diffusion's architecture with a context {width} wide")


def context_width(tensors: Tensors) -> int:
    """Returns the width of the text's context, 0 where no tensor tells; the text encoder is as wide as its context."""
    for pattern in (
        r"attn2[._](processor\.)?to_k[._].*weight$",
        r"layers[._]0[._]self_attn[._]q_proj[._].*weight$",
        r"ln_final",
    ):
        for name, tensor in tensors.items():
            second = any(word in name for word in ("lora_up", "lora_B", ".up."))
            if re.search(pattern, name) and tensor.shape and not second:
                return tensor.shape[-1] if len(tensor.shape) < 4 else tensor.shape[1]
    if kind(tensors) == EMBEDDING:
        return max((0, *tensor.shape)[-1] for tensor in tensors.values())
    return 0


def prediction(tensors: Tensors, texts: dict[str, str]) -> str:
    """Returns what the UNet of a single file predicts: by the file's word, else epsilon for SD 1.x and for inpainting.

    For other files of SD 2.x a bias's spread decides. A marker goes before ModelSpec's texts, which merges copy from
    one of their models; a word that is not known is returned as it is.
    """
    if VELOCITY in tensors or VELOCITY in texts:
        return "v_prediction"
    words = (texts[key].strip().lower() for key in PREDICTION_KEYS if texts.get(key))
    stated = next((SPELLINGS.get(word, word) for word in words), None)
    first, bias = tensors.get(FIRST), tensors.get(TELLING)
    inpainting = first is not None and first.shape[1:2] != (4,)
    if stated or bias is None or inpainting or context_width(tensors) != 1024:
        return stated or "epsilon"
    return "v_prediction" if bias.read().astype(np.float32).std() > SPREAD else "epsilon"


def config_beside(path: Path) -> tuple[Path, str]:
    """Returns LDM's config beside a single file, of its name but for .yaml, and what it says that the UNet predicts.

    AUTOMATIC1111 goes by it, and models of SD 1.x that predict v come with one. "" where it says nothing or is not
    there.
    """
    config = path.with_suffix(".yaml")
    if not config.is_file():
        return config, ""
    with config.open(encoding="utf-8", errors="replace") as file:
        word = re.search(r"^\s*parameterization:\s*[\"']?(\w+)", file.read(CONFIG_LENGTH), re.MULTILINE)
    return config, SPELLINGS.get(word[1].lower(), word[1]) if word else ""


def require(wanted: str, tensors: Tensors, source: str) -> None:
    """Raises UserError where a file is not of the `wanted` kind, or of a family that dermjax does not run."""
    actual, other = kind(tensors), family(tensors)
    if actual in (LORA, EMBEDDING) and actual != wanted:
        raise UserError(f"{source}: is {actual}, not {wanted}; give a model, and {actual} beside it")
    if other and other not in SUPPORTED and not other.startswith("Stable Diffusion's"):
        raise UserError(f"{source}: is {other}, which is not supported; dermjax runs {' and '.join(SUPPORTED)}")
    if actual != wanted:
        raise UserError(f"{source}: is {actual or 'nothing that dermjax knows'}, not {wanted}")
