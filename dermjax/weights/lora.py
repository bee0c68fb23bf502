"""Low-rank adapters (LoRA, arXiv 2106.09685): their tree, how they change a model, and their PEFT file.

An adapter tree has, for every adapted kernel, its path with {"down": [in, r], "up": [r, out]} in place of the kernel.
The change to a kernel is (alpha / r) * down @ up; with `up` at zero the model starts as it was.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from dermjax.weights.torch_layout import flatten, unflatten

Tree = dict[str, Any]

# The paper's tool adapts the projections of both attentions and nothing else.
ATTENTION = r"attn[12]\.(to_q|to_k|to_v|to_out\.0)\.kernel$"


def init(params: Tree, rank: int, seed: int) -> Tree:
    """Returns fresh adapters for the attention kernels of a UNet's parameters, float32."""
    adapters = {}
    for index, (path, kernel) in enumerate(sorted(flatten(params).items())):
        if re.search(ATTENTION, path):
            key = jax.random.fold_in(jax.random.key(seed), index)
            parent = path.removesuffix(".kernel")
            # PyTorch's Kaiming-uniform with a = sqrt(5), as PEFT starts `lora_A`: bound 1 / sqrt(fan in)
            bound = kernel.shape[0] ** -0.5
            adapters[f"{parent}.down"] = jax.random.uniform(key, (kernel.shape[0], rank), minval=-bound, maxval=bound)
            adapters[f"{parent}.up"] = jnp.zeros((rank, kernel.shape[1]))
    return unflatten(adapters)


def merge(params: Tree, adapters: Tree, scale: float) -> Tree:
    """Returns the parameters with scale * down @ up added to every adapted kernel; scale is weight * alpha / rank."""
    if "down" in adapters:
        return params | {"kernel": params["kernel"] + scale * adapters["down"] @ adapters["up"]}
    return params | {name: merge(params[name], below, scale) for name, below in adapters.items()}


def write(path: Path, adapters: Tree, alpha: float) -> None:
    """Writes a UNet's adapters as the file that diffusers' `load_lora_weights` reads."""
    names = {"down": "lora_A.weight", "up": "lora_B.weight"}
    tensors, ranks = {}, set()
    for key, array in jax.device_get(flatten(adapters)).items():
        parent, _, leaf = key.rpartition(".")
        tensors[f"unet.{parent}.{names[leaf]}"] = np.ascontiguousarray(array.T, np.float32)
        ranks.add(array.shape[1] if leaf == "down" else array.shape[0])
    (rank,) = ranks
    # diffusers reads rank and alpha from this metadata; without it, it takes alpha for the rank
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": rank, "unet.lora_alpha": alpha}), "format": "pt"}
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata=metadata)
    os.replace(part, path)
