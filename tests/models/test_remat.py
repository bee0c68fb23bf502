"""Rematerialisation changes what is kept between the passes of the UNet, and no number.

XLA drops the barriers on a CPU, so the memory of the compiled step says nothing here: what JAX keeps is counted.
"""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np

from dermjax.models.stable_diffusion import TINY, StableDiffusion

WORDS = {"bos_token_id": 0, "eos_token_id": 2, "vocab_size": 8}
SMALL = {"block_out_channels": [32, 32], "sample_size": 8, "attention_head_dim": 2,
         "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
         "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}  # fmt: skip


def gradient(remat, capsys):
    """The gradient of a loss of the UNet, and the numbers that are kept for its backward pass."""
    configs = TINY | {"text_encoder": TINY["text_encoder"] | WORDS, "unet": TINY["unet"] | SMALL}
    sd = dataclasses.replace(StableDiffusion(configs, None, jnp.float32), remat=remat)
    params = {"unet": sd.init(0)["unet"]}
    rng = np.random.default_rng(0)
    x, context = (rng.normal(size=shape).astype(np.float32) for shape in ((4, 32, 32, 4), (4, 7, 128)))

    def loss(params):
        return jnp.square(sd.unet(params, x, jnp.array([1, 100, 500, 999]), context)).mean()

    jax.ad_checkpoint.print_saved_residuals(loss, params)
    kept = [line for line in capsys.readouterr().out.splitlines() if "from the argument" not in line]
    shapes = [re.match(r"\w+\[([\d,]*)\]", line)[1] for line in kept]
    return jax.jit(jax.grad(loss))(params), sum(math.prod(map(int, filter(None, s.split(",")))) for s in shapes)


def test_remat_keeps_less_and_changes_no_gradient(capsys):
    plain, everything = gradient("none", capsys)
    amounts = {}
    for remat in ("attention", "blocks"):
        found, amounts[remat] = gradient(remat, capsys)
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(found), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert amounts["blocks"] < 0.5 * amounts["attention"] < 0.4 * everything
