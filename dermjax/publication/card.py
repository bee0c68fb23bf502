"""The data-set card: what is in it, how it was made, what was rejected, what it is for and what it is not for.

Place in the flow: a curated manifest, the generator's and the figures of `evaluate` -> counts -> card.md.jinja.

Markdown under the YAML head that data hubs read (Gebru et al. 2021, Datasheets for Datasets).
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dermjax.data import export
from dermjax.data.records import Manifest, Record
from dermjax.evaluation.images import report
from dermjax.page import fill

TEMPLATE = Path(__file__).with_name("card.md.jinja")
COPY = "training_copy"  # curation's reason and score for a copy of a training image
SAMPLES = "samples.png"  # beside the card
PROMPTS = 60  # that are listed
# as hubs name them
SIZES = (
    (10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"), (10**9, "100M<n<1B"),
)  # fmt: skip
INTERVAL = "95 % interval"  # the heading of a column that holds no numbers
QUANTILES = {"least": 0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "greatest": 1}
UNKNOWN, UNLICENSED = "not recorded", "licence not stated"


def text(
    curated: Manifest,
    training: Manifest,
    fidelity: Sequence[tuple[str, Mapping, Mapping]],
    evidence: Mapping | None,
    *,
    name: str,
    licence: str,
    contact: str,
    digest: str,
) -> str:
    """Returns the card of a manifest of which curation kept some images, and compared all with the training images.

    fidelity: of each classifier its name, its agreement with the labels and its accuracy, each {"value", "n", "low",
    "high", "note"}. evidence: the results of evaluate.py:images. contact may be empty. digest: of the curated
    manifest's file.
    """
    kept = [record for record in curated.records if record.kept]
    rejected = [record for record in curated.records if not record.kept]
    learnt, classes = training.split("train"), [*curated.labels, "all"]
    published = _counts(kept, curated, lambda record: ["published"])
    words = _counts(
        kept, curated, lambda record: [f"{gap}: {word}" for gap, word in record.generation.get("words", {}).items()]
    )
    words.sort(key=lambda row: row[0].partition(":")[0])  # those of one gap side by side
    samplers = _counts(kept, curated, lambda record: [record.generation.get("sampler", UNKNOWN)])
    prompts = _counts(kept, curated, lambda record: [record.generation.get("prompt", UNKNOWN)])
    reasons = _counts(rejected, curated, lambda record: record.rejected)
    sources = _counts(learnt, training, lambda record: [f"{record.source}: {record.licence or UNLICENSED}"])
    nearest, median = np.quantile([record.scores[COPY] for record in kept], (0, 0.5))
    return fill(
        TEMPLATE,
        {},
        name=name,
        licence=licence,
        quoted_name=json.dumps(name),  # YAML takes JSON
        licence_id=re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-.") or "other",  # hubs take no sentence
        size=size_category(len(kept)),
        synthetic=sum(record.synthetic for record in kept),
        inpainted=sum(export.INPAINTED in record.generation for record in kept),
        published=len(kept),
        curated=len(curated.records),
        composition=_table("images", classes, published),
        words=_table("word", classes, words) if words else "",
        samplers=_table("sampler", classes, samplers),
        prompts=_table("prompt", classes, prompts[:PROMPTS]),
        more_prompts=len(prompts[PROMPTS:]),
        rejected=len(rejected),
        rejections=_table("reason", classes, reasons) if reasons else "",
        fidelity=_fidelity(fidelity) if fidelity else "",
        sentences=report.sentences(evidence) if evidence else [],
        evidence=_table("figure", ["these images", "real images in their place"], report.beside_real(evidence))
        if evidence
        else "",
        line=json.dumps(evidence["line"]) if evidence else "",
        scores=_table("score", ["n", *QUANTILES], _spreads(kept)),
        copies=sum(COPY in record.rejected for record in curated.records),
        trained_on=len(learnt),
        nearest=f"{nearest:.3g}",
        median=f"{median:.3g}",
        sources=_table("source: licence", [*training.labels, "all"], sources),
        contact=contact,
        digest=digest,
    )


def size_category(images: int) -> str:
    """Returns what hubs call a data set of so many images."""
    return next(size for below, size in SIZES if images < below)


def with_samples(card: str) -> str:
    """Returns a card that shows the samples beside it, before its first section."""
    shown = f"![Published images, a row a class, evenly spaced through the set; every one is synthetic]({SAMPLES})\n\n"
    return card.replace("## Composition\n", f"{shown}## Composition\n", 1)


def _counts(records: Sequence[Record], manifest: Manifest, values: Callable[[Record], Iterable[str]]) -> list[tuple]:
    """Returns (value, records of each class with it, and of all), the frequent values first."""
    counts = Counter((value, record.label) for record in records for value in values(record))
    totals = Counter(value for record in records for value in values(record))
    order = sorted(totals, key=lambda value: (-totals[value], value))
    return [(value, *(counts[value, label] for label in manifest.labels), totals[value]) for value in order]


def _spreads(records: Sequence[Record]) -> list[tuple]:
    """Returns (score, its number, QUANTILES) of every score."""
    names = sorted({name for record in records for name in record.scores})
    values = {name: [record.scores[name] for record in records if name in record.scores] for name in names}
    return [
        (name, len(scores), *(f"{each:.3g}" for each in np.quantile(scores, list(QUANTILES.values()))))
        for name, scores in values.items()
    ]


def _fidelity(fidelity: Sequence[tuple[str, Mapping, Mapping]]) -> str:
    """Returns how often classifiers agree with the label, beside how often they are right on real images."""
    columns = ["by the label", "n", INTERVAL, "accuracy", "n", INTERVAL]
    return _table(
        "classifier", columns, [(name, *_cells(agreement), *_cells(own)) for name, agreement, own in fidelity]
    )


def _cells(figure: Mapping) -> tuple[str, int, str]:
    """Returns a figure of `evaluate`: value, n and interval, or why there is none."""
    interval = f"{figure['low']:.3f} to {figure['high']:.3f}" if figure["low"] is not None else figure["note"]
    return f"{figure['value']:.3f}", figure["n"], interval


def _table(title: str, columns: Sequence[str], rows: Iterable[tuple]) -> str:
    """Returns a table in Markdown whose rows begin with words that `title` heads."""
    lines = [f"| {title} | {' | '.join(map(_escaped, columns))} |"]
    lines += ["|---" + "".join("|---" if column == INTERVAL else "|---:" for column in columns) + "|"]
    for value, *cells in rows:
        lines.append(f"| {_escaped(value)} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """Returns a text as the cell of a table shows it."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")  # <mole> is a word, no HTML
