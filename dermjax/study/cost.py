"""What a study is about to take, said before it tunes or trains anything."""

from pathlib import Path

import jax
from ml_collections import ConfigDict

from dermjax import progress
from dermjax.classification import networks, recipes
from dermjax.classification.recipes import GRADIENT, Recipe
from dermjax.data.records import Manifest
from dermjax.models.classifier import Classifier
from dermjax.study import arms, cells
from dermjax.study.cells import Cell, finished

SECONDS_OF_A_CELL = 3.0  # measured beside its arithmetic: reading weights and features, compiling, writing the folder


def tell(config: ConfigDict, folders: dict[Cell, Path], reals: list[Manifest], synthetic: int) -> None:
    """Prints the grid, what of it is left, and about how long that takes where it has been measured: on a CPU.

    reals: of each fold. synthetic: how many synthetic images a fold has, or is going to have; their generator's own
    time is told by `tune` and `generate`, whose cost depends on the model.
    """
    todo = [cell for cell, folder in folders.items() if not finished(folder)]
    of_kind = {
        "classifiers": len(config.classifiers), "arms": len({cell.arm for cell in folders}),
        "seeds": len(config.seeds), "few_shot_sizes": len(config.shots), "folds": len(reals),
    }  # fmt: skip
    generators = {} if config.synthetic else {"generators": len(reals), "synthetic_images": synthetic * len(reals)}
    on_cpu = jax.devices()[0].platform == "cpu"
    seconds = {"seconds": processor_seconds(config, todo, reals, synthetic)} if on_cpu else {}
    progress.cost(
        "study", **of_kind, cells=len(folders), done=len(folders) - len(todo),
        steps_to_do=sum(steps_of(config, cell) for cell in todo), **generators, **seconds,
    )  # fmt: skip


def steps_of(config: ConfigDict, cell: Cell) -> int:
    """Returns the optimiser steps of a cell over its phases."""
    return sum(cells.steps(config.classifiers[cell.classifier].steps, phase) for phase in arms.phases(cell.arm))


def processor_seconds(config: ConfigDict, todo: list[Cell], reals: list[Manifest], synthetic: int) -> float:
    """Returns about how long the cells take all cores of this machine, without their generators."""
    seconds = SECONDS_OF_A_CELL * len(todo)
    for name in {cell.classifier for cell in todo}:
        settings, mine = config.classifiers[name], [cell for cell in todo if cell.classifier == name]
        classifier, recipe = started(settings, reals[0].labels)
        below, above = recipes.operations(classifier, recipe, settings.size)
        seen = settings.batch * sum(steps_of(config, cell) for cell in mine)
        images = sum(shown(reals[fold], config) + synthetic for fold in {cell.fold for cell in mine})
        work = images * below + GRADIENT * seen * above
        if settings.recipe == "full":  # every cell looks at all that it judges, validation several times
            looks = 1 + settings.steps // settings.evaluate_every
            judged = sum(
                looks * len(reals[cell.fold].split("validation")) + len(reals[cell.fold].split("test")) for cell in mine
            )
            work = (GRADIENT * seen + judged) * above
        seconds += recipes.processor_seconds(classifier, work)
    return seconds


def shown(real: Manifest, config: ConfigDict) -> int:
    """Returns how many real images a fold's cells look at: few-shot ones are others for each seed."""
    training = len(real.split("train"))
    if 0 not in config.shots:
        training = min(training, max(config.shots) * len(real.labels) * len(config.seeds))
    return training + len(real.split("validation")) + len(real.split("test"))


def started(settings: ConfigDict, labels: tuple[str, ...]) -> tuple[Classifier, Recipe]:
    """Returns the classifier of a config and what of it is trained."""
    classifier, params, _ = networks.build(settings, labels)
    return classifier, recipes.recipe(settings.recipe, settings.last_blocks, params)
