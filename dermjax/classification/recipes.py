"""Which part of a classifier is trained, how fast each layer, and on what loss.

A recipe cuts the network below its `last` last blocks: `full` trains everything, on images; `last` trains what is above
the cut and `frozen` the head alone, both on what the frozen part makes of the images, which is computed once an image
(features.py). The loop sees one loss either way.

Depths: 0 embeddings or stem, i + 1 block i, n + 1 what is above the n blocks.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import jax
import optax
from jax import Array
from ml_collections import ConfigDict

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


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The cut: `last` blocks are trained besides the head, None for the whole network."""

    last: int | None

    @property
    def cached(self) -> bool:
        """Whether training sees features of the frozen part instead of images."""
        return self.last is not None

    def logits(self, classifier: Classifier, params: Params, variables: Params, x: Array, *, train: bool):
        """Returns (logits [B, L], variables) of what training sees."""
        if self.last is None:
            return classifier.logits(params, variables, x, train=train)
        return classifier.upper(params, variables, x, self.last, train=train)


def recipe(name: str, blocks: int, params: Params) -> Recipe:
    """Returns the named recipe; UserError for another name or more blocks than there are."""
    there = depth_of_top(params) - 1
    if name == "last" and not 0 < blocks <= there:
        raise UserError(f"config.last_blocks = {blocks}: the classifier has {there} blocks; give 1 to {there}")
    return Recipe(last=pick("config.recipe", CUTS, name)(blocks))


def check_mixing(name: str, recipe: str) -> None:
    """Raises UserError where a mixture cannot be made of what a recipe trains on.

    A mean of two images' features is as good as one of images (manifold mixup, arXiv 1806.05236), a window of features
    shows no part of an image.
    """
    if name == "cutmix" and recipe != "full":
        raise UserError(
            f"config.mixing = cutmix cuts windows out of images, and config.recipe = {recipe} trains on features; "
            "take mixup or none, or the recipe full"
        )


def depth(path: str, top: int) -> int:
    """Returns the depth of a parameter by its dotted path."""
    if path.startswith(f"{HEAD}.") or ABOVE.search(path):
        return top
    block = BLOCK.search(path)
    return int(block[1]) + 1 if block else 0


def depth_of_top(params: Params) -> int:
    """Returns n + 1 for a classifier of n blocks."""
    return 2 + max(int(found[1]) for path in flatten(params) if (found := BLOCK.search(path)))


def divided(params: Params, chosen: Recipe) -> tuple[Params, Params]:
    """Returns the (trained, frozen) part of a tree of parameters."""
    if chosen.last is None:
        return params, {}
    flat, top = flatten(params), depth_of_top(params)

    def trained(path: str) -> bool:
        return path.startswith(f"{HEAD}.") or (chosen.last > 0 and depth(path, top) >= top - chosen.last)

    parts = ({path: leaf for path, leaf in flat.items() if trained(path) == wanted} for wanted in (True, False))
    return tuple(unflatten(part) for part in parts)


def joined(trained: Params, frozen: Params) -> Params:
    """Returns the whole tree of its two parts."""
    return unflatten(flatten(trained) | flatten(frozen)) if frozen else trained


def layerwise(decay: float, params: Params) -> optax.GradientTransformation:
    """Returns the transformation that slows every layer by `decay` for each layer above it (arXiv 2106.08254, 3.2).

    It goes after the optimiser, so that weight decay slows as well. params: the whole classifier's.
    """
    top = depth_of_top(params)

    def slowed(updates: Params, _) -> Params:
        factors = {path: decay ** (top - depth(path, top)) * update for path, update in flatten(updates).items()}
        return unflatten(factors)

    return optax.stateless(slowed)


def loss(classifier: Classifier, chosen: Recipe, smoothing: float) -> Loss:
    """Returns the loss of the loop: cross-entropy with label smoothing (arXiv 1512.00567, section 7).

    A batch may bring "targets", mixed labels [B, L], in place of its labels.
    """

    def cross_entropy(params, variables, constants, batch, key):
        whole = joined(params, constants.get("frozen", {}))
        logits, variables = chosen.logits(classifier, whole, variables, batch["image"], train=True)
        targets = batch.get("targets", jax.nn.one_hot(batch["label"], logits.shape[-1]))
        accuracy = (logits.argmax(-1) == batch["label"]).mean()
        value = optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, smoothing)).mean()
        return value, (variables, {"accuracy": accuracy})

    return cross_entropy


Forward = Callable[[Params, Params, Array], Array]


def optimizer(config: ConfigDict, params: Params) -> optax.GradientTransformation:
    """The update rule of a config for a classifier with these parameters."""
    rule = optimizers.build(
        config.optimizer, rate=config.rate, warmup=config.warmup, steps=config.steps, schedule=config.schedule,
        weight_decay=config.weight_decay, clip=config.clip,
    )  # fmt: skip
    if config.layer_decay == 1.0:
        return rule
    return optax.chain(rule, layerwise(config.layer_decay, params))
