"""CLIP's image encoder (Radford et al. 2021, arXiv 2103.00020), driven by transformers' config.json.

Attribute names are those of the files, transformers' spelling of `pre_layrnorm` included. What it makes of an image is
the class token after the last norm and, where the file has one, its projection to where images and texts meet.

Shapes: B batch, H W image, h w patches, N = 1 + h w tokens with the class token first, D width, P projection.
"""

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx
from jax.typing import DTypeLike

from dermjax.errors import UserError
from dermjax.models.clip_text import ACTIVATIONS, Encoder
from dermjax.models.layers import NO_KEYS, layer_norm, linear
from dermjax.models.nnx_tree import Module, parameter, unread

Array = jax.Array
# Of features, for whatever is kept of them: raise it where they change by more than rounding
NUMERIC_VERSION = 1
DEFAULTS = {  # what transformers fills in
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "image_size": 224,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-5,
    "num_attention_heads": 12,
    "num_channels": 3,
    "num_hidden_layers": 12,
    "patch_size": 32,
    "projection_dim": 512,
}


class Embeddings(Module):
    """Class token and patches, each with the embedding of its place."""

    def __init__(self, config: dict, *, dtype: DTypeLike):
        width, patch, self.dtype = config["hidden_size"], config["patch_size"], dtype
        kinds = {"dtype": dtype, "rngs": NO_KEYS}
        self.class_embedding = parameter(width)
        self.patch_embedding = nnx.Conv(
            3, width, (patch, patch), strides=patch, padding="VALID", use_bias=False, kernel_init=unread, **kinds
        )
        self.position_embedding = nnx.Embed(
            1 + (config["image_size"] // patch) ** 2, width, embedding_init=unread, **kinds
        )

    def __call__(self, image: Array) -> Array:
        patches = rearrange(self.patch_embedding(image), "B h w D -> B (h w) D")
        first = repeat(self.class_embedding[...].astype(self.dtype), "D -> B 1 D", B=len(image))
        tokens = jnp.concatenate([first, patches], axis=1)  # [B, N, D]
        return tokens + self.position_embedding(jnp.arange(tokens.shape[1]))[None]


class CLIPVision(Module):
    """Normalised images [B, H, W, 3] to features [B, D], or [B, P] where `projected`: float32."""

    def __init__(self, config: dict, *, projected: bool, dtype: DTypeLike):
        width, epsilon = config["hidden_size"], config["layer_norm_eps"]
        if config["hidden_act"] not in ACTIVATIONS:
            raise UserError(f"hidden_act = {config['hidden_act']!r} is not one of {', '.join(ACTIVATIONS)}")
        self.embeddings = Embeddings(config, dtype=dtype)
        self.pre_layrnorm = layer_norm(width, epsilon=epsilon, dtype=dtype)
        self.encoder = Encoder(config, causal=False, dtype=dtype)
        self.post_layernorm = layer_norm(width, epsilon=epsilon, dtype=dtype)
        self.visual_projection = linear(width, config["projection_dim"], bias=False, dtype=dtype) if projected else None

    def __call__(self, image: Array) -> Array:
        tokens = self.encoder(self.pre_layrnorm(self.embeddings(image)))
        pooled = self.post_layernorm(tokens[:, 0])
        return (self.visual_projection(pooled) if self.visual_projection else pooled).astype(jnp.float32)
