"""The search of a sweep: the space of settings, Optuna's study on disk, and one trial.

A trial is a run of `tune` whose folder is named by its settings, so that a killed one is found again and goes on. It
tells the study its held-out loss at equal shares of its steps, and ends early where it lies behind the median of those
that went before (Golovin et al. 2017, "Google Vizier"). Settings are drawn by the tree-structured Parzen estimator
(Bergstra et al. 2011).
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import optuna
from ml_collections import ConfigDict
from optuna.trial import FrozenTrial, Trial, TrialState

from dermjax import run_folder
from dermjax.errors import UserError
from dermjax.progress import say
from dermjax.training import writers
from dermjax.training.loop import NotFinite
from dermjax.tuning import run as tuning

NAME, DATABASE = "sweep", "study.db"
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
RANGE = {"low", "high"}


def dimensions(space: Mapping, settings: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (name in `settings`, range {low, high} or choices) of a space; a UserError for what is neither."""
    for key, value in space.items():
        name = f"{prefix}{key}"
        if key not in settings:
            raise UserError(f"config.space.{name}: config.tune has no such setting")
        if isinstance(value, Mapping) and set(value) != RANGE:
            yield from dimensions(value, settings[key], f"{name}.")
            continue
        if isinstance(value, Mapping) and not 0 < value["low"] <= value["high"]:
            raise UserError(f"config.space.{name}: low = {value['low']}, high = {value['high']}; give 0 < low <= high")
        choices = isinstance(value, tuple) and value and all(isinstance(each, int | float | str) for each in value)
        if not isinstance(value, Mapping) and not choices:
            raise UserError(
                f"config.space.{name} = {value!r}; give a range {{low, high}} or numbers or words to choose"
            )
        yield name, value


def check(space: Mapping[str, Any], settings: ConfigDict) -> None:
    """Raises UserError where a choice, or an end of a range, cannot be meant with the settings as they stand."""
    for name, values in space.items():
        for value in values.values() if isinstance(values, Mapping) else values:
            try:
                tuning.check(changed(settings, {name: value}))
            except (UserError, TypeError) as error:
                raise UserError(f"config.space.{name} = {value!r}: {error}") from error


def changed(settings: ConfigDict, chosen: Mapping[str, Any]) -> ConfigDict:
    """Returns a copy of the settings with those that are chosen by name."""
    found = ConfigDict(settings.to_dict())
    for name, value in chosen.items():
        *parents, key = name.split(".")
        reduce(getitem, parents, found)[key] = value
    return found


def study(workdir: Path, *, startup: int, patience: int) -> optuna.Study:
    """Returns the study of a run folder, with trials that were cut off waiting to be taken up again."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=startup, n_warmup_steps=patience)
    found = optuna.create_study(
        storage=f"sqlite:///{workdir / DATABASE}", study_name=NAME, load_if_exists=True, pruner=pruner
    )
    for trial in found.get_trials(states=(TrialState.RUNNING,)):
        found.tell(trial.number, state=TrialState.FAIL)
        if trial.params:
            found.enqueue_trial(trial.params)
    return found


def start_from(found: optuna.Study, space: dict[str, Any], settings: ConfigDict) -> None:
    """Makes the settings as they stand the first trial of a new study, where they lie in the space."""
    own = {name: reduce(getitem, name.split("."), settings) for name in space}
    inside = all(
        space[name]["low"] <= value <= space[name]["high"] if isinstance(space[name], Mapping) else value in space[name]
        for name, value in own.items()
    )
    if inside and not found.trials:
        found.enqueue_trial(own)


def ended(found: optuna.Study) -> list[FrozenTrial]:
    """Returns the trials that came to an end or were pruned."""
    return found.get_trials(states=ENDED)


def ask(found: optuna.Study, space: dict[str, Any], *, seed: int, startup: int) -> tuple[Trial, dict[str, Any]]:
    """Returns the next trial and its settings by name; they follow from the seed and from the trials that ended."""
    sampler = optuna.samplers.TPESampler(seed=(seed + len(ended(found))) % 2**32, n_startup_trials=startup)
    found.sampler = sampler
    trial = found.ask()
    chosen = {}
    for name, value in space.items():
        if not isinstance(value, Mapping):
            chosen[name] = trial.suggest_categorical(name, value)
        elif isinstance(value["low"], int):
            chosen[name] = trial.suggest_int(name, value["low"], value["high"], log=True)
        else:
            chosen[name] = trial.suggest_float(name, value["low"], value["high"], log=True)
    return trial, chosen


def attempt(trial: Trial, chosen: dict[str, Any], defaults: ConfigDict, looks: int, workdir: Path) -> float:
    """Tunes with the chosen settings and returns the lowest held-out loss.

    Raises:
      optuna.TrialPruned: the trial lies behind the others, or its loss was not finite.
    """
    settings = changed(defaults, chosen)
    settings.cache = settings.cache or str(workdir / "latents")
    settings.save_model, settings.samples.images = False, 0
    settings.watch_every = max(1, settings.steps // looks)
    folder = place(workdir, chosen)
    told: set[int] = set()

    def heard(step: int, loss: float) -> None:
        look = step // settings.watch_every
        if 0 < look <= looks and look not in told:
            told.add(look)
            trial.report(loss, look)
            if trial.should_prune():
                raise optuna.TrialPruned

    run_folder.claim(folder, settings.to_dict())
    try:
        for step, loss in curve(folder):  # of a trial that was cut off
            heard(step, loss)
        tuning.run(settings.lock(), folder, heard)
    except NotFinite as error:
        say(f"sweep: {error}")
        raise optuna.TrialPruned from error
    except UserError:
        run_folder.disclaim(folder)
        raise
    return min(loss for step, loss in curve(folder) if step)


def curve(folder: Path) -> list[tuple[int, float]]:
    """Returns (step, held-out loss) of a trial's folder, from before its first step on."""
    records = writers.read(folder / "metrics.jsonl")
    return [(record["step"], record["validation_loss"]) for record in records if "validation_loss" in record]


def place(workdir: Path, chosen: dict[str, Any]) -> Path:
    """Returns the folder of a trial, by its settings."""
    digest = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()
    return workdir / "trials" / digest[:12]
