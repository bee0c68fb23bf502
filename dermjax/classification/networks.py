"""The classifier that a run begins with, and saved ones: a classifier folder, a finished run, its last checkpoint."""

from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dermjax import sharding
from dermjax.classification import recipes
from dermjax.data import records
from dermjax.errors import UserError
from dermjax.models import configs, vit
from dermjax.models.classifier import ARCHITECTURES, Classifier, Params, describe, fresh
from dermjax.progress import say
from dermjax.training import checkpoints
from dermjax.training.optimizers import pick
from dermjax.training.state import create
from dermjax.weights import classifiers
from dermjax.weights.tensor_files import snapshot, weights_in

# the model types that a folder of this classifier may hold; the first is what is built from nothing
CLASSIFIERS = {"vit": ("vit", "dinov2"), "mobilenetv2": ("mobilenet_v2",)}
PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def build(config: ConfigDict, labels: tuple[str, ...]) -> tuple[Classifier, Params, Params]:
    """Returns the classifier of a config of `classify`, its params and its variables.

    They are those of the folder `config.init`, or for "" drawn from `config.seed` for the architecture, which may go by
    its usual name, {"name": "S/16"}.

    Raises:
      UserError: the name or the precision is unknown, the folder is broken or of another classifier, or images of this
        size are not cut into whole patches.
    """
    name, init, size = config.classifier, config.init, config.size
    kinds, dtype = pick("classifier", CLASSIFIERS, name), pick("precision", PRECISIONS, config.precision)
    if init:
        classifier, trees = classifiers.read(_folder(Path(init)), labels, size, dtype=dtype)
        kind = classifier.config["model_type"]
        if kind not in kinds:
            raise UserError(f"config.init = {init} is a {kind}, not a {name}; change config.init or config.classifier")
        if idle := configs.dropouts(classifier.config):
            say(f"config.init = {init}: {', '.join(idle)}: nothing is dropped here, in training neither")
    else:
        settings = config.architecture[name].to_dict()
        settings |= vit.vit_settings(settings.pop("name")) if "name" in settings else {}
        check_architecture(name, settings, ARCHITECTURES[kinds[0]].defaults)
        classifier, trees = fresh(describe(kinds[0], settings, labels, size), dtype), ()
    patch = classifier.config.get("patch_size", 1)
    if size % patch:  # pixels at two edges would be in no patch
        near = max(1, round(size / patch)) * patch
        raise UserError(f"config.size = {size} is not a multiple of the classifier's patches of {patch}; give {near}")
    return classifier, *(trees or classifier.init(config.seed))


def check_architecture(name: str, settings: dict, defaults: dict) -> None:
    """Raises UserError for settings that an architecture has not, sizes beyond any network's, dropout, and a width that
    its heads do not divide."""
    unknown = sorted(set(settings) - set(defaults))
    if unknown:
        raise UserError(f"config.architecture.{name}.{unknown[0]}: there are {', '.join(defaults)}")
    if wrong := configs.unfit(settings, configs.CLASSIFIER):
        raise UserError(f"config.architecture.{name}.{wrong[0]}")
    if idle := configs.dropouts(settings):
        raise UserError(f"config.architecture.{name}.{idle[0]}: nothing is dropped here; leave it out")
    shape = defaults | settings
    width, heads = shape.get("hidden_size", 0), shape.get("num_attention_heads", 1)
    if width % heads:
        raise UserError(f"config.architecture.{name}: hidden_size = {width} is not a multiple of its {heads} heads")


def load(path: Path) -> tuple[Classifier, tuple[Params, Params]]:
    """Returns a saved classifier, with its labels and image size, and (params, variables).

    Its weights may be in any file that `config.init` takes of a folder: shards, PyTorch's, of a variant.
    A checkpoint is restored on whatever devices there are; its probabilities are not calibrated yet.

    Raises:
      UserError: there is no classifier at this path, or it is damaged.
    """
    path = snapshot(path)
    folder = _folder(path)
    if weights_in(folder):
        return classifiers.read_saved(folder)
    if not checkpoints.steps(path / "checkpoints"):
        raise UserError(f"classifier {path}: no model.safetensors, no classifier/ and no checkpoint; give one of them")
    return load_checkpoint(path)


def _folder(path: Path) -> Path:
    """Returns the folder of a classifier: of a run of `classify` the one that it leaves."""
    return path / "classifier" if (path / "classifier").is_dir() else path


def load_checkpoint(run: Path) -> tuple[Classifier, tuple[Params, Params]]:
    """Returns the classifier of a run that is not finished, from its newest checkpoint."""
    config = ConfigDict(classifiers.config_of_run(run))
    if not config:
        raise UserError(f"{run}: no config.json of classify says how to read its checkpoints; give the folder of a "
                        "classifier, or a run of classify")  # fmt: skip
    if config.recipe == "frozen":
        raise UserError(f"{run}: a linear probe takes seconds; let it finish (the same command again)")
    classifier, params, variables = build(config, records.read(Path(config.manifest)).labels)
    trained, frozen = recipes.divide(params, recipes.recipe(config.recipe, config.last_blocks, params))
    optimizer = recipes.optimizer(config, params)
    state = jax.eval_shape(lambda: create(trained, variables, optimizer, ema=config.ema_decay > 0))
    shardings = sharding.tree_shardings(state, sharding.RULES, sharding.mesh(0, 1))
    target = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), state, shardings)
    state, _ = checkpoints.restore(run / "checkpoints", target)
    return classifier, (recipes.join(jax.device_get(state.smooth), frozen), jax.device_get(state.variables))
