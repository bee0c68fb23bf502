"""How long a classifier takes on a processor, from XLA's own count of its arithmetic."""

from functools import partial

import jax
import numpy as np

from dermjax import machine
from dermjax.classification.recipes import Recipe
from dermjax.models.classifier import Classifier

# operations that a core does in a second of training, measured in float32 on one with AVX2; depthwise convolutions wait
# for memory
A_CORE_A_SECOND = {"vit": 27e9, "dinov2": 27e9, "mobilenet_v2": 8e9}
GRADIENT = 3  # passes that one with gradients counts for


def operations(classifier: Classifier, recipe: Recipe, size: int) -> tuple[float, float]:
    """Returns the arithmetic of one image below the recipe's cut, once an image, and above it, once a look."""
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    if recipe.last is None:
        return 0.0, counted(partial(classifier.logits, train=False), *classifier.shapes, image)
    lower = partial(classifier.lower, last=recipe.last)
    cut = jax.eval_shape(lower, *classifier.shapes, image)
    upper = partial(classifier.upper, last=recipe.last, train=False)
    return counted(lower, *classifier.shapes, image), counted(upper, *classifier.shapes, cut)


def processor_seconds(classifier: Classifier, work: float) -> float:
    """Returns about how long all cores of this machine take for so many operations of a classifier."""
    return work / A_CORE_A_SECOND[classifier.config["model_type"]] / machine.cores()


def counted(function, *arguments) -> float:
    """Returns the floating-point operations of a function, as XLA counts them before it optimises."""
    return float(jax.jit(function).lower(*arguments).cost_analysis()["flops"])
