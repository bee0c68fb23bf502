"""How long a classifier takes on a processor, from XLA's own count of its arithmetic.

The linear head, rewritten so that the whole classifier says the same: {"kernel": [D, L], "bias": [L]}, numpy.

A probe learns best on standardised features, and probabilities are honest after division by a temperature (Guo et al.
2017, arXiv 1706.04599). Both are linear, so both end in the kernel and the bias, and the folder stays one that anybody
loads.

Training of one classifier on manifests in hand, and what it leaves: the one way from images to a classifier folder.

The weights that are kept are those of the last step (their average, where config.ema_decay asks for one): all arms take
the same number of steps. With config.patience they are those of the best AUROC on the real validation images. The
head's temperature is fitted on the same images, so that the probabilities of the folder are calibrated.
"""

import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from dermjax import config_file, machine, sharding
from dermjax.classification import networks, recipes
from dermjax.classification.batches import Cached, Pictures, Plan, cached
from dermjax.classification.features import Features, causes
from dermjax.classification.predictions import figures, predictor, probabilities, table, truth
from dermjax.classification.recipes import HEAD, Recipe
from dermjax.data.augmentation import MIXTURES, POLICIES
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.models.classifier import Classifier, Params
from dermjax.models.stable_diffusion import count
from dermjax.progress import cost, say
from dermjax.run_folder import write_atomically
from dermjax.training import optimizers
from dermjax.training.loop import LoopConfig, Task, fit
from dermjax.training.state import State, create
from dermjax.weights import classifiers

# operations that a core does in a second of training, measured in float32 on one with AVX2; depthwise convolutions wait
# for memory
A_CORE_A_SECOND = {"vit": 27e9, "dinov2": 27e9, "mobilenet_v2": 8e9}
GRADIENT = 3  # passes that one with gradients counts for


def operations(classifier: Classifier, recipe: Recipe, size: int) -> tuple[float, float]:
    """Returns the arithmetic of one image below the recipe's cut, once an image, and above it, once a look."""
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    if recipe.last is None:
        return 0.0, counted(partial(classifier.logits, train=False), *classifier.shapes, image)
    lower = partial(classifier.lower, last=recipe.last)
    cut = jax.eval_shape(lower, *classifier.shapes, image)
    upper = partial(classifier.upper, last=recipe.last, train=False)
    return counted(lower, *classifier.shapes, image), counted(upper, *classifier.shapes, cut)


def processor_seconds(classifier: Classifier, work: float) -> float:
    """Returns about how long all cores of this machine take for so many operations of a classifier."""
    return work / A_CORE_A_SECOND[classifier.config["model_type"]] / machine.cores()


def counted(function, *arguments) -> float:
    """Returns the floating-point operations of a function, as XLA counts them before it optimises."""
    return float(jax.jit(function).lower(*arguments).cost_analysis()["flops"])


TEMPERATURES = (0.05, 20.0)


def standardised_head(head: dict, mean: np.ndarray, deviation: np.ndarray) -> dict:
    """Returns the head that says of (x - mean) / deviation what `head` says of x."""
    kernel = np.asarray(head["kernel"])
    return _float32(kernel * deviation[:, None], head["bias"] + mean @ kernel)


def plain_head(head: dict, mean: np.ndarray, deviation: np.ndarray) -> dict:
    """Returns the head that says of x what `head` says of (x - mean) / deviation."""
    kernel = np.asarray(head["kernel"]) / deviation[:, None]
    return _float32(kernel, head["bias"] - mean @ kernel)


def cooled_head(head: dict, temperature: float) -> dict:
    """Returns the head whose logits are divided by the temperature."""
    return _float32(np.asarray(head["kernel"]) / temperature, np.asarray(head["bias"]) / temperature)


def fitted_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the temperature under which logits [n, L] give labels [n] the highest likelihood, within TEMPERATURES."""

    def surprise(log_temperature: float) -> float:
        said = log_softmax(logits / np.exp(log_temperature), axis=-1)
        return -float(said[np.arange(len(labels)), labels].mean())

    return float(np.exp(minimize_scalar(surprise, bounds=np.log(TEMPERATURES), method="bounded").x))


def _float32(kernel: np.ndarray, bias: np.ndarray) -> dict:
    return {"kernel": np.asarray(kernel, np.float32), "bias": np.asarray(bias, np.float32)}


DONE = "metrics.json"
LEFT = ("checkpoints", DONE)  # by which it is known that a run has begun


NAMES = {
    "classifier": networks.CLASSIFIERS,
    "precision": networks.PRECISIONS,
    "recipe": recipes.CUTS,
    "augment": POLICIES,
    "mixing": MIXTURES,
    "optimizer": optimizers.OPTIMIZERS,
    "schedule": optimizers.SCHEDULES,
}


def check(config: ConfigDict) -> Mesh:
    """Returns the mesh of a config of `classify`; UserError for options that no data would make right."""
    config_file.check(config)
    if not config.size:
        raise UserError("config.size = 0: give the side in pixels, such as 224")
    for option, known in NAMES.items():
        optimizers.pick(f"config.{option}", known, config[option])
    if config.patience and not config.evaluate_every:
        raise UserError("config.patience needs looks at the validation images; give config.evaluate_every")
    recipes.check_mixing(config.mixing, config.recipe)
    if config.features and Path(config.features).exists() and not Path(config.features).is_dir():
        raise UserError(f"config.features = {config.features}: is no folder; give one, or leave it empty")
    grid = sharding.mesh(config.mesh.data, config.mesh.fsdp)
    sharding.check_batch(config.batch, config.accumulate, grid)
    return grid


def train(
    config: ConfigDict,
    workdir: Path,
    real: Manifest,
    synthetic: Manifest | None,
    judged: Manifest | None,
    tests: dict[str, Manifest],
) -> None:
    """Leaves workdir/classifier, predictions.csv and metrics.json of manifests that have been audited.

    `judged` gets synthetic_predictions.csv, the test split of each of `tests` predictions_<name>.csv.
    """
    grid = check(config)
    classifier, params, variables = networks.start(
        config.classifier, config.init, config.architecture.to_dict(), real.labels,
        size=config.size, seed=config.seed, precision=config.precision,
    )  # fmt: skip
    if config.ema_decay and variables:
        raise UserError("config.ema_decay: batch statistics are of the last parameters, not of an average; set it to 0")
    if config.size < 1:
        raise UserError(f"config.size = {config.size}: give the side of images in pixels, such as 224")
    if config.patience and not config.evaluate_every:
        raise UserError("config.patience needs config.evaluate_every; give the steps between two looks")
    recipe = recipes.recipe(config.recipe, config.last_blocks, params)
    plan = Plan(
        real=real, synthetic=synthetic, synthetic_fraction=config.synthetic_fraction, batch=config.batch,
        rows=sharding.local_rows(config.batch, grid), seed=config.seed, mixing=config.mixing,
    )  # fmt: skip
    _tell_cost(config, real, synthetic, recipe, classifier, params, grid)
    source = _source(config, plan, recipe, classifier, params, variables, grid, workdir)
    scaled = recipe.last == 0  # pooled features are standardised
    if scaled:
        params = params | {HEAD: standardised_head(params[HEAD], source.mean, source.deviation)}
    trained, frozen = recipes.divided(params, recipe)
    predict = predictor(classifier, recipe, grid)
    validation, test = real.split("validation"), real.split("test")

    def say_of(state: State, frozen: Params, manifest: Manifest, images: list[Record]):
        whole = recipes.joined(state.smooth, frozen)
        return predict(whole, state.variables, source.evaluation(manifest, images))

    def evaluate(state: State, constants: dict) -> dict[str, float]:
        said = probabilities(say_of(state, constants.get("frozen", {}), real, validation))
        found = {f"validation_{name}": value for name, value in figures(real, validation, said).items()}
        return found | {"validation_error": 1 - found["validation_auroc"]}

    optimizer = recipes.optimizer(config, params)
    task = Task("classify", recipes.loss(classifier, recipe, config.label_smoothing), optimizer, evaluate,
                minimise="validation_error" if config.patience else "")  # fmt: skip
    loop_config = LoopConfig(
        seed=config.seed, steps=config.steps, save_every=config.save_every, log_every=config.log_every,
        ema_decay=config.ema_decay, accumulate=config.accumulate, evaluate_every=config.evaluate_every,
        patience=config.patience,
    )  # fmt: skip
    state = fit(
        task, create(trained, variables, optimizer, ema=config.ema_decay > 0), {"frozen": frozen} if frozen else {},
        source.training(), loop_config, mesh=grid, workdir=workdir,
    )  # fmt: skip

    logits = [say_of(state, frozen, real, images) for images in (validation, test)]
    temperature = fitted_temperature(logits[0], truth(real, validation))
    whole = recipes.joined(jax.device_get(state.smooth), frozen)
    head = cooled_head(whole[HEAD], temperature)
    head = plain_head(head, source.mean, source.deviation) if scaled else head
    said = [probabilities(each / temperature) for each in logits]
    files = {"predictions.csv": table(real, list(zip((validation, test), said, strict=True)))}
    elsewhere = {f"predictions_{name}.csv": (manifest, manifest.split("test")) for name, manifest in tests.items()}
    if judged:
        elsewhere["synthetic_predictions.csv"] = (judged, judged.split("train"))
    for file, (manifest, images) in elsewhere.items():
        their = probabilities(say_of(state, frozen, manifest, images) / temperature)
        files[file] = table(manifest, [(images, their)])
    metrics = {
        "validation": figures(real, validation, said[0]),
        "test": figures(real, test, said[1]),
        "temperature": temperature,
    }
    if jax.process_index() == 0:
        classifiers.write(workdir / "classifier", classifier, whole | {HEAD: head}, jax.device_get(state.variables))
        for file, content in files.items():
            write_atomically(workdir / file, content)
        write_atomically(workdir / DONE, json.dumps(metrics, indent=2) + "\n")
    multihost_utils.sync_global_devices("dermjax: classifier written")
    shown = ", ".join(f"{name} {value:.3g}" for name, value in metrics["test"].items())
    say(f"classify: on the test split {shown}; {workdir / 'classifier'}")


def _tell_cost(
    config: ConfigDict, real: Manifest, synthetic: Manifest | None, recipe, classifier, params, grid: Mesh
) -> None:
    """Says what the training will cost; how long, where that has been measured: on a CPU."""
    made = len(synthetic.split("train")) if synthetic else 0
    judged, seconds = len(real.split("validation")) + len(real.split("test")), {}
    if grid.devices.flat[0].platform == "cpu":
        below, above = operations(classifier, recipe, config.size)
        looks = config.batch * config.steps * GRADIENT + judged * (
            2 + (config.steps // config.evaluate_every if config.evaluate_every else 0)
        )
        images = (len(real.split("train")) + made) * config.views + judged
        seconds["seconds"] = processor_seconds(classifier, images * below + looks * above)
    cost("classify", devices=grid.size, parameters=count(recipes.divided(params, recipe)[0]),
         training_images=len(real.split("train")), synthetic_images=made, steps=config.steps, **seconds)  # fmt: skip


def _source(config, plan, recipe, classifier, params, variables, grid, workdir: Path) -> Pictures | Cached:
    """What the recipe trains on: images, or the features that the frozen part makes of them."""
    if not recipe.cached:
        return Pictures(plan=plan, size=config.size, augment=config.augment)
    features = Features(
        classifier=classifier, params=params, variables=variables, last=recipe.last, policy=config.augment,
        batch=config.batch, grid=grid, within=Path(config.features or workdir / "features"),
        causes=causes(classifier, params, variables, recipe, grid),
    )  # fmt: skip
    return cached(plan, features, config.views)
