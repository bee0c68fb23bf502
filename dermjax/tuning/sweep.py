"""The search of a sweep: the space of settings, Optuna's study on disk, and one trial.

A trial is a run of `tune` whose folder is named by its settings, so that a killed one is found again and goes on. It
tells the study its held-out loss at equal shares of its steps, and ends early where it lies behind the median of those
that went before (Golovin et al. 2017, "Google Vizier"). Settings are drawn by the tree-structured Parzen estimator
(Bergstra et al. 2011).

`dermjax sweep`: which rate, rank, steps and weighting of the loss serve held-out real images best.

space -> trials, each a run of `tune` that may be pruned -> results.json and report.html
"""

import hashlib
import io
import json
import shutil
from collections.abc import Iterator, Mapping
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import optuna
from ml_collections import ConfigDict
from optuna.trial import FrozenTrial, Trial, TrialState
from PIL import Image

from dermjax import run_folder
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


TEMPLATE = Path(__file__).with_name("sweep_report.html.jinja")
BEST, OTHER = "#a94a26", "#9a9da3"
MARKS = 5  # values of a setting that an axis names one by one


def find(found: optuna.Study, workdir: Path) -> dict[str, Any]:
    """Returns the trials that ended, in their order, and the best of those that ran to their end, if any did."""
    trials = []
    for trial in ended(found):
        losses = curve(place(workdir, trial.params))
        trials.append(
            {
                "settings": trial.params,
                "state": "ended" if trial.state == TrialState.COMPLETE else "pruned",
                "curve": losses,
                "validation_loss": min((loss for step, loss in losses if step), default=None),
            }
        )
    whole = [trial for trial in trials if trial["state"] == "ended"]
    return {"trials": trials, "best": min(whole, key=lambda trial: trial["validation_loss"], default=None)}


def words(settings: dict[str, Any]) -> str:
    """Returns settings as flags of `dermjax tune`."""
    return " ".join(f"--config.{name}={short(value)}" for name, value in settings.items())


def short(value: Any) -> str:
    """Returns a setting with four digits at most of a fraction."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def sentence(told: dict[str, Any]) -> str:
    """Returns what the sweep found so far on one line."""
    if told["best"] is None:
        return "no trial has run to its end yet"
    best = told["best"]
    before = f", {best['curve'][0][1]:.4g} before tuning" if best["curve"][0][0] == 0 else ""
    return f"the best held-out loss is {best['validation_loss']:.4g}{before}, with {words(best['settings'])}"


def write(workdir: Path, told: dict[str, Any], config: ConfigDict) -> None:
    """Writes workdir/report.html, which loads nothing from outside."""
    page = fill(
        TEMPLATE,
        {"short": short},
        sentence=sentence(told),
        trials=sorted(told["trials"], key=lambda trial: (trial["state"], trial["validation_loss"] or 0)),
        best=told["best"],
        names=list(told["trials"][0]["settings"]),
        planned=config.trials,
        curves=data_uri(plotted(told)),
        config=json.dumps(config.to_dict(), indent=2),
    )
    write_atomically(workdir / "report.html", page)


def plotted(told: dict[str, Any]) -> Image.Image:
    """Returns the curves of all trials over the share of their steps, and the lowest loss over each setting."""
    names = list(told["trials"][0]["settings"])
    figure, axes = plt.subplots(1, 1 + len(names), figsize=(4 + 2.4 * len(names), 3.2), dpi=110, layout="constrained")
    for trial in told["trials"]:
        chosen = trial is told["best"]
        colour = BEST if chosen else OTHER
        steps, losses = zip(*trial["curve"], strict=True) if trial["curve"] else ((), ())
        style = "-" if trial["state"] == "ended" else ":"
        axes[0].plot(steps, losses, style, color=colour, lw=1.8 if chosen else 1, zorder=3 if chosen else 2)
        for axis, name in zip(axes[1:], names, strict=True):
            if trial["validation_loss"] is not None:
                fill_style = "full" if trial["state"] == "ended" else "none"
                axis.plot([trial["settings"][name]], [trial["validation_loss"]], "o", color=colour,
                          fillstyle=fill_style, zorder=3 if chosen else 2)  # fmt: skip
    axes[0].set(xlabel="step", ylabel="loss on held-out images")
    for axis, name in zip(axes[1:], names, strict=True):
        values = sorted({trial["settings"][name] for trial in told["trials"]})
        numbers = not isinstance(values[0], str)
        if numbers and values[0] > 0 and values[-1] > 4 * values[0]:
            axis.set_xscale("log")
        if numbers and len(values) <= MARKS:
            axis.set_xticks(values, [short(value) for value in values])
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


def run(config: ConfigDict, workdir: Path) -> None:
    """Runs the trials that are still to run and leaves what they found."""
    if jax.process_count() > 1:
        raise UserError("sweep: runs in one process, over all of its devices; start it on one host")
    manifest = records.read(Path(config.tune.manifest))
    if not manifest.split("validation") or not config.tune.validation_draws:
        raise UserError("sweep: nothing to judge by; needs a validation split and config.tune.validation_draws")
    space = dict(dimensions(config.space.to_dict(), config.tune))
    if not space:
        raise UserError("config.space is empty: there is nothing to choose")
    check(space, config.tune)
    found = study(workdir, startup=config.startup, patience=config.patience)
    start_from(found, space, config.tune)
    cost("sweep", trials=config.trials, ended=len(ended(found)), settings=", ".join(space))
    while len(ended(found)) < config.trials:
        trial, chosen = ask(found, space, seed=config.seed, startup=config.startup)
        say(f"\nsweep: trial {len(ended(found)) + 1} of {config.trials}, {words(chosen)}")
        try:
            found.tell(trial, attempt(trial, chosen, config.tune, config.looks, workdir))
        except optuna.TrialPruned:
            found.tell(trial, state=TrialState.PRUNED)
        # what is looked for is settings, not a model
        shutil.rmtree(place(workdir, chosen) / "checkpoints", ignore_errors=True)
        told = find(found, workdir)
        write_atomically(workdir / "results.json", json.dumps(told, indent=2) + "\n")
        write(workdir, told, config)
        say(f"sweep: {sentence(told)}")
    say(f"sweep: results.json and report.html are in {workdir}")
