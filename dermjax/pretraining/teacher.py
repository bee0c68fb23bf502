"""What a frozen DINOv2 sees in an image: a perceptual distance for the autoencoder, and features to align a UNet with.

It is used while the base model is trained and ships with nothing.
"""

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp

from dermjax.errors import UserError
from dermjax.models.classifier import Classifier
from dermjax.models.nnx_tree import Params
from dermjax.weights import classifiers

DEPTHS = (2, 4, 6, 8)  # layers whose tokens are compared: texture first, meaning later


@dataclass(frozen=True, eq=False)
class Teacher:
    """A network without its arrays; `params` of the methods are those that `read` gives."""

    network: Classifier

    def distance(self, params: Params, image: jax.Array, other: jax.Array) -> jax.Array:
        """Returns a scalar, 0 for equal images [B, H, W, 3] in [-1, 1] and about 1 for unrelated ones.

        It is 1 - the correlation of the tokens' features, a mean over tokens and over DEPTHS.
        """
        both = jnp.concatenate([image, other])
        apart = [
            0.5 * jnp.square(jnp.subtract(*jnp.split(standardised(tokens), 2))).mean()
            for tokens in self.network.tokens(params, {}, both, DEPTHS)
        ]
        return sum(apart) / len(apart)


def standardised(tokens: jax.Array) -> jax.Array:
    """Tokens [B, N, D] with mean 0 and variance 1 over D each."""
    return jax.nn.standardize(tokens, axis=-1)


def read(folder: str, size: int) -> tuple[Teacher, Params]:
    """Returns the teacher in a folder of DINOv2 for images of `size` pixels, a multiple of its patches, and its arrays.

    Raises:
      UserError: the folder holds no DINOv2, or the size is not a multiple of its patches.
    """
    classifier, (params, _) = classifiers.read(Path(folder), ("",), size)
    kind, patch = classifier.config["model_type"], classifier.config.get("patch_size", 1)
    if kind != "dinov2":
        raise UserError(f"config.teacher = {folder} is a {kind}; give a folder of DINOv2")
    if size % patch:
        raise UserError(
            f"config.teacher = {folder} has patches of {patch} pixels; give crops of a multiple, not {size}"
        )
    return Teacher(classifier), params
