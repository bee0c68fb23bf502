"""The setup of a run of `tune`, from its config, checked: images, prompts, model, what is trained, optimiser."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dermjax import sharding
from dermjax.data import records, templates
from dermjax.errors import UserError
from dermjax.models.stable_diffusion import Params, StableDiffusion, count
from dermjax.progress import say
from dermjax.sampling.requests import SamplerSettings
from dermjax.training import optimizers
from dermjax.training.state import State, create
from dermjax.training.step import Loss
from dermjax.tuning import concepts, latents, task, trainable
from dermjax.tuning.concepts import Concepts
from dermjax.tuning.latents import Prompts
from dermjax.tuning.task import Samples
from dermjax.tuning.trainable import Tree
from dermjax.weights import model_files
from dermjax.weights.textual_inversion import Embedding


@dataclass(frozen=True)
class Setup:
    """What a run of `tune` is made of, before anything is computed; the parameters are lazy."""

    grid: Mesh
    training: Concepts
    validation: Concepts
    sd: StableDiffusion
    params: Params
    prompts: Prompts
    samples: Samples
    divide: Callable[[Params], tuple[Tree, Tree]]  # into what is trained and what is frozen
    assemble: Callable[[Tree, Tree], Params]
    optimizer: optax.GradientTransformation
    ema: bool

    def divided(self) -> tuple[Tree, Tree]:
        """Returns what is trained and what is frozen, in the host's memory."""
        with sharding.in_host_memory():
            return self.divide(self.params)

    def state(self, trained: Tree) -> State:
        """Returns the state before the first step."""
        return create(trained, {}, self.optimizer, ema=self.ema)

    @cached_property
    def shapes(self) -> tuple[State, Tree]:
        """The shapes of the state and of what is frozen."""

        def begin(params: Params) -> tuple[State, Tree]:
            trained, frozen = self.divide(params)
            return self.state(trained), frozen

        return jax.eval_shape(begin, self.sd.shapes)

    def loss(self, **settings: float) -> Loss:
        """Returns the tuning loss of these settings."""
        return task.dreambooth_loss(self.sd, self.assemble, **settings)

    def complete(self, trained: Tree, constants: Tree) -> Params:
        """Returns the parameters of the complete model on the devices; networks that no step needs are read anew."""
        networks = self._assemble_jitted(trained, constants)
        unused = {name: each for name, each in self.params.items() if name not in networks}
        return networks | model_files.place(unused, sharding.replicated(self.grid))

    @cached_property
    def _assemble_jitted(self) -> Callable[[Tree, Tree], Params]:
        return jax.jit(self.assemble)


def read_concepts(config: ConfigDict) -> tuple[Concepts, Concepts]:
    """Returns what a config has to train on, and what is held out."""
    manifest = records.read(Path(config.manifest))
    training = concepts.training(manifest, config.prompts, **config.concepts)
    return training, concepts.plain(manifest, manifest.split("validation"), config.prompts)


def read_setup(config: ConfigDict, folder: Path) -> Setup:
    """Returns the setup of a config; what it cannot do is a UserError. `folder` gets the tokenizer of new words."""
    training, validation = read_concepts(config)
    labelled = zip((record.label for _, record in training.sources), training.prompts, strict=True)
    if warning := templates.same_prompts(labelled):
        say(f"tune: {warning}")
    if config.evidence.features and len(validation.sources) < 2:
        raise UserError("config.evidence.features needs two or more images in the validation split of the manifest")
    if config.patience and not (validation.sources and config.validation_draws):
        raise UserError("config.patience needs a validation split in the manifest and config.validation_draws")
    sd, params, words = latents.read_model(
        config.model,
        dtype=arithmetic(config),
        remat=config.remat,
        words=config.words,
        vectors=config.vectors,
        folder=folder,
    )
    check_channels(config, sd)
    grid = sharding.mesh(config.mesh.data, config.mesh.fsdp, count(params))
    sharding.check_batch(config.batch, config.accumulate, grid)
    check_sizes(config, sd)
    if config.tuned.vae != "frozen" and config.vae.batch % grid.size:
        raise UserError(f"config.vae.batch = {config.vae.batch} does not divide over {grid.size} devices")
    prompts = latents.tokenize_prompts(sd, [*training.prompts, *validation.prompts], words)
    return _set_up(config, grid, sd, params, prompts, training, validation)


def shaped_setup(config: ConfigDict, sd: StableDiffusion, grid: Mesh) -> Setup:
    """Returns the setup of a config by shapes alone, without images, weights and tokenizer, for any devices.

    It knows as many prompts as config has, one for a class.
    """
    check_channels(config, sd)
    sharding.check_batch(config.batch, config.accumulate, grid)
    text = sd.configs["text_encoder"]
    text = text | {"vocab_size": text["vocab_size"] + config.vectors * len(config.words)}
    sd = replace(sd, configs=sd.configs | {"text_encoder": text}, dtype=arithmetic(config), remat=config.remat)
    check_sizes(config, sd)
    words = [Embedding(word, np.zeros((config.vectors, text["hidden_size"]), np.float32)) for word in config.words]
    tokens = np.zeros((len(config.prompts) + 1, text["max_position_embeddings"]), np.int32)
    prompts = Prompts(list(config.prompts.values()), tokens, words, {})
    empty = Concepts([], [], np.zeros(0, np.float32), np.zeros(0, np.int32))
    return _set_up(config, grid, sd, sd.shapes, prompts, empty, empty)


def precision(config: ConfigDict) -> str:
    """Returns the precision of a config, by itself this machine's fastest."""
    return config.precision or sharding.fastest_precision()


def arithmetic(config: ConfigDict) -> jnp.dtype:
    """Returns the type that a config's precision computes in."""
    return trainable.PRECISIONS[precision(config)][1]


def check_channels(config: ConfigDict, sd: StableDiffusion) -> None:
    """Raises UserError for a model that paints into pictures: its UNet takes a mask and the picture's latents too."""
    taken, latent = sd.configs["unet"]["in_channels"], sd.configs["vae"]["latent_channels"]
    if taken != latent:
        raise UserError(f"model {config.model}: it paints into pictures ({taken} channels); tune a model of {latent}, "
                        "such as the one that it was made from")  # fmt: skip


def check_sizes(config: ConfigDict, sd: StableDiffusion) -> None:
    """Raises UserError for a side of images that is no whole number of latent cells."""
    size = config.size or sd.size
    if size % sd.factor or config.vae.size % sd.factor:
        wrong = f"size = {size}" if size % sd.factor else f"config.vae.size = {config.vae.size}"
        raise UserError(f"{wrong} is not a multiple of {sd.factor}")
    least = sd.factor * 2 ** (len(sd.configs["unet"]["block_out_channels"]) - 1)
    if size < least:
        raise UserError(f"config.size = {size}: at its depth the UNet would see less than a cell; give {least} or more")


def _set_up(
    config: ConfigDict, grid: Mesh, sd: StableDiffusion, params: Params, prompts: Prompts, training: Concepts,
    validation: Concepts,
) -> Setup:  # fmt: skip
    chosen = config.samples
    settings = SamplerSettings(sampler=chosen.sampler, steps=chosen.steps, guidance=chosen.guidance)
    shown = concepts.first_prompts(training, chosen.prompts)
    samples = Samples(shown, chosen.images, settings, config.size or sd.size, config.batch)
    tuned = {network: config.tuned[network] for network in ("unet", "text_encoder")}
    divide = partial(
        trainable.divide, tuned=tuned, rank=config.lora.rank, targets=config.lora.targets, seed=config.seed,
        words=config.vectors * len(prompts.words), precision=precision(config),
    )  # fmt: skip
    optimizer = optimizers.build(
        config.optimizer, rate=config.rate, warmup=config.warmup, steps=config.steps, schedule=config.schedule,
        weight_decay=config.weight_decay, clip=config.clip, slower={r"text_encoder|^words": config.text_rate},
    )  # fmt: skip
    return Setup(
        grid=grid,
        training=training,
        validation=validation,
        sd=sd,
        params=params,
        prompts=prompts,
        samples=samples,
        divide=divide,
        assemble=partial(trainable.assemble, alpha=config.lora.alpha),
        optimizer=optimizer,
        ema=config.ema_decay > 0,
    )
