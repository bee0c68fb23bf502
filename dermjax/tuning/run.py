"""`dermjax tune`: a labelled manifest and a Stable Diffusion model -> a model that draws each class when asked.

manifest -> concepts -> moments and contexts (once) -> the one loop -> model/, LoRA, words/, report and card

Of the model only what a step needs is in memory while it is tuned: the autoencoder and a silent text encoder are read
for the moments and the contexts, for every look, and once more when the tuned model is written.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from dermjax import config_file, run_folder, sharding
from dermjax.data import images, pipelines
from dermjax.diffusion import samplers
from dermjax.errors import UserError
from dermjax.models import clip_text, unet, vae
from dermjax.models.unet import REMAT
from dermjax.progress import say
from dermjax.training import optimizers
from dermjax.training.loop import LoopConfig, Task, fit
from dermjax.training.state import State
from dermjax.tuning import card, concepts, costs, outputs, report, trainable, work
from dermjax.tuning import inputs as latents
from dermjax.tuning.concepts import Concepts, digested
from dermjax.tuning.task import PLAIN, evaluator, painter
from dermjax.weights import model_files

NAMES = {
    "remat": REMAT,
    "precision": trainable.PRECISIONS,
    "save_dtype": outputs.DTYPES,
    "optimizer": optimizers.OPTIMIZERS,
    "schedule": optimizers.SCHEDULES,
}


def check(config: ConfigDict) -> None:
    """Raises UserError for options of `tune` that no model and no data would make right."""
    config_file.check(config)
    for option, known in NAMES.items():
        if config[option] or option != "precision":
            optimizers.pick(f"config.{option}", known, config[option])
    samplers.get_sampler(config.samples.sampler)
    if config.patience and not config.watch_every:
        raise UserError("config.patience needs looks at held-out images; give config.watch_every")
    if config.cache and Path(config.cache).exists() and not Path(config.cache).is_dir():
        raise UserError(f"config.cache = {config.cache}: is no folder; give one, or leave it empty")
    # how many devices data = 0 takes depends on the model; a batch has to divide over one at least
    sharding.check_batch(config.batch, config.accumulate, sharding.mesh(config.mesh.data or 1, config.mesh.fsdp))


def run(config: ConfigDict, workdir: Path, heard: Callable[[int, float], None] = lambda step, loss: None) -> None:
    """Tunes config.model on the training split of config.manifest and leaves the model, its report and its card.

    `heard(step, validation loss)` is told of every evaluation and may raise to end the run.
    """
    if outputs.finished(workdir, card.settings(config)):
        say(f"tune: {workdir} has been tuned, nothing to do")
        _tell_other_causes(workdir, {})
        return
    check(config)
    todo = work.read(config, workdir / "tokenizer")
    _tell_other_causes(workdir, {
        "model": model_files.digest(model_files.locate(config.model)),
        "images": [digested(each.sources) for each in (todo.shown, todo.held_out)],
    })  # fmt: skip
    costs.tell(todo, config)
    grid, sd, shown, held_out = todo.grid, todo.sd, todo.shown, todo.held_out
    paint = painter(
        sd, outputs.complete(todo.params, todo.assembled, grid), todo.said,
        concepts.asked(shown, config.samples.prompts),
        images=config.samples.images, sampler=config.samples.sampler, steps=config.samples.steps,
        guidance=config.samples.guidance, size=todo.size, batch=config.batch, grid=grid, workdir=workdir,
    )  # fmt: skip
    kept = Path(config.cache or workdir / "latents")

    def rows(of: Concepts) -> dict[str, np.ndarray]:
        moments = latents.moments(sd, todo.params, of.sources, todo.size, config.encode_batch, kept, grid)
        number = np.arange(len(moments), dtype=np.int32)
        return {"moments": moments, "prompt": todo.said.rows(of.prompts), "weight": of.weights, "row": number}

    judged, trained_on = rows(held_out) if held_out.sources else {}, rows(shown)
    if trainable.silent(todo.shapes[0].params, todo.shapes[1]):
        said = {"contexts": todo.said.contexts(sd, todo.params, config.encode_batch, kept, grid)}
    else:
        said = {"tokens": todo.said.tokens}
    judge = evaluator(todo.loss(**PLAIN), judged, config.validation_draws, config.batch, grid)

    def watch(state: State, constants: dict) -> dict[str, float | np.ndarray]:
        painted = paint(state, constants)
        report.write(workdir, config, shown, held_out)
        found = judge(state, constants)
        heard(int(state.step), found.get("validation_loss", np.nan))
        return found | painted

    trained, frozen = todo.divided(todo.params)
    learning = Task(
        "tune", todo.loss(**config.loss), todo.optimizer, watch,
        minimise="validation_loss" if judged and config.validation_draws else "", names=shown.names,
    )  # fmt: skip
    loop_config = LoopConfig(
        seed=config.seed, steps=config.steps, save_every=config.save_every, log_every=config.log_every,
        ema_decay=config.ema_decay, accumulate=config.accumulate, evaluate_every=config.watch_every,
        patience=config.patience,
    )  # fmt: skip
    batches = pipelines.array_batches(
        trained_on, batch=config.batch, seed=config.seed, epoch=shown.epoch,
        rows=sharding.local_rows(config.batch, grid),
    )  # fmt: skip
    learnt = fit(learning, todo.state(trained), frozen | said, batches, loop_config, mesh=grid, workdir=workdir).smooth
    outputs.write(
        workdir, sd, todo.params, learnt, todo.words,
        alpha=config.lora.alpha, model=config.save_model, dtype=outputs.DTYPES[config.save_dtype], grid=grid,
    )  # fmt: skip
    outputs.note(workdir, shown.sources, config.model)
    report.write(workdir, config, shown, held_out)
    origin = model_files.digest(model_files.locate(config.model))
    outputs.finish(workdir, card.text(workdir, config, shown, held_out, origin), card.pictures(workdir))
    say(f"tune: the model, its card and report.html are in {workdir}")


def dry_run(config: ConfigDict) -> None:
    """Prints what `run` would do, how long it would take, and the memory and the disk that it would need."""
    check(config)
    with tempfile.TemporaryDirectory() as folder:
        todo = work.read(config, Path(folder))
        say(costs.plan(todo, config))
        costs.tell(todo, config)


def _tell_other_causes(workdir: Path, inputs: dict) -> None:
    """Says where the folder was begun by code that gives other numbers, or from inputs of other digests."""
    causes = inputs | {
        run_folder.NUMERIC_VERSIONS: {
            "images": images.NUMERIC_VERSION, "text_encoder": clip_text.NUMERIC_VERSION,
            "unet": unet.NUMERIC_VERSION, "vae": vae.NUMERIC_VERSION,
        },
    }  # fmt: skip
    others = run_folder.changed_since_start(workdir, causes, outputs.LEFT) if jax.process_index() == 0 else ""
    if others:
        say(f"tune: {workdir} was begun from others ({others}); it stays, another --workdir learns anew")
