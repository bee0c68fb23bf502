"""The UNet taken apart: its words once a prompt, its depths apart from its top. Parity is in tests/weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax.models import nnx_tree
from dermjax.models.unet import UNet

CONFIG = {
    "attention_head_dim": 2,
    "block_out_channels": [8, 16],
    "cross_attention_dim": 6,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 1,
    "norm_eps": 1e-5,
    "norm_num_groups": 4,
    "out_channels": 4,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}


@pytest.mark.parametrize("layers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_top_over_its_own_depths_is_the_whole(layers):
    config = CONFIG | {"layers_per_block": layers}
    network = nnx_tree.split(lambda: UNet(config, dtype=jnp.float32))
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.2, leaf.shape), jnp.float32), network.shapes[0])
    key = jax.random.key(0)
    x, t, context = jax.random.normal(key, (2, 8, 8, 4)), jnp.array([3.0, 500.0]), jax.random.normal(key, (2, 5, 6))

    @jax.jit
    def taken_apart(state, x, t, context):
        unet = network.merge(state)
        words = unet.words(context)
        prediction, depths = unet.full(x, t, words)
        return unet(x, t, context), prediction, unet.shallow(x, t, words, depths), depths

    called, whole, shallow, depths = taken_apart(state, x, t, context)
    assert depths.shape == (2, 8, 8, 16 if layers == 1 else 8), "what enters the last two layers of the way up"
    np.testing.assert_allclose(whole, called, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(shallow, called, rtol=1e-5, atol=1e-6)
