"""What a sweep found: its trials in numbers and words, and the page that shows them."""

import io
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import optuna
from ml_collections import ConfigDict
from optuna.trial import TrialState
from PIL import Image

from dermjax.data.pictures import data_uri
from dermjax.page import fill
from dermjax.run_folder import write_atomically
from dermjax.tuning import search

TEMPLATE = Path(__file__).with_name("findings.html.jinja")
BEST, OTHER = "#a94a26", "#9a9da3"


def find(found: optuna.Study, workdir: Path) -> dict[str, Any]:
    """Returns the trials that ended, in their order, and the best of those that ran to their end, if any did."""
    trials = []
    for trial in search.ended(found):
        curve = search.curve(search.place(workdir, trial.params))
        trials.append(
            {
                "settings": trial.params,
                "state": "ended" if trial.state == TrialState.COMPLETE else "pruned",
                "curve": curve,
                "validation_loss": min((loss for step, loss in curve if step), default=None),
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
        values = [trial["settings"][name] for trial in told["trials"]]
        if min(values) > 0 and max(values) > 4 * min(values):
            axis.set_xscale("log")
        axis.set(xlabel=name)
        axis.sharey(axes[1])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    plt.close(figure)
    return Image.open(file).convert("RGB")
