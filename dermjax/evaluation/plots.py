"""Training curves: what a run folder's metrics.jsonl holds, as series of (step, value).

Plots as self-contained SVG pictures, one panel each: ROC curves, differences between arms, training curves.

Text is drawn as outlines and nothing depends on time or chance, so a page looks the same everywhere and twice.
"""

import base64
import io
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dermjax.errors import UserError
from dermjax.evaluation import metrics, wording
from dermjax.evaluation.findings import BASELINE, Comparison, Run
from dermjax.evaluation.intervals import Estimate
from dermjax.training import writers

Series = tuple[np.ndarray, np.ndarray]
FILE = "metrics.jsonl"


def logged(folder: Path) -> bool:
    """Whether a folder is that of a training, or holds predictions alone."""
    return (folder / FILE).is_file()


def read_curves(folder: Path, name: str) -> Series:
    """Steps and values [points] of one scalar; empty where the run has not logged it."""
    path = folder / FILE
    if not path.is_file():
        raise UserError(f"metrics {path}: no such file; give the workdir of a finished run")
    logged = [record for record in writers.read(path) if name in record]
    return np.array([record["step"] for record in logged], int), np.array([record[name] for record in logged], float)


INK, FAINT = "#23262b", "#b9b4aa"
BASELINE_COLOUR = "#3d5a80"
ARM_COLOURS = ("#c8623b", "#7a8b3c", "#8b5a9e", "#b08a2e")  # told apart by people with any colour vision
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))  # of classifiers
PLAIN = {"color": BASELINE_COLOUR, "linestyle": "-"}
WIDTH = 4.6  # inches; the page scales it
STYLE = {
    "svg.fonttype": "path",
    "svg.hashsalt": "dermjax",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eae6df",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
}


def roc(title: str, runs: list[Run]) -> str:
    """The ROC curves of the arms of one classifier."""

    def draw(panel: Axes) -> None:
        panel.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (2, 3)))
        for run in runs:
            name = f"{run.arm}, AUROC {metrics.auroc(run.predictions):.3f}"
            panel.plot(*metrics.roc(run.predictions), label=name, linewidth=2, color=_colour(run.arm, runs))
        panel.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", title=title)
        panel.set(xlabel="1 − specificity", ylabel="sensitivity")
        panel.legend(loc="lower right")

    return svg(draw, WIDTH)


def difference(title: str, comparison: Comparison, reach: float) -> str:
    """Arm - baseline in every figure with its interval, in percentage points from -reach to reach."""
    names, estimates = list(comparison.differences), list(comparison.differences.values())

    def draw(panel: Axes) -> None:
        panel.axvline(0, color=INK, linewidth=1)
        for row, estimate in enumerate(estimates):
            panel.plot([100 * end for end in ends(estimate)], [row, row], color=ARM_COLOURS[0], linewidth=2.5)
            panel.plot([100 * estimate.value], [row], "o", color=ARM_COLOURS[0], markersize=8)
        panel.set(yticks=range(len(names)), yticklabels=[wording.label(name) for name in names], xlim=(-reach, reach))
        panel.set(ylim=(len(names) - 0.5, -0.5), xlabel="percentage points, with 95 % interval", title=title)
        panel.grid(axis="y", visible=False)
        panel.spines["left"].set_visible(False)
        panel.tick_params(axis="y", length=0)

    return svg(draw, 1.0 + 0.3 * len(names))


def curves(title: str, unit: str, series: list[tuple[str, Series, dict]]) -> str:
    """Series of (step, value) with a name and a line style; a long noisy one is drawn faint under its moving mean."""

    def draw(panel: Axes) -> None:
        for name, (steps, values), line in series:
            smooth_steps, smooth = _smoothed(steps, values)
            if len(smooth) < len(values):
                panel.plot(steps, values, color=line["color"], linewidth=0.8, alpha=0.25)
            panel.plot(smooth_steps, smooth, linewidth=1.8, label=name, marker=_marker(steps), markersize=4, **line)
        panel.set(title=title, xlabel="step", ylabel=unit)
        if len(series) > 1:
            panel.legend(fontsize=8, handlelength=2.8)

    return svg(draw, 3.2)


def lines(runs: list[Run]) -> dict[str, dict]:
    """The line of each run by its name: an arm has its colour, a classifier its dashes."""
    classifiers = list(dict.fromkeys(run.classifier for run in runs))
    return {
        run.name: {
            "color": _colour(run.arm, runs),
            "linestyle": DASHES[classifiers.index(run.classifier) % len(DASHES)],
        }
        for run in runs
    }


def reach(comparisons: list[Comparison]) -> float:
    """Half the width of an axis that holds every difference, at least 5 percentage points."""
    far = [100 * abs(end) for each in comparisons for estimate in each.differences.values() for end in ends(estimate)]
    return 1.1 * max(5.0, *far)


def ends(estimate: Estimate) -> tuple[float, float]:
    """The interval, or the bare value where there is none."""
    return (estimate.value, estimate.value) if estimate.low is None else (estimate.low, estimate.high)


def _colour(arm: str, runs: list[Run]) -> str:
    others = [name for name in dict.fromkeys(run.arm for run in runs) if name != BASELINE]
    return BASELINE_COLOUR if arm == BASELINE else ARM_COLOURS[others.index(arm) % len(ARM_COLOURS)]


def _smoothed(steps: np.ndarray, values: np.ndarray) -> Series:
    """The moving mean over a twentieth of a long series; a short one as it is."""
    window = len(values) // 20
    if window < 2:
        return steps, values
    mean = np.convolve(values, np.full(window, 1 / window), mode="valid")
    return steps[window - 1 :], mean


def _marker(steps: np.ndarray) -> str:
    """Points are shown where they are few."""
    return "o" if len(steps) < 12 else ""


def svg(draw, height: float) -> str:
    """What `draw` puts on a panel, as a data URI."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure.subplots())
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()
