"""Convolutions by Eigen in place of YNNPACK: compiler options of XLA for a CPU, where a process samples.

From jaxlib 0.10 on XLA gives convolutions to YNNPACK, unless an option names other work for it. On one core Eigen takes
0.76 to 0.99 of its time for the convolutions of Stable Diffusion (jaxlib 0.12: 0.43 to 1.02), and the numbers are the
same to rounding. In programs that are divided over two devices of one process they were silently wrong, one image in
six, and no test of a layer saw it. So the option is for a process of one device, once a self-check has passed.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from dermjax.models import nnx_tree
from dermjax.models.layers import ResnetBlock

TYPES = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"  # YNNPACK's default work but convolutions
OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": TYPES}
TOLERANCE, TIMES = 1e-5, 4  # of the largest value, and how often it is asked: a race does not always show


def options() -> dict[str, str]:
    """Returns the compiler options of what samples in this process: Eigen's convolutions where they are right."""
    alone = jax.default_backend() == "cpu" and jax.local_device_count() == 1
    return OPTIONS if alone and is_right() else {}


@cache
def is_right() -> bool:
    """Returns whether a convolution and a block of the UNet, random, give with the options what they give without.

    False, too, for an XLA that has no such option. It takes about a second, once a process.
    """
    block = nnx_tree.split(partial(ResnetBlock, 32, 64, time=16, groups=8, epsilon=1e-5, dtype=jnp.float32))
    rng = np.random.default_rng(0)
    params = nnx_tree.draw(block.shapes[0], {}, rng)
    x, temb = rng.standard_normal((2, 16, 16, 32), np.float32), rng.standard_normal((2, 16), np.float32)

    def work(params: nnx_tree.Params, x: jax.Array, temb: jax.Array) -> tuple[jax.Array, jax.Array]:
        network = block.merge(params)
        return network.conv1(x), network(x, temb)

    lowered = jax.jit(work).lower(params, x, temb)
    try:
        with_options = lowered.compile(OPTIONS)
    except jax.errors.JaxRuntimeError:  # no such option in this version
        return False
    plain = lowered.compile()(params, x, temb)
    return all(map(_equal, *zip(*[(plain, with_options(params, x, temb)) for _ in range(TIMES)], strict=True)))


def _equal(plain: tuple[jax.Array, ...], with_options: tuple[jax.Array, ...]) -> bool:
    pairs = zip(map(np.asarray, plain), map(np.asarray, with_options), strict=True)
    return all(np.abs(a - b).max() <= TOLERANCE * np.abs(a).max() for a, b in pairs)
