"""Files of tensors: which ones a folder has, and what a file is by its first bytes. No JAX here."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from dermjax.errors import UserError
from dermjax.weights import safetensors, torch_pickle
from dermjax.weights.stored import Tensors

SHIPPED = {"derm-tiny": Path(__file__).parent / "derm_tiny"}  # models that come with dermjax
SUFFIXES = (".safetensors", ".bin")
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # a component's file, in diffusers and transformers


def opened(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Returns the tensors of a file, unread, and the texts beside them.

    Raises:
      UserError: the file is missing, empty, damaged, or something else, such as a web page saved in its place.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if head[8:9] == b"{":
        return safetensors.read(path)
    if head.startswith((torch_pickle.ZIP, torch_pickle.LEGACY)):
        return torch_pickle.read(path)
    raise UserError(f"{path}: {suspicion(head)}")


def suspicion(head: bytes) -> str:
    """Returns what a file that is no file of tensors seems to be, and what to do."""
    if not head:
        return "is empty; fetch the file again"
    if head.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the file it stands for; run `git lfs pull`"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, saved in place of the file; fetch the file again, signed in where that is asked"
    return "not a readable safetensors or PyTorch file; fetch the file again"


def weight_files(folder: Path, variant: str) -> list[Path]:
    """Returns the files with a component's weights: one, or the shards that its index names.

    Raises:
      UserError: there is none, or there are several variants and none of them was asked for.
    """
    infix = f".{variant}" if variant else ""
    for suffix in SUFFIXES:
        for stem in STEMS:
            whole, shards = folder / f"{stem}{infix}{suffix}", folder / f"{stem}{suffix}.index{infix}.json"
            if whole.is_file():
                return [whole]
            if shards.is_file():
                return [folder / name for name in sorted(set(shards_of(shards)))]
    found = (file for stem in STEMS for file in folder.glob(f"{stem}.*.*") if file.suffix in SUFFIXES)
    others = {file.name.split(".")[1] for file in found}
    others |= {file.name.split(".")[-2] for stem in STEMS for file in folder.glob(f"{stem}.safetensors.index.*.json")}
    others = {name.split("-")[0] for name in others} - {"safetensors"}
    if not variant and len(others) == 1:
        return weight_files(folder, *others)
    hint = "fetch the folder again"
    if others:
        hint = f"there are the variants {', '.join(sorted(others))}: write one out with `dermjax convert --variant=`"
    raise UserError(f"{folder}: no {' or '.join(stem + infix + '.safetensors' for stem in STEMS[:2])}; {hint}")


def shards_of(index: Path) -> list[str]:
    """Returns the file names, without folders, that an index gives for its tensors."""
    listed = read_json(index).get("weight_map")
    names = list(listed.values()) if isinstance(listed, dict) else [None]
    # what is not printable no system has as a name: NUL, half a surrogate pair
    if not all(isinstance(name, str) and name.isprintable() and Path(name).name not in ("", "..") for name in names):
        raise UserError(f"{index}: no weight_map with the files of the tensors; fetch the folder again")
    return [Path(name).name for name in names]


def digest(files: Mapping[str, Path]) -> str:
    """Returns the first 16 hex digits of the SHA-256 of a file or, of several, over their names and their SHA-256."""
    found = {}
    for name, path in files.items():
        with path.open("rb") as stream:
            found[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    if len(found) == 1:
        return next(iter(found.values()))[:16]
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def read_json(path: Path) -> dict:
    """Returns the object in a JSON file, or raises UserError naming the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds {type(content).__name__} where an object with names is asked for")
    return content
