"""What a file of tensors is, by names and shapes: model, LoRA, embedding; which family of models it belongs to."""

import re

from dermjax.errors import UserError
from dermjax.weights.stored import Tensors

SINGLE_FILE, LORA, EMBEDDING, COMPONENT = "a single-file model", "a LoRA", "an embedding", "one network of a model"
WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 1280: "SDXL refiner", 2048: "SDXL"}
SUPPORTED = ("Stable Diffusion 1.x", "Stable Diffusion 2.x")
ADAPTED = re.compile(r"lora_(A|B|down|up|mid|linear_layer)\b|\.lora\.|_lora\.|hada_w|lokr_w|oft_blocks|dora_scale")
OTHERS = {
    "SDXL": re.compile(r"^conditioner\.embedders\.[01]\.|\.label_emb\.|^lora_te2_|\badd_embedding\."),
    "Stable Diffusion 3": re.compile(r"joint_blocks\.|\bjoint_transformer_blocks\."),
    "Flux": re.compile(r"\bdouble_blocks[._]|\bsingle_transformer_blocks[._]"),
}
EMBEDDING_NAMES = {"emb_params", "clip_l", "clip_g"}  # AUTOMATIC1111's safetensors; SDXL's two


def kind(tensors: Tensors) -> str:
    """Returns what a file holds, as one of the words above; empty where it is none of them."""
    if any(ADAPTED.search(name) for name in tensors):
        return LORA
    if any(name.startswith(("model.diffusion_model.", "model_ema.", "cond_stage_model.")) for name in tensors):
        return SINGLE_FILE
    if EMBEDDING_NAMES & tensors.keys() or any(name.startswith("string_to_param.") for name in tensors):
        return EMBEDDING
    if len(tensors) == 1 and all(len(tensor.shape) <= 2 for tensor in tensors.values()):
        return EMBEDDING  # diffusers' form: {token: vectors}
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
    return WIDTHS.get(width, architecture(width)) if width else ""


def architecture(width: int) -> str:
    """Returns what a model of no published width is called."""
    return f"Stable Diffusion's architecture with a context {width} wide"


def context_width(tensors: Tensors) -> int:
    """Returns the width of the text's context, 0 where no tensor tells; the text encoder is as wide as its context."""
    for pattern in (r"attn2[._]to_k[._].*weight$", r"layers[._]0[._]self_attn[._]q_proj[._].*weight$", r"ln_final"):
        for name, tensor in tensors.items():
            if re.search(pattern, name) and "lora_up" not in name and "lora_B" not in name and ".up." not in name:
                return tensor.shape[-1] if len(tensor.shape) < 4 else tensor.shape[1]
    if kind(tensors) == EMBEDDING:
        return next(iter(tensors.values())).shape[-1]
    return 0


def require(wanted: str, tensors: Tensors, source: str) -> None:
    """Raises UserError where a file is not what was asked for, or of a family that dermjax does not run."""
    found, other = kind(tensors), family(tensors)
    if found in (LORA, EMBEDDING) and found != wanted:
        raise UserError(f"{source}: is {found}, not {wanted}; give a model, and {found} beside it")
    if other and other not in SUPPORTED and not other.startswith("Stable Diffusion's"):
        raise UserError(f"{source}: is {other}, which is not supported; dermjax runs {' and '.join(SUPPORTED)}")
    if found != wanted:
        raise UserError(f"{source}: is {found or 'nothing that dermjax knows'}, not {wanted}")
