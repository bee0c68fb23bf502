"""The classifier that a run begins with: read from a Hugging Face folder, or drawn from a seed."""

from pathlib import Path

import jax.numpy as jnp

from dermjax.errors import UserError
from dermjax.models import vit
from dermjax.models.classifier import Classifier, Params, describe, fresh
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
      UserError: the name or the precision is unknown, or the folder is broken or of another classifier.
    """
    kinds, dtype = pick("classifier", CLASSIFIERS, name), pick("precision", PRECISIONS, precision)
    if not init:
        settings = dict(architectures[name])
        settings |= vit.named(settings.pop("name")) if "name" in settings else {}
        classifier = fresh(describe(kinds[0], settings, labels, size), dtype)
        return classifier, *classifier.init(seed)
    classifier, trees = classifiers.read(Path(init), labels, size, dtype=dtype)
    kind = classifier.config["model_type"]
    if kind not in kinds:
        raise UserError(f"config.init = {init} is a {kind}, not a {name}; change config.init or config.classifier")
    return classifier, *trees


# the model types that a folder of this classifier may hold; the first is what is built from nothing
CLASSIFIERS = {"vit": ("vit", "dinov2"), "mobilenetv2": ("mobilenet_v2",)}
PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
