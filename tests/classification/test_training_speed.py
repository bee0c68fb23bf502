"""Training of both classifiers is no slower than PyTorch's, step by step in turns, each in a process of its own.

    python tests/classification/test_training_speed.py mobilenetv2

prints the seconds of every step. PyTorch runs transformers' model as it is, in the faster of its two memory formats,
`python tests/classification/test_training_speed.py mobilenetv2 channels_last` being its process: within one, its memory
and threads suffer from JAX's. On a CPU both compute in float32, on a GPU in bfloat16, PyTorch by autocast and with
fused AdamW.
"""

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

ROUNDS = 7
# pixels a side, batch, steps a round
SHAPES = {
    "cpu": {"mobilenetv2": (160, 32, 2), "vit": (224, 16, 2)},
    "gpu": {"mobilenetv2": (224, 256, 10), "vit": (224, 128, 10)},
}
CLASSIFIERS = {"mobilenetv2": ("mobilenet_v2", {}), "vit": ("vit", "S/16")}
BACKEND = "gpu" if Path("/dev/nvidiactl").exists() else "cpu"  # known before JAX is there


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "mobilenetv2",
        pytest.param("vit", marks=pytest.mark.xfail(BACKEND == "cpu", reason="1.08 times: attention over 197 tokens")),
    ],
)
def test_training_is_no_slower_than_pytorch_s(name):
    pytest.importorskip("torch")
    from dermjax import machine

    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(machine.cpu_devices(machine.cores()))}
    environment |= {"JAX_PLATFORMS": "cpu"} if BACKEND == "cpu" else {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    done = subprocess.run([sys.executable, __file__, name], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    print(done.stdout)
    assert json.loads(done.stdout.splitlines()[-1])["ours_to_pytorch"] <= 1.0


def ours(name: str, size: int, batch: int):
    """A function that takes one step of the loop, data parallel over all devices, as `classify` does."""
    import jax
    import jax.numpy as jnp

    from dermjax import machine, sharding
    from dermjax.classification import recipes
    from dermjax.classification.recipes import Recipe
    from dermjax.models import vit
    from dermjax.models.classifier import describe, fresh
    from dermjax.training import optimizers
    from dermjax.training.state import create
    from dermjax.training.step import compile_step

    machine.keep_freed_memory()
    kind, settings = CLASSIFIERS[name]
    classifier = fresh(describe(kind, vit.vit_settings(settings) if settings else {}, ("a", "b"), size),
                       jnp.float32 if BACKEND == "cpu" else jnp.bfloat16)  # fmt: skip
    grid = sharding.mesh(0, 1)
    rule = optimizers.build(
        "adamw", rate=1e-4, warmup=0, steps=100, schedule="constant", weight_decay=0.05, clip=0.0
    )  # fmt: skip
    state = create(*classifier.init(0), rule, ema=False)
    shardings = sharding.tree_shardings(state, sharding.RULES, grid)
    state = jax.device_put(state, shardings)
    step = compile_step(recipes.loss(classifier, Recipe(last=None), 0.0), rule, 0.0, 1, shardings, grid, False)
    key = jax.device_put(jax.random.key(0), sharding.replicated(grid))
    image = np.random.default_rng(0).uniform(-1, 1, (batch, size, size, 3)).astype(np.float32)
    rows = sharding.place({"image": image, "label": np.arange(batch, dtype=np.int32) % 2}, grid)
    held = [state]

    def take(steps: int) -> None:
        for _ in range(steps):
            held[0], scalars = step(held[0], {}, rows, key)
        jax.block_until_ready(scalars)

    return take


def theirs(name: str, size: int, batch: int, layout: str):
    """A function that takes one step of transformers' model with PyTorch's AdamW."""
    import torch
    import transformers

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    layout = getattr(torch, layout)
    if name == "vit":
        config = transformers.ViTConfig(
            hidden_size=384, num_attention_heads=6, intermediate_size=1536, image_size=size, num_labels=2
        )
        model = transformers.ViTForImageClassification(config)
    else:
        config = transformers.MobileNetV2Config(image_size=size, num_labels=2, classifier_dropout_prob=0.0)
        model = transformers.MobileNetV2ForImageClassification(config)
    device = "cpu" if BACKEND == "cpu" else "cuda"
    model = model.train().to(device, memory_format=layout)
    rule = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=device == "cuda" or None)
    image = torch.rand((batch, 3, size, size)).to(device, memory_format=layout)
    label = torch.arange(batch, device=device) % 2

    def take(steps: int) -> None:
        for _ in range(steps):
            rule.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                loss = model(image, labels=label).loss
            loss.backward()
            rule.step()
        float(loss.detach())  # waits

    return take


def seconds(take, steps: int) -> float:
    """How long a step takes, over some of them."""
    begun = time.perf_counter()
    take(steps)
    return (time.perf_counter() - begun) / steps


def serve(name: str, layout: str) -> None:
    """Takes as many steps in PyTorch as each line of the input says, and answers when they are done."""
    size, batch, _ = SHAPES[BACKEND][name]
    take = theirs(name, size, batch, layout)
    for line in sys.stdin:
        take(int(line))
        print("done", flush=True)


@contextmanager
def elsewhere(name: str, layout: str):
    """A function that has the process of `serve` take steps, and waits for them."""
    command = [sys.executable, __file__, name, layout]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:

        def take(steps: int) -> None:
            print(steps, file=other.stdin, flush=True)
            assert other.stdout.readline() == "done\n"

        yield take


def main(name: str) -> None:
    """Prints the seconds of every round, then one line of JSON."""
    size, batch, steps = SHAPES[BACKEND][name]
    with elsewhere(name, "contiguous_format") as contiguous, elsewhere(name, "channels_last") as last:
        ways = {"ours": ours(name, size, batch), "PyTorch": contiguous, "PyTorch, channels last": last}
        for take in ways.values():  # compilation, and the allocators' first sizes
            seconds(take, steps)
        rounds = [{way: seconds(take, steps) for way, take in ways.items()} for _ in range(ROUNDS)]
    for each in rounds:
        print(", ".join(f"{way} {value * 1e3:.1f} ms" for way, value in each.items()))
    median = {way: float(np.median([each[way] for each in rounds])) for way in ways}
    best = min((way for way in ways if way != "ours"), key=median.get)
    ratio = float(np.median([each["ours"] / each[best] for each in rounds]))
    print(json.dumps({"classifier": name, "backend": BACKEND, "batch": batch, "size": size, "seconds_a_step": median,
                      "beside": best, "ours_to_pytorch": ratio}))  # fmt: skip


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    (serve if sys.argv[2:] else main)(*sys.argv[1:])
