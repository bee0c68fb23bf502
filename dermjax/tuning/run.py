"""`dermjax tune`: a labelled manifest and a Stable Diffusion model -> a model that draws each class when asked.

manifest -> moments and contexts (once) -> the one loop -> model/ (diffusers folder) and, with LoRA, lora.safetensors
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dermjax import sharding
from dermjax.data import pipelines, records
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.models.stable_diffusion import count
from dermjax.progress import cost, say
from dermjax.training import optimizers
from dermjax.training.loop import fit
from dermjax.training.state import create
from dermjax.tuning import dreambooth, latents
from dermjax.tuning.validation import evaluator
from dermjax.weights import diffusers, lora, lora_files, model_files


def run(config: ConfigDict, workdir: Path) -> None:
    """Tunes config.model on the training split of config.manifest and leaves workdir/model."""
    if (workdir / "model" / "model_index.json").exists():
        say(f"tune: {workdir / 'model'} is there, nothing to do")
        return
    grid = sharding.mesh(config.mesh.data, config.mesh.fsdp)
    sharding.check_batch(config.batch, grid)
    method = optimizers.pick("method", METHODS, config.method)
    manifest = records.read(Path(config.manifest))
    sources, prompts, weights = examples(manifest, config)
    held_out = manifest.split("validation")
    sd, params = model_files.read(model_files.locate(config.model))
    if config.size % sd.factor:
        raise UserError(f"size = {config.size} is not a multiple of {sd.factor}")

    names = sorted(set(prompts))
    constants = {"contexts": latents.contexts(sd, params, [*names, ""])}
    trained, frozen, merged = method(params["unet"], config)

    def rows(sources, prompts, weights) -> dict[str, np.ndarray]:
        moments = latents.moments(sd, params, sources, config.size or sd.size, config.encode_batch, workdir / "latents")
        return {"moments": moments, "prompt": np.array([names.index(p) for p in prompts], np.int32), "weight": weights}

    def loss(prompt_dropout: float, timestep_bias: float):
        return dreambooth.loss(
            sd, merged, timestep_bias=timestep_bias, prompt_dropout=prompt_dropout,
            offset_noise=config.offset_noise, snr_gamma=config.snr_gamma, huber=config.huber,
        )  # fmt: skip

    data = rows(sources, prompts, weights)
    evaluate = None
    if held_out and config.validation.draws:
        asked = [config.prompts[record.label] for record in held_out]
        judged = rows([(manifest, record) for record in held_out], asked, np.ones(len(held_out), np.float32))
        evaluate = evaluator(loss(0.0, 1.0), judged, config.validation.draws, config.batch, grid)
    cost("tune", devices=grid.size, parameters=count(trained), images=len(sources), steps=config.steps)
    optimizer = optimizers.build(
        config.optimizer,
        rate=config.rate,
        warmup=config.warmup,
        steps=config.steps,
        schedule=config.schedule,
        weight_decay=config.weight_decay,
        clip=config.clip,
    )
    state = fit(
        loss(config.prompt_dropout, config.timestep_bias),
        create(trained, {}, optimizer, ema=config.ema_decay > 0), constants | frozen,
        pipelines.arrays(data, batch=config.batch, seed=config.seed),
        optimizer=optimizer, seed=config.seed, steps=config.steps, ema_decay=config.ema_decay,
        accumulate=config.accumulate, mesh=grid, rules=sharding.RULES, workdir=workdir, title="tune",
        save_every=config.save_every, log_every=config.log_every, evaluate=evaluate,
        evaluate_every=config.validation.every, minimise="validation_loss" if evaluate else "",
    )  # fmt: skip
    if config.method == "lora":
        trained = lora.uniform({"unet": state.smooth}, config.lora.alpha)
        lora_files.write_peft(workdir / "lora.safetensors", trained, dtype=np.float32)
    unet = merged(state.smooth, frozen)
    diffusers.write(workdir / "model", sd, params | {"unet": unet}, dtype=jnp.dtype(config.save_dtype))
    say(f"tune: {workdir / 'model'}")


def examples(manifest: Manifest, config: ConfigDict) -> tuple[list[tuple[Manifest, Record]], list[str], np.ndarray]:
    """Returns the images, their prompts and their weights: instances, then class images of prior preservation.

    Weights have mean 1.

    Raises:
      UserError: a label has no instance prompt, or a class image does not say the prompt that it was made for.
    """
    instances = manifest.split("train")
    silent = sorted({r.label for r in instances} - set(config.prompts))
    if silent:
        raise UserError(f"config.prompts has no prompt for {', '.join(silent)}; add config.prompts.{silent[0]}")
    if not instances:
        raise UserError(f"manifest {config.manifest}: no image in its training split")
    sources = [(manifest, record) for record in instances]
    prompts = [config.prompts[record.label] for record in instances]
    weights = [1.0] * len(instances)
    if config.prior.manifest:
        prior = records.read(Path(config.prior.manifest))
        for record in prior.split("train"):
            if not record.generation.get("prompt"):
                raise UserError(f"{config.prior.manifest}: {record.image} has no generation prompt; use `generate`'s")
            sources.append((prior, record))
            prompts.append(record.generation["prompt"])
            weights.append(config.prior.weight)
    return sources, prompts, np.array(weights, np.float32) / np.float32(np.mean(weights))


def full(unet, config: ConfigDict):
    """Trains every parameter of the UNet: (trained, frozen constants, how the UNet is made of both)."""
    return unet, {}, lambda params, constants: params


def adapters(unet, config: ConfigDict):
    """Trains LoRA adapters on the attention of a frozen UNet."""
    trained = lora.init(unet, config.lora.rank, config.seed)

    def merged(params, constants):
        return lora.merge(constants["unet"], lora.uniform(params, config.lora.alpha), 1.0)

    return trained, {"unet": unet}, merged


METHODS = {"full": full, "lora": adapters}
