"""The page of a study: what was asked, what was found in words, and every table and plot behind the words."""

from pathlib import Path

from ml_collections import ConfigDict

from dermjax.data.pictures import Picture
from dermjax.evaluation import paper, wording
from dermjax.evaluation.findings import GAIN, LOSS, PRIMARY
from dermjax.page import fill
from dermjax.study import arms, plots
from dermjax.study.findings import Comparison, Found, Group
from dermjax.study.trial import Material

TEMPLATE = Path(__file__).with_name("report.html.jinja")
SHOWN = ("auroc", "average_precision", "balanced_accuracy", "sensitivity_at_90", "sensitivity_at_95", "ece", "brier")
PAPER_ARMS = ("real_equal_steps", f"hybrid_{arms.PAPER_RATIO}")


def page(config: ConfigDict, found: Found, materials: list[Material], explained: dict[str, list[Picture]]) -> str:
    """Returns the HTML. explained: heat maps of the most confident cases, by heading."""
    filters = {
        "figure": wording.figure,
        "interval": wording.interval,
        "difference": wording.difference,
        "difference_interval": wording.difference_interval,
        "label": wording.label,
        "words": plots.words,
        "shown": wording.shown,
        "shots": shots,
    }
    settings = [(classifier, size) for classifier, size in dict.fromkeys(group[:2] for group in found.figures)]
    return fill(
        TEMPLATE,
        filters,
        title=config.title,
        config=config,
        found=found,
        materials=[sizes(material) for material in materials],
        phantoms=any(record.source == "phantom" for record in materials[0].real.records),
        sentences=sentences(found),
        counts=counts(found),
        figures=[name for name in SHOWN if name in next(iter(found.figures.values()))],
        primary=PRIMARY,
        settings=[(each, _of(found, each), [c for c in found.comparisons if c.group[:2] == each]) for each in settings],
        charts={each: charts(found, each, config.baseline) for each in settings},
        doses=doses(found, config.baseline),
        subgroups=subgroup_rows(found),
        paper=paper_rows(found),
        paper_title=paper.TITLE,
        paper_sizes=paper.TEST_SIZES,
        paper_notes=paper.NOTES,
        explained=explained,
        limits=limits(found, config, materials),
    )


def sentences(found: Found) -> list[str]:
    """What was significant, and what was not, one sentence a comparison."""
    return [_told(each) for each in sorted(found.comparisons, key=lambda c: (c.group[:2], c.group[2]))]


def counts(found: Found) -> dict[str, int]:
    """How many comparisons showed a gain, a loss, neither."""
    verdicts = [each.verdict for each in found.comparisons]
    return {"gains": verdicts.count(GAIN), "losses": verdicts.count(LOSS), "all": len(verdicts)}


def shots(size: int) -> str:
    """A few-shot size in words."""
    return f"{size} real images a class" if size else "all real images"


def sizes(material: Material) -> dict[str, dict[str, int]]:
    """How many images of each class each split has."""
    real, synthetic = material.real, material.synthetic
    kinds = {f"real, {split}": real.split(split) for split in ("train", "validation", "test")}
    kinds["synthetic, kept"] = synthetic.split("train")
    return {kind: {label: sum(r.label == label for r in held) for label in real.labels} for kind, held in kinds.items()}


def charts(found: Found, setting: tuple[str, int], baseline: str) -> list[str]:
    """The forest, the ROC curves and the calibration of one classifier and few-shot size."""
    compared = [each for each in found.comparisons if each.group[:2] == setting]
    drawn = {group[2]: found.mean[group] for group in _of(found, setting)}
    chosen = {arm: said for arm, said in drawn.items() if arm in (baseline, "synthetic", *PAPER_ARMS)}
    forest = [plots.forest("Arms", compared)] if compared else []
    return [*forest, plots.roc("ROC", drawn), plots.calibration("Calibration", chosen)]


def doses(found: Found, baseline: str) -> list[str]:
    """Dose and response of each classifier, where there is a hybrid arm: the baseline is the dose of none."""
    drawn = []
    for classifier in dict.fromkeys(group[0] for group in found.figures):
        lines = {}
        for group in found.figures:
            ratio = 0.0 if group[2] == baseline else _ratio(group[2])
            if group[0] == classifier and ratio is not None:
                point = (ratio, found.figures[group][PRIMARY], found.alone[group])
                lines.setdefault(shots(group[1]), []).append(point)
        lines = {name: sorted(points, key=lambda point: point[0]) for name, points in lines.items()}
        if any(len(points) > 1 for points in lines.values()):
            drawn.append(plots.dose(wording.shown(classifier), lines))
    return drawn


def subgroup_rows(found: Found) -> list[tuple[str, str, list]]:
    """(kind, group, [(classifier and size, baseline or hybrid arm, AUROC)]) of the paper's two arms."""
    return [
        (kind, name, [(group, estimate) for group, estimate in estimates.items() if group[2] in PAPER_ARMS])
        for (kind, name), estimates in found.subgroups.items()
    ]


def paper_rows(found: Found) -> list[tuple]:
    """(classifier, the paper's accuracies, our accuracies in its two arms with most real images)."""
    rows = []
    for classifier, printed in paper.ACCURACIES.items():
        size = next((s for c, s, _ in sorted(found.figures, key=_most) if c == classifier), None)
        ours = [found.figures.get((classifier, size, arm), {}).get("accuracy") for arm in PAPER_ARMS]
        rows.append((classifier, size, printed, ours))
    return rows


def limits(found: Found, config: ConfigDict, materials: list[Material]) -> list[str]:
    """What the numbers cannot say, as far as the study itself knows."""
    told = []
    training = len(materials[0].real.split("train"))
    if any(group[1] for group in found.figures):
        told.append(
            f"The generator was tuned on the whole training split ({training} images), the few-shot classifiers see a "
            "part of it: a gain there may come from real images that only the generator saw."
        )
    if len(config.seeds) < 3:
        told.append(f"{len(config.seeds)} seeds say little of the chance in training.")
    if any(config.classifiers[name].recipe != "full" for name in config.classifiers):
        told.append("The networks' lower parts were frozen; fine-tuning all of them may answer otherwise.")
    scarce = [group for group in found.figures if _scarce(group, materials[0])]
    if scarce:
        names = ", ".join(dict.fromkeys(plots.words(group[2]) + f" with {shots(group[1])}" for group in scarce))
        told.append(f"There are fewer synthetic images than the ratio asks for in {names}: they come more often.")
    return told


def _scarce(group: Group, material: Material) -> bool:
    ratio = _ratio(group[2])
    if ratio is None:
        return False
    have = sizes(material)
    real, synthetic = have["real, train"], have["synthetic, kept"]
    return any(ratio * (group[1] or real[label]) > synthetic[label] for label in real)


def _ratio(arm: str) -> float | None:
    kind, _, ratio = arm.partition("_")
    return float(ratio) if kind == "hybrid" else None


def _most(group: Group) -> tuple:
    return group[1] != 0, -group[1]


def _of(found: Found, setting: tuple[str, int]) -> list[Group]:
    return [group for group in found.figures if group[:2] == setting]


def _told(each: Comparison) -> str:
    classifier, size, arm = each.group
    change = each.differences[PRIMARY]
    verdict = {GAIN: "a gain in AUROC", LOSS: "a loss of AUROC"}.get(each.verdict, each.verdict)
    p = "" if each.adjusted != each.adjusted else f", adjusted p {each.adjusted:.3g}"
    return (
        f"{wording.shown(classifier)}, {shots(size)}, {plots.words(arm)}: {verdict}; difference "
        f"{wording.difference(change, PRIMARY)} ({wording.difference_interval(change, PRIMARY)}{p})."
    )
