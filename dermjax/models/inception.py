"""InceptionV3 (Szegedy et al. 2015, arXiv 1512.00567) as the Frechet inception distance has it, weights of 2015-12-05.

Attribute names are those of torchvision, which pytorch-fid's file keeps. It differs from torchvision's network as
TensorFlow's does: averages leave the zeros at the border out, and the last block pools by its maximum.

Shapes: B batch, h w features, C channels.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
from flax import nnx

from dermjax.models import nnx_tree
from dermjax.models.layers import NO_KEYS, UNREAD
from dermjax.models.nnx_tree import Module

Array = jax.Array
# Of features, for whatever is kept of them: raise it where they change by more than rounding
NUMERIC_VERSION = 1
SIZE, EPSILON = 299, 1e-3
POOLS = {
    "average": partial(nnx.avg_pool, window_shape=(3, 3), strides=(1, 1), padding="SAME", count_include_pad=False),
    "maximum": partial(nnx.max_pool, window_shape=(3, 3), strides=(1, 1), padding="SAME"),
    "halve": partial(nnx.max_pool, window_shape=(3, 3), strides=(2, 2), padding="VALID"),
}


class Conv(Module):
    """A convolution without bias, batch normalisation by the file's statistics, ReLU."""

    def __init__(self, cin: int, cout: int, size: int | tuple[int, int], stride: int = 1, padding: str = "SAME"):
        window = (size, size) if isinstance(size, int) else size
        padding = "VALID" if stride > 1 else padding
        self.conv = nnx.Conv(cin, cout, window, strides=stride, padding=padding, use_bias=False, **UNREAD)
        self.bn = nnx.BatchNorm(cout, use_running_average=True, epsilon=EPSILON, rngs=NO_KEYS)

    def __call__(self, x: Array) -> Array:
        return nnx.relu(self.bn(self.conv(x)))


class Mixed(Module):
    """Paths side by side, of convolutions (name, channels, size, stride), pools, and forks of two convolutions."""

    def __init__(self, cin: int, paths: tuple):
        self.paths, self.width = paths, 0
        for path in paths:
            width = cin
            for step in path:
                if step not in POOLS:
                    for name, cout, *shape in fork(step):
                        setattr(self, name, Conv(width, cout, *shape))
                    width = sum(cout for _, cout, *_ in fork(step))
            self.width += width

    def __call__(self, x: Array) -> Array:
        return jnp.concatenate([self.walk(x, path) for path in self.paths], axis=-1)

    def walk(self, x: Array, path: tuple) -> Array:
        """What one path makes of x."""
        for step in path:
            if step in POOLS:
                x = POOLS[step](x)
            else:
                x = jnp.concatenate([getattr(self, name)(x) for name, *_ in fork(step)], axis=-1)
        return x


def fork(step: tuple) -> tuple:
    """The convolutions of a step: itself, or the two that it forks into."""
    return step if isinstance(step[0], tuple) else (step,)


DOUBLE = (("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3))
FLAT, TALL = (1, 7), (7, 1)


def fine(pool: int) -> tuple:
    """The paths of the blocks on 35 x 35 pixels."""
    return (
        (("branch1x1", 64, 1),),
        (("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)),
        (*DOUBLE, ("branch3x3dbl_3", 96, 3)),
        ("average", ("branch_pool", pool, 1)),
    )


def middle(width: int) -> tuple:
    """The paths of the blocks on 17 x 17 pixels."""
    return (
        (("branch1x1", 192, 1),),
        (("branch7x7_1", width, 1), ("branch7x7_2", width, FLAT), ("branch7x7_3", 192, TALL)),
        (("branch7x7dbl_1", width, 1), ("branch7x7dbl_2", width, TALL), ("branch7x7dbl_3", width, FLAT),
         ("branch7x7dbl_4", width, TALL), ("branch7x7dbl_5", 192, FLAT)),
        ("average", ("branch_pool", 192, 1)),
    )  # fmt: skip


def coarse(pool: str) -> tuple:
    """The paths of the blocks on 8 x 8 pixels."""
    forks = [((f"{name}a", 384, (1, 3)), (f"{name}b", 384, (3, 1))) for name in ("branch3x3_2", "branch3x3dbl_3")]
    return (
        (("branch1x1", 320, 1),),
        (("branch3x3_1", 384, 1), forks[0]),
        (("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3), forks[1]),
        (pool, ("branch_pool", 192, 1)),
    )


STEM = {  # channels, size, stride, padding, or a pool
    "Conv2d_1a_3x3": (32, 3, 2),
    "Conv2d_2a_3x3": (32, 3, 1, "VALID"),
    "Conv2d_2b_3x3": (64, 3),
    "maxpool1": "halve",
    "Conv2d_3b_1x1": (80, 1),
    "Conv2d_4a_3x3": (192, 3, 1, "VALID"),
    "maxpool2": "halve",
}
BLOCKS = {
    "Mixed_5b": fine(32),
    "Mixed_5c": fine(64),
    "Mixed_5d": fine(64),
    "Mixed_6a": ((("branch3x3", 384, 3, 2),), (*DOUBLE, ("branch3x3dbl_3", 96, 3, 2)), ("halve",)),
    "Mixed_6b": middle(128),
    "Mixed_6c": middle(160),
    "Mixed_6d": middle(160),
    "Mixed_6e": middle(192),
    "Mixed_7a": (
        (("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, 2)),
        (("branch7x7x3_1", 192, 1), ("branch7x7x3_2", 192, FLAT), ("branch7x7x3_3", 192, TALL),
         ("branch7x7x3_4", 192, 3, 2)),
        ("halve",),
    ),
    "Mixed_7b": coarse("average"),
    "Mixed_7c": coarse("maximum"),
}  # fmt: skip


class Inception(Module):
    """Images [B, 299, 299, 3] in [-1, 1] to features [B, 2048]."""

    def __init__(self):
        width = 3
        for name, layer in STEM.items():
            if layer not in POOLS:
                setattr(self, name, Conv(width, *layer))
                width = layer[0]
        for name, paths in BLOCKS.items():
            setattr(self, name, Mixed(width, paths))
            width = getattr(self, name).width

    def __call__(self, x: Array) -> Array:
        for name, layer in STEM.items():
            x = POOLS[layer](x) if layer in POOLS else getattr(self, name)(x)
        for name in BLOCKS:
            x = getattr(self, name)(x)
        return x.mean((1, 2))


@cache
def network() -> nnx_tree.Network:
    """The network without its arrays, divided into parameters and statistics."""
    return nnx_tree.split(Inception, nnx.Param, nnx.BatchStat)
