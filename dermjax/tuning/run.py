"""`dermjax tune`: a labelled manifest and a Stable Diffusion model -> a model that draws each class when asked.

manifest -> concepts -> moments and contexts (once) -> the one loop -> model/, LoRA, words/, report and card
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dermjax import config_file, machine, run_folder, sharding
from dermjax.data import images, pipelines, records
from dermjax.diffusion import samplers
from dermjax.errors import UserError
from dermjax.models import clip_text, unet, vae
from dermjax.models.stable_diffusion import Params, count, operations
from dermjax.models.unet import REMAT
from dermjax.progress import cost, say
from dermjax.training import optimizers
from dermjax.training.loop import fit
from dermjax.training.state import State, create
from dermjax.tuning import card, concepts, dreambooth, latents, outputs, parts, report, start, texts
from dermjax.tuning.concepts import Concepts, digested
from dermjax.tuning.samples import painter
from dermjax.tuning.validation import PLAIN, evaluator
from dermjax.weights import model_files

TRAINED_A_CORE_A_SECOND = 40e9  # operations, measured: derm-tiny in float32 on a core with AVX2
GRADIENT = 3  # passes that one with gradients counts for
NAMES = {
    "remat": REMAT,
    "precision": parts.PRECISIONS,
    "save_dtype": outputs.DTYPES,
    "optimizer": optimizers.OPTIMIZERS,
    "schedule": optimizers.SCHEDULES,
}


def check(config: ConfigDict) -> Mesh:
    """Returns the mesh of a config of `tune`; UserError for options that no model and no data would make right."""
    config_file.check(config)
    for option, known in NAMES.items():
        optimizers.pick(f"config.{option}", known, config[option])
    samplers.named(config.samples.sampler)
    if config.patience and not config.watch_every:
        raise UserError("config.patience needs looks at held-out images; give config.watch_every")
    if config.cache and Path(config.cache).exists() and not Path(config.cache).is_dir():
        raise UserError(f"config.cache = {config.cache}: is no folder; give one, or leave it empty")
    grid = sharding.mesh(config.mesh.data, config.mesh.fsdp)
    sharding.check_batch(config.batch, config.accumulate, grid)
    return grid


def run(config: ConfigDict, workdir: Path, heard: Callable[[int, float], None] = lambda step, loss: None) -> None:
    """Tunes config.model on the training split of config.manifest and leaves the model, its report and its card.

    `heard(step, validation loss)` is told of every evaluation and may raise to end the run.
    """
    if outputs.finished(workdir, card.settings(config)):
        say(f"tune: {workdir} has been tuned, nothing to do")
        _tell_other_causes(workdir, {})
        return
    grid = check(config)
    _, arithmetic = parts.PRECISIONS[config.precision]
    manifest = records.read(Path(config.manifest))
    shown = concepts.training(manifest, config.prompts, **config.concepts)
    held_out = concepts.held_out(manifest, manifest.split("validation"), config.prompts)

    sd, params, words = start.read(
        config.model, dtype=arithmetic, remat=config.remat, words=config.words, vectors=config.vectors,
        folder=workdir / "tokenizer",
    )  # fmt: skip
    _tell_other_causes(workdir, {
        "model": model_files.digest(model_files.locate(config.model)),
        "images": [digested(each.sources) for each in (shown, held_out)],
    })  # fmt: skip
    if config.patience and not (held_out.sources and config.validation_draws and config.watch_every):
        raise UserError(
            "config.patience needs a validation split in the manifest, config.validation_draws and config.watch_every"
        )
    size = config.size or sd.size
    if size % sd.factor:
        raise UserError(f"size = {size} is not a multiple of {sd.factor}")
    trained, frozen = parts.divided(
        params, config.tuned, rank=config.lora.rank, targets=config.lora.targets, seed=config.seed,
        words=config.vectors * len(words), precision=config.precision,
    )  # fmt: skip
    assembled = partial(parts.assembled, alpha=config.lora.alpha)
    said = texts.read(sd, [*shown.prompts, *held_out.prompts], words)
    optimizer = optimizers.build(
        config.optimizer, rate=config.rate, warmup=config.warmup, steps=config.steps, schedule=config.schedule,
        weight_decay=config.weight_decay, clip=config.clip, slower={r"text_encoder|^words": config.text_rate},
    )  # fmt: skip
    paint = painter(
        sd, outputs.complete(params, assembled), said, concepts.asked(shown, config.samples.prompts),
        images=config.samples.images, sampler=config.samples.sampler, steps=config.samples.steps,
        guidance=config.samples.guidance, size=size, grid=grid, workdir=workdir,
    )  # fmt: skip
    kept = Path(config.cache or workdir / "latents")
    constants = frozen | (
        {"contexts": said.contexts(sd, params, config.encode_batch, kept, grid)}
        if parts.silent(trained, frozen)
        else {"tokens": said.tokens}
    )
    seconds = processor_seconds(params, (size // sd.factor) ** 2 * config.batch * config.steps, grid)
    cost("tune", devices=grid.size, parameters=count(trained), images=len(shown.sources), steps=config.steps, **seconds)

    def rows(of: Concepts) -> dict[str, np.ndarray]:
        moments = latents.moments(sd, params, of.sources, size, config.encode_batch, kept, grid)
        number = np.arange(len(moments), dtype=np.int32)
        return {"moments": moments, "prompt": said.rows(of.prompts), "weight": of.weights, "row": number}

    loss = partial(dreambooth.loss, sd, assembled)
    judged = rows(held_out) if held_out.sources else {}
    judge = evaluator(loss(**PLAIN), judged, config.validation_draws, config.batch, grid)

    def watch(state: State, constants: dict) -> dict[str, float | np.ndarray]:
        painted = paint(state, constants)
        report.write(workdir, config, shown, held_out)
        found = judge(state, constants)
        heard(int(state.step), found.get("validation_loss", np.nan))
        return found | painted

    state = fit(
        loss(**config.loss), create(trained, {}, optimizer, ema=config.ema_decay > 0), constants,
        pipelines.arrays(
            rows(shown), batch=config.batch, seed=config.seed, rows=sharding.own(config.batch, grid), epoch=shown.epoch
        ),
        optimizer=optimizer, seed=config.seed, steps=config.steps, ema_decay=config.ema_decay,
        accumulate=config.accumulate, mesh=grid, rules=sharding.RULES, workdir=workdir, title="tune",
        save_every=config.save_every, log_every=config.log_every, evaluate=watch,
        evaluate_every=config.watch_every, minimise="validation_loss" if judged and config.validation_draws else "",
        patience=config.patience, names=shown.names,
    )  # fmt: skip
    outputs.write(
        workdir, sd, params, state.smooth, words,
        alpha=config.lora.alpha, model=config.save_model, dtype=outputs.DTYPES[config.save_dtype], grid=grid,
    )  # fmt: skip
    outputs.note(workdir, shown.sources, config.model)
    report.write(workdir, config, shown, held_out)
    origin = model_files.digest(model_files.locate(config.model))
    outputs.finish(workdir, card.text(workdir, config, shown, held_out, origin), card.pictures(workdir))
    say(f"tune: the model, its card and report.html are in {workdir}")


def _tell_other_causes(workdir: Path, inputs: dict) -> None:
    """Says where the folder was begun by code that gives other numbers, or from inputs of other digests."""
    causes = inputs | {
        run_folder.NUMERIC_VERSIONS: {
            "images": images.NUMERIC_VERSION, "text_encoder": clip_text.NUMERIC_VERSION,
            "unet": unet.NUMERIC_VERSION, "vae": vae.NUMERIC_VERSION,
        },
    }  # fmt: skip
    others = run_folder.begun(workdir, causes, outputs.LEFT) if jax.process_index() == 0 else ""
    if others:
        say(f"tune: {workdir} was begun from others ({others}); it stays, another --workdir learns anew")


def processor_seconds(params: Params, cells: int, grid: Mesh) -> dict[str, float]:
    """Returns how long training on so many latent cells may take, where that has been measured: on a CPU."""
    if grid.devices.flat[0].platform != "cpu":
        return {}
    return {"seconds": GRADIENT * operations(params, cells) / TRAINED_A_CORE_A_SECOND / machine.cores()}
