"""The memory of one step of tuning Stable Diffusion 1.5 at 512 px, as the compiler of an accelerator plans it.

On a GPU it is the GPU's. Without one it is the TPU compiler's, which needs no TPU but libtpu: the package of that name,
or its file in TPU_LIBRARY_PATH. On a CPU XLA drops what rematerialisation asks for, so its own plan says nothing.
"""

import importlib.util
import os
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from dermjax import sharding
from dermjax.models.stable_diffusion import SD15, StableDiffusion
from dermjax.tuning import trainable

GPU = jax.default_backend() == "gpu"
TPU = os.environ.get("TPU_LIBRARY_PATH") or importlib.util.find_spec("libtpu")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not GPU and not TPU, reason="needs a GPU or libtpu")]
GB = 1e9
TOPOLOGY = "v6e:1x1"  # a TPU v6e: 32 GB and 918 TFLOP/s in bfloat16
CASES = {  # how the UNet is tuned, batch, optimiser, decay of the average, remat, and the GB that it must fit in
    "LoRA rank 4, batch 2": ("lora", 2, "adamw", 0.0, "blocks", 8),
    "LoRA rank 4, batch 2, no remat": ("lora", 2, "adamw", 0.0, "none", 8),
    "LoRA rank 4, batch 8, no remat": ("lora", 8, "adamw", 0.0, "none", None),
    "UNet, batch 4, AdamW, EMA": ("full", 4, "adamw", 0.999, "blocks", 24),
    "UNet, batch 4, eight-bit AdamW, EMA": ("full", 4, "adamw8bit", 0.999, "blocks", 24),
    "UNet, batch 4, AdamW, EMA, no remat": ("full", 4, "adamw", 0.999, "none", None),
    "preset lora": ("lora", 8, "adamw", 0.0, "blocks", None),
}
LORA = runpy.run_path(str(Path(__file__).parents[2] / "configs" / "tune.py"))["get_config"]("lora")


def shaped(tree, places):
    """The shapes of a tree with shardings, as a compiler takes them."""
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, places)


def mesh() -> Mesh:
    """The one device that a step is planned for."""
    if GPU:
        return sharding.mesh(1, 1)
    devices = np.array(topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices)
    return Mesh(devices.reshape(-1, 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


@pytest.mark.parametrize("case", CASES)
def test_a_step_fits(case, tuning_step, capsys):
    how, batch, optimizer, ema_decay, remat, room = CASES[case]
    grid = mesh()
    _, arithmetic = trainable.PRECISIONS["bfloat16"]
    sd = StableDiffusion(SD15, Path(), arithmetic, remat)
    said, also = jax.ShapeDtypeStruct((3, 77, 768), jnp.float32), {}
    if case == "preset lora":
        assert (batch, optimizer, remat) == (LORA.batch, LORA.optimizer, LORA.remat)
        said = jax.ShapeDtypeStruct((3, 77), jnp.int32)
        also = {"text": LORA.tuned.text_encoder, "rank": LORA.lora.rank, "targets": LORA.lora.targets}
    step, state, constants, places = tuning_step(sd, sd.shapes, grid, how=how, optimizer=optimizer,
                                                 ema_decay=ema_decay, precision="bfloat16", said=said,
                                                 **also)  # fmt: skip
    rows = {"moments": ((2, 64, 64, 8), jnp.float16), "prompt": ((), jnp.int32), "weight": ((), jnp.float32),
            "row": ((), jnp.int32)}  # fmt: skip
    divided = jax.sharding.NamedSharding(grid, jax.sharding.PartitionSpec(("data", "fsdp")))
    given = {
        name: jax.ShapeDtypeStruct((batch, *shape), kind, sharding=divided) for name, (shape, kind) in rows.items()
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    plan = step.lower(
        shaped(state, places),
        shaped(constants, sharding.tree_shardings(constants, sharding.RULES, grid)),
        given,
        jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=sharding.replicated(grid)),
    ).compile().memory_analysis()  # fmt: skip
    between = plan.argument_size_in_bytes
    peak = between + plan.output_size_in_bytes - plan.alias_size_in_bytes + plan.temp_size_in_bytes
    with capsys.disabled():
        print(f"\n{case}, {grid.devices.flat[0].device_kind}: {peak / GB:.2f} GB during a step, "
              f"{between / GB:.2f} between")  # fmt: skip
    assert room is None or peak / GB < room
