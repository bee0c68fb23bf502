"""A saved classifier, from wherever it was saved: a classifier folder, a finished run, or a run's last checkpoint."""

import json
from pathlib import Path

import jax
from ml_collections import ConfigDict

from dermjax import sharding
from dermjax.classification import networks, recipes
from dermjax.classification.training import optimizer_of
from dermjax.data import records
from dermjax.errors import UserError
from dermjax.models.classifier import Classifier, Params
from dermjax.training import checkpoints
from dermjax.training.state import create
from dermjax.weights import classifiers
from dermjax.weights.tensor_files import read_json


def restored(path: Path) -> tuple[Classifier, tuple[Params, Params]]:
    """Returns the classifier, with its own labels and image size, and (params, variables).

    A checkpoint is restored on whatever devices there are; its probabilities are not calibrated yet.

    Raises:
      UserError: there is no classifier at this path, or it is damaged.
    """
    folder = path / "classifier" if (path / "classifier").is_dir() else path
    if (folder / "model.safetensors").is_file():
        config = read_json(folder / "config.json")
        labels = tuple(config.get("id2label", {}).values())
        if not labels or "image_size" not in config:
            raise UserError(f"{folder}/config.json: names no classes or no image size; train it with classify first")
        return classifiers.read(folder, labels, config["image_size"])
    if not checkpoints.steps(path / "checkpoints"):
        raise UserError(f"classifier {path}: no model.safetensors, no classifier/ and no checkpoint; give one of them")
    return from_checkpoint(path, ConfigDict(json.loads((path / "config.json").read_text())))


def from_checkpoint(run: Path, config: ConfigDict) -> tuple[Classifier, tuple[Params, Params]]:
    """Returns the classifier of a run that is not finished, from its newest checkpoint."""
    if config.recipe == "frozen":
        raise UserError(f"{run}: a linear probe takes seconds; let it finish (the same command again)")
    labels = records.read(Path(config.manifest)).labels
    classifier, params, variables = networks.start(
        config.classifier, config.init, config.architecture.to_dict(), labels,
        size=config.size, seed=config.seed, precision=config.precision,
    )  # fmt: skip
    trained, frozen = recipes.divided(params, recipes.recipe(config.recipe, config.last_blocks, params))
    optimizer = optimizer_of(config, params)
    state = jax.eval_shape(lambda: create(trained, variables, optimizer, ema=config.ema_decay > 0))
    places = sharding.over(state, sharding.RULES, sharding.mesh(0, 1))
    target = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), state, places)
    state, _ = checkpoints.restore(run / "checkpoints", target)
    return classifier, (recipes.joined(jax.device_get(state.smooth), frozen), jax.device_get(state.variables))
