"""The page of `evaluate`, and what every page of results has: counts of images, galleries, the paper's figures.

A page is one file that loads nothing from outside, and says what the numbers show in words as careful as they are.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from dermjax.data.records import SPLITS, Manifest, Record
from dermjax.data.thumbnails import Thumbnail, evenly_spaced, thumbnail
from dermjax.errors import UserError
from dermjax.evaluation import metrics, plots, wording
from dermjax.evaluation.findings import GAIN, LOSS, PRIMARY, Comparison, Findings, Group, begun_at
from dermjax.evaluation.intervals import Estimate
from dermjax.evaluation.plots import ARM_COLOURS, BASELINE_COLOUR, DASHES, Series
from dermjax.page import fill
from dermjax.training import writers

TEMPLATE = Path(__file__).with_name("report.html.jinja")
SCALARS = "metrics.jsonl"  # of a training's folder
BASELINE = "real"
# Farooq et al., EMBC 2024: test accuracies in percent, trained on real images only -> on real and synthetic ones (about
# 75 % synthetic). Test sizes are read off its confusion matrices.
PAPER = {
    "title": "Derm-T2IM (arXiv 2401.05159)",
    "sizes": {"ISIC": 659, "HAM10000": 227},
    "accuracies": {
        "vit": {"ISIC": (90.74, 93.03), "HAM10000": (81.50, 85.02)},
        "mobilenetv2": {"ISIC": (78.89, 81.35), "HAM10000": (70.33, 73.58)},
    },
    "notes": (
        "One run, an unpublished split, no AUROC and no intervals; none of its four gains is statistically significant "
        "at these test sizes.",
        "On HAM10000 the sensitivity of its ViT fell, from 0.949 to 0.923.",
        "HAM10000 is part of the ISIC archive, which its generator was tuned on, so this test set may overlap the seed "
        "images.",
    ),
}


def image_counts(prepared: Manifest, generated: Manifest | None, curated: Manifest | None) -> dict[str, dict[str, int]]:
    """By kind and class: the real images of each split, the synthetic ones that were made and that were kept."""
    counts = {f"real, {split}": _by_class(prepared.split(split), prepared.labels) for split in SPLITS}
    if generated:
        counts["synthetic, made"] = _by_class((r for r in generated.records if r.synthetic), prepared.labels)
    if curated:
        counts["synthetic, kept"] = _by_class((r for r in curated.split("train") if r.synthetic), prepared.labels)
    return counts


def rejection_counts(curated: Manifest | None) -> dict[str, dict[str, int]]:
    """By reason and class; an image with two reasons counts under both."""
    rejected = [record for record in curated.records if not record.kept] if curated else []
    reasons = sorted({reason for record in rejected for reason in record.rejected})
    return {
        reason: _by_class((record for record in rejected if reason in record.rejected), curated.labels)
        for reason in reasons
    }


def thumbnails(manifest: Manifest, records: list[Record], count: int) -> list[Thumbnail]:
    """Up to `count` of the images, evenly spaced: nobody picked them."""
    return [thumbnail(manifest, record, "") for record in evenly_spaced(records, count)]


def page(
    title: str,
    prepared: Manifest,
    generated: Manifest | None,
    curated: Manifest | None,
    findings: Findings,
    folders: dict[Group, Path],
    tuning: Path | None,
    count: int,
) -> str:
    """The HTML of the page of `evaluate`; a section whose input was not given is left out. count: pictures a row."""
    fold = next(iter(findings.folds.values()))[0]
    return fill(
        TEMPLATE,
        wording.FILTERS,
        title=title,
        prepared=prepared,
        generated=generated,
        curated=curated,
        findings=findings,
        count=count,
        thumbnails=thumbnails,
        summary=summary(findings),
        images=image_counts(prepared, generated, curated),
        sources=sorted({(record.source, record.licence) for record in prepared.records}),
        begun=begun_at(curated.split("train"), prepared.split("train")) if curated else 0,
        curation=_curation(curated, 2 * count) if curated else None,
        training=_training(list(findings.figures), folders, tuning),
        plots=_plots(findings),
        paper=PAPER,
        test_images=len(fold.seeds[0].images),
        bootstrap=fold.bootstrap,
    )


def summary(findings: Findings) -> list[tuple[str, str]]:
    """(verdict, numbers) of each comparison: what the primary figure says, and nothing more."""

    def change_in(name: str, each: Comparison) -> str:
        groups, change = (each.group._replace(arm=each.baseline), each.group), each.differences[name]
        before, after = (wording.figure(findings.figures[group][name], name) for group in groups)
        return (
            f"{wording.shown(name)} {before} → {after}, difference {wording.difference(change, name)} "
            f"({'' if change.low is None else '95 % interval '}{wording.difference_interval(change, name)})"
        )

    verdicts = {GAIN: "a gain in AUROC was shown", LOSS: "a loss of AUROC was shown"}
    sentences = [
        (
            f"{wording.shown(group.classifier)}, {each.baseline} → {group.arm}: "
            f"{verdicts.get(each.verdict, each.verdict)}.",
            f"{change_in(PRIMARY, each)}; {change_in('accuracy', each)}.",
        )
        for group, each in findings.comparisons.items()
    ]
    return sentences or [("No arm was compared.", "It takes a real and a hybrid run of the same classifier.")]


def _curation(curated: Manifest, count: int) -> dict:
    """How many images of each class each reason rejected, and the rejected images with their reasons."""
    rejected = [record for record in curated.records if not record.kept]
    return {
        "generated": _by_class(curated.records, curated.labels),
        "rejections": rejection_counts(curated) | {"rejected for any reason": _by_class(rejected, curated.labels)},
        "pictures": [
            thumbnail(curated, record, ", ".join(record.rejected).replace("_", " "))
            for record in evenly_spaced(rejected, count)
        ],
    }


def _plots(findings: Findings) -> dict[str, list[str]]:
    """ROC curves of each classifier, and the differences of each comparison."""
    rocs, comparisons = [], findings.comparisons.values()
    for (classifier, _), groups in findings.settings.items():
        curves, colours = {}, _colours(groups)
        for group in groups:
            name = f"{group.arm}, AUROC {findings.figures[group][PRIMARY].value:.3f}"
            curves[name] = (metrics.roc(findings.folds[group][0].seeds[0]), colours[group.arm])
        rocs.append(plots.roc(wording.shown(classifier), curves, 2, {}))
    in_points = [{name: _in_points(each) for name, each in c.differences.items()} for c in comparisons]
    reach = plots.reach((each for differences in in_points for each in differences.values()), 1.1, 5.0)
    forests = []
    for comparison, differences in zip(comparisons, in_points, strict=True):
        group, unit = comparison.group, "percentage points, with 95 % interval"
        title = f"{wording.shown(group.classifier)}: {group.arm} {wording.MINUS} {BASELINE}"
        rows = [(wording.shown(name), each, ARM_COLOURS[0]) for name, each in differences.items()]
        forests.append(plots.forest(title, rows, unit, reach, 8, 8, 1.0 + 0.3 * len(rows)))
    return {"roc": rocs, "differences": forests}


def _training(groups: list[Group], folders: dict[Group, Path], tuning: Path | None) -> list[str]:
    """The generator's loss, the classifiers' losses and their validation AUROC, where they were logged."""
    colours, classifiers = _colours(groups), list(dict.fromkeys(group.classifier for group in groups))
    charts = []
    if tuning:
        charts.append(plots.curves("Tuning the generator", "loss", [("", _curve(tuning, "loss"), plots.PLAIN)]))
    for title, unit, name in (
        ("Training the classifiers", "loss", "loss"),
        ("Validation, real images", "AUROC", "validation_auroc"),
    ):
        series = []
        for group in groups:
            if (folders[group] / SCALARS).is_file() and len((curve := _curve(folders[group], name))[0]):
                dashes = DASHES[classifiers.index(group.classifier) % len(DASHES)]
                line = {"color": colours[group.arm], "linestyle": dashes}
                series.append((f"{wording.shown(group.classifier)} {group.arm}", curve, line))
        charts += [plots.curves(title, unit, series)] if series else []
    return charts


def _curve(folder: Path, name: str) -> Series:
    """Steps and values [points] of one scalar of a training; empty where it was not logged."""
    path = folder / SCALARS
    if not path.is_file():
        raise UserError(f"metrics {path}: no such file; give the workdir of a finished run")
    logged = [line for line in writers.read(path) if name in line]
    return np.array([line["step"] for line in logged], int), np.array([line[name] for line in logged], float)


def _colours(groups: list[Group]) -> dict[str, str]:
    """The colour of each arm."""
    others = [arm for arm in dict.fromkeys(group.arm for group in groups) if arm != BASELINE]
    return {BASELINE: BASELINE_COLOUR} | {arm: ARM_COLOURS[i % len(ARM_COLOURS)] for i, arm in enumerate(others)}


def _in_points(estimate: Estimate) -> Estimate:
    """A difference in percentage points."""
    low, high = plots.ends(estimate)
    return replace(estimate, value=100 * estimate.value, low=100 * low, high=100 * high)


def _by_class(records: Iterable[Record], labels: tuple[str, ...]) -> dict[str, int]:
    """The number of records of each class."""
    counted = [record.label for record in records]
    return {label: counted.count(label) for label in labels}
