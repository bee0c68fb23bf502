"""`dermjax tune`: a labelled manifest and a Stable Diffusion model -> a model that draws each class by its prompt.

manifest -> concepts -> (autoencoder) -> moments and contexts (once) -> the one loop -> model/, LoRA, report and card

Of the model only what a step needs is in memory while it is tuned: the autoencoder and a frozen text encoder are read
for the moments and the contexts, for every evaluation, and once more when the tuned model is written.
"""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from operator import getitem
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from dermjax import buckets, config_file, run_folder, sharding
from dermjax.data import digests, images, pipelines
from dermjax.data.leaks import training_images
from dermjax.diffusion import samplers
from dermjax.errors import UserError
from dermjax.evaluation import features
from dermjax.evaluation.features import FeatureExtractor
from dermjax.models import clip_text, unet, vae
from dermjax.models.unet import REMAT
from dermjax.progress import say
from dermjax.training import optimizers
from dermjax.training.loop import LoopConfig, Task, fit
from dermjax.training.state import State
from dermjax.tuning import autoencoder, costs, forecast, outputs, report, task, trainable
from dermjax.tuning.concepts import Concepts, digest_of_images
from dermjax.tuning.latents import Encoder
from dermjax.tuning.setup import Setup, read_concepts, read_setup
from dermjax.weights import model_files

Rows = dict[str, np.ndarray]
NAMES = {
    "remat": REMAT,
    "precision": trainable.PRECISIONS,
    "save_dtype": outputs.DTYPES,
    "optimizer": optimizers.OPTIMIZERS,
    "schedule": optimizers.SCHEDULES,
    "tuned.vae": dict.fromkeys(autoencoder.MODES),
}


def run(config: ConfigDict, workdir: Path, on_loss: Callable[[int, float], None] | None = None) -> None:
    """Tunes config.model on the training split of config.manifest and leaves the model, its report and its card.

    `on_loss(step, validation loss)` is called after every evaluation and may raise to end the run.
    """
    if outputs.is_finished(workdir, config):
        _say_finished(config, workdir)
        return
    check(config)
    if not on_loss:
        _check_left(config)
    folder = workdir / f".tokenizer_{jax.process_index()}"  # of new words, while the run lasts
    try:
        _tune(config, workdir, read_setup(config, folder), on_loss or (lambda step, loss: None))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _tune(config: ConfigDict, workdir: Path, setup: Setup, on_loss: Callable[[int, float], None]) -> None:
    """Tunes as `run` does, once the setup is made."""
    base = model_files.digest(model_files.locate(config.model))
    _say_other_causes(workdir, _inputs(base, setup.training, setup.validation))
    costs.report(setup, config)

    setup = autoencoder.tune(setup, config, workdir)
    network = features.read(config.evidence.features)
    draw = _drawing(setup, setup.samples)  # refuses what no sampler can do before an image is decoded
    training, validation, texts = _encode(setup, config, workdir)
    batches = pipelines.array_batches(
        training, batch=config.batch, seed=config.seed, epoch=setup.training.epoch,
        rows=sharding.local_rows(config.batch, setup.grid),
    )  # fmt: skip
    learning = _task(setup, config, workdir, draw, network, validation, on_loss)
    loop_config = LoopConfig(
        seed=config.seed, steps=config.steps, save_every=config.save_every, log_every=config.log_every,
        ema_decay=config.ema_decay, accumulate=config.accumulate, evaluate_every=config.watch_every,
        patience=config.patience,
    )  # fmt: skip
    trained, frozen = setup.divided()
    state = fit(
        learning, setup.state(trained), frozen | texts, batches, loop_config, mesh=setup.grid, workdir=workdir
    )  # fmt: skip

    outputs.write(
        workdir, setup, state.smooth,
        alpha=config.lora.alpha, model=config.save_model, vae=config.tuned.vae != "frozen",
        dtype=outputs.DTYPES[config.save_dtype],
    )  # fmt: skip
    if jax.process_index() == 0:
        training_images.write(workdir, setup.training.sources, [Path(config.model)])
    report.write(workdir, config, setup.training, setup.validation)
    outputs.finish(workdir, config, setup.training, setup.validation, base)
    say(f"tune: the model, its card and report.html are in {workdir}")


def dry_run(config: ConfigDict) -> None:
    """Prints what `run` would do, how long it would take, and the memory and the disk that it would need."""
    check(config)
    _check_left(config)
    with tempfile.TemporaryDirectory() as folder:
        setup = read_setup(config, Path(folder))
        features.read(config.evidence.features)  # what these refuse, `run` would
        _drawing(setup, setup.samples)
        say(costs.plan(setup, config))
        costs.report(setup, config)
        say(forecast.here(setup, config))


def check(config: ConfigDict) -> None:
    """Raises UserError for options of `tune` that no model and no data would make right on this machine."""
    check_options(config)
    # how many devices data = 0 takes depends on the model where one process runs; a batch divides over one at least
    least = config.mesh.data or (1 if jax.process_count() == 1 else 0)
    sharding.check_batch(config.batch, config.accumulate, sharding.mesh(least, config.mesh.fsdp))


def check_options(config: ConfigDict) -> None:
    """Raises UserError for options of `tune` that no model, no data and no machine would make right."""
    config_file.check(config)
    for option, known in NAMES.items():
        value = reduce(getitem, option.split("."), config)
        if value or option != "precision":
            optimizers.pick(f"config.{option}", known, value)
    samplers.get_sampler(config.samples.sampler)
    optimizers.pick("config.evidence.minimise", dict.fromkeys(task.MINIMISED), config.evidence.minimise)
    if config.evidence.features and not (config.watch_every and config.validation_draws and config.evidence.images):
        raise UserError(
            "config.evidence.features needs evaluations: give config.watch_every, config.validation_draws and "
            "config.evidence.images"
        )
    evidence = config.evidence
    if not evidence.features and (evidence.minimise != "validation_loss" or evidence.most_copies < 1):
        raise UserError("config.evidence.minimise and most_copies go by config.evidence.features; give the network")
    if config.tuned.vae == "full" and config.tuned.unet == "frozen":
        raise UserError("config.tuned.vae = full changes the latents, and config.tuned.unet = frozen does not learn "
                        "them; give decoder, or tune the UNet")  # fmt: skip
    if config.tuned.vae == "full" and config.tuned.unet == "lora":
        say("tune: warning: config.tuned.vae = full changes the latents, which a LoRA learns in part; give decoder, or "
            "config.tuned.unet = full")  # fmt: skip
    if not config.rate:
        say("tune: warning: config.rate = 0: nothing will be learnt; give more, such as 1e-4")
    if config.precision == "pure_bfloat16" and "full" not in (config.tuned.unet, config.tuned.text_encoder):
        say("tune: warning: config.precision = pure_bfloat16 is for networks tuned whole; LoRA and words stay float32, "
            "as with bfloat16")  # fmt: skip
    if config.patience and not config.watch_every:
        raise UserError("config.patience needs evaluations on held-out images; give config.watch_every")
    if config.cache and buckets.mirrors(Path(config.cache)):
        raise UserError(f"config.cache = {buckets.as_given(config.cache)}: it is read from a disk; give a folder of "
                        "this machine, or leave it empty")  # fmt: skip
    if config.cache and Path(config.cache).exists() and not Path(config.cache).is_dir():
        raise UserError(f"config.cache = {config.cache}: is no folder; give one, or leave it empty")


def _check_left(config: ConfigDict) -> None:
    """Refuses a run that would leave nothing of what it trains; a trial of `sweep` is there for its loss alone."""
    whole = [network for network in ("unet", "text_encoder") if config.tuned[network] == "full"]
    if whole and not config.save_model:
        raise UserError(
            f"config.save_model = False leaves the LoRA and the words alone, and config.tuned.{whole[0]} = full is in "
            "neither; give True, or lora"
        )


def _encode(setup: Setup, config: ConfigDict, workdir: Path) -> tuple[Rows, Rows, Rows]:
    """Returns the examples to train on, those held out, and the prompts as a step takes them: contexts or tokens."""
    encoder = Encoder(
        setup.sd, setup.params, config.encode_batch, Path(config.cache or workdir / "latents"), setup.grid
    )
    validation, training = (
        encoder.examples(each, setup.prompts, setup.samples.size) if each.sources else {}
        for each in (setup.validation, setup.training)
    )
    state, frozen = setup.shapes
    if trainable.needs_text_encoder(state.params, frozen):
        return training, validation, {"tokens": setup.prompts.tokens}
    return training, validation, {"contexts": encoder.contexts(setup.prompts)}


def _drawing(setup: Setup, samples: task.Samples) -> Callable[[State, dict], np.ndarray]:
    return task.drawing(setup.sd, setup.complete, setup.prompts, samples, setup.grid)


def _task(
    setup: Setup, config: ConfigDict, workdir: Path, draw: Callable[[State, dict], np.ndarray],
    network: FeatureExtractor | None, validation: Rows, on_loss: Callable,
) -> Task:  # fmt: skip
    """Returns the training task: the DreamBooth loss, watched by samples, the report and the held-out loss.

    With a network copies and the Frechet distance of drawn images are watched too.
    """
    evidence, watch = config.evidence, lambda state, constants: {}
    if network:
        many = _drawing(setup, replace(setup.samples, images=evidence.images))
        watch = task.figures(many, network, setup.training, setup.validation, workdir / "features")
    sample = task.sampling(draw, setup.samples, workdir)
    measure = task.validation(setup.loss(**task.PLAIN), validation, config.validation_draws, config.batch, setup.grid)

    def evaluate(state: State, constants: dict) -> dict[str, float | np.ndarray]:
        samples = sample(state, constants)
        report.write(workdir, config, setup.training, setup.validation)
        scalars = measure(state, constants) | watch(state, constants)
        if network:
            scalars |= task.judged(scalars, evidence.minimise, evidence.most_copies)
        on_loss(int(state.step), scalars.get("validation_loss", np.nan))
        return scalars | samples

    held_out = "validation_loss" if validation and config.validation_draws else ""
    minimise = task.JUDGED if network else held_out
    return Task("tune", setup.loss(**config.loss), setup.optimizer, evaluate, minimise, setup.training.names)


def _inputs(base: str, training: Concepts, validation: Concepts) -> dict:
    """Returns the digests of what a model is tuned from: the base model, the images and what is said of each."""
    sides = (training, validation)
    return {
        "model": base,
        "images": [digest_of_images(each.sources) for each in sides],
        "prompts": digests.of_text(repr([each.prompts for each in sides])),
    }


def _say_finished(config: ConfigDict, workdir: Path) -> None:
    """Says that a finished run has nothing to do, or that its inputs are others now, or not there any more."""
    try:
        inputs = _inputs(model_files.digest(model_files.locate(config.model)), *read_concepts(config))
    except UserError as error:
        inputs = {}
        say(f"tune: what {workdir} was tuned from cannot be compared: {error}")
    if not _say_other_causes(workdir, inputs):
        say(f"tune: {workdir} has been tuned, nothing to do")


def _say_other_causes(workdir: Path, inputs: dict) -> bool:
    """Says where the folder was begun by code that gives other numbers, or from inputs of other digests; returns
    whether it was."""
    causes = inputs | {
        run_folder.NUMERIC_VERSIONS: {
            "images": images.NUMERIC_VERSION, "text_encoder": clip_text.NUMERIC_VERSION,
            "unet": unet.NUMERIC_VERSION, "vae": vae.NUMERIC_VERSION,
        },
    }  # fmt: skip
    return jax.process_index() == 0 and run_folder.say_changed_since_start("tune", workdir, causes, outputs.LEFT)
