"""What a file of tensors is, by names and shapes: model, LoRA, embedding; which family of models it belongs to."""

import re

import numpy as np

from dermjax.errors import UserError
from dermjax.weights.stored import Tensors

SINGLE_FILE, LORA, EMBEDDING, COMPONENT = "a single-file model", "a LoRA", "an embedding", "one network of a model"
WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 1280: "SDXL refiner", 2048: "SDXL"}
SUPPORTED = ("Stable Diffusion 1.x", "Stable Diffusion 2.x")
ADAPTED = re.compile(r"lora_(A|B|down|up|mid|linear_layer)\b|\.lora\.|_lora\.|hada_w|lokr_w|oft_blocks|dora_scale")
OTHERS = {
    "SDXL": re.compile(r"^conditioner\.embedders\.[01]\.|^lora_te2_|^text_encoder_2\.|\badd_embedding\."),
    "Stable Diffusion 3": re.compile(r"joint_blocks\.|\bjoint_transformer_blocks\."),
    "Flux": re.compile(r"\bdouble_blocks[._]|\bsingle_transformer_blocks[._]"),
}
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction"}  # modelspec's word, diffusers' word
SPELT = PREDICTIONS | {
    "eps": "epsilon",
    "v_prediction": "v_prediction",
    "v-prediction": "v_prediction",
    "vpred": "v_prediction",
}
SAYING = ("modelspec.prediction_type", "modelspec.predict_key")  # since ModelSpec 1.0, and before
VELOCITY, PURE_NOISE = "v_pred", "ztsnr"  # names whose presence says it, of ComfyUI's and AUTOMATIC1111's merges
# ComfyUI tells v-prediction from epsilon in SD 2.x files by the spread of this bias (supported_models.py, SD20)
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
TELLING, SPREAD = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias", 0.09
EMBEDDING_NAMES = {"emb_params", "clip_l", "clip_g"}  # AUTOMATIC1111's safetensors; SDXL's two


def kind(tensors: Tensors) -> str:
    """Returns what a file holds, as one of the words above; empty where it is none of them."""
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
    return WIDTHS.get(width, architecture(width)) if width else ""


def architecture(width: int) -> str:
    """Returns what a model of no published width is called."""
    return f"Stable Diffusion's architecture with a context {width} wide"


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
        return (0, *next(iter(tensors.values())).shape)[-1]
    return 0


def prediction(tensors: Tensors, texts: dict[str, str]) -> str:
    """Returns what the UNet of a single file predicts: by the file's word, else epsilon for SD 1.x and for inpainting.

    For other files of SD 2.x it is told by a bias's spread. A marker goes before ModelSpec's texts, which merges copy
    from one of their models; a word that is not known is returned as it is.
    """
    if VELOCITY in tensors or VELOCITY in texts:
        return "v_prediction"
    words = (texts[key].strip().lower() for key in SAYING if texts.get(key))
    said = next((SPELT.get(word, word) for word in words), None)
    first, bias = tensors.get(FIRST), tensors.get(TELLING)
    inpainting = first is not None and first.shape[1:2] != (4,)
    if said or bias is None or inpainting or context_width(tensors) != 1024:
        return said or "epsilon"
    return "v_prediction" if bias.read().astype(np.float32).std() > SPREAD else "epsilon"


def require(wanted: str, tensors: Tensors, source: str) -> None:
    """Raises UserError where a file is not what was asked for, or of a family that dermjax does not run."""
    found, other = kind(tensors), family(tensors)
    if found in (LORA, EMBEDDING) and found != wanted:
        raise UserError(f"{source}: is {found}, not {wanted}; give a model, and {found} beside it")
    if other and other not in SUPPORTED and not other.startswith("Stable Diffusion's"):
        raise UserError(f"{source}: is {other}, which is not supported; dermjax runs {' and '.join(SUPPORTED)}")
    if found != wanted:
        raise UserError(f"{source}: is {found or 'nothing that dermjax knows'}, not {wanted}")
