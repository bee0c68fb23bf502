"""`dermjax study`: do synthetic images help? Every arm, classifier, seed and few-shot size, judged together.

    manifests (or images, and a generator tuned on each fold's training split) -> audit -> cells -> report.html

The same command on several hosts with one workdir shares the cells; the same command again does what is missing.
"""

from pathlib import Path

from ml_collections import ConfigDict

from dermjax.classification import inputs
from dermjax.data import audit, records
from dermjax.data.records import Manifest
from dermjax.errors import UserError
from dermjax.progress import cost, say
from dermjax.run_folder import write_atomically
from dermjax.study import arms, cases, generator, report, results, trial
from dermjax.study.cells import Cell, claimed, finished
from dermjax.study.findings import find
from dermjax.study.trial import Material


def run(config: ConfigDict, workdir: Path) -> None:
    """Trains every cell that nobody has trained, then writes results.json and report.html."""
    cells = plan(config)
    materials = [_material(config, workdir, fold) for fold in range(max(1, config.folds))]
    for cell in cells:  # a few-shot size that a class cannot give is said before anything is trained
        arms.few(materials[cell.fold].real, cell.shots, trial.ranks(materials[cell.fold].real, cell.seed))
    folders = {cell: workdir / "cells" / cell.name for cell in cells}
    _say_cost(config, cells, folders, materials)
    for number, (cell, folder) in enumerate(folders.items(), start=1):
        if finished(folder):
            continue
        with claimed(folder) as ours:
            if ours and not finished(folder):  # another host may have done it between the two looks
                say(f"\nstudy: cell {number} of {len(cells)}, {cell.name}")
                settings = config.classifiers[cell.classifier]
                trial.train(cell, settings, materials[cell.fold], workdir / "features", folder)
    left = [cell.name for cell, folder in folders.items() if not finished(folder)]
    if left:
        say(f"study: {len(left)} cells are being trained elsewhere, such as {left[0]}; the same command again reports")
        return
    found = find(folders, materials, config.baseline, **config.bootstrap.to_dict())
    pictures = cases.explained(folders, materials[0], report.PAPER_ARMS, config.gallery)
    write_atomically(workdir / "results.json", results.as_json(found))
    write_atomically(workdir / "report.html", report.page(config, found, materials, pictures))
    for sentence in report.sentences(found):
        say(f"study: {sentence}")
    say(f"study: the report is {workdir / 'report.html'}")


def plan(config: ConfigDict) -> list[Cell]:
    """Returns the cells of the grid, the baseline first; UserError for a name that does not exist or stands twice."""
    for key in ("arms", "seeds", "shots"):
        if not config[key] or len(set(config[key])) != len(config[key]):
            raise UserError(f"config.{key} = {tuple(config[key])}: give at least one, each once")
    trained = [arm for arm in config.arms if arms.phases(arm)]
    if config.baseline not in trained:
        raise UserError(f"config.baseline = {config.baseline} is not among config.arms, {', '.join(trained)}")
    if arms.JUDGED in config.arms and arms.BASELINE not in trained:
        raise UserError(f"config.arms: {arms.JUDGED} is judged by {arms.BASELINE}; add that")
    if not config.classifiers:
        raise UserError("config.classifiers: none; add at least one")
    trained.sort(key=lambda arm: arm != config.baseline)
    return [
        Cell(fold, classifier, shots, arm, seed)
        for fold in range(max(1, config.folds))
        for seed in config.seeds
        for shots in config.shots
        for arm in trained
        for classifier in config.classifiers
    ]


def _material(config: ConfigDict, workdir: Path, fold: int) -> Material:
    """The manifests of a fold, made where they are not given, refused where anything leaks."""
    if config.synthetic:
        if not config.manifest:
            raise UserError("config.manifest: no manifest of real images; give it beside config.synthetic")
        if config.folds:
            raise UserError(
                "config.synthetic: one manifest cannot serve several folds; leave it out, each tunes its own"
            )
        real, synthetic = records.read(Path(config.manifest)), records.read(Path(config.synthetic))
        if not config.training:
            raise UserError(
                "config.training: say which manifest the generator was tuned on, so that leaks can be found"
            )
        seen = [records.read(Path(config.training))]
    else:
        real, synthetic = generator.made(config, workdir, fold)
        seen = []  # the generator was tuned on the training split of `real` and on nothing else
    inputs.check(real, config.manifest or f"fold {fold}")
    inputs.check_synthetic(synthetic, config.synthetic or f"fold {fold}", real)
    tests = {name: records.read(Path(path)) for name, path in config.tests.items() if path}
    given = [real, synthetic, *seen, *tests.values()]
    inputs.refuse_leaks(given)
    audit.refuse(given)
    for name, manifest in tests.items():
        _check_test(manifest, name, real)
    return Material(real=real, synthetic=synthetic, tests=tests)


def _check_test(manifest: Manifest, name: str, real: Manifest) -> None:
    absent = set(real.labels) - {record.label for record in manifest.split("test")}
    if manifest.labels != real.labels or absent:
        theirs, ours = ", ".join(manifest.labels), ", ".join(real.labels)
        raise UserError(f"config.tests.{name}: needs test images of {ours}; it has classes {theirs}, no {absent or ''}")


def _say_cost(config: ConfigDict, cells: list[Cell], folders: dict, materials: list[Material]) -> None:
    done = sum(finished(folder) for folder in folders.values())
    todo = [cell for cell, folder in folders.items() if not finished(folder)]
    all_steps = sum(
        trial.steps(config.classifiers[cell.classifier].steps, phase)
        for cell in todo
        for phase in arms.phases(cell.arm)
    )
    cost("study", classifiers=len(config.classifiers), arms=len({cell.arm for cell in cells}), seeds=len(config.seeds),
         few_shot_sizes=len(config.shots), folds=len(materials), cells=len(cells), done=done,
         steps_to_do=all_steps)  # fmt: skip
    for fold, material in enumerate(materials):
        real, synthetic = material.real, material.synthetic
        say(
            f"study: fold {fold}: {len(real.split('train'))} real training, {len(real.split('validation'))} validation "
            f"and {len(real.split('test'))} test images, {len(synthetic.split('train'))} synthetic ones; nothing leaks"
        )
