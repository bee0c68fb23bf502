"""`dermjax classify`: a manifest of real images, perhaps one of synthetic ones -> a classifier and what it says.

    manifests -> exact mixture -> the one loop -> classifier/ (Hugging Face folder), predictions.csv, metrics.json

The weights that are kept are those of the last step (their average, where config.ema_decay asks for one), never the
best of several looks at the validation split: all arms take the same number of steps, and nothing is chosen.
"""

import json
from pathlib import Path

import jax
import optax
from ml_collections import ConfigDict

from dermjax import sharding
from dermjax.classification import inputs, networks
from dermjax.classification.predictions import figures, predictor, table
from dermjax.data import pipelines
from dermjax.errors import UserError
from dermjax.models.classifier import Classifier
from dermjax.models.stable_diffusion import count
from dermjax.progress import cost, say
from dermjax.run_folder import write_atomically
from dermjax.training import optimizers
from dermjax.training.loop import Loss, fit
from dermjax.training.state import State, create
from dermjax.weights import classifiers


def run(config: ConfigDict, workdir: Path) -> None:
    """Trains one classifier and leaves workdir/classifier, predictions.csv and metrics.json."""
    if (workdir / "metrics.json").exists():
        say(f"classify: {workdir / 'metrics.json'} is there, nothing to do")
        return
    grid = sharding.mesh(config.mesh.data, config.mesh.fsdp)
    sharding.check_batch(config.batch, grid)
    real, synthetic = inputs.read(config.manifest, config.synthetic)
    judged = inputs.read_judged(config.judged, real)
    classifier, params, variables = networks.start(
        config.classifier, config.init, config.architecture.to_dict(), real.labels,
        size=config.size, seed=config.seed, precision=config.precision,
    )  # fmt: skip
    if config.ema_decay and variables:
        raise UserError("config.ema_decay: batch statistics are of the last parameters, not of an average; set it to 0")
    batches = pipelines.classification(
        real, synthetic, size=config.size, batch=config.batch, seed=config.seed,
        synthetic_fraction=config.synthetic_fraction, augment=config.augment,
    )  # fmt: skip
    cost("classify", devices=grid.size, parameters=count(params), training_images=len(real.split("train")),
         synthetic_images=len(synthetic.split("train")) if synthetic else 0, steps=config.steps)  # fmt: skip
    optimizer = optimizers.build(
        config.optimizer, rate=config.rate, warmup=config.warmup, steps=config.steps, schedule=config.schedule,
        weight_decay=config.weight_decay, clip=config.clip,
    )  # fmt: skip
    predict = predictor(classifier, config.batch, grid)
    validation, test = real.split("validation"), real.split("test")

    def evaluate(state: State, constants: dict) -> dict[str, float]:
        probabilities = predict(state.smooth, state.variables, real, validation)
        return {f"validation_{name}": value for name, value in figures(real, validation, probabilities).items()}

    state = fit(
        loss(classifier, config.label_smoothing), create(params, variables, optimizer, ema=config.ema_decay > 0), {},
        batches, optimizer=optimizer, seed=config.seed, steps=config.steps, ema_decay=config.ema_decay,
        accumulate=config.accumulate, mesh=grid, rules=sharding.RULES, workdir=workdir, title="classify",
        save_every=config.save_every, log_every=config.log_every, evaluate=evaluate,
        evaluate_every=config.evaluate_every,
    )  # fmt: skip

    classifiers.write(workdir / "classifier", classifier, state.smooth, state.variables)
    predicted = [(split, predict(state.smooth, state.variables, real, split)) for split in (validation, test)]
    write_atomically(workdir / "predictions.csv", table(real, predicted))
    if judged:
        images = judged.split("train")
        said = [(images, predict(state.smooth, state.variables, judged, images))]
        write_atomically(workdir / "synthetic_predictions.csv", table(judged, said))
    metrics = {name: figures(real, *each) for name, each in zip(("validation", "test"), predicted, strict=True)}
    write_atomically(workdir / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    shown = ", ".join(f"{name} {value:.3g}" for name, value in metrics["test"].items())
    say(f"classify: on the test split {shown}; {workdir / 'classifier'}")


def loss(classifier: Classifier, smoothing: float) -> Loss:
    """Returns the loss of the loop: cross-entropy with label smoothing (arXiv 1512.00567, section 7)."""

    def cross_entropy(params, variables, constants, batch, key):
        logits, variables = classifier.logits(params, variables, batch["image"], train=True)
        targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], logits.shape[-1]), smoothing)
        accuracy = (logits.argmax(-1) == batch["label"]).mean()
        return optax.softmax_cross_entropy(logits, targets).mean(), (variables, {"accuracy": accuracy})

    return cross_entropy
