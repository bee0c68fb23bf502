"""A patch discriminator (Isola et al. 2017, arXiv 1611.07004) for the autoencoder's texture: real or reconstructed?"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dermjax.models import nnx_tree
from dermjax.models.layers import conv
from dermjax.models.nnx_tree import Params

WIDTHS = (32, 64, 128)


class Discriminator(nnx.Module):
    """Images [B, H, W, 3] to a score for each patch [B, H/8, W/8, 1], higher for a photograph."""

    def __init__(self):
        widths = zip((3, *WIDTHS), WIDTHS, strict=False)
        self.layers = nnx.List(conv(cin, cout, 4, stride=2, padding=1, dtype=jnp.float32) for cin, cout in widths)
        self.head = conv(WIDTHS[-1], 1, 3, padding=1, dtype=jnp.float32)

    def __call__(self, image: jax.Array) -> jax.Array:
        for layer in self.layers:
            image = nnx.leaky_relu(layer(image), 0.2)
        return self.head(image)


@functools.cache
def network() -> nnx_tree.Network:
    """Returns the discriminator without its arrays."""
    return nnx_tree.split(Discriminator)


def init(seed: int) -> Params:
    """Returns freshly drawn parameters, numpy arrays."""
    return nnx_tree.draw(network().shapes[0], {}, np.random.default_rng(seed))


def hinge(params: Params, image: jax.Array, again: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the loss of who reconstructed `again`, through which no gradient reaches the discriminator, and its own.

    They are those of the hinge (Lim and Ye 2017, arXiv 1705.02894): the mean of -D(again), and that of
    max(0, 1 - D(image)) + max(0, 1 + D(again)).
    """
    fixed, judge = network().merge(jax.lax.stop_gradient(params)), network().merge(params)
    own = jax.nn.relu(1 - judge(image)).mean() + jax.nn.relu(1 + judge(jax.lax.stop_gradient(again))).mean()
    return -fixed(again).mean(), own
