"""The classifier bundle: an architecture, its labels and its preprocessing, as pure functions of plain trees.

Everything above this file sees a classifier through here. `config` is Hugging Face's config.json, so that the files
of others say what is built; `params` take gradients, `variables` (batch statistics, or {}) do not.

Shapes: B batch, H W image, L labels.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from dermjax.models import nnx_tree
from dermjax.models.mobilenetv2 import MobileNetV2
from dermjax.models.nnx_tree import Params
from dermjax.models.vit import Dinov2, ViT

Array = jax.Array
# Of features and logits, for whatever is kept of them: raise it where they change by more than rounding
NUMERIC_VERSION = 1
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SINGLE_LABEL = "single_label_classification"  # problem_type where an image is of one class alone: a softmax
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One network by Hugging Face's model_type. `defaults` are what a config.json may leave out, as transformers fills
    it in; `preprocessing` is the (mean, std) of pixels in [0, 1] that its published weights expect."""

    network: type[nnx.Module]
    name: str  # transformers' class
    backbone: str  # the prefix of everything but the head in the files
    defaults: dict
    preprocessing: tuple[tuple[float, ...], tuple[float, ...]]


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """One classifier without its arrays. mean and std normalise pixels in [0, 1], one number a colour channel.

    `resize` is that of data/images.py for the images that it is shown, {} for what is trained here.
    """

    config: dict
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: DTypeLike  # of the arithmetic; parameters are float32
    resize: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def architecture(self) -> Architecture:
        """The table's row for this config."""
        return ARCHITECTURES[self.config["model_type"]]

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names; index = position."""
        names = self.config["id2label"]
        return tuple(names[str(index)] for index in range(len(names)))

    @functools.cached_property
    def network(self) -> nnx_tree.Network:
        """The network without its arrays, divided into params and variables."""
        make = functools.partial(self.architecture.network, self.config, len(self.labels), dtype=self.dtype)
        return nnx_tree.split(make, nnx.Param, nnx.BatchStat)

    @property
    def shapes(self) -> tuple[Params, Params]:
        """params and variables with jax.ShapeDtypeStruct leaves."""
        return self.network.shapes

    def init(self, seed: int) -> tuple[Params, Params]:
        """Returns freshly drawn params and variables, float32 numpy arrays."""
        rng = np.random.default_rng(seed)
        return tuple(nnx_tree.draw(tree, self.config, rng) for tree in self.shapes)

    def logits(self, params: Params, variables: Params, image: Array, *, train: bool) -> tuple[Array, Params]:
        """Returns logits [B, L], float32, of images [B, H, W, 3] in [-1, 1], and the variables after them."""
        model = self._merged(params, variables)
        features = model.lower(self._normalised(image), 0, train=train)
        return model.upper(features, 0, train=train), nnx_tree.variables(model, nnx.BatchStat)

    def lower(self, params: Params, variables: Params, image: Array, last: int) -> Array:
        """Returns what the `last` last blocks and the head are given for images [B, H, W, 3] in [-1, 1].

        For 0 that is the pooled features [B, D]. Batch statistics are read and not changed.
        """
        return self._merged(params, variables).lower(self._normalised(image), last, train=False)

    def upper(self, params: Params, variables: Params, x: Array, last: int, *, train: bool) -> tuple[Array, Params]:
        """Returns logits [B, L], float32, of what `lower` returned, and the variables after them."""
        model = self._merged(params, variables)
        return model.upper(x.astype(self.dtype), last, train=train), nnx_tree.variables(model, nnx.BatchStat)

    def tokens(self, params: Params, variables: Params, image: Array, depths: Sequence[int]) -> list[Array]:
        """Returns a transformer's tokens [B, N, D] after so many layers each, for images [B, H, W, 3] in [-1, 1]."""
        return self._merged(params, variables).tokens(self._normalised(image), depths)

    def attentions(self, params: Params, variables: Params, image: Array) -> Array:
        """Returns the attention weights [layers, B, N, N] of a transformer for images [B, H, W, 3] in [-1, 1]."""
        return self._merged(params, variables).attentions(self._normalised(image))

    def maps(self, params: Params, variables: Params, image: Array) -> Array:
        """Returns what MobileNetV2's head reads before its mean is taken, [B, h, w, C], for images in [-1, 1]."""
        return self._merged(params, variables).maps(self._normalised(image))

    def _merged(self, params: Params, variables: Params) -> nnx.Module:
        # NNX would write new statistics into numpy arrays in place
        return self.network.merge(params, jax.tree.map(jnp.asarray, variables))

    def _normalised(self, image: Array) -> Array:
        mean, std = (jnp.asarray(values).reshape(1, 1, 1, -1) for values in (self.mean, self.std))
        return (((image + 1) / 2 - mean) / std).astype(self.dtype)


def fresh(config: dict, dtype: DTypeLike) -> Classifier:
    """Returns the classifier of a config.json without published weights: preprocessing as its architecture's."""
    return Classifier(config, *ARCHITECTURES[config["model_type"]].preprocessing, dtype)


def describe(model_type: str, settings: dict, labels: tuple[str, ...], size: int) -> dict:
    """Returns a complete config.json for these settings of an architecture, for images of `size` pixels."""
    architecture = ARCHITECTURES[model_type]
    return {
        **architecture.defaults,
        **settings,
        "architectures": [architecture.name],
        "model_type": model_type,
        "image_size": size,
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
        "problem_type": SINGLE_LABEL,
        "dtype": "float32",
    }


TRANSFORMER = {
    "attention_probs_dropout_prob": 0.0,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "num_attention_heads": 12,
    "num_channels": 3,
    "num_hidden_layers": 12,
    "qkv_bias": True,
}

ARCHITECTURES = {
    "vit": Architecture(
        network=ViT,
        name="ViTForImageClassification",
        backbone="vit",
        defaults=TRANSFORMER
        | {"intermediate_size": 3072, "layer_norm_eps": 1e-12, "patch_size": 16, "pooling": "token"},
        preprocessing=HALVES,
    ),
    "dinov2": Architecture(
        network=Dinov2,
        name="Dinov2ForImageClassification",
        backbone="dinov2",
        defaults=TRANSFORMER
        | {
            "drop_path_rate": 0.0,
            "layer_norm_eps": 1e-6,
            "layerscale_value": 1.0,
            "mlp_ratio": 4,
            "patch_size": 14,
            "use_mask_token": False,  # a tensor of pretraining that no classifier reads
            "use_swiglu_ffn": False,
        },
        preprocessing=IMAGENET,
    ),
    "mobilenet_v2": Architecture(
        network=MobileNetV2,
        name="MobileNetV2ForImageClassification",
        backbone="mobilenet_v2",
        defaults={
            "classifier_dropout_prob": 0.0,  # ours has no dropout; transformers would default to 0.8
            "depth_divisible_by": 8,
            "depth_multiplier": 1.0,
            "expand_ratio": 6,
            "finegrained_output": True,
            "first_layer_is_expansion": True,
            "hidden_act": "relu6",
            "initializer_range": 0.02,
            "layer_norm_eps": 0.001,
            "min_depth": 8,
            "num_channels": 3,
            "output_stride": 32,
            "tf_padding": True,
        },
        preprocessing=HALVES,
    ),
}
