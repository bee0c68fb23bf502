"""Plots as self-contained SVG images, one panel each: ROC curves, differences, training curves, dose, calibration.

Text is drawn as outlines and nothing depends on time or chance, so a page looks the same everywhere and twice.
"""

import base64
import io
import textwrap
from collections.abc import Callable, Iterable

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dermjax.evaluation import metrics
from dermjax.evaluation.intervals import Estimate
from dermjax.evaluation.predictions import Predictions

Series = tuple[np.ndarray, np.ndarray]  # x and y, [points]
INK, FAINT = "#23262b", "#b9b4aa"
BASELINE_COLOUR = "#3d5a80"
ARM_COLOURS = ("#c8623b", "#7a8b3c", "#8b5a9e", "#b08a2e")  # told apart by people with any colour vision
SIZE_COLOURS = (BASELINE_COLOUR, *ARM_COLOURS[:3])  # of few-shot sizes
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))  # of classifiers
PLAIN = {"color": BASELINE_COLOUR, "linestyle": "-"}
DIAGONAL = {"color": FAINT, "linewidth": 1, "linestyle": (0, (2, 3))}
WIDTH = 4.6  # inches; the page scales it
NAME_WIDTH = 38  # characters of a line of a name beside a bar
CALIBRATION_BINS = 8  # of equal numbers of images
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


def roc(title: str, curves: dict[str, tuple[Series, str]], linewidth: float, legend: dict) -> str:
    """ROC curves and their colours by name."""

    def draw(panel: Axes) -> None:
        panel.plot([0, 1], [0, 1], **DIAGONAL)
        for name, (curve, colour) in curves.items():
            panel.plot(*curve, label=name, linewidth=linewidth, color=colour)
        panel.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", title=title)
        panel.set(xlabel="1 − specificity", ylabel="sensitivity")
        panel.legend(loc="lower right", **legend)

    return svg(draw, WIDTH)


def forest(
    title: str,
    rows: list[tuple[str, Estimate, str]],
    unit: str,
    reach: float,
    markersize: float,
    fontsize: float,
    height: float,
) -> str:
    """Differences by (name, estimate, colour) with their intervals, from -reach to reach; fontsize: of the names."""

    def draw(panel: Axes) -> None:
        panel.axvline(0, color=INK, linewidth=1)
        for row, (_, estimate, colour) in enumerate(rows):
            panel.plot(ends(estimate), [row, row], color=colour, linewidth=2.5)
            panel.plot([estimate.value], [row], "o", color=colour, markersize=markersize)
        names = [textwrap.fill(name, NAME_WIDTH) for name, _, _ in rows]
        panel.set_yticks(range(len(rows)), names, fontsize=fontsize)
        panel.set(xlim=(-reach, reach))
        panel.set(ylim=(len(rows) - 0.5, -0.5), xlabel=unit, title=title)
        panel.grid(axis="y", visible=False)
        panel.spines["left"].set_visible(False)
        panel.tick_params(axis="y", length=0)

    return svg(draw, height)


def curves(title: str, unit: str, series: list[tuple[str, Series, dict]]) -> str:
    """Series of (step, value) with a name and a line style; a long noisy one is drawn faint under its moving mean."""

    def draw(panel: Axes) -> None:
        for name, (steps, values), line in series:
            window = len(values) // 20
            smooth_steps, smooth = steps, values
            if window > 1:
                panel.plot(steps, values, color=line["color"], linewidth=0.8, alpha=0.25)
                smooth = np.convolve(values, np.full(window, 1 / window), mode="valid")
                smooth_steps = steps[window - 1 :]
            marker = "o" if len(steps) < 12 else ""  # points are shown where they are few
            panel.plot(smooth_steps, smooth, linewidth=1.8, label=name, marker=marker, markersize=4, **line)
        panel.set(title=title, xlabel="step", ylabel=unit)
        if len(series) > 1:
            panel.legend(fontsize=8, handlelength=2.8)

    return svg(draw, 3.2)


def dose(title: str, lines: dict[str, list[tuple[float, Estimate, list[float]]]]) -> str:
    """AUROC over the synthetic images to each real one: (ratio, mean with interval, each seed alone), by line."""

    def draw(panel: Axes) -> None:
        for number, (name, points) in enumerate(lines.items()):
            colour, shift = SIZE_COLOURS[number % len(SIZE_COLOURS)], 0.03 * (number - (len(lines) - 1) / 2)
            x = np.array([np.sqrt(ratio) + shift for ratio, *_ in points])
            panel.plot(x, [estimate.value for _, estimate, _ in points], "o-", color=colour, label=name)
            for each, (_, estimate, alone) in zip(x, points, strict=True):
                panel.plot([each, each], ends(estimate), color=colour, linewidth=1.5)
                panel.plot([each] * len(alone), alone, ".", color=colour, alpha=0.4)
        ratios = sorted({ratio for points in lines.values() for ratio, *_ in points})
        panel.set(xticks=np.sqrt(ratios), xticklabels=[f"{ratio:g}" for ratio in ratios], title=title)
        panel.set(xlabel="synthetic images to each real one", ylabel="AUROC")
        panel.legend(fontsize=8)

    return svg(draw, 3.4)


def calibration(title: str, arms: dict[str, tuple[list[Predictions], str]]) -> str:
    """How often what is predicted is so (`metrics.forecasts`), in bins of equal numbers: the predictions of each arm,
    whose images are taken together, and its colour."""
    axes = "confidence", "share that is right"
    if all(each.classes == 2 for several, _ in arms.values() for each in several):
        axes = "predicted probability of the positive class", "its observed share"

    def draw(panel: Axes) -> None:
        panel.plot([0, 1], [0, 1], **DIAGONAL)
        lowest = 1.0
        for name, (several, colour) in arms.items():
            predicted, so = map(np.concatenate, zip(*map(metrics.forecasts, several), strict=True))
            bins = np.array_split(np.argsort(predicted), CALIBRATION_BINS)
            points = np.array([[predicted[rows].mean(), so[rows].mean()] for rows in bins])
            panel.plot(*points.T, "o-", label=name, color=colour, markersize=4, linewidth=1.5)
            lowest = min(lowest, points.min())
        panel.set(xlim=(lowest - 0.03, 1.01), ylim=(lowest - 0.03, 1.01), aspect="equal", title=title)
        panel.set(xlabel=axes[0], ylabel=axes[1])
        panel.legend(loc="upper left", fontsize=8)

    return svg(draw, WIDTH)


def ends(estimate: Estimate) -> tuple[float, float]:
    """The interval, or the bare value where there is none."""
    return (estimate.value, estimate.value) if estimate.low is None else (estimate.low, estimate.high)


def reach(differences: Iterable[Estimate], margin: float, least: float) -> float:
    """Half the width of an axis that holds every difference with its interval."""
    return margin * max([least, *(abs(end) for each in differences for end in ends(each))])


def svg(draw: Callable[[Axes], None], height: float) -> str:
    """What `draw` puts on a panel, as a data URI."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure.subplots())
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()
