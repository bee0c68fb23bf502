"""A step of tuning Stable Diffusion 1.5 at 512 px against the same step in PyTorch, in turns, on the same GPU.

Random weights, arithmetic in bfloat16. What a CPU tunes is a case of `dermjax bench`.
"""

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax import sharding
from dermjax.models.stable_diffusion import SD15, StableDiffusion
from dermjax.tuning import trainable

pytestmark = pytest.mark.slow
BACKEND = jax.default_backend()
ROUNDS, WARM = 7, 2
RATE, CLIP = 1e-4, 1.0
PEAK = {"NVIDIA H100 80GB HBM3": 989.4, "NVIDIA H200": 989.4}  # TFLOP/s in bfloat16, dense, as the vendor says


def rows(batch: int, side: int) -> dict:
    """A batch of cached moments."""
    return {
        "moments": np.random.default_rng(0).normal(size=(batch, 2, side, side, 8)).astype(np.float16),
        "prompt": np.arange(batch, dtype=np.int32) % 2,
        "weight": np.ones(batch, np.float32),
        "row": np.arange(batch, dtype=np.int32),
    }


def ours(made, grid, batch):
    """A function that takes steps of dermjax on all devices and waits for the last; returns its loss."""
    held = {"state": jax.device_put(made.state, made.places)}
    constants = jax.device_put(made.constants, sharding.replicated(grid))
    key = jax.device_put(jax.random.key(0), sharding.replicated(grid))

    def run(steps: int) -> float:
        for _ in range(steps):
            held["state"], scalars = made.step(held["state"], constants, sharding.place(batch, grid), key)
        return float(scalars["loss"])

    return run


def theirs(torch, unet, scheduler, scale: float, ema_decay: float, batch, contexts):
    """The same in PyTorch, as diffusers' DreamBooth script takes a step, with an average of the parameters."""
    device = next(unet.parameters()).device
    weights = [weight for weight in unet.parameters() if weight.requires_grad]
    average = [weight.detach().clone() for weight in weights]
    rule = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.01, fused=device.type == "cuda" or None)
    moments = torch.tensor(batch["moments"][:, 0], dtype=torch.float32, device=device).permute(0, 3, 1, 2).contiguous()
    said = torch.tensor(np.asarray(contexts)[batch["prompt"]], device=device)
    predicts_noise = scheduler.config.prediction_type == "epsilon"

    def run(steps: int) -> float:
        for _ in range(steps):
            mean, log_variance = moments.chunk(2, 1)
            latents = (mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)) * scale
            noise = torch.randn_like(latents)
            t = torch.randint(0, 1000, (len(latents),), device=device)
            target = noise if predicts_noise else scheduler.get_velocity(latents, noise, t)
            with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
                predicted = unet(scheduler.add_noise(latents, noise, t), t, said).sample
            loss = torch.nn.functional.mse_loss(predicted.float(), target)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, CLIP)
            rule.step()
            rule.zero_grad()
            if ema_decay:
                with torch.no_grad():
                    torch._foreach_lerp_(average, weights, 1 - ema_decay)
        return float(loss.detach())

    return run


def forward(torch, diffusers) -> float:
    """TFLOP of Stable Diffusion 1.5's UNet for one image of 512 px, its products and convolutions counted."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(SD15["unet"])
        with FlopCounterMode(display=False) as counter:
            unet(torch.zeros(1, 4, 64, 64), torch.zeros(1, dtype=torch.long), torch.zeros(1, 77, 768))
    return counter.get_total_flops() / 1e12


def medians(runs: dict, steps: int) -> dict[str, float]:
    """Seconds of a step by each of the functions, called in turns."""
    seconds = {name: [] for name in runs}
    for _ in range(WARM + ROUNDS):
        for name, run in runs.items():
            began = time.perf_counter()
            assert np.isfinite(run(steps))
            seconds[name].append((time.perf_counter() - began) / steps)
    return {name: float(np.median(each[WARM:])) for name, each in seconds.items()}


@pytest.mark.skipif(BACKEND != "gpu", reason="needs a GPU; start it with XLA_PYTHON_CLIENT_PREALLOCATE=false")
@pytest.mark.parametrize(("how", "size"), [("lora", 2), ("lora", 8), ("full", 4)])
def test_stable_diffusion_tunes_no_slower_than_in_pytorch(how, size, tuning_step, capsys):
    """LoRA of rank 4 on attention, or the UNet with AdamW and an average; cached latents, nothing computed twice.

    PyTorch has autocast, channels last, fused AdamW and its own flash attention; it is not compiled, as in diffusers'
    script. The share of the peak counts a forward pass once, and a backward pass twice for full tuning, once for LoRA.
    """
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    peft = pytest.importorskip("peft")
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    batch, said = rows(size, 64), np.random.default_rng(1).normal(size=(3, 77, 768)).astype(np.float32)
    grid, decay = sharding.mesh(1, 1), 0.999 if how == "full" else 0.0
    _, arithmetic = trainable.PRECISIONS["bfloat16"]
    sd = StableDiffusion(SD15, Path(), arithmetic)
    leaves, form = jax.tree.flatten(sd.shapes["unet"])
    keys = jax.random.split(jax.random.key(0), len(leaves))
    drawn = [0.02 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    params = {"unet": jax.tree.unflatten(form, drawn), "text_encoder": {}}
    made = tuning_step(sd, params, grid, how=how, optimizer="adamw", ema_decay=decay, precision="bfloat16",
                       said=jnp.asarray(said))  # fmt: skip
    del params, drawn
    with torch.device("cuda"):
        unet = diffusers.UNet2DConditionModel.from_config(SD15["unet"]).train()
    if how == "lora":
        unet.requires_grad_(False).to(torch.bfloat16)
        unet.add_adapter(peft.LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
        diffusers.training_utils.cast_training_params(unet)
    unet = unet.to("cuda", memory_format=torch.channels_last)  # the adapter's layers too
    scheduler = diffusers.DDPMScheduler.from_config(SD15["scheduler"])
    began = time.perf_counter()
    run = ours(made, grid, batch)
    del made
    run(1)
    compiling = time.perf_counter() - began
    rival = theirs(torch, unet, scheduler, 0.18215, decay, batch, said)
    found = medians({"dermjax": run, "PyTorch": rival}, steps=3)
    work = forward(torch, diffusers) * size * (3 if how == "full" else 2)
    card = jax.devices()[0].device_kind
    with capsys.disabled():
        print(f"\n{card}, {how}, batch {size}, first step after {compiling:.0f} s:")
        for name, seconds in found.items():
            share = f"{work / seconds / PEAK[card]:.1%} of the peak" if card in PEAK else "peak not known"
            print(f"  {name} {seconds * 1e3:.1f} ms a step, {size / seconds:.1f} images/s, "
                  f"{work / seconds:.0f} TFLOP/s, {share}")  # fmt: skip
        print(f"  {found['dermjax'] / found['PyTorch']:.2f} times PyTorch's time; most memory: "
              f"dermjax {jax.devices()[0].memory_stats()['peak_bytes_in_use'] / 1e9:.1f} GB, "
              f"PyTorch {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")  # fmt: skip
    assert found["dermjax"] <= found["PyTorch"]
