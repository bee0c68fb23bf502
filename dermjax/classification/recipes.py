"""Which part of a classifier is trained, how fast each layer, on what loss, and how much arithmetic that is.

Recipes: `full` fine-tunes the whole network on images; `last` fine-tunes the top blocks and the head, `frozen` the head
alone (a linear probe), both on features of the frozen blocks below, which are computed once an image (features.py). The
loop sees one loss either way.

Depths: 0 embeddings or stem, i + 1 block i, n + 1 what is above the n blocks.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from ml_collections import ConfigDict

from dermjax import machine
from dermjax.errors import UserError
from dermjax.models.classifier import Classifier, Params
from dermjax.training import optimizers
from dermjax.training.optimizers import pick
from dermjax.training.step import Loss
from dermjax.weights.torch_layout import flatten, unflatten

HEAD = "classifier"
CUTS = {"full": lambda blocks: None, "last": lambda blocks: blocks, "frozen": lambda blocks: 0}
ABOVE = re.compile(r"\.(layernorm|conv_1x1)\.")
BLOCK = re.compile(r"\.layer\.(\d+)\.")
# operations that a core does in a second of training, measured in float32 on one with AVX2; depthwise convolutions wait
# for memory
A_CORE_A_SECOND = {"vit": 27e9, "dinov2": 27e9, "mobilenet_v2": 8e9}
GRADIENT = 3  # passes that one with gradients counts for


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The cut: `last` blocks are trained besides the head, None for all of the network."""

    last: int | None

    def logits(self, classifier: Classifier, params: Params, variables: Params, x: Array, *, train: bool):
        """Returns (logits [B, L], variables) of images, or of the frozen part's features where there is a cut."""
        if self.last is None:
            return classifier.logits(params, variables, x, train=train)
        return classifier.upper(params, variables, x, self.last, train=train)


def recipe(name: str, blocks: int, params: Params) -> Recipe:
    """Returns the named recipe; UserError for another name or more blocks than there are."""
    most = depth_of_top(params) - 1
    if name == "last" and not 0 < blocks <= most:
        raise UserError(f"config.last_blocks = {blocks}: the classifier has {most} blocks; give 1 to {most}")
    return Recipe(last=pick("config.recipe", CUTS, name)(blocks))


def depth(path: str, top: int) -> int:
    """Returns the depth of a parameter by its dotted path."""
    if path.startswith(f"{HEAD}.") or ABOVE.search(path):
        return top
    block = BLOCK.search(path)
    return int(block[1]) + 1 if block else 0


def depth_of_top(params: Params) -> int:
    """Returns n + 1 for a classifier of n blocks."""
    return 2 + max(int(block[1]) for path in flatten(params) if (block := BLOCK.search(path)))


def divide(params: Params, chosen: Recipe) -> tuple[Params, Params]:
    """Returns the (trainable, frozen) part of a tree of parameters."""
    if chosen.last is None:
        return params, {}
    flat, top = flatten(params), depth_of_top(params)

    def trainable(path: str) -> bool:
        return path.startswith(f"{HEAD}.") or (chosen.last > 0 and depth(path, top) >= top - chosen.last)

    parts = ({path: leaf for path, leaf in flat.items() if trainable(path) == wanted} for wanted in (True, False))
    return tuple(unflatten(part) for part in parts)


def join(trainable: Params, frozen: Params) -> Params:
    """Returns the complete tree of its two parts."""
    return unflatten(flatten(trainable) | flatten(frozen)) if frozen else trainable


def loss(classifier: Classifier, chosen: Recipe, smoothing: float, real_rows: int = 0) -> Loss:
    """Returns the loss of the loop: cross-entropy with label smoothing (arXiv 1512.00567, section 7).

    A batch may bring soft "targets" [B, L] in place of its labels, and "weight" [B] of each image, 1 in the mean.
    real_rows: above 0, batch statistics are apart, of so many real images and of the synthetic ones (`apart`).
    """
    forward = partial(apart, real_rows=real_rows) if real_rows else together

    def cross_entropy(params, variables, constants, batch, key):
        params = join(params, constants.get("frozen", {}))
        logits, variables = forward(partial(chosen.logits, classifier, params, variables, train=True), batch)
        targets = batch.get("targets", jax.nn.one_hot(batch["label"], logits.shape[-1]))
        accuracy = (logits.argmax(-1) == batch["label"]).mean()
        values = optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, smoothing))
        values = values * batch["weight"] if "weight" in batch else values
        return values.mean(), (variables, {"accuracy": accuracy})

    return cross_entropy


def together(logits: Callable[[Array], tuple[Array, Params]], batch: dict[str, Array]) -> tuple[Array, Params]:
    """Returns (logits [B, L], variables) of a batch whose statistics are those of all its images."""
    return logits(batch["image"])


def apart(
    logits: Callable[[Array], tuple[Array, Params]], batch: dict[str, Array], *, real_rows: int
) -> tuple[Array, Params]:
    """Returns (logits [B, L], variables) where real and synthetic images are normalised each by their own statistics.

    The running ones, by which images are judged later, are of real images alone: AdvProp's auxiliary batch norm (Xie et
    al. 2020, arXiv 1911.09665) with scale and shift in common. real_rows: real images in each batch.
    """
    order = jnp.argsort(batch["synthetic"], stable=True)
    real, synthetic = jnp.split(batch["image"][order], [real_rows])
    (of_real, variables), (of_synthetic, _) = logits(real), logits(synthetic)
    return jnp.concatenate([of_real, of_synthetic])[jnp.argsort(order)], variables


def optimizer(config: ConfigDict, params: Params) -> optax.GradientTransformation:
    """Returns the update rule of a config for a classifier with these parameters."""
    rule = optimizers.build(
        config.optimizer, rate=config.rate, warmup=config.warmup, steps=config.steps, schedule=config.schedule,
        weight_decay=config.weight_decay, clip=config.clip,
    )  # fmt: skip
    return rule if config.layer_decay == 1.0 else optax.chain(rule, layerwise(config.layer_decay, params))


def layerwise(decay: float, params: Params) -> optax.GradientTransformation:
    """Returns the transformation that slows every layer by `decay` for each layer above it (arXiv 2106.08254, 3.2).

    It goes after the optimiser, so that weight decay slows as well. params: the complete classifier's.
    """
    top = depth_of_top(params)

    def slow(updates: Params, _) -> Params:
        return unflatten({path: decay ** (top - depth(path, top)) * each for path, each in flatten(updates).items()})

    return optax.stateless(slow)


def operations(classifier: Classifier, chosen: Recipe, size: int) -> tuple[float, float]:
    """Returns XLA's count of the arithmetic of one image below the cut, once an image, and above it, every time."""

    def count(function, *arguments) -> float:
        return float(jax.jit(function).lower(*classifier.shapes, *arguments).cost_analysis()["flops"])

    image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    if chosen.last is None:
        return 0.0, count(partial(classifier.logits, train=False), image)
    lower = partial(classifier.lower, last=chosen.last)
    cut = jax.eval_shape(lower, *classifier.shapes, image)
    return count(lower, image), count(partial(classifier.upper, last=chosen.last, train=False), cut)


def processor_seconds(classifier: Classifier, work: float) -> float:
    """Returns about how long all cores of this machine take for so many operations of a classifier."""
    return work / A_CORE_A_SECOND[classifier.config["model_type"]] / machine.cores()
