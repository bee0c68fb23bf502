"""What a study is about to take, announced before it tunes or trains anything."""

from pathlib import Path

import jax
from ml_collections import ConfigDict

from dermjax import progress
from dermjax.classification import networks, recipes
from dermjax.classification.recipes import GRADIENT
from dermjax.data.records import Manifest
from dermjax.study import arms, cells, generator
from dermjax.study.cells import Cell, finished

SECONDS_OF_A_CELL = 3.0  # measured beside its arithmetic: reading weights and features, compiling, writing the folder


def announce(config: ConfigDict, folders: dict[Cell, Path], reals: list[Manifest], synthetic: int) -> None:
    """Prints the grid, what of it is left, and about how long that takes where it has been measured: on a CPU.

    reals: of each fold. synthetic: how many synthetic images a fold has, or is going to have; `tune` and `generate`
    announce what their generator takes.
    """
    todo = [cell for cell, folder in folders.items() if not finished(folder)]
    several = {generator.home(config, Path(), cell) for cell in folders}
    generators = {} if config.synthetic else {"generators": len(several), "synthetic_images": synthetic * len(several)}
    on_cpu = jax.devices()[0].platform == "cpu"
    progress.cost(
        "study",
        classifiers=len(config.classifiers),
        arms=len({cell.arm for cell in folders}),
        seeds=len(config.seeds),
        few_shot_sizes=len(config.shots),
        folds=len(reals),
        cells=len(folders),
        done=len(folders) - len(todo),
        steps_to_do=sum(count_steps(config, cell) for cell in todo),
        **generators,
        **({"seconds": processor_seconds(config, todo, reals, synthetic)} if on_cpu else {}),
    )


def count_steps(config: ConfigDict, cell: Cell) -> int:
    """Returns the optimiser steps of a cell over its phases."""
    return sum(cells.steps(config.classifiers[cell.classifier].steps, phase) for phase in arms.phases(cell.arm))


def processor_seconds(config: ConfigDict, todo: list[Cell], reals: list[Manifest], synthetic: int) -> float:
    """Returns about how long the cells take all cores of this machine, without their generators."""
    seconds = SECONDS_OF_A_CELL * len(todo)
    for name in {cell.classifier for cell in todo}:
        settings, its_cells = config.classifiers[name], [cell for cell in todo if cell.classifier == name]
        classifier, params, _ = networks.build(settings, reals[0].labels)
        recipe = recipes.recipe(settings.recipe, settings.last_blocks, params)
        below, above = recipes.operations(classifier, recipe, settings.size)
        trained = settings.batch * sum(count_steps(config, cell) for cell in its_cells)
        images = sum(real_images(reals[fold], config) + synthetic for fold in {cell.fold for cell in its_cells})
        work = images * below + GRADIENT * trained * above
        if settings.recipe == "full":  # every cell predicts all validation and test images, validation several times
            times = 1 + settings.steps // settings.evaluate_every
            predicted = sum(
                times * len(reals[cell.fold].split("validation")) + len(reals[cell.fold].split("test"))
                for cell in its_cells
            )
            work = (GRADIENT * trained + predicted) * above
        seconds += recipes.processor_seconds(classifier, work)
    return seconds


def real_images(real: Manifest, config: ConfigDict) -> int:
    """Returns how many real images the cells of a fold use: few-shot ones are others for each seed."""
    count = len(real.split("train"))
    if 0 not in config.shots:
        count = min(count, max(config.shots) * len(real.labels) * len(config.seeds))
    return count + len(real.split("validation")) + len(real.split("test"))
