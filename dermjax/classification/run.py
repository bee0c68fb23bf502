"""`dermjax classify`: a manifest of real images, perhaps one of synthetic ones -> a classifier and its predictions.

manifests -> exact mixture -> the one loop -> classifier/ (Hugging Face folder), predictions.csv, metrics.json

The weights that are kept are those of the last step (their average, where config.ema_decay asks for one): all arms take
the same number of steps. With config.patience they are those of the best AUROC on the real validation images.

A probe learns best on standardised features, and confidence is honest after division of the logits by a temperature
(Guo et al. 2017, arXiv 1706.04599), which is fitted on the validation images. Both are linear, so both end in the
kernel and the bias of the head, {"kernel": [D, L], "bias": [L]}, and the folder stays one that anybody loads.
Probabilities are as if all classes were equally frequent, as they are in batches, in which classes take turns: classes
weigh alike in the fit of the temperature too, and no prior is fitted.
"""

import json
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from dermjax import buckets, config_file, run_folder, sharding
from dermjax.classification import inputs, networks, recipes
from dermjax.classification.batches import VERSIONS, FeatureBatches, ImageBatches
from dermjax.classification.features import Features, causes
from dermjax.classification.predictions import figures, label_indices, manifest_table, predictor, probabilities
from dermjax.classification.recipes import GRADIENT, HEAD, Recipe
from dermjax.data import digests, records
from dermjax.data.augmentation import MIXTURES, POLICIES
from dermjax.data.pipelines import JUDGED, TARGETS, MixturePlan
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

DONE = "metrics.json"
LEFT = ("checkpoints", DONE)  # by which it is known that a run has begun
TEMPERATURES = (0.05, 20.0)
UNREAD = {  # options that a recipe does nothing with, and what they are where nobody gave them
    "full": {"views": 1, "features": "", "last_blocks": 2},
    "last": {},
    "frozen": {"last_blocks": 2, "layer_decay": 1.0},
}
STATISTICS = {"shared": False, "separate": True}  # whether those of synthetic images are apart
NAMES = {
    "classifier": networks.CLASSIFIERS,
    "precision": networks.PRECISIONS,
    "recipe": recipes.CUTS,
    "augment": POLICIES,
    "mixing": MIXTURES,
    "synthetic_targets": TARGETS,
    "synthetic_statistics": STATISTICS,
    "optimizer": optimizers.OPTIMIZERS,
    "schedule": optimizers.SCHEDULES,
}


def run(config: ConfigDict, workdir: Path) -> None:
    """Trains one classifier and leaves workdir/classifier, predictions.csv and metrics.json."""
    if (workdir / DONE).exists():
        _say_finished(config, workdir)
        return
    check(config)  # before images are read
    _check_synthetic(config)
    real, synthetic = inputs.read(config.manifest, config.synthetic)
    report_other_causes(workdir, _inputs(config, real, synthetic))
    train(config, workdir, real, synthetic, inputs.read_judged(config.judged, real), {})


def _inputs(config: ConfigDict, real: Manifest, synthetic: Manifest | None) -> dict[str, str]:
    """Returns the digests of the images that a classifier is trained on, and of those that it is judged by."""
    judge = {"judge": digest_of_judge(synthetic)} if synthetic and config.synthetic_targets == "judge" else {}
    training = [(record.label, record.sha256) for each in (real, synthetic) if each for record in each.split("train")]
    judging = [(split, r.label, r.sha256) for split in ("validation", "test") for r in real.split(split)]
    return {"images": digests.of_text(repr(training)), "judging_images": digests.of_text(repr(judging))} | judge


def digest_of_judge(synthetic: Manifest) -> str:
    """Returns the digest of what the judge's probabilities teach of synthetic images."""
    return digests.of_text(repr([(each.sha256, each.scores.get(JUDGED)) for each in synthetic.split("train")]))


def _say_finished(config: ConfigDict, workdir: Path) -> None:
    """Says that a finished run has nothing to do, or that its images are others now, or not there any more."""
    try:
        real, synthetic = (records.read(Path(path)) if path else None for path in (config.manifest, config.synthetic))
        causes = _inputs(config, real, synthetic)
    except UserError as error:
        causes = {}
        say(f"classify: the images of {workdir} cannot be compared: {error}")
    if not report_other_causes(workdir, causes):
        say(f"classify: {workdir / DONE} is there, nothing to do")


def report_other_causes(workdir: Path, causes: dict[str, str]) -> bool:
    """Says where the folder was begun by code that gives other numbers, or on images of other digests; returns whether
    it was."""
    causes = causes | {run_folder.NUMERIC_VERSIONS: VERSIONS}
    return jax.process_index() == 0 and run_folder.say_changed_since_start("classify", workdir, causes, LEFT)


def check(config: ConfigDict) -> Mesh:
    """Returns the mesh of a config of `classify`; UserError for options that no data would make right."""
    config_file.check(config)
    if config.size < 1:
        raise UserError(f"config.size = {config.size}: give the side in pixels, such as 224")
    for option, known in NAMES.items():
        optimizers.pick(f"config.{option}", known, config[option])
    if config.patience and not config.evaluate_every:
        raise UserError("config.patience needs evaluations on the validation images; give config.evaluate_every")
    # a mean of two images' features is as good as one of images (manifold mixup, arXiv 1806.05236), a window is not
    if config.mixing == "cutmix" and config.recipe != "full":
        raise UserError(
            f"config.mixing = cutmix cuts windows out of images, and config.recipe = {config.recipe} trains on "
            "features; take mixup or none, or the recipe full"
        )
    if STATISTICS[config.synthetic_statistics]:
        _check_separate(config)
    _check_recipe(config)
    if config.features and buckets.mirrors(Path(config.features)):
        raise UserError(f"config.features = {buckets.as_given(config.features)}: they are read from a disk; give a "
                        "folder of this machine, or leave it empty")  # fmt: skip
    if config.features and Path(config.features).exists() and not Path(config.features).is_dir():
        raise UserError(f"config.features = {config.features}: is no folder; give one, or leave it empty")
    grid = sharding.mesh(config.mesh.data, config.mesh.fsdp)
    sharding.check_batch(config.batch, config.accumulate, grid)
    return grid


def _check_recipe(config: ConfigDict) -> None:
    """Raises UserError for options that the recipe does nothing with."""
    for name, default in UNREAD[config.recipe].items():
        if config[name] != default:
            takes = " or ".join(recipe for recipe, unread in UNREAD.items() if name not in unread)
            given = buckets.as_given(config[name])
            idle = f"config.{name} = {given}: config.recipe = {config.recipe} does nothing with it"
            raise UserError(f"{idle}; leave it out, or take the recipe {takes}")
    # the first view of an image is the image as it is, and mild is what nobody gave
    if config.recipe != "full" and config.views == 1 and config.augment not in ("none", "mild"):
        raise UserError(
            f"config.augment = {config.augment}: config.recipe = {config.recipe} augments the views of an image after "
            "the first; give config.views = 2 or more, or take the recipe full"
        )


def _check_separate(config: ConfigDict) -> None:
    """Raises UserError where batch statistics cannot be those of real and of synthetic images apart."""
    clashes = {
        f"config.classifier = {config.classifier}, which has no batch statistics": config.classifier != "mobilenetv2",
        "config.recipe = frozen, whose head has none": config.recipe == "frozen",
        f"config.mixing = {config.mixing}, which mixes the two": config.mixing != "none",
        f"config.accumulate = {config.accumulate}, whose parts have other shares": config.accumulate != 1,
    }
    if any(clashes.values()):
        clash = next(each for each, meets in clashes.items() if meets)
        raise UserError(f"config.synthetic_statistics = separate does not go with {clash}; change one of the two")


def _check_synthetic(config: ConfigDict) -> None:
    """Refuses synthetic images that would not be trained on; says which options do nothing without them."""
    if config.synthetic and not config.synthetic_fraction:
        raise UserError("config.synthetic_fraction = 0: no image of config.synthetic would be trained on; give more, "
                        "or leave config.synthetic out")  # fmt: skip
    plain = {"synthetic_weight": 1.0, "synthetic_targets": "label", "synthetic_statistics": "shared"}
    idle = [f"config.{name} = {config[name]}" for name, value in plain.items() if config[name] != value]
    if idle and not config.synthetic:
        say(f"classify: {', '.join(idle)}: without config.synthetic it changes nothing")


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
    classifier, params, variables, recipe = network(config, real.labels)
    plan = MixturePlan(
        real=real, synthetic=synthetic, synthetic_fraction=config.synthetic_fraction, batch=config.batch,
        rows=sharding.local_rows(config.batch, grid), seed=config.seed, mixing=config.mixing,
        synthetic_weight=config.synthetic_weight, synthetic_targets=config.synthetic_targets,
    )  # fmt: skip
    real_rows = plan.real_rows if STATISTICS[config.synthetic_statistics] else 0
    report_cost(config, plan, recipe, classifier, params, grid)
    batches = _batches(config, workdir, plan, recipe, classifier, params, variables, grid)
    pooled = recipe.last == 0  # pooled features are standardised
    if pooled:
        params = params | {HEAD: standardised_head(params[HEAD], *batches.scale)}
    trainable, frozen = recipes.divide(params, recipe)
    optimizer, predict = recipes.optimizer(config, params), predictor(classifier, recipe, grid)
    validation, test = real.split("validation"), real.split("test")

    def logits(state: State, frozen: Params, manifest: Manifest, images: list[Record]) -> np.ndarray:
        params = recipes.join(state.smooth, frozen)
        return predict(params, state.variables, batches.evaluation(manifest, images))

    def evaluate(state: State, constants: dict) -> dict[str, float]:
        predicted = probabilities(logits(state, constants.get("frozen", {}), real, validation))
        values = {f"validation_{name}": value for name, value in figures(real, validation, predicted).items()}
        return values | {"validation_error": 1 - values["validation_auroc"]}

    task = Task("classify", recipes.loss(classifier, recipe, config.label_smoothing, real_rows), optimizer,
                evaluate, minimise="validation_error" if config.patience else "")  # fmt: skip
    loop_config = LoopConfig(
        seed=config.seed, steps=config.steps, save_every=config.save_every, log_every=config.log_every,
        ema_decay=config.ema_decay, accumulate=config.accumulate, evaluate_every=config.evaluate_every,
        patience=config.patience,
    )  # fmt: skip
    state = fit(
        task, create(trainable, variables, optimizer, ema=config.ema_decay > 0), {"frozen": frozen} if frozen else {},
        batches.training(), loop_config, mesh=grid, workdir=workdir,
    )  # fmt: skip

    of_validation, of_test = (logits(state, frozen, real, images) for images in (validation, test))
    temperature = fitted_temperature(of_validation, label_indices(real, validation))
    of_validation, of_test = (probabilities(each / temperature) for each in (of_validation, of_test))
    files = {"predictions.csv": manifest_table(real, [(validation, of_validation), (test, of_test)])}
    others = {predictions_file(name): (manifest, manifest.split("test")) for name, manifest in tests.items()}
    others |= {"synthetic_predictions.csv": (judged, judged.split("train"))} if judged else {}
    for file, (manifest, images) in others.items():
        predicted = probabilities(logits(state, frozen, manifest, images) / temperature)
        files[file] = manifest_table(manifest, [(images, predicted)])
    metrics = {
        "validation": figures(real, validation, of_validation),
        "test": figures(real, test, of_test),
        "temperature": temperature,
    }
    files[DONE] = json.dumps(metrics, indent=2) + "\n"

    learnt, variables = jax.device_get(sharding.gathered((state.smooth, state.variables), grid))
    params = recipes.join(learnt, frozen)
    head = cooled_head(params[HEAD], temperature)
    head = plain_head(head, *batches.scale) if pooled else head
    if jax.process_index() == 0:
        classifiers.write(workdir / "classifier", classifier, params | {HEAD: head}, variables)
        for file, content in files.items():
            write_atomically(workdir / file, content)
    multihost_utils.sync_global_devices("dermjax: classifier written")
    shown = ", ".join(f"{name} {value:.3g}" for name, value in metrics["test"].items())
    say(f"classify: on the test split {shown}; {workdir / 'classifier'}")


def network(config: ConfigDict, labels: tuple[str, ...]) -> tuple[Classifier, Params, Params, Recipe]:
    """Returns the classifier of a config, its params and variables, and what of it is trained.

    Raises:
      UserError: as `networks.build` and `recipes.recipe`, and for an average of what has batch statistics.
    """
    classifier, params, variables = networks.build(config, labels)
    if config.ema_decay and variables:
        raise UserError("config.ema_decay: batch statistics are of the last parameters, not of an average; set it to 0")
    return classifier, params, variables, recipes.recipe(config.recipe, config.last_blocks, params)


def predictions_file(test: str) -> str:
    """Returns the name of the file that a further test set gets."""
    return f"predictions_{test}.csv"


def _batches(
    config: ConfigDict,
    workdir: Path,
    plan: MixturePlan,
    recipe: Recipe,
    classifier: Classifier,
    params: Params,
    variables: Params,
    grid: Mesh,
) -> ImageBatches | FeatureBatches:
    """Returns what the recipe trains on: images, or features of the blocks that stay as they are."""
    if recipe.last is None:
        return ImageBatches(plan=plan, size=config.size, augment=config.augment)
    features = Features(
        classifier=classifier, params=params, variables=variables, last=recipe.last, policy=config.augment,
        batch=config.batch, grid=grid, within=Path(config.features or workdir / "features"),
        causes=causes(classifier, params, variables, recipe, grid),
    )  # fmt: skip
    return FeatureBatches(plan=plan, features=features, views=config.views)


def report_cost(
    config: ConfigDict, plan: MixturePlan, recipe: Recipe, classifier: Classifier, params: Params, grid: Mesh
) -> None:
    """Says what the training will cost; how long, where that has been measured: on a CPU."""
    real, seconds = plan.real, {}
    training, evaluated = len(real.split("train")), len(real.split("validation")) + len(real.split("test"))
    synthetic = len(plan.synthetic.split("train")) if plan.synthetic else 0
    if sharding.platform(grid) == "cpu":
        below, above = recipes.operations(classifier, recipe, config.size)
        times = 2 + (config.steps // config.evaluate_every if config.evaluate_every else 0)
        once = (training + synthetic) * config.views + evaluated
        often = config.batch * config.steps * GRADIENT + evaluated * times
        seconds["seconds"] = recipes.processor_seconds(classifier, once * below + often * above)
    cost("classify", devices=grid.size, parameters=count(recipes.divide(params, recipe)[0]), training_images=training,
         synthetic_images=synthetic, steps=config.steps, **seconds)  # fmt: skip


def standardised_head(head: Params, mean: np.ndarray, deviation: np.ndarray) -> Params:
    """Returns the head that gives of (x - mean) / deviation what `head` gives of x."""
    kernel = np.asarray(head["kernel"])
    return _float32(kernel * deviation[:, None], head["bias"] + mean @ kernel)


def plain_head(head: Params, mean: np.ndarray, deviation: np.ndarray) -> Params:
    """Returns the head that gives of x what `head` gives of (x - mean) / deviation."""
    kernel = np.asarray(head["kernel"]) / deviation[:, None]
    return _float32(kernel, head["bias"] - mean @ kernel)


def cooled_head(head: Params, temperature: float) -> Params:
    """Returns the head whose logits are divided by the temperature."""
    return _float32(np.asarray(head["kernel"]) / temperature, np.asarray(head["bias"]) / temperature)


def fitted_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the temperature under which logits [n, L] give labels [n] the highest likelihood, within TEMPERATURES.

    Every class counts alike, as in training: by images, a frequent class that varies less than the others would make
    them too sure, and one that varies more would make them doubt. Says where a bound is as good: the lower one where
    all images are right, the upper one where logits are of no use.
    """
    weights = 1 / np.bincount(labels)[labels]

    def surprise(log_temperature: float) -> float:
        log_probabilities = log_softmax(logits / np.exp(log_temperature), axis=-1)
        return -float(np.average(log_probabilities[np.arange(len(labels)), labels], weights=weights))

    found = minimize_scalar(surprise, bounds=np.log(TEMPERATURES), method="bounded").x
    # not by how near it is: below some temperature the surprise of images that are all right is 0 wherever one looks
    for bound in (each for each in TEMPERATURES if surprise(np.log(each)) <= surprise(found)):
        say(f"classify: calibration ended at its bound, {bound:g}: the validation images do not tell how sure the "
            "classifier may be; take its probabilities as an order alone")  # fmt: skip
    return float(np.exp(found))


def _float32(kernel: np.ndarray, bias: np.ndarray) -> Params:
    return {"kernel": np.asarray(kernel, np.float32), "bias": np.asarray(bias, np.float32)}
