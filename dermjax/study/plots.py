"""Plots of a study, each one panel: forest of arms, dose and response, ROC curves, calibration."""

from collections.abc import Iterable

import numpy as np
from matplotlib.axes import Axes

from dermjax.evaluation import metrics, wording
from dermjax.evaluation.findings import GAIN, LOSS, PRIMARY
from dermjax.evaluation.intervals import Estimate
from dermjax.evaluation.plots import FAINT, INK, WIDTH, ends, svg
from dermjax.evaluation.predictions import Predictions
from dermjax.study.arms import ratio_of
from dermjax.study.findings import Comparison, Found

LINES = ("#3d5a80", "#c8623b", "#7a8b3c", "#8b5a9e")  # of few-shot sizes
OF_ARM = {"real_equal_steps": "#23395b", "real": "#7ba0c9", "real_augmented": "#2f8f86", "synthetic": "#7a8b3c",
          "synthetic_then_real": "#8b5a9e"}  # fmt: skip
HYBRIDS = ("#e2b06a", "#d0873f", "#b9602a", "#8f4020", "#5f2815")  # the more synthetic images, the darker
NEITHER = "#6b6e76"
VERDICTS = {GAIN: "#2e7d4f", LOSS: "#b3362c"}
BINS = 8  # of equal numbers of images, in the calibration plot
SMALLEST_REACH = 0.05  # of AUROC, to either side of zero


def reach(compared: list[Comparison]) -> float:
    """Half the width of an axis that holds every difference in AUROC with its interval."""
    far = [abs(end) for each in compared for end in ends(each.differences[PRIMARY])]
    return 1.08 * max([SMALLEST_REACH, *far])


def forest_of(found: Found, setting: tuple[str, int], reach: float) -> str:
    """The AUROC of each arm of a setting less the baseline's, with its interval; "" without an arm to compare."""
    compared = [each for each in found.comparisons if each.group[:2] == setting]

    def draw(panel: Axes) -> None:
        panel.axvline(0, color=INK, linewidth=1)
        for row, each in enumerate(compared):
            estimate, colour = each.differences[PRIMARY], VERDICTS.get(each.verdict, NEITHER)
            panel.plot(ends(estimate), [row, row], color=colour, linewidth=2.5)
            panel.plot([estimate.value], [row], "o", color=colour, markersize=7)
        panel.set(yticks=range(len(compared)), yticklabels=[words(each.group[2]) for each in compared])
        panel.set(ylim=(len(compared) - 0.5, -0.5), xlim=(-reach, reach), xlabel="AUROC, arm − baseline")
        panel.set_title(f"{wording.shown(setting[0])}, {shots(setting[1])}")
        panel.grid(axis="y", visible=False)
        panel.spines["left"].set_visible(False)
        panel.tick_params(axis="y", length=0)

    return svg(draw, 1.2 + 0.32 * len(compared)) if compared else ""


def dose(title: str, lines: dict[str, list[tuple[float, Estimate, list[float]]]]) -> str:
    """AUROC over the synthetic images to each real one: (ratio, mean with interval, each seed alone), by line."""

    def draw(panel: Axes) -> None:
        for number, (name, points) in enumerate(lines.items()):
            colour, shift = LINES[number % len(LINES)], 0.03 * (number - (len(lines) - 1) / 2)
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


def roc(title: str, drawn: dict[str, list[Predictions]], aurocs: dict[str, float]) -> str:
    """The ROC curves of arms, by the mean probability over the seeds, averaged over folds; aurocs are the seeds'."""

    def draw(panel: Axes) -> None:
        panel.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (2, 3)))
        for arm, folds in drawn.items():
            curves = [np.interp(metrics.GRID, *metrics.roc(said)) for said in folds]
            name = f"{words(arm)}, {aurocs[arm]:.3f}"
            panel.plot(metrics.GRID, np.mean(curves, axis=0), label=name, color=colours(drawn)[arm], linewidth=1.8)
        panel.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", title=title)
        panel.set(xlabel="1 − specificity", ylabel="sensitivity")
        panel.legend(loc="lower right", fontsize=8, title="mean AUROC", title_fontsize=8, alignment="left")

    return svg(draw, WIDTH)


def calibration(title: str, drawn: dict[str, list[Predictions]]) -> str:
    """How many images of a confidence are right, in bins of equal numbers."""

    def draw(panel: Axes) -> None:
        panel.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (2, 3)))
        lowest = 1.0
        for arm, folds in drawn.items():
            confidence = np.concatenate([said.confidence for said in folds])
            right = np.concatenate([said.right for said in folds])
            parts = np.array_split(np.argsort(confidence), BINS)
            points = np.array([[confidence[part].mean(), right[part].mean()] for part in parts])
            panel.plot(*points.T, "o-", label=words(arm), color=colours(drawn)[arm], markersize=4, linewidth=1.5)
            lowest = min(lowest, points.min())
        panel.set(xlim=(lowest - 0.03, 1.01), ylim=(lowest - 0.03, 1.01), aspect="equal", title=title)
        panel.set(xlabel="confidence", ylabel="share that is right")
        panel.legend(loc="upper left", fontsize=8)

    return svg(draw, WIDTH)


def colours(arms_shown: Iterable[str]) -> dict[str, str]:
    """The colour of each arm; hybrids darken with their ratio."""
    hybrids = sorted((arm for arm in arms_shown if ratio_of(arm) is not None), key=ratio_of)
    shades = np.linspace(1, len(HYBRIDS) - 1, len(hybrids)).round().astype(int)
    return OF_ARM | {arm: HYBRIDS[shade] for arm, shade in zip(hybrids, shades, strict=True)}


def shots(size: int) -> str:
    """A few-shot size in words."""
    return f"{size} real images a class" if size else "all real images"


def words(arm: str) -> str:
    """An arm's name as it is printed: `hybrid 3 : 1`, `real, equal steps`."""
    kind, _, ratio = arm.partition("_")
    if kind == "hybrid":
        return f"hybrid {ratio} : 1"
    return NAMES.get(arm, arm)


NAMES = {
    "real": "real, fewer steps",
    "real_equal_steps": "real, equal steps",
    "real_augmented": "real, strongly augmented",
    "synthetic": "synthetic only",
    "synthetic_then_real": "synthetic, then real",
    "real_tested_on_synthetic": "real, tested on synthetic",
}
