"""The work that a config of `tune` comes to: what is shown to which part of which model, all of it checked."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dermjax import sharding
from dermjax.data import records
from dermjax.errors import UserError
from dermjax.models.stable_diffusion import Params, StableDiffusion, count
from dermjax.training import optimizers
from dermjax.training.state import State, create
from dermjax.training.step import Loss
from dermjax.tuning import concepts, inputs, task, trainable
from dermjax.tuning.concepts import Concepts
from dermjax.tuning.inputs import Texts
from dermjax.tuning.trainable import Tree
from dermjax.weights.textual_inversion import Embedding


@dataclass(frozen=True)
class Work:
    """What a run of `tune` is made of, before anything is computed; the parameters are lazy."""

    grid: Mesh
    shown: Concepts
    held_out: Concepts
    sd: StableDiffusion
    params: Params
    words: list[Embedding]
    said: Texts
    size: int  # pixels
    divided: Callable[[Params], tuple[Tree, Tree]]  # into what is trained and what is frozen
    assembled: Callable[[Tree, Tree], Params]
    optimizer: optax.GradientTransformation
    ema: bool

    def state(self, trained: Tree) -> State:
        """Returns the state before the first step."""
        return create(trained, {}, self.optimizer, ema=self.ema)

    @cached_property
    def shapes(self) -> tuple[State, Tree]:
        """Returns the shapes of the state and of what is frozen."""

        def begun(params: Params) -> tuple[State, Tree]:
            trained, frozen = self.divided(params)
            return self.state(trained), frozen

        return jax.eval_shape(begun, self.sd.shapes)

    def loss(self, **settings) -> Loss:
        """Returns the tuning loss of these settings."""
        return task.dreambooth_loss(self.sd, self.assembled, **settings)


def read(config: ConfigDict, folder: Path) -> Work:
    """Returns the work of a config; whatever it cannot do is a UserError. `folder` gets the tokenizer of new words."""
    precision = config.precision or sharding.fastest_precision()
    _, arithmetic = trainable.PRECISIONS[precision]
    manifest = records.read(Path(config.manifest))
    shown = concepts.training(manifest, config.prompts, **config.concepts)
    held_out = concepts.held_out(manifest, manifest.split("validation"), config.prompts)
    if config.patience and not (held_out.sources and config.validation_draws):
        raise UserError("config.patience needs a validation split in the manifest and config.validation_draws")
    sd, params, words = inputs.read_start(
        config.model, dtype=arithmetic, remat=config.remat, words=config.words, vectors=config.vectors, folder=folder
    )
    grid = sharding.mesh(config.mesh.data, config.mesh.fsdp, count(params))
    sharding.check_batch(config.batch, config.accumulate, grid)
    size = config.size or sd.size
    if size % sd.factor:
        raise UserError(f"size = {size} is not a multiple of {sd.factor}")
    divided = partial(
        trainable.divided, tuned=config.tuned, rank=config.lora.rank, targets=config.lora.targets, seed=config.seed,
        words=config.vectors * len(words), precision=precision,
    )  # fmt: skip
    optimizer = optimizers.build(
        config.optimizer, rate=config.rate, warmup=config.warmup, steps=config.steps, schedule=config.schedule,
        weight_decay=config.weight_decay, clip=config.clip, slower={r"text_encoder|^words": config.text_rate},
    )  # fmt: skip
    said = inputs.read_texts(sd, [*shown.prompts, *held_out.prompts], words)
    assembled = partial(trainable.assembled, alpha=config.lora.alpha)
    return Work(grid, shown, held_out, sd, params, words, said, size, divided, assembled, optimizer,
                config.ema_decay > 0)  # fmt: skip
