"""What the numbers of a study cannot say, as far as the study itself knows.

The page of a study: what was asked, what was found in words, and every table and plot behind the words.
"""

from itertools import groupby
from pathlib import Path

from ml_collections import ConfigDict

from dermjax.data.thumbnails import Thumbnail, evenly_spaced, thumbnail
from dermjax.evaluation import findings, metrics, report, wording
from dermjax.evaluation.findings import GAIN, LOSS, NONE, PRIMARY, UNKNOWN
from dermjax.page import fill
from dermjax.study import arms, plots
from dermjax.study.cells import Material
from dermjax.study.findings import Comparison, Found, Group

FEW_SEEDS = 3


def told(found: Found, config: ConfigDict, materials: list[Material]) -> list[str]:
    """Returns a sentence for each limit that applies."""
    real = materials[0].real
    sentences = []
    if any(group[1] for group in found.figures):
        sentences.append(
            f"The generator was tuned on the whole training split ({len(real.split('train'))} images), the few-shot "
            "classifiers see a part of it: a gain there may come from real images that only the generator saw."
        )
    if len(config.seeds) < FEW_SEEDS:
        sentences.append(f"With {len(config.seeds)} seeds little is known of the chance in training.")
    if any(config.classifiers[name].recipe != "full" for name in config.classifiers):
        sentences.append("The networks' lower parts were frozen; fine-tuning all of them may answer otherwise.")
    scarce = [group for group in found.figures if is_scarce(group, materials[0])]
    if scarce:
        names = ", ".join(dict.fromkeys(f"{plots.words(group[2])} with {plots.shots(group[1])}" for group in scarce))
        sentences.append(f"There are fewer synthetic images than the ratio asks for in {names}: they come more often.")
    return sentences


def is_scarce(group: Group, material: Material) -> bool:
    """Whether a hybrid arm asks for more synthetic images of a class than there are."""
    ratio = arms.ratio_of(group[2])
    if ratio is None:
        return False

    def count(manifest, label: str) -> int:
        return sum(record.label == label for record in manifest.split("train"))

    return any(
        ratio * (group[1] or count(material.real, label)) > count(material.synthetic, label)
        for label in material.real.labels
    )


TEMPLATE = Path(__file__).with_name("report.html.jinja")
PAPER_ARMS = ("real_equal_steps", f"hybrid_{arms.PAPER_RATIO}")
ELSEWHERE = ("auroc", "average_precision", "balanced_accuracy", "sensitivity_at_90", "ece")
VERDICTS = {GAIN: "a gain in AUROC", LOSS: "a loss of AUROC", NONE: "neither a gain nor a loss was shown"}
# a shape and a word, for who cannot tell the colours
MARKS = {GAIN: "▲ gain", LOSS: "▼ loss", NONE: "neither shown", UNKNOWN: "too few to tell"}


def page(config: ConfigDict, found: Found, materials: list[Material], explained: dict[str, list[Thumbnail]]) -> str:
    """Returns the HTML. explained: heat maps of the most confident cases, by heading."""
    filters = {
        "figure": wording.figure,
        "interval": wording.interval,
        "difference": wording.difference,
        "difference_interval": wording.difference_interval,
        "label": wording.label,
        "words": plots.words,
        "shown": wording.shown,
        "shots": plots.shots,
    }
    first = materials[0]
    settings = sorted({group[:2] for group in found.figures}, key=place)
    reach = plots.reach(found.comparisons)
    return fill(
        TEMPLATE,
        filters,
        title=config.title,
        config=config,
        found=found,
        sizes=[report.image_counts(material.real, material.synthetic, material.synthetic) for material in materials],
        rejections=report.rejection_counts(first.synthetic),
        sources=sorted({record.source for record in first.real.records}),
        galleries=galleries(first, config.gallery),
        tested=sum(len(material.real.split("test")) for material in materials),
        phantoms=any(record.source == "phantom" for record in first.real.records),
        counts=verdicts(found.comparisons),
        paper_counts=verdicts([each for each in found.comparisons if each.group[2] == PAPER_ARMS[1]]),
        told=[(setting, list(each)) for setting, each in groupby(ordered(found), lambda c: c.group[:2])],
        sentence=sentence,
        columns=settings,
        paper_arms=PAPER_ARMS,
        elsewhere_shown=ELSEWHERE,
        answers=answers(found, config.baseline, settings),
        settings=[(setting, table(found, setting, config.baseline)) for setting in settings],
        primary=PRIMARY,
        forests=[forest for setting in settings if (forest := plots.forest_of(found, setting, reach))],
        charts={setting: charts(found, setting) for setting in settings},
        doses=doses(found, config.baseline),
        subgroups=subgroup_rows(found),
        paper=paper_rows(found),
        paper_title=findings.TITLE,
        paper_sizes=findings.TEST_SIZES,
        paper_notes=findings.NOTES,
        explained=explained,
        limits=told(found, config, materials),
    )


def ordered(found: Found) -> list[Comparison]:
    """The comparisons, those of a classifier and few-shot size together."""
    return sorted(found.comparisons, key=lambda each: place(each.group[:2]))


def place(setting: tuple[str, int]) -> tuple:
    """Where a classifier and few-shot size stand on the page: few real images first, all of them last."""
    classifier, size = setting
    return classifier, size == 0, size


def sentence(each: Comparison) -> str:
    """What a comparison showed, or did not show, in words."""
    change = each.differences[PRIMARY]
    verdict = VERDICTS.get(each.verdict, each.verdict)
    p = "" if each.adjusted != each.adjusted else f", adjusted p {each.adjusted:.2g}"
    return (
        f"{plots.words(each.group[2])}: {verdict}; difference {wording.difference(change, PRIMARY)} "
        f"({wording.difference_interval(change, PRIMARY)}{p})."
    )


def verdicts(comparisons: list[Comparison]) -> dict[str, int]:
    """How many comparisons showed a gain, a loss, neither."""
    found = [each.verdict for each in comparisons]
    gains, losses = found.count(GAIN), found.count(LOSS)
    return {"gains": gains, "losses": losses, "neither": len(found) - gains - losses, "all": len(found)}


def galleries(material: Material, count: int) -> list[tuple[str, list[Thumbnail], list[Thumbnail]]]:
    """(class, real training images, synthetic images that were kept), evenly spaced: nobody picked them."""
    found = []
    for label in material.real.labels:
        real, synthetic = (
            [
                thumbnail(manifest, r, "")
                for r in evenly_spaced([r for r in manifest.split("train") if r.label == label], count)
            ]
            for manifest in (material.real, material.synthetic)
        )
        found.append((label, real, synthetic))
    return found


def answers(found: Found, baseline: str, settings: list[tuple[str, int]]) -> list[tuple[str, list]]:
    """(arm, [(AUROC, difference, mark, its class) of each setting, or None]): the whole study in one table."""
    compared = {each.group: each for each in found.comparisons}

    def cell(group: Group) -> tuple | None:
        if group not in found.figures:
            return None
        each = compared.get(group)
        change = each.differences[PRIMARY] if each else None
        mark = "baseline" if not each else MARKS[each.verdict]
        kind = {GAIN: "gain", LOSS: "loss"}.get(each.verdict, "") if each else "baseline"
        return found.figures[group][PRIMARY], change, mark, kind

    trained = sorted(dict.fromkeys(group[2] for group in found.figures), key=lambda arm: arm != baseline)
    return [(arm, [cell((*setting, arm)) for setting in settings]) for arm in trained]


def table(found: Found, setting: tuple[str, int], baseline: str) -> dict:
    """Everything about one classifier and few-shot size: a column an arm, a row a figure."""
    groups = [group for group in found.figures if group[:2] == setting]
    compared = {each.group: each for each in found.comparisons}
    names = list(found.figures[groups[0]])
    return {
        "arms": [group[2] for group in groups],
        "rows": [
            (name, found.figures[groups[0]][name].n,
             [(found.figures[g][name], compared[g].differences[name] if g in compared else None) for g in groups])
            for name in names
        ],
        "alone": [found.alone[group] for group in groups],
        "compared": [compared.get(group) for group in groups],
        "confusion": [sum(metrics.confusion(said) for said in found.mean[group]).tolist() for group in groups],
    }  # fmt: skip


def charts(found: Found, setting: tuple[str, int]) -> list[str]:
    """The ROC curves and the calibration of one classifier and few-shot size."""
    drawn = {group[2]: found.mean[group] for group in found.figures if group[:2] == setting}
    aurocs = {group[2]: found.figures[group][PRIMARY].value for group in found.figures if group[:2] == setting}
    return [plots.roc("ROC, mean of the seeds", drawn, aurocs), plots.calibration("Calibration", drawn)]


def doses(found: Found, baseline: str) -> list[str]:
    """Dose and response of each classifier, where there is a hybrid arm: the baseline is the dose of none."""
    drawn = []
    for classifier in dict.fromkeys(group[0] for group in found.figures):
        lines = {}
        for group in found.figures:
            ratio = 0.0 if group[2] == baseline else arms.ratio_of(group[2])
            if group[0] == classifier and ratio is not None:
                point = (ratio, found.figures[group][PRIMARY], found.alone[group])
                lines.setdefault(plots.shots(group[1]), []).append(point)
        lines = {name: sorted(points, key=lambda point: point[0]) for name, points in lines.items()}
        if any(len(points) > 1 for points in lines.values()):
            drawn.append(plots.dose(wording.shown(classifier), lines))
    return drawn


def subgroup_rows(found: Found) -> dict[tuple[str, int], list[tuple]]:
    """{classifier and size: [(kind, group, n, [AUROC of the baseline and of hybrid, or None])]} of the paper's arms."""
    rows: dict[tuple[str, int], list[tuple]] = {}
    for (kind, name), estimates in found.subgroups.items():
        for setting in dict.fromkeys(group[:2] for group in estimates):
            both = [estimates.get((*setting, arm)) for arm in PAPER_ARMS]
            if any(both):
                rows.setdefault(setting, []).append((kind, name, next(filter(None, both)).n, both))
    return {setting: rows[setting] for setting in sorted(rows, key=place)}


def paper_rows(found: Found) -> list[tuple]:
    """(classifier, few-shot size, the paper's accuracies, ours in its two arms) with most real images."""
    rows = []
    for classifier, printed in findings.ACCURACIES.items():
        most = sorted(found.figures, key=lambda group: (group[1] != 0, -group[1]))
        size = next((s for c, s, _ in most if c == classifier), None)
        ours = [found.figures.get((classifier, size, arm), {}).get("accuracy") for arm in PAPER_ARMS]
        rows.append((classifier, size, printed, ours))
    return rows
