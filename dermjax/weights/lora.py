"""Low-rank adapters (LoRA, arXiv 2106.09685): their tree and how they change a model.

An adapter tree has, for every adapted kernel, its path with {"down": [..., in, r], "up": [r, out]} in place of the
kernel. The change to a kernel is weight * alpha / r * down @ up; with `up` at zero the model starts as it was. The
paths may be those of one network or of a whole model, {"unet": …, "text_encoder": …}.
"""

import dataclasses
import math
import re
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dermjax.weights.safetensors import LazyTensor
from dermjax.weights.torch_layout import flatten, unflatten

Tree = dict[str, Any]

# The paper's tool adapts the projections of both attentions and nothing else; kohya's names for the rest.
TARGETS = {
    "attention": r"(attn[12]\.(to_q|to_k|to_v|to_out\.0)|self_attn\.(q|k|v|out)_proj)\.kernel$",
    "feed_forward": r"(ff\.net\.(0\.proj|2)|mlp\.fc[12])\.kernel$",
    "convolution": r"(conv\w*|proj_in|proj_out)\.kernel$",
    "time": r"(time_emb_proj|time_embedding\.linear_[12])\.kernel$",
}


@dataclasses.dataclass(frozen=True)
class Lora:
    """Adapters: what is trained, and the alpha of each adapted module, which is not."""

    adapters: Tree
    alphas: dict[str, float]  # by module: the kernel's path without `.kernel`

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of each adapted module."""
        return {
            path.removesuffix(".down"): array.shape[-1]
            for path, array in flatten(self.adapters).items()
            if path.endswith(".down")
        }


def init(params: Tree, rank: int, seed: int, targets: Collection[str] = ("attention",)) -> Tree:
    """Returns the tree of fresh adapters, float32, for the kernels of the given `TARGETS`."""
    pattern, adapters = "|".join(TARGETS[target] for target in targets), {}
    for index, (path, kernel) in enumerate(sorted(flatten(params).items())):
        if re.search(pattern, path):
            key = jax.random.fold_in(jax.random.key(seed), index)
            module, inputs = path.removesuffix(".kernel"), kernel.shape[:-1]
            # PyTorch's Kaiming-uniform with a = sqrt(5), as PEFT starts `lora_A`: bound 1 / sqrt(fan in)
            bound = math.prod(inputs) ** -0.5
            adapters[f"{module}.down"] = jax.random.uniform(key, (*inputs, rank), minval=-bound, maxval=bound)
            adapters[f"{module}.up"] = jnp.zeros((rank, kernel.shape[-1]))
    return unflatten(adapters)


def uniform(adapters: Tree, alpha: float) -> Lora:
    """Returns the adapters with one alpha for all of them."""
    paths = flatten(adapters)
    return Lora(adapters, {path.removesuffix(".down"): alpha for path in paths if path.endswith(".down")})


def merge(params: Tree, lora: Lora, weight: float) -> Tree:
    """Returns the parameters with every adapted kernel changed, `weight` 1 being as trained; differentiable.

    A kernel that is still in its file is changed when it is read.
    """
    flat, adapters = flatten(params), flatten(lora.adapters)
    for module, rank in lora.ranks.items():
        down, up = adapters[f"{module}.down"], adapters[f"{module}.up"]
        flat[f"{module}.kernel"] = adapted(flat[f"{module}.kernel"], down, up, weight * lora.alphas[module] / rank)
    return unflatten(flat)


def adapted(kernel: Any, down: jax.Array, up: jax.Array, share: float) -> Any:
    """Returns kernel [..., in, out] + share * down @ up."""
    if isinstance(kernel, LazyTensor):
        return kernel.transform(kernel.shape, lambda array: np.asarray(adapted(array, down, up, share)))
    return kernel + share * jnp.einsum("...ir,ro->...io", down, up)
