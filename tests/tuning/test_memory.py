"""The memory of one step of tuning Stable Diffusion 1.5 at 512 px, as the TPU compiler plans it; no TPU is needed.

It needs libtpu: the package of that name, or its file in TPU_LIBRARY_PATH. On a CPU XLA drops what rematerialisation
asks for, so its own plan says nothing about accelerators.
"""

import importlib.util
import os
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from dermjax import sharding
from dermjax.models.stable_diffusion import SD15, StableDiffusion
from dermjax.training import loop, optimizers
from dermjax.training.state import create
from dermjax.tuning import dreambooth, parts
from dermjax.tuning.validation import PLAIN

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("TPU_LIBRARY_PATH") and not importlib.util.find_spec("libtpu"), reason="needs libtpu"
    ),
]
GB = 1e9
TOPOLOGY = "v6e:1x1"  # a TPU v6e: 32 GB and 918 TFLOP/s in bfloat16
LORA = {"unet": "lora", "text_encoder": "frozen"}
FULL = {"unet": "full", "text_encoder": "frozen"}
CASES = {  # what is tuned, batch, optimiser, EMA, remat, precision, and the GB that it must fit in
    "LoRA rank 4, batch 2": (LORA, 2, "adamw", False, "blocks", "bfloat16", 8),
    "LoRA rank 4, batch 2, no remat": (LORA, 2, "adamw", False, "none", "bfloat16", None),
    "UNet, batch 4, AdamW, EMA": (FULL, 4, "adamw", True, "blocks", "bfloat16", 24),
    "UNet, batch 4, eight-bit AdamW, EMA": (FULL, 4, "adamw8bit", True, "blocks", "bfloat16", 24),
}


def shaped(tree, places):
    """The shapes of a tree with shardings, as a compiler takes them."""
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, places)


def planned(tuned, batch, optimizer, ema, remat, precision) -> tuple[float, float, float, float]:
    """The compiler's plan of a step: GB during it, GB between two steps, TFLOP, and its guess of the seconds."""
    devices = np.array(topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices)
    grid = Mesh(devices.reshape(-1, 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    _, arithmetic = parts.PRECISIONS[precision]
    sd = StableDiffusion(SD15, Path(), arithmetic, remat)
    trained, frozen = jax.eval_shape(
        partial(parts.divided, tuned=tuned, rank=4, targets=("attention",), seed=0, words=0, precision=precision),
        sd.shapes,
    )
    rule = optimizers.build(optimizer, rate=1e-4, warmup=500, steps=1000, schedule="constant", weight_decay=0.01,
                            clip=1.0)  # fmt: skip
    state = jax.eval_shape(lambda params: create(params, {}, rule, ema=ema), trained)
    constants = frozen | {"contexts": jax.ShapeDtypeStruct((3, 77, 768), jnp.float32)}
    places = sharding.over(state, sharding.RULES, grid)
    loss = dreambooth.loss(sd, partial(parts.assembled, alpha=4.0), **PLAIN)
    step = loop.compiled(loss, rule, 0.999 if ema else 0.0, 1, places, grid)
    rows = {"moments": ((2, 64, 64, 8), jnp.float16), "prompt": ((), jnp.int32), "weight": ((), jnp.float32),
            "row": ((), jnp.int32)}  # fmt: skip
    divided = jax.sharding.NamedSharding(grid, jax.sharding.PartitionSpec(("data", "fsdp")))
    whole = batch * grid.size
    given = {
        name: jax.ShapeDtypeStruct((whole, *shape), kind, sharding=divided) for name, (shape, kind) in rows.items()
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    compiled = step.lower(
        shaped(state, places),
        shaped(constants, sharding.over(constants, sharding.RULES, grid)),
        given,
        jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=sharding.replicated(grid)),
    ).compile()  # fmt: skip
    plan, costs = compiled.memory_analysis(), compiled.cost_analysis()
    between = plan.argument_size_in_bytes
    peak = between + plan.output_size_in_bytes - plan.alias_size_in_bytes + plan.temp_size_in_bytes
    return peak / GB, between / GB, costs["flops"] / 1e12, costs.get("optimal_seconds", np.nan)


@pytest.mark.parametrize("case", CASES)
def test_a_step_fits(case, capsys):
    *what, room = CASES[case]
    peak, between, work, seconds = planned(*what)
    with capsys.disabled():
        print(f"\n{case}: {peak:.2f} GB during a step, {between:.2f} between, {work:.2f} TFLOP, {seconds:.3f} s")
    assert room is None or peak < room
