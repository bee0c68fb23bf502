"""The classifier that a run begins with: read from a Hugging Face folder, or drawn from a seed."""

from pathlib import Path

import jax.numpy as jnp

from dermjax.errors import UserError
from dermjax.models import vit
from dermjax.models.classifier import ARCHITECTURES, Classifier, Params, describe, fresh
from dermjax.training.optimizers import pick
from dermjax.weights import classifiers


def start(
    name: str,
    init: str,
    architectures: dict[str, dict],
    labels: tuple[str, ...],
    *,
    size: int,
    seed: int,
    precision: str,
) -> tuple[Classifier, Params, Params]:
    """Returns the named classifier, its params and its variables: the folder `init`, or architectures[name] for "".

    An architecture may go by its usual name, {"name": "S/16"}.

    Raises:
      UserError: the name or the precision is unknown, the folder is broken or of another classifier, or images of this
        size are not cut into whole patches.
    """
    kinds, dtype = pick("classifier", CLASSIFIERS, name), pick("precision", PRECISIONS, precision)
    if not init:
        settings = dict(architectures[name])
        settings |= vit.named(settings.pop("name")) if "name" in settings else {}
        _refuse_shape(name, settings, ARCHITECTURES[kinds[0]].defaults)
        classifier = fresh(describe(kinds[0], settings, labels, size), dtype)
        _refuse_part_of_a_patch(size, classifier)
        return classifier, *classifier.init(seed)
    classifier, trees = classifiers.read(Path(init), labels, size, dtype=dtype)
    kind = classifier.config["model_type"]
    if kind not in kinds:
        raise UserError(f"config.init = {init} is a {kind}, not a {name}; change config.init or config.classifier")
    _refuse_part_of_a_patch(size, classifier)
    return classifier, *trees


def _refuse_shape(name: str, settings: dict, defaults: dict) -> None:
    """Raises UserError for settings that an architecture has not, and for a width that its heads do not divide."""
    unknown = sorted(set(settings) - set(defaults))
    if unknown:
        raise UserError(f"config.architecture.{name}.{unknown[0]}: there are {', '.join(defaults)}")
    shape = defaults | settings
    if shape.get("hidden_size", 0) % shape.get("num_attention_heads", 1):
        width, heads = shape["hidden_size"], shape["num_attention_heads"]
        raise UserError(f"config.architecture.{name}: hidden_size = {width} is not a multiple of its {heads} heads")


def _refuse_part_of_a_patch(size: int, classifier: Classifier) -> None:
    """Raises UserError where pixels at two edges would be in no patch."""
    patch = classifier.config.get("patch_size", 1)
    if size % patch:
        near = max(1, round(size / patch)) * patch
        raise UserError(f"config.size = {size} is not a multiple of the classifier's patches of {patch}; give {near}")


# the model types that a folder of this classifier may hold; the first is what is built from nothing
CLASSIFIERS = {"vit": ("vit", "dinov2"), "mobilenetv2": ("mobilenet_v2",)}
PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
