"""How many images there are of each kind, and how many of them each reason rejected, by class.

The page that people look at: sections of pictures, tables and plots, filled into report.html.jinja.

The page is one file that loads nothing from outside. It says what was found in words as careful as the numbers.
"""

from collections.abc import Iterable
from pathlib import Path

from dermjax.data.records import SPLITS, Manifest, Record
from dermjax.data.thumbnails import Thumbnail, evenly_spaced, thumbnail
from dermjax.evaluation import findings as paper
from dermjax.evaluation import metrics, plots, wording
from dermjax.evaluation.findings import BASELINE, Findings
from dermjax.evaluation.plots import Series
from dermjax.page import fill


def counted_by_class(records: Iterable[Record], classes: tuple[str, ...]) -> dict[str, int]:
    """The number of records of each class."""
    labels = [record.label for record in records]
    return {name: labels.count(name) for name in classes}


def image_counts(prepared: Manifest, generated: Manifest | None, curated: Manifest | None) -> dict[str, dict[str, int]]:
    """By kind and class: the real images of each split, the synthetic ones that were made and that were kept."""
    found = {f"real, {split}": counted_by_class(prepared.split(split), prepared.labels) for split in SPLITS}
    for kind, records in (
        ("synthetic, made", generated and generated.records),
        ("synthetic, kept", curated and curated.split("train")),
    ):
        if records is not None:
            found[kind] = counted_by_class((record for record in records if record.synthetic), prepared.labels)
    return found


def rejection_counts(curated: Manifest) -> dict[str, dict[str, int]]:
    """By reason and class; an image with two reasons counts under both."""
    rejected = [record for record in curated.records if not record.kept]
    reasons = sorted({reason for record in rejected for reason in record.rejected})
    return {
        reason: counted_by_class((record for record in rejected if reason in record.rejected), curated.labels)
        for reason in reasons
    }


TEMPLATE = Path(__file__).with_name("report.html.jinja")


def page(title: str, sections: dict) -> str:
    """The HTML of the page; `sections` are the values that the template names."""
    filters = {
        "shown": wording.shown,
        "label": wording.label,
        "figure": wording.figure,
        "interval": wording.interval,
        "difference": wording.difference,
        "difference_interval": wording.difference_interval,
    }
    return fill(TEMPLATE, filters, title=title, **sections)


def tiles(images: dict[str, dict[str, int]]) -> list[tuple[int, str, str]]:
    """The sizes at the head of the page as (number, kind, detail)."""
    return [
        (sum(each.values()), kind, ", ".join(f"{count} {name}" for name, count in each.items()))
        for kind, each in images.items()
    ]


def sources(prepared: Manifest) -> list[str]:
    """Where the real images are from, with their licence where the manifest has one."""
    named = {(record.source, record.licence) for record in prepared.records}
    return [f"{source} ({licence})" if licence else source for source, licence in sorted(named)]


def real_gallery(prepared: Manifest, count: int) -> list[tuple[str, list[Thumbnail]]]:
    """Training images by class."""
    train = prepared.split("train")
    return [(name, _pictures(prepared, [r for r in train if r.label == name], count)) for name in prepared.labels]


def sampler_gallery(generated: Manifest, count: int) -> list[tuple[str, str, str, list[Thumbnail]]]:
    """(sampler, class, the prompts it was asked with, pictures): as they came, before curation."""
    groups = {}
    for record in generated.records:
        groups.setdefault((record.generation.get("sampler", "sampler not recorded"), record.label), []).append(record)
    return [
        (sampler, name, _prompts(records), _pictures(generated, records, count))
        for (sampler, name), records in sorted(groups.items())
    ]


def side_by_side(
    prepared: Manifest, curated: Manifest, count: int
) -> list[tuple[str, list[Thumbnail], list[Thumbnail]]]:
    """(class, real training images, kept synthetic ones); other real images than in the first gallery."""
    rows = []
    for name in prepared.labels:
        real = [record for record in prepared.split("train") if record.label == name]
        kept = [record for record in curated.split("train") if record.label == name and record.synthetic]
        rows.append((name, _pictures(prepared, real[::-1], count), _pictures(curated, kept, count)))
    return rows


def curation(curated: Manifest, count: int) -> dict:
    """How many images of each class each reason rejected, and the rejected pictures with their reasons."""
    rejected = [record for record in curated.records if not record.kept]
    made = counted_by_class(curated.records, curated.labels)
    rows = {_words(reason): each for reason, each in rejection_counts(curated).items()}
    rows["rejected for any reason"] = counted_by_class(rejected, curated.labels)
    # an image has one class, so the sum over classes is the number of images
    return {
        "made": made,
        "total": sum(made.values()),
        "rows": [(reason, each, sum(each.values())) for reason, each in rows.items()],
        "pictures": [
            thumbnail(curated, record, ", ".join(_words(reason) for reason in record.rejected))
            for record in evenly_spaced(rejected, count)
        ],
    }


def tables(findings: Findings) -> list[dict]:
    """One table a classifier: a row a figure, a column an arm, then a column a difference from the baseline."""
    built = []
    for classifier in dict.fromkeys(run.classifier for run in findings.runs):
        runs = [run for run in findings.runs if run.classifier == classifier]
        compared = [c for c in findings.comparisons if c.arm.classifier == classifier]
        built.append(
            {
                "classifier": classifier,
                "arms": [run.arm for run in runs],
                "compared": [f"{c.arm.arm} {wording.MINUS} {c.baseline.arm}" for c in compared],
                "rows": [
                    (name, [findings.figures[run.name][name] for run in runs], [c.differences[name] for c in compared])
                    for name in metrics.names(runs[0].predictions)
                ],
                "mcnemar": [(c.arm.arm, c.mcnemar) for c in compared],
            }
        )
    return built


def paper_table(findings: Findings) -> dict:
    """Our accuracies beside the paper's, for the classifiers that both have."""
    ours = {run.name: findings.figures[run.name]["accuracy"] for run in findings.runs}
    return {
        "title": paper.TITLE,
        "sizes": paper.TEST_SIZES,
        "notes": paper.NOTES,
        "rows": [
            (name, printed, ours.get(f"{name} {BASELINE}"), ours.get(f"{name} hybrid"))
            for name, printed in paper.ACCURACIES.items()
        ],
    }


def result_plots(findings: Findings) -> dict[str, list[str]]:
    """ROC curves a classifier, and the differences a comparison."""
    classifiers = dict.fromkeys(run.classifier for run in findings.runs)
    arms = {name: [run for run in findings.runs if run.classifier == name] for name in classifiers}
    reach = plots.reach(findings.comparisons) if findings.comparisons else 0.0
    return {
        "roc": [plots.roc(wording.shown(name), runs) for name, runs in arms.items()],
        "differences": [plots.difference(wording.compared(each), each, reach) for each in findings.comparisons],
    }


def training_plots(
    findings: Findings, tuning: Series | None, losses: dict[str, Series], aurocs: dict[str, Series]
) -> list[str]:
    """The generator's loss, the classifiers' losses and their validation AUROC by run name, where they were logged."""
    lines = plots.lines(findings.runs)
    named = {run.name: f"{wording.shown(run.classifier)} {run.arm}" for run in findings.runs}
    drawn = [plots.curves("Tuning the generator", "loss", [("", tuning, plots.PLAIN)])] if tuning else []
    for title, unit, series in (
        ("Training the classifiers", "loss", losses),
        ("Validation, real images", "AUROC", aurocs),
    ):
        logged = [(named[name], each, lines[name]) for name, each in series.items() if len(each[0])]
        drawn += [plots.curves(title, unit, logged)] if logged else []
    return drawn


def _pictures(manifest: Manifest, records: list, count: int) -> list[Thumbnail]:
    return [thumbnail(manifest, record, "") for record in evenly_spaced(records, count)]


def _prompts(records: list) -> str:
    """The distinct prompts of some records, the first few."""
    prompts = list(dict.fromkeys(record.generation.get("prompt", "") for record in records))
    return "; ".join(prompt for prompt in prompts[:4] if prompt) + (" …" if len(prompts) > 4 else "")


def _words(reason: str) -> str:
    return reason.replace("_", " ")
