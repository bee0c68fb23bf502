"""Devices sum their gradients once, in the types of the parameters, and nothing is another number for it.

As a script, on two devices, it prints what they find.
"""

import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax import sharding
from dermjax.training import step
from dermjax.training.collectives import collectives

RANK, WIDTH = 2, 512


def made():
    """A loss of twenty small arrays and a large one, and what it takes."""
    keys = jax.random.split(jax.random.key(0), 22)
    params = {f"bias{i}": jax.random.normal(keys[i], (4,)) for i in range(20)}
    params["kernel"] = jax.random.normal(keys[20], (4, step.SMALL // 4)) / 64
    batch = {"x": np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)}

    def loss(params, variables, constants, batch, key):
        noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), (4,)))(batch["index"])
        x = batch["x"] + noise
        for i in range(20):
            x = jnp.sin(x + params[f"bias{i}"][None])
        value = ((x @ params["kernel"]) ** 2).mean()
        return value, (variables, {"largest": jnp.abs(x).mean()})

    return loss, params, batch, jax.random.key(1)


def adapted(params, variables, constants, batch, key):
    """The loss of a LoRA: a frozen kernel and its adapter, merged, and multiplied in bfloat16."""
    kernel = (constants["kernel"] + params["down"] @ params["up"]).astype(jnp.bfloat16)
    return ((batch["x"].astype(jnp.bfloat16) @ kernel).astype(jnp.float32) ** 2).mean(), (variables, {})


def layered(kind):
    """The loss of a layer, whose kernel "fsdp" divides, computed in a type, behind a frozen one and a scale."""

    def loss(params, variables, constants, batch, key):
        x = jnp.sin(batch["x"] @ constants["to_q"]["kernel"]) * params["norm"]["scale"][None]
        return ((x.astype(kind) @ params["to_k"]["kernel"].astype(kind)).astype(jnp.float32) ** 2).mean(), ({}, {})

    return loss


@pytest.fixture(scope="module")
def told():
    """What two devices say of themselves."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_sums_by_device_are_the_same_numbers(told):
    """In one part and in two; the differences are of the largest of each array."""
    assert len(told["differences"]) == 2
    assert max(told["differences"]) < 1e-5


def test_devices_meet_once_for_small_arrays_and_once_for_all_parts(told):
    """Left to itself XLA has them meet for each array in each part."""
    assert told["met"] == {"by device": [2, 2], "by xla": [23, 46]}


def test_of_a_lora_the_adapter_is_summed_and_in_float32(told):
    """Its kernel is 128 times as large."""
    types, size = told["lora"]["by device"]
    assert (types, size) == (["f32"], 4 * (2 * RANK * WIDTH + 1))  # and the loss
    assert told["lora"]["by xla"][1] >= 2 * WIDTH**2


def test_what_is_divided_is_gathered_once_and_summed_in_float32_whatever_the_batch(told):
    """XLA left to itself gathers activations, or kernels in each pass, and sums in bfloat16."""
    assert told["divided"]["difference"] < 1e-5
    for types, gathered, scattered in told["divided"]["sent"]:
        assert types == ["f32"]
        assert gathered == 4 * 2 * WIDTH**2 and scattered == 4 * WIDTH**2  # the frozen kernel and the other; the other
    assert len(told["divided"]["sent"]) == 3  # 16 and 64 rows, and 16 in two parts
    assert told["divided"]["homes"] == [[WIDTH], [WIDTH, WIDTH // 2]]


def test_statistics_of_the_whole_batch_are_left_to_xla(told):
    """A loss that changes variables sees all examples at once."""
    assert told["seen"] == 16


def divided() -> dict:
    """How one device and two that divide kernels differ, what these send, and the shapes of gradients on each."""
    keys = jax.random.split(jax.random.key(0), 4)
    params = {"norm": {"scale": jax.random.normal(keys[0], (WIDTH,))},
              "to_k": {"kernel": jax.random.normal(keys[1], (WIDTH, WIDTH)) / WIDTH}}  # fmt: skip
    constants = {"to_q": {"kernel": jax.random.normal(keys[2], (WIDTH, WIDTH)) / WIDTH}}
    grids, found, sent, homes = (sharding.mesh(1, 1), sharding.mesh(1, 2)), [], [], []
    for grid in grids:
        given = [
            sharding.put(tree, sharding.tree_shardings(tree, sharding.RULES, grid)) for tree in (params, constants)
        ]
        rows = {"x": np.random.default_rng(0).normal(size=(64, WIDTH)).astype(np.float32)}
        gradient = jax.jit(step.gradient_function(layered(jnp.float32), 1, grid))
        found.append(gradient(given[0], {}, given[1], sharding.place(rows, grid), keys[3]))
        homes = [leaf.addressable_shards[0].data.shape for leaf in jax.tree.leaves(found[-1][1])]
    for count, accumulate in ((16, 1), (64, 1), (16, 2)):
        gradient = jax.jit(step.gradient_function(layered(jnp.bfloat16), accumulate, grid))
        batch = sharding.place({"x": rows["x"][:count]}, grid)
        text = gradient.lower(given[0], {}, given[1], batch, keys[3]).compile().as_text()
        types = re.findall(r"(\w+)\[", "".join(re.findall(r"= (.*) reduce-scatter\(", text)))
        sizes = [collectives(text)[kind].size for kind in ("all-gather", "reduce-scatter")]
        sent.append([sorted(set(types)), *sizes])
    one, two = (list(map(np.asarray, jax.tree.leaves(each))) for each in found)
    difference = max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(one, two, strict=True))
    return {"difference": difference, "sent": sent, "homes": homes}


def main() -> None:
    """Prints what `told` asks for, one line of JSON."""
    loss, params, batch, key = made()
    grid = sharding.mesh(0, 1)
    batch = sharding.place(batch, grid)

    def ways(loss, accumulate: int) -> dict:
        parts = step.accumulate_parts(jax.value_and_grad(loss, has_aux=True), accumulate, grid.size)

        def by_xla(params, variables, constants, batch, key):
            return parts(params, variables, constants, batch | {"index": jnp.arange(16)}, key)

        return {"by device": step.gradient_function(loss, accumulate, grid), "by xla": by_xla}

    def difference(accumulate: int) -> float:
        found = [jax.tree.leaves(jax.jit(way)(params, {}, {}, batch, key)) for way in ways(loss, accumulate).values()]
        return max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in zip(*found, strict=True))

    def program(way, *given) -> str:
        return jax.jit(way).lower(*given, key).compile().as_text()

    def types(text: str) -> list[str]:
        """The types of all arrays that are summed over devices."""
        return re.findall(r"(\w+)\[", "".join(re.findall(r"= (.*) all-reduce\(", text)))

    def met(way, accumulate: int) -> int:
        """How many arrays the devices meet for; XLA counts what is in a loop once."""
        text = program(way, params, {}, {}, batch)
        joined = len(types(text)) / len(re.findall(r"all-reduce\(", text))
        return round(joined * collectives(text)["all-reduce"].number)

    def counting(params, variables, constants, batch, key):
        value, (_, scalars) = loss(params, variables, constants, batch, key)
        return value, ({"seen": jnp.float32(len(batch["x"]))}, scalars)

    (_, (variables, _)), _ = jax.jit(step.gradient_function(counting, 1, grid))(
        params, {"seen": jnp.float32(0)}, {}, batch, key
    )
    adapter = {"down": jnp.ones((WIDTH, RANK)), "up": jnp.ones((RANK, WIDTH))}
    given = adapter, {}, {"kernel": jnp.ones((WIDTH, WIDTH))}, sharding.place({"x": np.ones((16, WIDTH))}, grid)
    lora = {name: program(way, *given) for name, way in ways(adapted, 1).items()}
    told = {
        "divided": divided(),
        "met": {name: [met(ways(loss, parts)[name], parts) for parts in (1, 2)] for name in ("by device", "by xla")},
        "lora": {name: [sorted(set(types(text))), collectives(text)["all-reduce"].size] for name, text in lora.items()},
        "differences": [difference(1), difference(2)],
        "seen": float(variables["seen"]),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
