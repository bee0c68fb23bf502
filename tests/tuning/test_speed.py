"""A step of tuning derm-tiny on a CPU against the same step in PyTorch, in turns, on the same cores."""

import os
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax import sharding
from dermjax.training import loop, optimizers
from dermjax.training.state import create
from dermjax.tuning import dreambooth, parts
from dermjax.tuning.validation import PLAIN
from dermjax.weights import diffusers as folders
from dermjax.weights import model_files

pytestmark = pytest.mark.slow
BATCH, ROUNDS, WARM = 16, 15, 3
RATE, CLIP, DECAY = 4e-4, 1.0, 0.98


def ours(rows, contexts):
    """A function that takes one step of dermjax on all devices and waits for it; returns the loss."""
    grid = sharding.mesh(0, 1)
    sd, params = folders.read(model_files.locate("derm-tiny"))
    tuned = {"unet": "full", "text_encoder": "frozen"}
    trained, frozen = parts.divided(params, tuned, rank=4, targets=(), seed=0, words=0, precision="float32")
    rule = optimizers.build("adamw", rate=RATE, warmup=0, steps=100, schedule="constant", weight_decay=0.01, clip=CLIP)
    state = create(trained, {}, rule, ema=True)
    places = sharding.over(state, sharding.RULES, grid)
    loss = dreambooth.loss(sd, partial(parts.assembled, alpha=4.0), **PLAIN)
    step = loop.compiled(loss, rule, DECAY, 1, places, grid)
    held = {"state": jax.device_put(state, places)}
    constants = jax.device_put(frozen | {"contexts": contexts}, sharding.replicated(grid))
    key = jax.device_put(jax.random.key(0), sharding.replicated(grid))

    def run():
        held["state"], scalars = step(held["state"], constants, sharding.place(rows, grid), key)
        return float(scalars["loss"])

    return run


def theirs(torch, diffusers, rows, contexts):
    """The same step in PyTorch, as diffusers' DreamBooth script takes it, with an average of the parameters."""
    folder = model_files.locate("derm-tiny")
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32).train()
    scheduler = diffusers.DDPMScheduler.from_pretrained(folder / "scheduler")
    scale = diffusers.AutoencoderKL.from_pretrained(folder / "vae").config.scaling_factor
    weights = list(unet.parameters())
    average = [weight.detach().clone() for weight in weights]
    rule = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.01)
    moments = torch.tensor(rows["moments"][:, 0], dtype=torch.float32).permute(0, 3, 1, 2).contiguous()
    said = torch.tensor(contexts[rows["prompt"]])

    def run():
        mean, log_variance = moments.chunk(2, 1)
        latents = (mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)) * scale
        noise = torch.randn_like(latents)
        t = torch.randint(0, 1000, (BATCH,))
        predicted = unet(scheduler.add_noise(latents, noise, t), t, said).sample
        loss = torch.nn.functional.mse_loss(predicted, scheduler.get_velocity(latents, noise, t))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, CLIP)
        rule.step()
        rule.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 1 - DECAY)
        return float(loss.detach())

    return run


@pytest.mark.xfail(reason="1.11 times PyTorch's time on two devices of a processor, 1.03 on one that has both cores")
def test_derm_tiny_trains_no_slower_than_in_pytorch(capsys):
    """On as many devices and threads as this process has cores."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    cores = len(os.sched_getaffinity(0))
    assert jax.device_count() == cores, f"start this test with JAX_NUM_CPU_DEVICES={cores}"
    torch.set_num_threads(cores)
    rng = np.random.default_rng(0)
    rows = {
        "moments": rng.normal(size=(BATCH, 2, 16, 16, 8)).astype(np.float16),
        "prompt": np.arange(BATCH, dtype=np.int32) % 2,
        "weight": np.ones(BATCH, np.float32),
        "row": np.arange(BATCH, dtype=np.int32),
    }
    contexts = rng.normal(size=(3, 40, 128)).astype(np.float32)
    runs = {"dermjax": ours(rows, jnp.asarray(contexts)), "PyTorch": theirs(torch, diffusers, rows, contexts)}
    seconds = {name: [] for name in runs}
    for _ in range(WARM + ROUNDS):
        for name, run in runs.items():
            began = time.perf_counter()
            assert np.isfinite(run())
            seconds[name].append(time.perf_counter() - began)
    medians = {name: float(np.median(each[WARM:])) for name, each in seconds.items()}
    ratio = medians["dermjax"] / medians["PyTorch"]
    with capsys.disabled():
        print(f"\n{cores} cores, batch {BATCH}:", ", ".join(f"{n} {s:.3f} s a step" for n, s in medians.items()),
              f"-> {ratio:.2f} times PyTorch's")  # fmt: skip
    assert ratio <= 1
