"""Plots of a study, each one panel: forest of arms, dose and response, ROC curves, calibration."""

import numpy as np
from matplotlib.axes import Axes

from dermjax.evaluation import metrics
from dermjax.evaluation.findings import PRIMARY
from dermjax.evaluation.intervals import Estimate
from dermjax.evaluation.plots import FAINT, INK, WIDTH, ends, svg
from dermjax.evaluation.predictions import Predictions
from dermjax.study.findings import Comparison

COLOURS = ("#3d5a80", "#c8623b", "#7a8b3c", "#8b5a9e", "#b08a2e", "#2f8f86", "#a63d57", "#6b6e76")
OF_ARM = {"real_equal_steps": "#3d5a80", "real": "#7ba0c9", "real_augmented": "#2f8f86", "synthetic": "#7a8b3c",
          "synthetic_then_real": "#8b5a9e", "hybrid_3": "#c8623b"}  # fmt: skip
HYBRID = "#b08a2e"  # of the other ratios
BINS = 8  # of equal numbers of images, in the calibration plot


def forest(title: str, compared: list[Comparison]) -> str:
    """The AUROC of each arm less the baseline's, with its interval."""

    def draw(panel: Axes) -> None:
        panel.axvline(0, color=INK, linewidth=1)
        for row, each in enumerate(compared):
            estimate = each.differences[PRIMARY]
            panel.plot(ends(estimate), [row, row], color=COLOURS[0], linewidth=2.5)
            panel.plot([estimate.value], [row], "o", color=COLOURS[0], markersize=7)
        panel.set(yticks=range(len(compared)), yticklabels=[words(each.group[2]) for each in compared])
        panel.set(ylim=(len(compared) - 0.5, -0.5), xlabel="AUROC, arm − baseline, 95 % interval", title=title)
        panel.grid(axis="y", visible=False)
        panel.spines["left"].set_visible(False)
        panel.tick_params(axis="y", length=0)

    return svg(draw, 1.2 + 0.32 * len(compared))


def dose(title: str, lines: dict[str, list[tuple[float, Estimate, list[float]]]]) -> str:
    """AUROC over the synthetic images to each real one: (ratio, mean with interval, each seed alone), by line."""

    def draw(panel: Axes) -> None:
        for number, (name, points) in enumerate(lines.items()):
            colour, shift = COLOURS[number % len(COLOURS)], 0.03 * (number - (len(lines) - 1) / 2)
            places = np.array([np.sqrt(ratio) + shift for ratio, *_ in points])
            panel.plot(places, [estimate.value for _, estimate, _ in points], "o-", color=colour, label=name)
            for place, (_, estimate, alone) in zip(places, points, strict=True):
                panel.plot([place, place], ends(estimate), color=colour, linewidth=1.5)
                panel.plot([place] * len(alone), alone, ".", color=colour, alpha=0.4)
        ratios = sorted({ratio for points in lines.values() for ratio, *_ in points})
        panel.set(xticks=np.sqrt(ratios), xticklabels=[f"{ratio:g}" for ratio in ratios], title=title)
        panel.set(xlabel="synthetic images to each real one", ylabel="AUROC")
        panel.legend(fontsize=8)

    return svg(draw, 3.4)


def roc(title: str, arms: dict[str, list[Predictions]]) -> str:
    """The ROC curves of arms, by the mean probability over the seeds, averaged over folds."""

    def draw(panel: Axes) -> None:
        panel.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (2, 3)))
        for arm, folds in arms.items():
            curves = [np.interp(metrics.GRID, *metrics.roc(said)) for said in folds]
            panel.plot(metrics.GRID, np.mean(curves, axis=0), label=words(arm), color=OF_ARM.get(arm, HYBRID))
        panel.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", title=title)
        panel.set(xlabel="1 − specificity", ylabel="sensitivity")
        panel.legend(loc="lower right", fontsize=8)

    return svg(draw, WIDTH)


def calibration(title: str, arms: dict[str, list[Predictions]]) -> str:
    """How many images of a confidence are right, in bins of equal numbers."""

    def draw(panel: Axes) -> None:
        panel.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (2, 3)))
        for arm, folds in arms.items():
            confidence = np.concatenate([said.confidence for said in folds])
            right = np.concatenate([said.right for said in folds])
            parts = np.array_split(np.argsort(confidence), BINS)
            panel.plot([confidence[part].mean() for part in parts], [right[part].mean() for part in parts], "o-",
                       label=words(arm), color=OF_ARM.get(arm, HYBRID), markersize=4)  # fmt: skip
        panel.set(xlim=(0.3, 1.01), ylim=(0.3, 1.01), aspect="equal", title=title)
        panel.set(xlabel="confidence", ylabel="share that is right")
        panel.legend(loc="upper left", fontsize=8)

    return svg(draw, WIDTH)


def words(arm: str) -> str:
    """An arm's name as it is printed: `hybrid 3 : 1`, `real, equal steps`."""
    kind, _, ratio = arm.partition("_")
    if kind == "hybrid":
        return f"hybrid {ratio} : 1"
    return {"real_equal_steps": "real, equal steps", "real_augmented": "real, strongly augmented",
            "synthetic": "synthetic only", "real_tested_on_synthetic": "real, tested on synthetic",
            "synthetic_then_real": "synthetic, then real"}.get(arm, arm)  # fmt: skip
