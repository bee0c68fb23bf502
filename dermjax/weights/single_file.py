"""Single LDM files: a complete Stable Diffusion 1.x or 2.x in one `.safetensors` or `.ckpt`, as most users have them.

The names come from ldm_names; here is the rest of what differs: OpenCLIP holds q, k and v as one tensor, the VAE's
attention is made of 1x1 convolutions, and no config comes along, so that the file's own tensors have to tell. What we
write says in its metadata what it is, and diffusers, ComfyUI and AUTOMATIC1111 read it.
"""

import copy
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from dermjax.errors import UserError
from dermjax.models.nnx_tree import Params
from dermjax.models.stable_diffusion import SCHEDULER, SD15, SD21, StableDiffusion
from dermjax.progress import say
from dermjax.weights import diffusers, ldm_names, safetensors, tensor_files, torch_layout
from dermjax.weights.safetensors import LazyTensor, Tensors
from dermjax.weights.tensor_files import open_file

PRESETS = {768: (SD15, "clip_tokenizer"), 1024: (SD21, "clip_tokenizer_2")}  # by the width of the context
CONFIGS = "dermjax.configs"  # the metadata in which our files hold their configs
# What training leaves in these files and no network of ours has: buffers of the noise schedule, losses, OpenCLIP's ends
UNREAD = re.compile(
    r"^(betas|logvar|lvlb_weights|scale_factor|posterior_\w+|(log_|sqrt_)?\w*alphas_cumprod(_prev)?)$"
    r"|^model_ema\.|^first_stage_model\.(loss|model_ema)\.|\.position_ids$|^cond_stage_model\.(model\.)?(attn_mask|"
    r"logit_scale|text_projection)(\.weight)?$"
)
# a tensor of another type is none of a network
WEIGHTS = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)
# Lin et al. 2023, arXiv 2305.08891: the last time is noise alone, and sampling begins there
PURE_NOISE = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


class Entry(NamedTuple):
    """A tensor of an LDM file, and the names of those of ours that it holds, in order along its first axis."""

    shape: tuple[int, ...]
    ours: tuple[str, ...]


def read(
    path: Path,
    *,
    dtype=jnp.float32,
    params_dtype=np.float32,
    ema: bool = False,
    prediction: str = "",
    lazy: bool = False,
) -> tuple[StableDiffusion, Params]:
    """Returns a file's model and parameters, as diffusers.read does for folders.

    `ema` takes the running averages of the UNet where the file has both. `prediction` ("epsilon" or "v_prediction")
    wins over LDM's config beside the file, and that over what the file says or lets guess.

    Raises:
      UserError: the file is broken, not a Stable Diffusion 1.x or 2.x, or its tensors do not fit.
    """
    tensors, texts = open_file(path)
    tensor_files.require(tensor_files.SINGLE_FILE, tensors, str(path))
    tensors = current_names(tensors)
    if ema:
        tensors = averaged(tensors, texts, str(path))
    config, said = tensor_files.config_beside(path)
    if said and not prediction:
        say(f"{path}: the UNet predicts {said}, as {config.name} beside it says")
    sd = describe(tensors, texts, prediction or said, dtype, str(path))
    sd.check()
    layouts = layout(sd, f"{ldm_names.OPEN_CLIP}positional_embedding" in tensors)
    for network, entries in layouts.items():
        if not entries.keys() & tensors.keys():
            complete = "give a file with the complete model"
            if network == "unet" and any(name.startswith("model_ema.") for name in tensors):
                complete = "its running averages alone; write it out with `dermjax convert --ema`"
            raise UserError(f"{path}: holds no {network}; {complete}")
    entries = {name: entry for each in layouts.values() for name, entry in each.items()}
    layers = {name.rpartition(".")[0] for name in entries}
    unread = sorted(name for name, each in tensors.items() if name not in entries and is_unread(name, each, sd, layers))
    taken = {name: tensor for name, tensor in tensors.items() if name not in unread}
    torch_layout.check({name: fitting(entry, taken.get(name)) for name, entry in entries.items()}, taken, str(path))
    if unread:
        shown = [ascii(name)[1:-1] for name in unread[: torch_layout.SHOWN]]
        shown += ["…"] * (len(unread) > len(shown))
        say(f"{path}: {len(entries)} tensors read, {len(unread)} left out ({', '.join(shown)})")
    networks = {network: to_ours(each, tensors, sd.shapes[network]) for network, each in layouts.items()}
    return sd, diffusers.parameters(sd, networks, str(path), params_dtype, lazy)


def write(path: Path, sd: StableDiffusion, params: Params, *, dtype) -> None:
    """Writes the model as one safetensors file; SD 2.x gets OpenCLIP's layout of the text encoder, others CLIP's."""
    text = sd.configs["text_encoder"]
    if text["vocab_size"] != SD15["text_encoder"]["vocab_size"]:
        raise UserError(f"{path}: a single file holds no tokenizer, and this model has its own; give a folder's name")
    tensors: Tensors = {}
    for network, entries in layout(sd, text["hidden_act"] == "gelu").items():
        ours = torch_layout.to_file(params[network], dtype)
        tensors |= {name: to_theirs(entry, ours, np.dtype(dtype)) for name, entry in entries.items()}
    safetensors.write(path, tensors, metadata(sd))


def files(path: Path) -> dict[str, Path]:
    """Returns the files that a single file's images follow from, by name: itself, and LDM's config if that counts."""
    config, said = tensor_files.config_beside(path)
    return {path.name: path} | ({config.name: config} if said else {})


def describe(tensors: Tensors, texts: dict[str, str], prediction: str, dtype, source: str) -> StableDiffusion:
    """Returns the model that a file's metadata describes, or the published one that its tensors look like."""
    width = tensor_files.context_width(tensors)
    if CONFIGS in texts:
        try:
            configs = json.loads(texts[CONFIGS])
            open_clip = configs["text_encoder"]["hidden_act"] == "gelu"
            configs = {name: dict(configs[name]) for name in (*diffusers.FILES, "scheduler")}
            configs["scheduler"] |= {"prediction_type": prediction} if prediction else {}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{source}: its {CONFIGS} cannot be read ({error}); write the file again") from error
        _, tokenizer = PRESETS[1024 if open_clip else 768]
    elif width not in PRESETS:
        raise UserError(f"{source}: its context is {width} wide; Stable Diffusion 1.x has 768 and 2.x 1024")
    else:
        preset, tokenizer = PRESETS[width]
        configs = copy.deepcopy(preset)
        first = tensors.get(tensor_files.FIRST)
        if first and len(first.shape) == 4:
            configs["unet"]["in_channels"] = first.shape[1]
        kind = prediction or tensor_files.prediction(tensors, texts)
        configs["scheduler"]["prediction_type"] = kind
        if tensor_files.PURE_NOISE in tensors or tensor_files.PURE_NOISE in texts:
            configs["scheduler"] = SCHEDULER | PURE_NOISE | {"prediction_type": kind}
        if preset is SD21 and kind == "epsilon":
            configs["unet"]["sample_size"], configs["vae"]["sample_size"] = 64, 512
    return StableDiffusion(configs, Path(__file__).parent / tokenizer, dtype)


def metadata(sd: StableDiffusion) -> dict[str, str]:
    """Returns what a file of ours says of itself, in Stability's ModelSpec 1.0 and as our own configs."""
    words = {theirs: word for word, theirs in tensor_files.PREDICTIONS.items()}
    prediction = words.get(sd.prediction, sd.prediction)
    architecture = "stable-diffusion-v1"
    if sd.configs["text_encoder"]["hidden_act"] == "gelu":
        architecture = f"stable-diffusion-v2-{'768-v' if prediction == 'v' else '512'}"
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture,
        "modelspec.prediction_type": prediction,
        "modelspec.resolution": f"{sd.size}x{sd.size}",
        CONFIGS: json.dumps(sd.configs, sort_keys=True),
    }


def layout(sd: StableDiffusion, open_clip: bool) -> dict[str, dict[str, Entry]]:
    """Returns for each network the tensors of its LDM file, by name."""
    clip = (ldm_names.OPEN_CLIP, ldm_names.open_clip) if open_clip else (ldm_names.CLIP, ldm_names.clip)
    tables = {
        "text_encoder": clip,
        "unet": (ldm_names.UNET, ldm_names.unet),
        "vae": (ldm_names.VAE, ldm_names.vae),
    }
    layouts = {}
    for network, (prefix, names) in tables.items():
        shapes, modules = torch_layout.expected(sd.shapes[network]), names(sd.shapes[network])
        entries = {}
        for name, shape in shapes.items():
            module, _, leaf = name.rpartition(".")
            if module in modules:
                linear = network == "vae" and len(shape) == 2  # in LDM a 1x1 convolution
                entries[f"{prefix}{modules[module]}.{leaf}"] = Entry((*shape, 1, 1) if linear else shape, (name,))
        if open_clip and network == "text_encoder":
            entries |= fused(shapes, prefix)
        layouts[network] = entries
    return layouts


def fused(shapes: dict[str, tuple[int, ...]], prefix: str) -> dict[str, Entry]:
    """Returns the tensors that OpenCLIP names by themselves: positions, and q, k and v of each layer in one."""
    position = "text_model.embeddings.position_embedding.weight"
    entries = {f"{prefix}positional_embedding": Entry(shapes[position], (position,))}
    for name, shape in shapes.items():
        query = re.fullmatch(r"(text_model\.encoder\.layers\.(\d+)\.self_attn)\.q_proj\.(weight|bias)", name)
        if query:
            parent, layer, leaf = query.groups()
            three = tuple(f"{parent}.{each}_proj.{leaf}" for each in "qkv")
            theirs = f"{prefix}transformer.resblocks.{layer}.attn.in_proj_{leaf}"
            entries[theirs] = Entry((3 * shape[0], *shape[1:]), three)
    return entries


def fitting(entry: Entry, tensor: LazyTensor | None) -> tuple[int, ...]:
    """Returns the shape that an entry should have; a 1x1 convolution is as good without its two axes."""
    flat = entry.shape[:2] if entry.shape[2:] == (1, 1) else entry.shape
    return flat if tensor is not None and tensor.shape == flat else entry.shape


def to_ours(entries: dict[str, Entry], tensors: Tensors, tree: Params) -> Tensors:
    """Returns a network's tensors under our names: parts of a file's tensors along their first axis, unread."""
    shapes, ours = torch_layout.expected(tree), {}
    for name, entry in entries.items():
        for i, our in enumerate(entry.ours):
            shape = shapes[our]

            def part(array: np.ndarray, i=i, shape=shape) -> np.ndarray:
                return array[i * shape[0] : (i + 1) * shape[0]].reshape(shape)

            ours[our] = tensors[name].transform(shape, part)
    return ours


def to_theirs(entry: Entry, ours: Tensors, dtype: np.dtype) -> LazyTensor:
    """Returns the LDM tensor of an entry, made of ours when it is read."""

    def read() -> np.ndarray:
        return np.concatenate([ours[name].read() for name in entry.ours]).reshape(entry.shape)

    return LazyTensor(entry.shape, dtype, read)


def is_unread(name: str, tensor: LazyTensor, sd: StableDiffusion, layers: Collection[str]) -> bool:
    """Returns whether a tensor is one that such files carry and no network reads, such as OpenCLIP's last layer.

    Beside the weights of one of the `layers` it is read: a quantisation keeps its scales there, of whatever type.
    """
    if name in (tensor_files.VELOCITY, tensor_files.PURE_NOISE):
        return True
    if tensor.dtype not in WEIGHTS and name.rpartition(".")[0] not in layers:
        return True
    block = re.match(rf"{re.escape(ldm_names.OPEN_CLIP)}transformer\.resblocks\.(\d+)\.", name)
    beyond = block is not None and int(block[1]) >= sd.configs["text_encoder"]["num_hidden_layers"]
    return beyond or UNREAD.search(name) is not None


def current_names(tensors: Tensors) -> Tensors:
    """Returns the tensors with the text encoder's names of early files, without `text_model.`, as they are now."""
    bare = tuple(f"{ldm_names.CLIP}{part}." for part in ("embeddings", "encoder", "final_layer_norm"))
    return {
        name.replace(ldm_names.CLIP, f"{ldm_names.CLIP}text_model.") if name.startswith(bare) else name: tensor
        for name, tensor in tensors.items()
    }


def averaged(tensors: Tensors, texts: dict[str, str], source: str) -> Tensors:
    """Returns the tensors with the UNet's replaced by their running averages, which LDM names without dots.

    A file may hold the averages alone; the names are then those of the model that it is.
    """
    names = [name for name in tensors if name.startswith(ldm_names.UNET)]
    names = names or list(layout(describe(tensors, texts, "epsilon", np.float32, source), False)["unet"])
    averages = {name: f"model_ema.{name.removeprefix('model.').replace('.', '')}" for name in names}
    missing = [average for average in averages.values() if average not in tensors]
    if missing:
        raise UserError(f"{source}: no running averages ({missing[0]} is missing); read it without ema")
    return tensors | {name: tensors[average] for name, average in averages.items()}
