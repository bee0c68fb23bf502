"""What a data set consists of, counted: classes, prompts, words, samplers, rejections and scores.

The data-set card: what is in it, how it was made, what was thrown away, what it is for and what it is not for.

Markdown under the YAML head that data hubs read (Gebru et al. 2021, Datasheets for Datasets).
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dermjax.data.records import Manifest, Record

ALL = "all"


@dataclass(frozen=True)
class Counts:
    """How many records of each class, in the order of `labels`, and of all, have each value."""

    labels: tuple[str, ...]
    rows: dict[str, tuple[int, ...]]

    def grouped(self) -> "Counts":
        """Returns the same counts with values such as `tone: dark` beside the others of their gap."""
        return Counts(self.labels, dict(sorted(self.rows.items(), key=lambda row: row[0].partition(":")[0])))


def counted(manifest: Manifest, chosen: Sequence[Record], values: Callable[[Record], Sequence[str]]) -> Counts:
    """Returns the counts of the values of some of a manifest's records, the frequent ones first."""
    of = Counter((value, record.label) for record in chosen for value in values(record))
    totals = Counter()
    for (value, _), count in of.items():
        totals[value] += count
    order = sorted(totals, key=lambda value: (-totals[value], value))
    rows = {value: (*(of[value, label] for label in manifest.labels), totals[value]) for value in order}
    return Counts((*manifest.labels, ALL), rows)


def words(record: Record) -> list[str]:
    """Returns what the plan asked for, such as `tone: dark`."""
    return [f"{gap}: {word}" for gap, word in record.generation.get("words", {}).items()]


def origin(record: Record) -> list[str]:
    """Returns the source and the licence of a record."""
    return [f"{record.source}: {record.licence or 'licence not stated'}"]


@dataclass(frozen=True)
class Spread:
    """A score over n images: its least, 5 %, median, 95 % and greatest value."""

    n: int
    quantiles: tuple[float, ...]


def scores(chosen: Sequence[Record]) -> dict[str, Spread]:
    """Returns the spread of every score that is a number."""
    names = sorted({name for record in chosen for name in record.scores})
    found = {}
    for name in names:
        values = [record.scores[name] for record in chosen if isinstance(record.scores.get(name), int | float)]
        if values:
            quantiles = np.quantile(values, (0, 0.05, 0.5, 0.95, 1))
            found[name] = Spread(len(values), tuple(float(each) for each in quantiles))
    return found


COPY = "training_copy"  # curation's reason and score for a copy of a training image
SAMPLES = "samples.png"  # beside the card
PROMPTS = 60  # that are listed
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**12, "n>100K"))  # as hubs name them

TEXT = """---
pretty_name: {quoted_name}
license: other
license_name: {quoted_licence}
task_categories: [image-classification]
size_categories: [{size}]
tags: [synthetic, medical, dermatology, skin-lesions, dermjax]
---

# {name}

**SYNTHETIC: {made} of {total} images were made by a model. They show no patient and no real lesion. For research only;
not a medical device.**

Every file says so itself: PNG texts `dermjax` (JSON) and `parameters` (A1111's form), and in every table
`image_manipulation=synthetic`, ISIC's own word. `dermjax provenance FILE` reads them back.

## Composition

{composition}

Asked for in prompts, which is not proof that images show it:

{words}

Samplers:

{samplers}

## Prompts

{prompts}

## What curation rejected

{rejected_total} of {asked} images were rejected, by one rule for all classes; they are not in this data set. An image
can have several reasons.

{rejections}

## Fidelity

{fidelity}

Scores of the {total} published images, as curation measured them:

{scores}

## Memorisation

{memorisation}

## Sources and licences

The generator was tuned on

{sources}

Licence of this data set: {licence}. What forbids commercial use of a source forbids it here as well.

## Intended use

Research on classifiers of skin lesions: as additional training images, and only as training images, in experiments with
a control that is trained on real images alone and judged on real images alone. Research on generators, on artefacts and
on memorisation.

Not for diagnosis, screening or treatment; not for validation or test sets; not for teaching what a lesion looks like;
not for showing patients; not for passing off as photographs.

## Limits

- A label is the prompt's class word. No physician looked at the images, and none of them has a diagnosis.
- A generator repeats the biases of its sources: what they lack in skin tones, sites and devices is not made good here.
  Tones that were asked for are words; a measured tone is a proxy.
- Gains in published studies are small, appear mostly out of distribution, and may be none: measure before use.
- Curation finds what its rules look for, with the errors of its rules.
- Not finding copies by hashes does not prove that there are none.

{contact}Made with dermjax from the manifest with SHA-256 {digest}.
"""


@dataclass(frozen=True)
class Judgement:
    """A classifier's agreement with the labels and its accuracy: {"value", "n", "low", "high", "note"} each."""

    classifier: str
    fidelity: Mapping
    accuracy: Mapping


@dataclass(frozen=True)
class Facts:
    """What the card tells: the curated manifest, the generator's, what `evaluate` found, and words."""

    curated: Manifest
    training: Manifest
    judged: Sequence[Judgement]
    name: str
    licence: str
    contact: str
    digest: str


def text(facts: Facts) -> str:
    """Returns the card."""
    curated = facts.curated
    kept = [record for record in curated.records if record.kept]
    rejected = [record for record in curated.records if not record.kept]
    found = counted(curated, kept, words).grouped()
    prompts = counted(curated, kept, lambda record: [record.generation.get("prompt", "not recorded")])
    samplers = counted(curated, kept, lambda record: [record.generation.get("sampler", "not recorded")])
    sources = counted(facts.training, facts.training.split("train"), origin)
    spreads = scores(kept)
    return TEXT.format(
        name=facts.name,
        licence=facts.licence,
        quoted_name=json.dumps(facts.name),  # YAML takes JSON
        quoted_licence=json.dumps(facts.licence),
        size=next(name for below, name in SIZES if len(kept) < below),
        made=sum(record.synthetic for record in kept),
        total=len(kept),
        asked=len(curated.records),
        composition=_table("images", counted(curated, kept, lambda record: ["published"])),
        words=_table("word", found) if found.rows else "(nothing but the class)",
        samplers=_table("sampler", samplers),
        prompts=_table("prompt", prompts, PROMPTS),
        rejected_total=len(rejected),
        rejections=_table("reason", counted(curated, rejected, lambda record: record.rejected))
        if rejected
        else "(none)",
        fidelity=_fidelity(facts.judged),
        scores=_spreads(spreads),
        memorisation=_memorisation(curated, spreads, len(facts.training.split("train"))),
        sources=_table("source: licence", sources),
        contact=f"Contact: {facts.contact}\n\n" if facts.contact else "",
        digest=facts.digest,
    )


def pictured(card: str) -> str:
    """Returns a card that shows the samples beside it, before its first section."""
    shown = f"![Published images, a row a class, evenly spaced through the set; every one is synthetic]({SAMPLES})\n\n"
    return card.replace("## Composition\n", f"{shown}## Composition\n", 1)


def _table(title: str, counts: Counts, most: int = 10**9) -> str:
    """Returns a table of counts, a column a class; beyond `most` rows it says how many there are."""
    lines = [f"| {title} | {' | '.join(counts.labels)} |", "|---" + "|---:" * len(counts.labels) + "|"]
    shown = list(counts.rows.items())
    lines += [f"| {_escaped(value)} | {' | '.join(map(str, row))} |" for value, row in shown[:most]]
    more = [f"\nand {len(shown) - most} more; every image's own stands in its row"] if len(shown) > most else []
    return "\n".join(lines + more)


def _fidelity(judged: Sequence[Judgement]) -> str:
    """Returns how often classifiers agree with the label, beside how often they are right on real images."""
    if not judged:
        return "Whether images show their label has not been measured (no `evaluate` run was given)."
    lines = [
        "Share of images that a classifier trained on real images only calls by their label, and its own accuracy on",
        "held-out real images, which is the most that can be expected:",
        "",
        "| classifier | by the label | n | 95 % interval | accuracy | n | 95 % interval |",
        "|---|---:|---:|---|---:|---:|---|",
    ]
    for each in judged:
        lines.append(f"| {_escaped(each.classifier)} | {_figure(each.fidelity)} | {_figure(each.accuracy)} |")
    return "\n".join(lines)


def _figure(figure: Mapping) -> str:
    """Returns a figure of `evaluate`: value, n and interval, or why there is none."""
    interval = f"{figure['low']:.3f} to {figure['high']:.3f}" if figure["low"] is not None else figure["note"]
    return f"{figure['value']:.3f} | {figure['n']} | {interval}"


def _spreads(spreads: Mapping[str, Spread]) -> str:
    if not spreads:
        return "(none)"
    lines = ["| score | n | least | 5 % | median | 95 % | greatest |", "|---|---:|---:|---:|---:|---:|---:|"]
    for name, spread in spreads.items():
        lines.append(f"| {_escaped(name)} | {spread.n} | {' | '.join(f'{each:.3g}' for each in spread.quantiles)} |")
    return "\n".join(lines)


def _memorisation(curated: Manifest, spreads: Mapping[str, Spread], trained_on: int) -> str:
    """Returns how many copies of training images were found, and how close the published ones come to one."""
    copies = sum(COPY in record.rejected for record in curated.records)
    told = [
        f"{copies} of {len(curated.records)} images were rejected as copies of one of the {trained_on} training images."
    ]
    if COPY in spreads:
        least, median = (spreads[COPY].quantiles[place] for place in (0, 2))
        told.append(
            f"Of the published ones the nearest is {least:.3g} from a training image, the median {median:.3g} "
            f"(score `{COPY}`; perceptual hashes, bits of 256 unless curation says otherwise)."
        )
    else:
        told.append("The distance to training images was not measured: **copies were not looked for**.")
    return "\n".join(told)


def _escaped(value: str) -> str:
    return " ".join(value.split()).replace("|", "\\|")
