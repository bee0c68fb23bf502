"""The classifier that a run begins with: read from a Hugging Face folder, or drawn from a seed.

A saved classifier, from wherever it was saved: a classifier folder, a finished run, or a run's last checkpoint.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dermjax import sharding
from dermjax.classification import recipes
from dermjax.data import records
from dermjax.errors import UserError
from dermjax.models import vit
from dermjax.models.classifier import ARCHITECTURES, Classifier, Params, describe, fresh
from dermjax.training import checkpoints
from dermjax.training.optimizers import pick
from dermjax.training.state import create
from dermjax.weights import classifiers
from dermjax.weights.tensor_files import read_json


def start(
    name: str,
    init: str,
    architectures: dict[str, dict],
    labels: tuple[str, ...],
    *,
    size: int,
    seed: int,
    precision: str,
) -> tuple[Classifier, Params, Params]:
    """Returns the named classifier, its params and its variables: the folder `init`, or architectures[name] for "".

    An architecture may go by its usual name, {"name": "S/16"}.

    Raises:
      UserError: the name or the precision is unknown, the folder is broken or of another classifier, or images of this
        size are not cut into whole patches.
    """
    kinds, dtype = pick("classifier", CLASSIFIERS, name), pick("precision", PRECISIONS, precision)
    if not init:
        settings = dict(architectures[name])
        settings |= vit.named(settings.pop("name")) if "name" in settings else {}
        _refuse_shape(name, settings, ARCHITECTURES[kinds[0]].defaults)
        classifier = fresh(describe(kinds[0], settings, labels, size), dtype)
        _refuse_part_of_a_patch(size, classifier)
        return classifier, *classifier.init(seed)
    classifier, trees = classifiers.read(Path(init), labels, size, dtype=dtype)
    kind = classifier.config["model_type"]
    if kind not in kinds:
        raise UserError(f"config.init = {init} is a {kind}, not a {name}; change config.init or config.classifier")
    _refuse_part_of_a_patch(size, classifier)
    return classifier, *trees


def _refuse_shape(name: str, settings: dict, defaults: dict) -> None:
    """Raises UserError for settings that an architecture has not, and for a width that its heads do not divide."""
    unknown = sorted(set(settings) - set(defaults))
    if unknown:
        raise UserError(f"config.architecture.{name}.{unknown[0]}: there are {', '.join(defaults)}")
    shape = defaults | settings
    if shape.get("hidden_size", 0) % shape.get("num_attention_heads", 1):
        width, heads = shape["hidden_size"], shape["num_attention_heads"]
        raise UserError(f"config.architecture.{name}: hidden_size = {width} is not a multiple of its {heads} heads")


def _refuse_part_of_a_patch(size: int, classifier: Classifier) -> None:
    """Raises UserError where pixels at two edges would be in no patch."""
    patch = classifier.config.get("patch_size", 1)
    if size % patch:
        near = max(1, round(size / patch)) * patch
        raise UserError(f"config.size = {size} is not a multiple of the classifier's patches of {patch}; give {near}")


# the model types that a folder of this classifier may hold; the first is what is built from nothing
CLASSIFIERS = {"vit": ("vit", "dinov2"), "mobilenetv2": ("mobilenet_v2",)}
PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


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
    classifier, params, variables = start(
        config.classifier, config.init, config.architecture.to_dict(), labels,
        size=config.size, seed=config.seed, precision=config.precision,
    )  # fmt: skip
    trained, frozen = recipes.divided(params, recipes.recipe(config.recipe, config.last_blocks, params))
    optimizer = recipes.optimizer(config, params)
    state = jax.eval_shape(lambda: create(trained, variables, optimizer, ema=config.ema_decay > 0))
    places = sharding.tree_shardings(state, sharding.RULES, sharding.mesh(0, 1))
    target = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), state, places)
    state, _ = checkpoints.restore(run / "checkpoints", target)
    return classifier, (recipes.joined(jax.device_get(state.smooth), frozen), jax.device_get(state.variables))
