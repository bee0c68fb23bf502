"""CLIP's text encoder (Radford et al. 2021, arXiv 2103.00020), driven by transformers' config.json; its layers are the
image encoder's too (`clip_vision`), there without the mask.

Attribute names are those of the files (`text_model.encoder.layers.0.self_attn.q_proj`). SD 1.x uses quick-GELU and
all 12 layers; SD 2.x uses GELU and a config that already counts 23 layers. The context is the last hidden state after
the final norm.

Shapes: B batch, N tokens, D width, K heads.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike

from dermjax.models import configs
from dermjax.models.layers import NO_KEYS, gelu, layer_norm, linear
from dermjax.models.nnx_tree import Module, unread

Array = jax.Array

# Of the contexts, for whatever is kept of them: raise it where they change by more than rounding.
# 2: the layers of an encoder of eleven or more run in their order
NUMERIC_VERSION = 2
ACTIVATIONS = {"quick_gelu": lambda x: x * nnx.sigmoid(1.702 * x), "gelu": gelu}


class SelfAttention(Module):
    """Self-attention with biases everywhere; `causal` looks at earlier tokens only."""

    def __init__(self, width: int, heads: int, *, causal: bool, dtype: DTypeLike):
        self.heads, self.causal = heads, causal
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (linear(width, width, dtype=dtype) for _ in range(4))

    def __call__(self, x: Array) -> Array:
        q, k, v = (
            rearrange(project(x), "B N (K d) -> B N K d", K=self.heads)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = jax.nn.dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out_proj(rearrange(attended, "B N K d -> B N (K d)"))


class MLP(Module):
    """Two linear layers around the activation."""

    def __init__(self, width: int, inner: int, activation: str, *, dtype: DTypeLike):
        self.activation = activation
        self.fc1 = linear(width, inner, dtype=dtype)
        self.fc2 = linear(inner, width, dtype=dtype)

    def __call__(self, x: Array) -> Array:
        inner = self.fc1(x)
        return self.fc2(ACTIVATIONS[self.activation](inner.astype(jnp.float32)).astype(inner.dtype))


class Layer(Module):
    """Attention and MLP, each on a LayerNorm, each with a residual."""

    def __init__(self, config: dict, *, causal: bool, dtype: DTypeLike):
        width, epsilon = config["hidden_size"], config["layer_norm_eps"]
        self.layer_norm1 = layer_norm(width, epsilon=epsilon, dtype=dtype)
        self.self_attn = SelfAttention(width, config["num_attention_heads"], causal=causal, dtype=dtype)
        self.layer_norm2 = layer_norm(width, epsilon=epsilon, dtype=dtype)
        self.mlp = MLP(width, config["intermediate_size"], config["hidden_act"], dtype=dtype)

    def __call__(self, x: Array) -> Array:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Embeddings(Module):
    """Token plus position."""

    def __init__(self, config: dict, *, dtype: DTypeLike):
        width = config["hidden_size"]
        kinds = {"embedding_init": unread, "dtype": dtype, "rngs": NO_KEYS}
        self.token_embedding = nnx.Embed(config["vocab_size"], width, **kinds)
        self.position_embedding = nnx.Embed(config["max_position_embeddings"], width, **kinds)

    def __call__(self, tokens: Array) -> Array:
        positions = self.position_embedding(jnp.arange(tokens.shape[1]))
        return self.token_embedding(tokens) + positions[None]


class Encoder(Module):
    """The stack of layers."""

    def __init__(self, config: dict, *, causal: bool, dtype: DTypeLike):
        self.layers = nnx.List(Layer(config, causal=causal, dtype=dtype) for _ in range(config["num_hidden_layers"]))

    def __call__(self, x: Array) -> Array:
        for layer in self.layers:
            x = layer(x)
        return x


class TextModel(Module):
    """Embeddings, layers, final norm."""

    def __init__(self, config: dict, *, dtype: DTypeLike):
        self.embeddings = Embeddings(config, dtype=dtype)
        self.encoder = Encoder(config, causal=True, dtype=dtype)
        self.final_layer_norm = layer_norm(config["hidden_size"], epsilon=config["layer_norm_eps"], dtype=dtype)

    def __call__(self, tokens: Array) -> Array:
        return self.final_layer_norm(self.encoder(self.embeddings(tokens)))


class CLIPText(Module):
    """Tokens int32 [B, N] to context [B, N, D], float32."""

    def __init__(self, config: dict, *, dtype: DTypeLike):
        configs.check_text(config, ACTIVATIONS)
        self.text_model = TextModel(config, dtype=dtype)

    def __call__(self, tokens: Array) -> Array:
        return self.text_model(tokens).astype(jnp.float32)
