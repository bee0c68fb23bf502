"""The parameters of a model, divided into what is trained and what is frozen, and assembled again.

What is trained is one tree of up to three branches: `full`, complete networks; `lora`, adapters on frozen ones;
`words`, the vectors of new words. So gradients, the optimiser's state, the average and the clipping norm know nothing
of the rest.
"""

from collections.abc import Collection, Mapping
from functools import reduce
from operator import getitem
from typing import Any

import jax
import jax.numpy as jnp

from dermjax.errors import UserError
from dermjax.models.stable_diffusion import Params
from dermjax.weights import lora
from dermjax.weights.textual_inversion import TABLE, with_leaf
from dermjax.weights.torch_layout import flatten, unflatten

Tree = dict[str, Any]

MODES = ("full", "lora", "frozen")
PRECISIONS = {  # networks tuned whole are kept in the first; what is frozen, and the arithmetic, are in the second
    "float32": (jnp.float32, jnp.float32),
    "bfloat16": (jnp.float32, jnp.bfloat16),
    "pure_bfloat16": (jnp.bfloat16, jnp.bfloat16),
}


def divide(
    params: Params,
    tuned: Mapping[str, str],
    *,
    rank: int,
    targets: Collection[str],
    seed: int,
    words: int,
    precision: str,
) -> tuple[Tree, Tree]:
    """Returns (trained, frozen) of a model's parameters.

    tuned: "full", "lora" or "frozen" for unet and text_encoder; words: how many rows at the end of the token table are
    trained although the text encoder is not. A text encoder of which nothing is trained is in neither.

    Adapters, words and the kernels that have adapters are float32 in every precision. A kernel in bfloat16 would lie on
    bfloat16's grid, where the layer's rounding of kernel + change takes away every change below half a step of it; off
    the grid some numbers of the kernel are rounded to the next step, and in the mean the change arrives.

    Raises:
      UserError: nothing is trained, a name is unknown, a network has no target, or words come with a fully trained text
        encoder.
    """
    for network, mode in tuned.items():
        if mode not in MODES:
            raise UserError(f"config.tuned.{network} = {mode!r} is unknown; give {', '.join(MODES)}")
    if set(tuned.values()) == {"frozen"} and not words:
        raise UserError("nothing is tuned: give config.tuned.unet = lora or full, or config.words")
    if words and tuned["text_encoder"] == "full":
        raise UserError("config.words: the text encoder is tuned whole, its words with it; give one of both")
    unknown = sorted(set(targets) - set(lora.TARGETS))
    if unknown:
        raise UserError(f"config.lora.targets: {unknown[0]!r} is unknown; there are {', '.join(lora.TARGETS)}")

    kept, arithmetic = PRECISIONS[precision]
    networks = {mode: {network: params[network] for network in tuned if tuned[network] == mode} for mode in MODES}
    used = networks["lora"] | networks["frozen"]
    if not words and tuned["text_encoder"] == "frozen":
        del used["text_encoder"]
    adapters = lora.init(networks["lora"], rank, seed, targets) if networks["lora"] and targets else {}
    bare = sorted(set(networks["lora"]) - set(adapters))
    if bare:
        raise UserError(f"config.lora.targets = {tuple(targets)}: {bare[0]} has none of them; add attention")
    trained = {
        "full": jax.tree.map(lambda leaf: jnp.asarray(leaf, kept), networks["full"]),
        "lora": adapters,
        "words": jnp.asarray(token_table(params))[-words:] if words else {},
    }
    wide = {f"{module}.kernel" for module in lora.Lora(adapters, {}).ranks}
    frozen = {
        path: jnp.asarray(leaf, jnp.float32 if path in wide else arithmetic) for path, leaf in flatten(used).items()
    }
    return {name: branch for name, branch in trained.items() if len(branch)}, {"networks": unflatten(frozen)}


def assemble(trained: Tree, frozen: Tree, alpha: float) -> Params:
    """Returns the networks' parameters as the model uses them; differentiable with respect to what is trained."""
    params = frozen["networks"] | trained.get("full", {})
    if "words" in trained:
        known = jnp.asarray(token_table(params), jnp.float32)[: -len(trained["words"])]
        params = with_leaf(params, TABLE, jnp.concatenate([known, trained["words"]]))
    return lora.merge(params, lora.uniform(trained["lora"], alpha), 1.0) if "lora" in trained else params


def needs_text_encoder(trained: Tree, frozen: Tree) -> bool:
    """Returns whether a step runs the text encoder; else its contexts can be computed once."""
    return "text_encoder" in trained.get("full", {}) | frozen["networks"]


def token_table(params: Params) -> Any:
    """Returns the token table [V, D] of the text encoder."""
    return reduce(getitem, TABLE, params)
