"""`dermjax sweep`: which rate, rank, steps and weighting of the loss serve held-out real images best.

space -> trials, each a run of `tune` that may be pruned -> results.json and report.html

A trial's folder is named by its settings, so that a killed one is resumed. It reports its held-out loss at equal shares
of its steps, and ends early where it lies behind the median of earlier trials (Golovin et al. 2017, "Google Vizier").
Settings are drawn by the tree-structured Parzen estimator (Bergstra et al. 2011); Optuna's study is on disk.
"""

import hashlib
import io
import json
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import optuna
from ml_collections import ConfigDict
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    check_distribution_compatibility,
)
from optuna.trial import FrozenTrial, Trial, TrialState
from PIL import Image

from dermjax import buckets, run_folder
from dermjax.data import records
from dermjax.data.thumbnails import data_uri
from dermjax.errors import UserError
from dermjax.page import fill
from dermjax.progress import cost, say
from dermjax.run_folder import write_atomically
from dermjax.training import writers
from dermjax.training.loop import NotFinite
from dermjax.tuning import run as tuning

NAME, DATABASE = "sweep", "study.db"
TEMPLATE = Path(__file__).with_name("sweep_report.html.jinja")
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
RANGE = {"low", "high"}
BEST, OTHER = "#a94a26", "#9a9da3"
MARKS = 5  # values of a setting that an axis names one by one


def run(config: ConfigDict, workdir: Path) -> None:
    """Runs the trials that are still to run and leaves their results."""
    if jax.process_count() > 1:
        raise UserError("sweep: runs in one process, over all of its devices; start it on one host")
    manifest = records.read(Path(config.tune.manifest))
    if not manifest.split("validation") or not config.tune.validation_draws:
        raise UserError("sweep: nothing to judge by; needs a validation split and config.tune.validation_draws")
    space = dict(dimensions(config.space.to_dict(), config.tune))
    if not space:
        raise UserError("config.space is empty: there is nothing to choose")
    check(space, config.tune)
    with open_study(workdir, startup=config.startup, patience=config.patience) as study:
        refuse_earlier(study, space)
        search(study, space, config, workdir)
    say(f"sweep: results.json and report.html are in {workdir}")


def search(study: optuna.Study, space: dict[str, Any], config: ConfigDict, workdir: Path) -> None:
    """Runs trials until as many have ended as the config says, and writes the results after each."""
    enqueue_defaults(study, space, config.tune)
    cost("sweep", trials=config.trials, ended=len(ended(study)), settings=", ".join(space))
    while len(ended(study)) < config.trials:
        trial, chosen = draw(study, space, seed=config.seed, startup=config.startup)
        say(f"\nsweep: trial {len(ended(study)) + 1} of {config.trials}, {as_flags(chosen)}")
        try:
            study.tell(trial, attempt(trial, chosen, config.tune, config.looks, workdir))
        except optuna.TrialPruned:
            study.tell(trial, state=TrialState.PRUNED)
        # what is looked for is settings, not a model
        shutil.rmtree(folder_of(workdir, chosen) / "checkpoints", ignore_errors=True)
        results = results_of(study, workdir)
        write_atomically(workdir / "results.json", json.dumps(results, indent=2) + "\n")
        write(workdir, results, config)
        say(f"sweep: {summary(results)}")


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
    """Raises UserError where `tune` refuses a choice, or an end of a range, with the other settings as they stand."""
    for name, values in space.items():
        for value in values.values() if isinstance(values, Mapping) else values:
            try:
                tuning.check(changed(settings, {name: value}))
            except (UserError, TypeError) as error:
                raise UserError(f"config.space.{name} = {value!r}: {error}") from error


def changed(settings: ConfigDict, chosen: Mapping[str, Any]) -> ConfigDict:
    """Returns a copy of the settings with those that are chosen by name."""
    copy = ConfigDict(settings.to_dict())
    for name, value in chosen.items():
        *parents, key = name.split(".")
        reduce(getitem, parents, copy)[key] = value
    return copy


@contextmanager
def open_study(workdir: Path, *, startup: int, patience: int) -> Iterator[optuna.Study]:
    """Yields the study of a run folder, in which trials that were cut off wait to be resumed; closes its database."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=startup, n_warmup_steps=patience)
    with database_error_as_one_line(workdir / DATABASE):
        storage = optuna.storages.RDBStorage(f"sqlite:///{workdir / DATABASE}")
        try:
            study = optuna.create_study(storage=storage, study_name=NAME, load_if_exists=True, pruner=pruner)
            for trial in study.get_trials(states=(TrialState.RUNNING,)):
                study.tell(trial.number, state=TrialState.FAIL)
                if trial.params:
                    study.enqueue_trial(trial.params)
            yield study
        finally:
            storage.remove_session()
            storage.engine.dispose()


@contextmanager
def database_error_as_one_line(path: Path) -> Iterator[None]:
    """Raises UserError for what SQLite says of a file without room or one that is damaged, as Optuna passes it on."""
    try:
        yield
    except Exception as error:
        cause = error
        while cause and not isinstance(cause, sqlite3.Error):
            cause = cause.__cause__
        if not cause:
            raise
        raise UserError(
            f"{path}: {cause}; make room, or delete it where it is damaged, then the same command"
        ) from error


def enqueue_defaults(study: optuna.Study, space: dict[str, Any], settings: ConfigDict) -> None:
    """Makes the settings as they stand the first trial of a new study, where they lie in the space."""
    defaults = {name: reduce(getitem, name.split("."), settings) for name in space}
    inside = all(
        space[name]["low"] <= value <= space[name]["high"] if isinstance(space[name], Mapping) else value in space[name]
        for name, value in defaults.items()
    )
    if inside and not study.trials:
        study.enqueue_trial(defaults)


def distributions(space: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """Returns what Optuna draws each setting of a space from."""

    def drawn(value: Any) -> BaseDistribution:
        if not isinstance(value, Mapping):
            return CategoricalDistribution(value)
        kind = IntDistribution if isinstance(value["low"], int) else FloatDistribution
        return kind(value["low"], value["high"], log=True)

    return {name: drawn(value) for name, value in space.items()}


def refuse_earlier(study: optuna.Study, space: Mapping[str, Any]) -> None:
    """Raises UserError for a space that trials of another one cannot be in: of it ranges alone may be others."""
    now = distributions(space)
    for trial in study.get_trials(deepcopy=False):
        of_trial = trial.distributions if trial.state in ENDED else {**now, **trial.distributions}
        if others := sorted(now.keys() ^ of_trial.keys()):
            where = "not in" if others[0] in now else "only in"
            raise UserError(f"config.space.{others[0]}: {where} earlier trials; give the settings that they have, or "
                            "another --workdir")  # fmt: skip
        for name, earlier in of_trial.items():
            try:
                check_distribution_compatibility(earlier, now[name])
            except ValueError as error:
                raise UserError(f"config.space.{name} = {space[name]!r}: earlier trials had other choices; give those, "
                                "or another --workdir") from error  # fmt: skip


def ended(study: optuna.Study) -> list[FrozenTrial]:
    """Returns the trials that are complete or were pruned."""
    return study.get_trials(states=ENDED)


def draw(study: optuna.Study, space: dict[str, Any], *, seed: int, startup: int) -> tuple[Trial, dict[str, Any]]:
    """Returns the next trial and its settings by name; they follow from the seed and from the trials that ended."""
    study.sampler = optuna.samplers.TPESampler(seed=(seed + len(ended(study))) % 2**32, n_startup_trials=startup)
    trial = study.ask(distributions(space))
    return trial, {name: trial.params[name] for name in space}


def attempt(trial: Trial, chosen: dict[str, Any], defaults: ConfigDict, looks: int, workdir: Path) -> float:
    """Tunes with the chosen settings and returns the lowest held-out loss of those at `looks` shares of the steps.

    Raises:
      optuna.TrialPruned: the trial lies behind the others, or its loss was not finite.
    """
    settings = changed(defaults, chosen)
    settings.cache = settings.cache or str(workdir / "latents")
    settings.save_model, settings.samples.images = False, 0
    settings.watch_every = max(1, settings.steps // looks)
    folder = folder_of(workdir, chosen)
    reported: set[int] = set()

    def on_loss(step: int, loss: float) -> None:
        share = step // settings.watch_every
        if 0 < share <= looks and share not in reported:
            reported.add(share)
            trial.report(loss, share)
            if trial.should_prune():
                raise optuna.TrialPruned

    with run_folder.claimed(folder, settings.to_dict(), within=workdir):
        try:
            for step, loss in curve(folder):  # of a trial that was cut off
                on_loss(step, loss)
            tuning.run(settings.lock(), folder, on_loss)
        except NotFinite as error:
            say(f"sweep: {error}")
            raise optuna.TrialPruned from error
    return lowest(curve(folder))


def curve(folder: Path) -> list[tuple[int, float]]:
    """Returns (step, held-out loss) of a trial's folder, from before its first step on."""
    records = writers.read(folder / "metrics.jsonl")
    return [(record["step"], record["validation_loss"]) for record in records if "validation_loss" in record]


def lowest(losses: list[tuple[int, float]]) -> float | None:
    """Returns the lowest loss after the first step, None where there is none."""
    return min((loss for step, loss in losses if step), default=None)


def folder_of(workdir: Path, chosen: dict[str, Any]) -> Path:
    """Returns the folder of a trial, by its settings."""
    digest = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()
    return workdir / "trials" / digest[:12]


def results_of(study: optuna.Study, workdir: Path) -> dict[str, Any]:
    """Returns the trials that ended, in their order, and the best of those that are complete, if any is."""
    trials = []
    for trial in ended(study):
        losses = curve(folder_of(workdir, trial.params))
        state = "ended" if trial.state == TrialState.COMPLETE else "pruned"
        trials.append({"settings": trial.params, "state": state, "curve": losses, "validation_loss": lowest(losses)})
    complete = [trial for trial in trials if trial["state"] == "ended"]
    return {"trials": trials, "best": min(complete, key=lambda trial: trial["validation_loss"], default=None)}


def as_flags(settings: dict[str, Any]) -> str:
    """Returns settings as flags of `dermjax tune`."""
    return " ".join(f"--config.{name}={format_value(value)}" for name, value in settings.items())


def format_value(value: float | str) -> str:
    """Returns a setting with four digits at most of a fraction."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def summary(results: dict[str, Any]) -> str:
    """Returns the results so far on one line."""
    best = results["best"]
    if best is None:
        return "no trial has run to its end yet"
    before = f", {best['curve'][0][1]:.4g} before tuning" if best["curve"][0][0] == 0 else ""
    return f"the best held-out loss is {best['validation_loss']:.4g}{before}, with {as_flags(best['settings'])}"


def write(workdir: Path, results: dict[str, Any], config: ConfigDict) -> None:
    """Writes workdir/report.html, which loads nothing from outside."""
    page = fill(
        TEMPLATE,
        {"short": format_value},
        sentence=summary(results),
        trials=sorted(results["trials"], key=lambda trial: (trial["state"], trial["validation_loss"] or 0)),
        best=results["best"],
        names=list(results["trials"][0]["settings"]),
        planned=config.trials,
        curves=data_uri(plot(results)),
        config=json.dumps(buckets.as_given(config.to_dict()), indent=2),
    )
    write_atomically(workdir / "report.html", page)


def plot(results: dict[str, Any]) -> Image.Image:
    """Returns the curves of all trials over the share of their steps, and the lowest loss over each setting."""
    names = list(results["trials"][0]["settings"])
    figure, axes = plt.subplots(1, 1 + len(names), figsize=(4 + 2.4 * len(names), 3.2), dpi=110, layout="constrained")
    for trial in results["trials"]:
        best = trial is results["best"]
        colour = BEST if best else OTHER
        steps, losses = zip(*trial["curve"], strict=True) if trial["curve"] else ((), ())
        style = "-" if trial["state"] == "ended" else ":"
        axes[0].plot(steps, losses, style, color=colour, lw=1.8 if best else 1, zorder=3 if best else 2)
        for axis, name in zip(axes[1:], names, strict=True):
            if trial["validation_loss"] is not None:
                fill_style = "full" if trial["state"] == "ended" else "none"
                axis.plot([trial["settings"][name]], [trial["validation_loss"]], "o", color=colour,
                          fillstyle=fill_style, zorder=3 if best else 2)  # fmt: skip
    axes[0].set(xlabel="step", ylabel="loss on held-out images")
    for axis, name in zip(axes[1:], names, strict=True):
        values = sorted({trial["settings"][name] for trial in results["trials"]})
        numbers = not isinstance(values[0], str)
        if numbers and values[0] > 0 and values[-1] > 4 * values[0]:
            axis.set_xscale("log")
        if numbers and len(values) <= MARKS:
            axis.set_xticks(values, [format_value(value) for value in values])
            axis.minorticks_off()
        axis.set(xlabel=name)
        axis.sharey(axes[1])
    for axis in axes[2:]:
        axis.tick_params(labelleft=False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    plt.close(figure)
    return Image.open(file).convert("RGB")
