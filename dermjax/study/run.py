"""`dermjax study`: do synthetic images help? Every arm, classifier, seed and few-shot size, compared in one place.

    manifests (or images, and a generator tuned on each fold's training split) -> audit -> cells -> report.html

The same command on several hosts with one workdir shares the cells; the same command again does what is missing.
"""

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import jax
from ml_collections import ConfigDict

from dermjax import buckets, progress, run_folder
from dermjax.classification import inputs, predictions, recipes
from dermjax.classification import run as classification
from dermjax.classification.batches import VERSIONS
from dermjax.classification.recipes import GRADIENT, Recipe
from dermjax.data import pipelines, records
from dermjax.data.records import Manifest
from dermjax.demo import check, check_stages
from dermjax.errors import UserError
from dermjax.evaluation import wording
from dermjax.models.classifier import Classifier
from dermjax.progress import say
from dermjax.run_folder import write_atomically
from dermjax.study import arms, cells, generator, report, results
from dermjax.study.cells import LEFT, Cell, Material, claimed, finished

# options of a classifier that its cells set, what they are where nobody gave them, and what says it instead
SET_BY_CELLS = {
    "manifest": ("", "manifest"), "synthetic": ("", "synthetic"), "judged": ("", "synthetic"), "seed": (0, "seeds"),
    "synthetic_fraction": (0.75, "arms"),
}  # fmt: skip
SECONDS_OF_A_CELL = 3.0  # measured beside its arithmetic: reading weights and features, compiling, writing the folder


def run(config: ConfigDict, workdir: Path) -> None:
    """Trains every cell that nobody has trained, then writes results.json and report.html."""
    folders = {cell: workdir / "cells" / cell.name for cell in plan(config)}
    _refuse_further_tests(config, folders)
    prepared = [generator.prepare(config, workdir, fold) for fold in range(max(1, config.folds))]
    wholes = [records.read(path) for path in prepared]
    for path, whole in zip(prepared, wholes, strict=True):
        inputs.check(whole, str(path))
    reals = [arms.leave_out(whole, config.without) for whole in wholes]
    for cell in folders:  # a few-shot size that a class cannot give is refused before anything is tuned or trained
        cells.real_images(cell, reals[cell.fold], config.rare)
    given = records.read(Path(config.synthetic)) if config.synthetic else None
    requested = config.generate.plan.images_per_class * len(reals[0].labels)
    announce(config, folders, reals, len(given.split("train")) if given else requested)
    material_of = _materials(config, workdir, folders, prepared, reals)
    causes = _causes(config, folders, material_of)
    _report_other_causes(causes)
    materials = list({cell.fold: material for cell, material in material_of.items()}.values())
    explained = report.cells_to_explain(folders, report.PAPER_ARMS)
    for number, (cell, folder) in enumerate(folders.items(), start=1):
        if not finished(folder):
            with claimed(folder) as ours:
                if ours and not finished(folder):  # another host may have finished it between the two checks
                    say(f"\nstudy: cell {number} of {len(folders)}, {cell.name}")
                    run_folder.changed_since_start(folder, causes[folder], LEFT)  # another host may have other settings
                    settings = config.classifiers[cell.classifier]
                    cells.train(cell, settings, material_of[cell], config.rare, workdir / "features", folder)
        if finished(folder) and cell not in explained:
            cells.shrink(folder)
    left = [cell.name for cell, folder in folders.items() if not finished(folder)]
    if left:
        say(f"study: {len(left)} cells are being trained elsewhere, such as {left[0]}; the same command again reports")
        return
    chosen = results.choose(folders, materials)
    named = [group._asdict() | {"validation_auroc": score} for group, score in chosen.items()]
    write_atomically(workdir / "chosen.json", json.dumps(named, indent=2))
    findings = results.find(
        folders,
        materials,
        config.baseline,
        chosen,
        config.bootstrap.to_dict(),
        own_generators=generator.sees_shots(config),
    )
    # a run with more seeds or few-shot sizes kept the classifiers of other cells
    kept = {cell: folders[cell] for cell in explained if (folders[cell] / "classifier").is_dir()}
    pictures = report.explain(kept, materials[0], config.gallery)
    tuned_on = records.read(Path(config.training)) if config.synthetic else wholes[0]
    seen, begins = None if generator.sees_shots(config) else tuned_on, generator.begins_at_photographs(config)
    judged = any(pipelines.JUDGED in record.scores for record in materials[0].synthetic.records)
    case = report.describe_case(config.rare, config.without, seen, wholes[0], begins, bool(any(config.shots)), judged)
    page = report.page(
        config.title, findings, materials, config.baseline, pictures, config.classifiers.values(), config.gallery, case
    )
    write_atomically(workdir / "results.json", results.as_json(findings))
    write_atomically(workdir / "report.html", page)
    for (classifier, size), groups in report.by_setting(findings).items():
        for each in findings.compared(groups):
            say(f"study: {wording.shown(classifier)}, {wording.shots(size)}, {report.sentence(each)}")
    say(f"study: the report is {workdir / 'report.html'}")


def plan(config: ConfigDict) -> list[Cell]:
    """Returns the cells of the grid, the baseline first; UserError for what no study can be made of."""
    for key in ("arms", "seeds", "shots"):
        if not config[key] or len(set(config[key])) != len(config[key]):
            raise UserError(f"config.{key} = {tuple(config[key])}: give at least one, each once")
        if key != "arms" and not all(type(each) is int for each in config[key]):
            raise UserError(f"config.{key} = {tuple(config[key])}: give whole numbers")
    trained = [arm for arm in config.arms if arms.phases(arm)]
    if config.baseline not in trained:
        raise UserError(f"config.baseline = {config.baseline} is not among config.arms, {', '.join(trained)}")
    if arms.TESTED_ON_SYNTHETIC in config.arms and arms.BASELINE not in trained:
        raise UserError(f"config.arms: {arms.TESTED_ON_SYNTHETIC} is judged by {arms.BASELINE}; add that")
    if not config.classifiers:
        raise UserError("config.classifiers: none; add at least one")
    for arm, phase in [(name, phase) for name in trained for phase in arms.phases(name)]:
        for name, classifier in config.classifiers.items():
            changed = cells.settings_of(classifier, phase)
            check(f"classifiers.{name}" + f" in the arm {arm}" * bool(phase.changes), changed, classification.check)
            real = changed.batch * (1 - pipelines.as_fraction(phase.fraction))
            if changed.synthetic_statistics == "separate" and real.denominator != 1:
                raise UserError(
                    f"config.arms: {arm} has {float(real):g} real images in a batch of {changed.batch}; give another"
                )
    unknown = [arm for arm in config.arms if arms.synthetic_set(arm) not in ("", *config.sets)]
    if unknown:
        raise UserError(f"config.arms: {unknown[0]} needs config.sets.{arms.synthetic_set(unknown[0])}, a manifest")
    _check_names(config)
    if _judged_arms(config) and not config.synthetic and not config.curate.classifier:
        raise UserError(
            f"config.arms: {_judged_arms(config)[0]} needs a judge, config.curate.classifier, trained on real images"
        )
    if generator.sees_shots(config) and config.synthetic:
        raise UserError("config.generator_sees = shots tunes generators of its own; leave out config.synthetic")
    if generator.begins_at_photographs(config) and config.synthetic:
        raise UserError("config.generator_begins = photographs is for own generators; leave out config.synthetic")
    if not config.synthetic:
        check_stages(config)
    if config.synthetic and not config.manifest:
        raise UserError("config.manifest: no manifest of real images; give it beside config.synthetic")
    if config.synthetic and config.folds:
        raise UserError("config.synthetic: one manifest cannot serve several folds; leave it out, each tunes its own")
    if config.sets and config.folds:
        raise UserError(
            "config.sets: one set cannot serve several folds, whose test images it may have seen; leave it out"
        )
    if (config.synthetic or config.sets) and not config.training:
        raise UserError("config.training: say which manifest the generator was tuned on, so that leaks can be found")
    trained.sort(key=lambda arm: arm != config.baseline)
    return [
        Cell(fold, classifier, shots, arm, seed)
        for fold in range(max(1, config.folds))
        for seed in config.seeds
        for shots in config.shots
        for arm in trained
        for classifier in config.classifiers
    ]


def _check_names(config: ConfigDict) -> None:
    """Raises UserError for values of keys that are users' own, and for options of classifiers that cells set."""
    for name, classifier in config.classifiers.items():
        for key, (usual, ours) in SET_BY_CELLS.items():
            if classifier[key] != usual:
                given = f"config.classifiers.{name}.{key} = {buckets.as_given(classifier[key])}"
                raise UserError(f"{given}: a study goes by config.{ours} instead; leave it out")
    for label, number in config.rare.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise UserError(f"config.rare.{label} = {number!r}: give a whole number of images, 1 or more")
        if all(0 < shots <= number for shots in config.shots):
            raise UserError(f"config.rare.{label} = {number}: no size of config.shots is larger; give fewer")
    for name, path in config.sets.items():
        if not isinstance(path, str) or not path:
            raise UserError(f"config.sets.{name} = {path!r}: give a manifest")
    for kind, names in config.without.items():
        if not isinstance(names, tuple | list) or not all(isinstance(each, str) for each in names):
            raise UserError(f"config.without.{kind} = {names!r}: give names in brackets, as ('dark','brown')")


def _refuse_further_tests(config: ConfigDict, folders: dict[Cell, Path]) -> None:
    """Raises UserError for a test set that finished cells have not been judged on, whose classifiers are gone."""
    for name in (name for name, path in config.tests.items() if path):
        file = classification.predictions_file(name)
        without = [folder for folder in folders.values() if finished(folder) and not (folder / file).exists()]
        if without:
            raise UserError(
                f"config.tests.{name}: {len(without)} finished cells were not judged on it, such as {without[0].name}; "
                f"leave it out, give another --workdir, or delete their folders in {without[0].parent} to train them "
                "again"
            )


def _judged_arms(config: ConfigDict) -> list[str]:
    """The arms whose synthetic images teach by a judge's probability, for any classifier."""
    always = any(each.synthetic_targets == "judge" for each in config.classifiers.values())
    return [
        arm for arm in config.arms
        if any(phase.fraction and (always or "synthetic_targets" in phase.changes) for phase in arms.phases(arm))
    ]  # fmt: skip


def _materials(
    config: ConfigDict, workdir: Path, folders: Collection[Cell], prepared: list[Path], reals: list[Manifest]
) -> dict[Cell, Material]:
    """The manifests of each cell: one of a fold, or one of each few-shot size and seed of it."""
    homes, made = {cell: generator.home(config, workdir, cell) for cell in folders}, {}
    for cell, home in homes.items():
        if home not in made:
            real, path = reals[cell.fold], prepared[cell.fold]
            if generator.sees_shots(config):
                path = generator.few_shot(home, cells.real_images(cell, real, config.rare))
            made[home] = _material(generator.drawn(config, cell, len(real.labels)), home, path, real)
    return {cell: made[home] for cell, home in homes.items()}


def _material(config: ConfigDict, folder: Path, prepared: Path, real: Manifest) -> Material:
    """The manifests that cells share, synthetic images made in a folder where none are given; a leak is refused."""
    tests = {name: _read(path, real) for name, path in config.tests.items() if path}
    for name, manifest in tests.items():
        pipelines.check_labels(manifest, f"config.tests.{name}", real)
        absent = sorted(set(real.labels) - {record.label for record in manifest.split("test")})
        if absent:
            names = ", ".join(absent)
            raise UserError(f"config.tests.{name}: no test image of {names}; give a test split of every class")
    # of a further test set nobody uses another split
    used = [real, *(replace(each, records=tuple(each.split("test"))) for each in tests.values())]
    if config.training:
        used.append(records.read(Path(config.training)))
    if config.synthetic:
        synthetic = _read(config.synthetic, real)
    else:  # the generator gets all of what is prepared and nothing else; a leak is refused before it is tuned
        used.append(records.read(prepared))
        inputs.refuse_leaks(used)
        if judge := config.curate.classifier:  # whose doubts choose among synthetic images
            unseen = tuple(record for record in real.records if record.split != "train")
            predictions.refuse_learnt(Path(judge), replace(real, records=unseen))
        synthetic = generator.synthesise(config, folder, prepared).in_order(real.labels)
    inputs.check_synthetic(synthetic, config.synthetic or folder.name, real)
    sets = {name: _read(path, real) for name, path in config.sets.items()}
    for name, manifest in sets.items():
        inputs.check_synthetic(manifest, f"config.sets.{name}", real)
    material = Material(real=real, synthetic=synthetic, tests=tests, sets=sets)
    for record in (record for arm in _judged_arms(config) for record in material.of(arm).split("train")):
        pipelines.confidence(record)  # refused before the first cell is trained
    inputs.refuse_leaks([*used, synthetic, *sets.values()])
    say(
        f"study: {folder.name}: {len(real.split('train'))} real training, {len(real.split('validation'))} validation "
        f"and {len(real.split('test'))} test images, {len(synthetic.split('train'))} synthetic ones; nothing leaks"
    )
    return material


def _read(path: str, real: Manifest) -> Manifest:
    """The manifest of a path, its classes in the order of the real one's."""
    return records.read(Path(path)).in_order(real.labels)


def _causes(config: ConfigDict, folders: dict[Cell, Path], material_of: dict[Cell, Material]) -> dict[Path, dict]:
    """What the cell of each folder follows from: its code, its images and which of them it takes, its settings."""
    digests, causes, judged = {}, {}, _judged_arms(config)
    for cell, folder in folders.items():
        material, key = material_of[cell], (id(material_of[cell]), arms.synthetic_set(cell.arm))
        digests[key] = digests.get(key) or material.digest(cell.arm)
        drawn = {"cells": cells.NUMERIC_VERSION} if any(phase.draws for phase in arms.phases(cell.arm)) else {}
        causes[folder] = {
            run_folder.NUMERIC_VERSIONS: VERSIONS | drawn,
            "images": digests[key],
            "rare": {label: arms.shots_of(label, cell.shots, config.rare) for label in config.rare},
            "settings": buckets.as_given(config.classifiers[cell.classifier].to_dict()),
        }
        if cell.arm in judged:
            causes[folder]["judge"] = classification.digest_of_judge(material.of(cell.arm))
    return causes


def _report_other_causes(causes: dict[Path, dict]) -> None:
    """Says where cells were begun on other images, with other settings, or by code that gives other numbers."""
    changes = {folder: run_folder.changed_since_start(folder, each, LEFT) for folder, each in causes.items()}
    changes = {folder: change for folder, change in changes.items() if change}
    for folder, change in list(changes.items())[:1]:
        say(
            f"study: cells started from other inputs: {len(changes)}, such as {folder.name} ({change}); they are kept, "
            f"delete their folders in {folder.parent} to train them again"
        )


def announce(config: ConfigDict, folders: dict[Cell, Path], reals: list[Manifest], synthetic: int) -> None:
    """Prints the grid, what of it is left, and about how long that takes where it has been measured: on a CPU.

    reals: of each fold. synthetic: how many synthetic images a fold has, or is going to have; `tune` and `generate`
    announce what their generator takes. A classifier that cannot be built is refused here, before a generator is tuned.
    """
    todo = [cell for cell, folder in folders.items() if not finished(folder)]
    several = {generator.home(config, Path(), cell) for cell in folders}
    generators = {} if config.synthetic else {"generators": len(several), "synthetic_images": synthetic * len(several)}
    seconds = {}
    if jax.devices()[0].platform == "cpu":
        seconds["seconds"] = processor_seconds(config, todo, reals, synthetic)
    else:
        for name in {cell.classifier for cell in todo}:
            _network(config, name, reals[0].labels)
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
        **seconds,
    )


def _network(config: ConfigDict, name: str, labels: tuple[str, ...]) -> tuple[Classifier, Recipe]:
    """A classifier of the study, and what of it is trained; UserError, which names it, where there is none such."""
    try:
        classifier, _, _, recipe = classification.network(config.classifiers[name], labels)
    except UserError as error:
        raise UserError(f"config.classifiers.{name}: {error}") from error
    return classifier, recipe


def count_steps(config: ConfigDict, cell: Cell) -> int:
    """Returns the optimiser steps of a cell over its phases."""
    return sum(cells.steps(config.classifiers[cell.classifier].steps, phase) for phase in arms.phases(cell.arm))


def processor_seconds(config: ConfigDict, todo: list[Cell], reals: list[Manifest], synthetic: int) -> float:
    """Returns about how long the cells take all cores of this machine, without their generators."""
    seconds = SECONDS_OF_A_CELL * len(todo)
    for name in {cell.classifier for cell in todo}:
        settings, its_cells = config.classifiers[name], [cell for cell in todo if cell.classifier == name]
        classifier, recipe = _network(config, name, reals[0].labels)
        below, above = recipes.operations(classifier, recipe, settings.size)
        trained = settings.batch * sum(count_steps(config, cell) for cell in its_cells)
        images = sum(real_images(reals[fold], config) + synthetic for fold in {cell.fold for cell in its_cells})
        work = images * below + GRADIENT * trained * above
        if settings.recipe == "full":  # every cell predicts all validation and test images, validation several times
            times = 1 + (settings.steps // settings.evaluate_every if settings.evaluate_every else 0)
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
