"""Vision transformers, driven by Hugging Face's config.json: ViT (Dosovitskiy et al. 2021, arXiv 2010.11929; model_type
vit) and DINOv2's (Oquab et al. 2024, arXiv 2304.07193; model_type dinov2), which adds a scale to every layer.

Attribute names are those of the files, older than the names that transformers 5 shows in memory
(`vit.encoder.layer.0.attention.attention.query`, not `vit.layers.0.attention.q_proj`).

Shapes: B batch, H W image, h w patches, N = 1 + h w tokens with the class token first, D width, K heads, L labels.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx
from jax.typing import DTypeLike

from dermjax.errors import UserError
from dermjax.models.attention import attention
from dermjax.models.layers import conv, gelu, layer_norm, linear
from dermjax.models.nnx_tree import Module, parameter

Array = jax.Array
ACTIVATIONS = {"gelu": gelu, "gelu_new": nnx.gelu}
EVERY, CLASS = slice(None), slice(0, 1)  # of the tokens


def grid(config: dict) -> int:
    """Returns the patches along one side of the image that the position embeddings are made for."""
    return config["image_size"] // config["patch_size"]


class PatchEmbeddings(Module):
    """Images [B, H, W, 3] to patches [B, h w, D]."""

    def __init__(self, config: dict, *, dtype: DTypeLike):
        patch, width = config["patch_size"], config["hidden_size"]
        self.projection = conv(config["num_channels"], width, patch, stride=patch, padding=0, dtype=dtype)

    def __call__(self, image: Array) -> Array:
        return rearrange(self.projection(image), "B h w D -> B (h w) D")


class Embeddings(Module):
    """Class token and patches, each with the embedding of its place."""

    def __init__(self, config: dict, *, dtype: DTypeLike):
        width, self.dtype = config["hidden_size"], dtype
        self.cls_token = parameter(1, 1, width)
        self.position_embeddings = parameter(1, 1 + grid(config) ** 2, width)
        self.patch_embeddings = PatchEmbeddings(config, dtype=dtype)

    def __call__(self, image: Array) -> Array:
        first = repeat(self.cls_token[...].astype(self.dtype), "1 1 D -> B 1 D", B=image.shape[0])
        tokens = jnp.concatenate([first, self.patch_embeddings(image)], axis=1)  # [B, N, D]
        return tokens + self.position_embeddings[...].astype(self.dtype)


class SelfAttention(Module):
    """Queries of the tokens `pooled`, keys and values of all, and what the heads make of them."""

    def __init__(self, config: dict, *, dtype: DTypeLike):
        width, bias = config["hidden_size"], config["qkv_bias"]
        self.heads = config["num_attention_heads"]
        self.query, self.key, self.value = (linear(width, width, bias=bias, dtype=dtype) for _ in range(3))

    def __call__(self, x: Array, pooled: slice) -> Array:  # [B, N, D]
        q, k, v = (
            rearrange(project(tokens), "B N (K d) -> B N K d", K=self.heads)
            for project, tokens in ((self.query, x[:, pooled]), (self.key, x), (self.value, x))
        )
        return rearrange(attention(q, k, v), "B N K d -> B N (K d)")

    def weights(self, x: Array) -> Array:  # [B, N, D] -> [B, N, N]
        """How much each token attends to each other one, averaged over the heads."""
        q, k = (rearrange(project(x), "B N (K d) -> B K N d", K=self.heads) for project in (self.query, self.key))
        scores = jnp.einsum("BKNd,BKMd->BKNM", q, k) / q.shape[-1] ** 0.5
        return jax.nn.softmax(scores.astype(jnp.float32), axis=-1).mean(axis=1)


class Dense(Module):
    """One linear layer under the name `dense`, as the files nest it."""

    def __init__(self, din: int, dout: int, *, dtype: DTypeLike):
        self.dense = linear(din, dout, dtype=dtype)

    def __call__(self, x: Array) -> Array:
        return self.dense(x)


class Attention(Module):
    """Self-attention and the projection of its output."""

    def __init__(self, config: dict, *, dtype: DTypeLike):
        self.attention = SelfAttention(config, dtype=dtype)
        self.output = Dense(config["hidden_size"], config["hidden_size"], dtype=dtype)

    def __call__(self, x: Array, pooled: slice) -> Array:
        return self.output(self.attention(x, pooled))


class ViTLayer(Module):
    """Attention and feed-forward, each on a LayerNorm, each with a residual: what becomes of the tokens `pooled`."""

    def __init__(self, config: dict, *, dtype: DTypeLike):
        width, inner = config["hidden_size"], config["intermediate_size"]
        self.activation = activation(config)
        self.layernorm_before = layer_norm(width, epsilon=config["layer_norm_eps"], dtype=dtype)
        self.attention = Attention(config, dtype=dtype)
        self.layernorm_after = layer_norm(width, epsilon=config["layer_norm_eps"], dtype=dtype)
        self.intermediate = Dense(width, inner, dtype=dtype)
        self.output = Dense(inner, width, dtype=dtype)

    def __call__(self, x: Array, pooled: slice) -> Array:  # [B, N, D]
        def images(rows: Array) -> Array:
            return rearrange(rows, "(B N) D -> B N D", B=x.shape[0])

        # the residual stream is a matrix, which the dense layers take as it is: of any other shape XLA on a CPU would
        # compute its gradient anew for each of them, from the last layer on
        normed = images(self.layernorm_before(rearrange(x, "B N D -> (B N) D")))
        rows = rearrange(x[:, pooled], "B N D -> (B N) D")
        rows = rows + rearrange(self.attention(normed, pooled), "B N D -> (B N) D")
        return images(rows + self.output(self.activation(self.intermediate(self.layernorm_after(rows)))))

    def weights(self, x: Array) -> Array:
        """The attention weights [B, N, N] that this layer gives x."""
        return self.attention.attention.weights(self.layernorm_before(x))


class LayerScale(Module):
    """One learned factor a channel on the way into the residual (arXiv 2103.17239)."""

    def __init__(self, config: dict):
        self.lambda1 = parameter(config["hidden_size"])

    def __call__(self, x: Array) -> Array:
        return x * self.lambda1[...].astype(x.dtype)[None, None]


class MLP(Module):
    """Two linear layers around the activation."""

    def __init__(self, config: dict, *, dtype: DTypeLike):
        width, inner = config["hidden_size"], int(config["hidden_size"] * config["mlp_ratio"])
        self.activation = activation(config)
        self.fc1 = linear(width, inner, dtype=dtype)
        self.fc2 = linear(inner, width, dtype=dtype)

    def __call__(self, x: Array) -> Array:
        return self.fc2(self.activation(self.fc1(x)))


class Dinov2Layer(Module):
    """ViT's layer with layer scales, under DINOv2's names."""

    def __init__(self, config: dict, *, dtype: DTypeLike):
        width, epsilon = config["hidden_size"], config["layer_norm_eps"]
        self.norm1 = layer_norm(width, epsilon=epsilon, dtype=dtype)
        self.attention = Attention(config, dtype=dtype)
        self.layer_scale1 = LayerScale(config)
        self.norm2 = layer_norm(width, epsilon=epsilon, dtype=dtype)
        self.mlp = MLP(config, dtype=dtype)
        self.layer_scale2 = LayerScale(config)

    def __call__(self, x: Array, pooled: slice) -> Array:
        x = x[:, pooled] + self.layer_scale1(self.attention(self.norm1(x), pooled))
        return x + self.layer_scale2(self.mlp(self.norm2(x)))

    def weights(self, x: Array) -> Array:
        """The attention weights [B, N, N] that this layer gives x."""
        return self.attention.attention.weights(self.norm1(x))


class Encoder(Module):
    """The stack of layers; the last of all gives the tokens `pooled` alone."""

    def __init__(self, make: Callable, config: dict, *, dtype: DTypeLike):
        self.layer = nnx.List(make(config, dtype=dtype) for _ in range(config["num_hidden_layers"]))

    def __call__(self, x: Array, layers: slice, pooled: slice) -> Array:
        for layer in list(self.layer)[layers]:
            x = layer(x, pooled if layer is self.layer[-1] else EVERY)
        return x


class Backbone(Module):
    """Normalised images [B, H, W, 3] to tokens [B, N, D]; the final norm is for whoever pools them."""

    def __init__(self, make: Callable, config: dict, *, dtype: DTypeLike):
        self.embeddings = Embeddings(config, dtype=dtype)
        self.encoder = Encoder(make, config, dtype=dtype)
        self.layernorm = layer_norm(config["hidden_size"], epsilon=config["layer_norm_eps"], dtype=dtype)

    def __call__(self, image: Array, last: int, pooled: slice) -> Array:
        """Tokens below the `last` last layers; those `pooled` where that is 0."""
        return self.encoder(self.embeddings(image), slice(0, len(self.encoder.layer) - last), pooled)


class Transformer(Module):
    """A backbone, how its tokens are pooled, and a linear head: `upper` of `lower`, cut below the `last` last layers.

    The last layer computes what is pooled and no more: where that is the class token, a fourteenth of all the work.
    """

    pooled = EVERY  # of the tokens

    def lower(self, image: Array, last: int, *, train: bool) -> Array:
        """Tokens [B, N, D] below the `last` last layers, of normalised images [B, H, W, 3]; pooled features for 0."""
        tokens = self.backbone(image, last, self.pooled)
        return tokens if last else self.pool(tokens)

    def upper(self, x: Array, last: int, *, train: bool) -> Array:
        """Logits [B, L], float32, of what `lower` returned."""
        if last:
            encoder = self.backbone.encoder
            x = self.pool(encoder(x, slice(len(encoder.layer) - last, None), self.pooled))
        return self.classifier(x).astype(jnp.float32)

    def tokens(self, image: Array, depths: Sequence[int]) -> list[Array]:
        """Tokens [B, N, D] after each of these numbers of layers, of normalised images [B, H, W, 3]."""
        x, after = self.backbone.embeddings(image), []
        for depth, layer in enumerate(list(self.backbone.encoder.layer)[: max(depths)], start=1):
            x = layer(x, EVERY)
            after += [x] if depth in depths else []
        return after

    def attentions(self, image: Array) -> Array:  # [B, H, W, 3] -> [layers, B, N, N]
        """The attention weights of every layer."""
        x, weights = self.backbone.embeddings(image), []
        for layer in self.backbone.encoder.layer:
            weights.append(layer.weights(x))
            x = layer(x, EVERY)
        return jnp.stack(weights)


class ViT(Transformer):
    """Pools the class token or, with config["pooling"] = "mean", the norm of the patches' mean, as in timm."""

    def __init__(self, config: dict, labels: int, *, dtype: DTypeLike):
        if config["pooling"] not in ("token", "mean"):
            raise UserError(f"config.json: pooling = {config['pooling']!r} is neither token nor mean")
        self.pooling = config["pooling"]
        self.vit = Backbone(ViTLayer, config, dtype=dtype)
        self.classifier = linear(config["hidden_size"], labels, dtype=dtype)

    @property
    def pooled(self) -> slice:
        """The tokens that are pooled."""
        return CLASS if self.pooling == "token" else EVERY

    @property
    def backbone(self) -> Backbone:
        """The part below the head."""
        return self.vit

    def pool(self, tokens: Array) -> Array:  # [B, N, D] -> [B, D]
        """The features that the head reads."""
        return self.vit.layernorm(tokens[:, 0] if self.pooling == "token" else tokens[:, 1:].mean(axis=1))


class Dinov2(Transformer):
    """Pools the class token beside the mean of the patches."""

    def __init__(self, config: dict, labels: int, *, dtype: DTypeLike):
        if config["use_swiglu_ffn"]:
            raise UserError("config.json: use_swiglu_ffn (DINOv2 giant) is not implemented; take small, base or large")
        self.dinov2 = Backbone(Dinov2Layer, config, dtype=dtype)
        self.classifier = linear(2 * config["hidden_size"], labels, dtype=dtype)

    @property
    def backbone(self) -> Backbone:
        """The part below the head."""
        return self.dinov2

    def pool(self, tokens: Array) -> Array:  # [B, N, D] -> [B, 2 D]
        """The features that the head reads."""
        tokens = self.dinov2.layernorm(tokens)
        return jnp.concatenate([tokens[:, 0], tokens[:, 1:].mean(axis=1)], axis=-1)


def activation(config: dict):
    """Returns the config's activation; UserError for one that no published ViT uses."""
    if config["hidden_act"] not in ACTIVATIONS:
        raise UserError(f"config.json: hidden_act = {config['hidden_act']!r} is not one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[config["hidden_act"]]


def vit_settings(name: str) -> dict:
    """Returns the settings of a ViT by its usual name, such as "S/16": size, then pixels a side of a patch."""
    size, _, patch = name.partition("/")
    if size not in SIZES or patch not in PATCHES:
        raise UserError(f"ViT {name!r} is unknown; sizes are {', '.join(SIZES)}, patches {', '.join(PATCHES)}, as S/16")
    width, layers, heads = SIZES[size]
    return {
        "patch_size": int(patch),
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


# width, layers, heads: table 1 of the ViT paper; Ti and S of DeiT (arXiv 2012.12877)
SIZES = {"Ti": (192, 12, 3), "S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16)}
PATCHES = ("8", "14", "16", "32")
