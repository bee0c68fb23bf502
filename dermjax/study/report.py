"""The page of a study: what was compared, what it showed in words, every table and plot behind them, and the limits."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from dermjax.classification import networks, saliency
from dermjax.data import images
from dermjax.data.records import Manifest
from dermjax.data.thumbnails import Thumbnail
from dermjax.evaluation import metrics, plots, predictions, report, wording
from dermjax.evaluation.findings import (
    GAIN,
    LOSS,
    NONE,
    PRIMARY,
    UNKNOWN,
    Comparison,
    Findings,
    Group,
    begun_at,
    record_subgroups,
)
from dermjax.evaluation.predictions import Predictions
from dermjax.evaluation.report import PAPER
from dermjax.page import fill
from dermjax.study import arms
from dermjax.study.cells import Cell, Material

TEMPLATE = Path(__file__).with_name("report.html.jinja")
FEW_SEEDS = 3
PAPER_ARMS = (arms.BASELINE, f"hybrid_{arms.PAPER_RATIO}")
ELSEWHERE = (  # of other data sets
    "auroc", "average_precision", "balanced_accuracy", "sensitivity_at_90", "specificity_at_90", "ece",
)  # fmt: skip
VERDICTS = {GAIN: "a gain in AUROC", LOSS: "a loss of AUROC", NONE: "neither a gain nor a loss was shown"}
# a shape and a word, for who cannot tell the colours
MARKS = {GAIN: "▲ gain", LOSS: "▼ loss", NONE: "neither shown", UNKNOWN: "too few to tell"}
VERDICT_COLOURS = {GAIN: "#2e7d4f", LOSS: "#b3362c", NONE: "#6b6e76", UNKNOWN: "#6b6e76"}
ARM_COLOURS = {"real_equal_steps": "#23395b", "real": "#7ba0c9", "real_augmented": "#2f8f86", "synthetic": "#7a8b3c",
               "synthetic_then_real": "#8b5a9e"}  # fmt: skip
CHANCE = {  # in the making of synthetic images: whether each seed has its own
    False: "One set of synthetic images serves all seeds: no interval covers that another tuning of the generator, or "
           "another sampling of it, would have given others.",
    True: "Every few-shot size and seed has synthetic images of a generator of its own: intervals cover the chance in "
          "tuning and sampling as part of that in training.",
}  # fmt: skip
HYBRID_COLOURS = ("#e2b06a", "#d0873f", "#b9602a", "#8f4020", "#5f2815")  # the more synthetic images, the darker


class Case(NamedTuple):
    """What generators and classifiers saw of the real images, in sentences: `summary` what they were denied. rare: the
    most real images that a classifier has of a class, of those that have fewer."""

    rare: Mapping[str, int]
    summary: list[str]
    generator: str
    chance: str


def page(
    title: str,
    findings: Findings,
    materials: list[Material],
    baseline: str,
    explained: dict[str, list[Thumbnail]],
    classifiers: Collection[ConfigDict],
    count: int,
    case: Case,
) -> str:
    """The HTML. explained: heat maps of the most confident cases, by heading; classifiers: their configs; count:
    pictures a row; case: of `describe_case`."""
    real, synthetic = materials[0].real, materials[0].synthetic
    settings, comparisons = by_setting(findings), findings.comparisons.values()
    fold = next(iter(findings.folds.values()))[0]
    reach = plots.reach((each.differences[PRIMARY] for each in comparisons), 1.08, 0.05)
    return fill(
        TEMPLATE,
        wording.FILTERS,
        title=title,
        findings=findings,
        baseline=baseline,
        case=case,
        seeds=len(fold.seeds),
        resamples=fold.bootstrap.resamples,
        sizes=[report.image_counts(each.real, each.synthetic, each.synthetic) for each in materials],
        rejections=report.rejection_counts(synthetic),
        begun=begun_at(synthetic.split("train"), real.split("train")),
        real=real,
        synthetic=synthetic,
        count=count,
        thumbnails=report.thumbnails,
        tested=sum(len(material.real.split("test")) for material in materials),
        sources=sorted({record.source for record in real.records}),
        sentence=sentence,
        marks=MARKS,
        arms=sorted(dict.fromkeys(group.arm for group in findings.figures), key=lambda arm: arm != baseline),
        settings=settings,
        primary=PRIMARY,
        forests=[_forest(each, findings, reach) for each in settings.values() if findings.compared(each)],
        plots={setting: _charts(groups, findings) for setting, groups in settings.items()},
        doses=_doses(findings, baseline),
        elsewhere_shown=ELSEWHERE,
        subgroups=_subgroup_rows(findings),
        explained=explained,
        paper=PAPER,
        paper_arms=PAPER_ARMS,
        frozen=any(each.recipe != "full" for each in classifiers),
        stops=any(each.patience for each in classifiers),  # whether validation images may end a training
        few_seeds=FEW_SEEDS,
        scarce=dict.fromkeys(
            f"{wording.arm(group.arm)} with {wording.shots(group.shots)}"
            for group in findings.figures
            if _is_scarce(group, materials[0], case.rare)
        ),
    )


def describe_case(
    rare: Mapping[str, int],
    without: Mapping[str, Sequence[str]],
    seen: Manifest | None,
    whole: Manifest,
    begins: bool,
    few: bool,
    judged: bool = False,
) -> Case:
    """What of the real images the classifiers and the generators were denied, and what not.

    seen: what the generator was tuned on, None where every few-shot size and seed has one of its own. whole: the real
    images with those that no classifier learns from. begins: whether synthetic images begin at real ones. few: whether
    there are few-shot sizes. judged: whether a classifier of real images has scored the synthetic ones.
    """
    summary = [f"Of {label} a classifier has {number} real images at most." for label, number in rare.items()]
    left = [record_subgroups(record) for record in arms.leave_out(whole, without).split("train")] if without else []
    for kind, names in without.items():
        unknown, shown = sum(kind not in each for each in left), f"{kind} {' or '.join(names)}"
        known = "known to be of" if unknown else "of"
        rest = f"; of the {len(left)} training images that are left {unknown} are of unknown {kind}" if unknown else ""
        summary.append(f"No real image that a classifier learns from is {known} {shown}{rest}.")
    part = bool(summary or few)
    generator = _describe_generator(seen, whole, part)
    if summary or seen is None:
        summary.append(generator)
    if begins:
        summary.append("A synthetic image begins at one of the real images that its generator saw.")
    if part and judged:
        summary.append(
            "A classifier of real images judged the synthetic ones: where it had learnt other labels than a classifier "
            "here sees, a gain may come from these."
        )
    if part:
        summary.append("The validation split is whole: it chooses arms, says when to stop and sets probabilities.")
    return Case(rare, summary, generator, CHANCE[seen is None])


def _describe_generator(seen: Manifest | None, whole: Manifest, part: bool) -> str:
    """What the generator was tuned on. part: whether there are classifiers that see a part of `whole` only."""
    if seen is None:
        return (
            "Every few-shot size and seed has a generator that was tuned on the real images of its classifiers alone; "
            "counts and pictures below are of one of them."
        )
    tuned, known = ({record.sha256 for record in manifest.split("train")} for manifest in (seen, whole))
    only = "may come from real images that only the generator saw"
    if not tuned <= known:
        shared = f"{len(tuned & known)} of them training images of this study"
        return f"The generator was tuned on {len(tuned)} images of another manifest, {shared}: a gain {only}."
    all_of_them = f"the whole training split ({len(tuned)} images)"
    several = all_of_them if tuned == known else f"{len(tuned)} of the {len(known)} training images"
    fewer = f"; some classifiers see a part of the training split: a gain there {only}" if part else ""
    return f"The generator was tuned on {several}{fewer}."


def by_setting(findings: Findings) -> dict[tuple[str, int], list[Group]]:
    """The groups of each classifier and few-shot size: few real images first, all of them last."""
    return dict(sorted(findings.settings.items(), key=lambda item: (item[0][0], item[0][1] == 0, item[0][1])))


def sentence(each: Comparison) -> str:
    """What a comparison showed, or did not show, in words."""
    change, verdict = each.differences[PRIMARY], VERDICTS.get(each.verdict, each.verdict)
    p = "" if np.isnan(each.adjusted) else f", adjusted p {each.adjusted:.2g}"
    return (
        f"{wording.arm(each.group.arm)}: {verdict}; difference {wording.difference(change, PRIMARY)} "
        f"({wording.difference_interval(change, PRIMARY)}{p})."
    )


def _is_scarce(group: Group, material: Material, rare: Mapping[str, int]) -> bool:
    """Whether a hybrid arm asks for more synthetic images of a class than there are."""
    hybrid = arms.parse_hybrid(group.arm)
    ratio = hybrid.ratio if hybrid and hybrid.kind == "hybrid" else 0.0
    for label in material.real.labels if ratio else ():
        manifests = (material.real, material.of(group.arm))
        real, synthetic = (len(each.split("train", label)) for each in manifests)
        if ratio * (arms.shots_of(label, group.shots, rare) or real) > synthetic:
            return True
    return False


def _forest(groups: list[Group], findings: Findings, reach: float) -> str:
    """The AUROC of each arm of a setting less the baseline's, with its interval."""
    rows = [
        (wording.arm(each.group.arm), each.differences[PRIMARY], VERDICT_COLOURS[each.verdict])
        for each in findings.compared(groups)
    ]
    title = f"{wording.shown(groups[0].classifier)}, {wording.shots(groups[0].shots)}"
    return plots.forest(title, rows, "AUROC, arm − baseline", reach, 7, 10, 1.2 + 0.32 * len(rows))


def _charts(groups: list[Group], findings: Findings) -> list[str]:
    """The ROC curves of a setting, each the mean of those of seeds and folds, and the calibration of all of these."""
    hybrids = sorted((g.arm for g in groups if arms.parse_hybrid(g.arm)), key=lambda arm: arms.parse_hybrid(arm).ratio)
    shades = np.linspace(1, len(HYBRID_COLOURS) - 1, len(hybrids)).round().astype(int)
    colours = {arm: HYBRID_COLOURS[shade] for arm, shade in zip(hybrids, shades, strict=True)}
    curves, calibration = {}, {}
    for group in groups:
        each_alone = [seed for fold in findings.folds[group] for seed in fold.seeds]
        colour = colours.get(group.arm) or ARM_COLOURS[group.arm.partition("@")[0]]
        rates = np.mean([np.interp(metrics.GRID, *metrics.roc(each)) for each in each_alone], axis=0)
        name = wording.arm(group.arm)
        curves[f"{name}, {findings.figures[group][PRIMARY].value:.3f}"] = ((metrics.GRID, rates), colour)
        calibration[name] = (each_alone, colour)
    legend = {"fontsize": 8, "title": "mean AUROC", "title_fontsize": 8, "alignment": "left"}
    return [
        plots.roc("ROC, mean of the seeds", curves, 1.8, legend),
        plots.calibration("Calibration, all seeds", calibration),
    ]


def _doses(findings: Findings, baseline: str) -> list[str]:
    """Dose and response of each classifier, where there is a hybrid arm: the baseline is the dose of none."""
    charts = []
    for classifier in dict.fromkeys(group.classifier for group in findings.figures):
        lines = {}
        for group, figures in findings.figures.items():
            ratio = 0.0 if group.arm == baseline else arms.hybrid_ratio(group.arm)
            if group.classifier == classifier and ratio is not None:
                point = (ratio, figures[PRIMARY], findings.seeds(group))
                lines.setdefault(wording.shots(group.shots), []).append(point)
        lines = {name: sorted(points, key=lambda point: point[0]) for name, points in lines.items()}
        if any(len(points) > 1 for points in lines.values()):
            charts.append(plots.dose(wording.shown(classifier), lines))
    return charts


def _subgroup_rows(findings: Findings) -> dict[tuple[str, int], list[tuple]]:
    """{classifier and size: [(kind, name, n, [AUROC of the baseline and of hybrid, or None])]} of the paper's arms."""
    rows = {}
    for setting in by_setting(findings):
        for (kind, name), estimates in findings.subgroups.items():
            both = [estimates.get((*setting, arm)) for arm in PAPER_ARMS]
            if any(both):
                rows.setdefault(setting, []).append((kind, name, next(filter(None, both)).n, both))
    return rows


def cells_to_explain(cells: Iterable[Cell], arms: tuple[str, ...]) -> list[Cell]:
    """Returns the cells that are explained: of these arms the first seed and fold, with the most real images."""
    cells = list(cells)
    seed = min(cell.seed for cell in cells)
    shots = min((cell.shots for cell in cells), key=lambda size: (size != 0, -size))
    return [cell for cell in cells if (cell.fold, cell.seed, cell.shots) == (0, seed, shots) and cell.arm in arms]


def explain(folders: dict[Cell, Path], material: Material, count: int) -> dict[str, list[Thumbnail]]:
    """{heading: count pictures} of some cells, whose folders have classifiers; count 0 is none."""
    cases: dict[str, list[Thumbnail]] = {}
    for cell, folder in folders.items() if count else ():
        test = predictions.read_test(folder / "predictions.csv", material.real)
        name = f"{wording.shown(cell.classifier)}, {wording.arm(cell.arm)}"
        for kind, right in (("right", True), ("wrong", False)):
            rows = np.flatnonzero(test.right == right)
            rows = rows[np.argsort(-test.confidence[rows], kind="stable")][:count]
            if len(rows):
                cases[f"{name}: confident and {kind}"] = _pictures(folder, test.at(rows), material)
    return cases


def _pictures(folder: Path, some: Predictions, material: Material) -> list[Thumbnail]:
    classifier, (params, variables) = networks.load(folder)
    record_of = {record.image: record for record in material.real.records}
    paths = [material.real.path(record_of[image]) for image in some.images]
    pixels = np.stack([images.load(path, classifier.config["image_size"], classifier.resize) for path in paths])
    warmth = saliency.heat(classifier, params, variables, images.to_model(pixels))
    pictures = []
    for row, image in enumerate(some.images):
        label, called = (classifier.labels[c] for c in (some.labels[row], some.called[row]))
        caption = f"{label}, called {called} at {some.confidence[row]:.0%}"
        pictures.append(saliency.overlay(pixels[row], warmth[row], f"real {label}, {image}", caption))
    return pictures
