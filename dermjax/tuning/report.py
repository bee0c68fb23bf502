"""The page of `tune`: its losses, its samples from the same seeds, its training images; kept up to date as it runs."""

import io
import json
from collections import Counter
from pathlib import Path

import jax
import matplotlib.pyplot as plt
from ml_collections import ConfigDict
from PIL import Image

from dermjax import buckets
from dermjax.data.thumbnails import data_uri, evenly_spaced, thumbnail
from dermjax.page import fill
from dermjax.run_folder import write_atomically
from dermjax.training import writers
from dermjax.tuning import task
from dermjax.tuning.concepts import Concepts

FILE, TEMPLATE, CURVES = "report.html", Path(__file__).with_name("report.html.jinja"), "curves.png"
GALLERY = 8  # training images a class
RISEN = 1.01  # a validation loss that ends so far above its lowest has turned


def write(workdir: Path, config: ConfigDict, training: Concepts, validation: Concepts) -> None:
    """Writes workdir/report.html, which loads nothing from outside, and the plot of its curves; the first process."""
    if jax.process_index() != 0:
        return
    records = writers.read(workdir / "metrics.jsonl")
    tuned, held_out = counts(training), counts(validation)
    by_label = {label: [pair for pair in training.instances if pair[1].label == label] for label in sorted(tuned)}
    curves = plot(records)
    write_atomically(workdir / CURVES, curves)
    page = fill(
        TEMPLATE,
        {},
        model=buckets.as_given(config.model),
        counts={label: (tuned[label], held_out[label]) for label in by_label},
        class_images=len(training.sources) - len(training.instances),
        steps=config.steps,
        step=records[-1]["step"] if records else 0,
        verdict=f"{verdict(records)} {evidence(records)}".strip(),
        curves=data_uri(Image.open(io.BytesIO(curves)).convert("RGB")),
        grids={step: data_uri(Image.open(path)) for step, path in reversed(task.sample_grids(workdir).items())},
        prompts=sorted(set(training.prompts)),
        gallery={
            label: [thumbnail(*pair, "") for pair in evenly_spaced(pairs, GALLERY)] for label, pairs in by_label.items()
        },
        config=json.dumps(buckets.as_given(config.to_dict()), indent=2),
    )
    write_atomically(workdir / FILE, page)


def verdict(records: list[dict]) -> str:
    """Returns in words what the loss on held-out images says."""
    losses = [(record["step"], record["validation_loss"]) for record in records if "validation_loss" in record]
    if len(losses) < 2:
        return "The loss on held-out images has not been measured twice yet: nothing tells learning from memorising."
    (_, first), (end, last) = losses[0], losses[-1]
    step, lowest = min(losses, key=lambda pair: pair[1])
    if lowest >= first:
        return f"The loss on held-out images never fell below its start ({first:.4g}): nothing general was learnt."
    fell = f"The loss on held-out images fell from {first:.4g} to {lowest:.4g} (step {step})"
    if last > RISEN * lowest:
        rose = f"{fell} and rose to {last:.4g} (step {end}): from there on images were learnt by heart."
        return f"{rose} {kept(records, step)}".strip()
    return f"{fell} and did not rise again."


def kept(records: list[dict], lowest: int) -> str:
    """Returns which checkpoint the loop keeps as the best, "" for none: that of the `lowest` held-out loss, or where
    drawn images are looked at too, of the evaluation that they make the best."""
    if not any("copies" in record for record in records):
        return f"The checkpoint of step {lowest} is kept."
    judged = {record["step"]: record[task.JUDGED] for record in records if record["step"] and task.JUDGED in record}
    if not judged:
        return ""
    best = min(judged, key=judged.get)
    return f"The checkpoint of step {best} is kept" + ("." if best == lowest else ", the best by the images drawn.")


def evidence(records: list[dict]) -> str:
    """Returns in words what the images drawn at each evaluation show, "" without any."""
    evaluations = [record for record in records if "copies" in record]
    if not evaluations:
        return ""
    first, last = evaluations[0], evaluations[-1]
    return (
        f"Of the images drawn at each evaluation, nearer to a training image than one held-out image in a hundred: "
        f"{first['copies']:.3f} at step {first['step']}, {max(each['copies'] for each in evaluations):.3f} at most, "
        f"{last['copies']:.3f} at step {last['step']}. Their Fréchet distance to held-out images went from "
        f"{first['frechet']:.4g} to {last['frechet']:.4g}; it compares evaluations of this run alone."
    )


def plot(records: list[dict]) -> bytes:
    """Returns the curves of the losses on training and on held-out images as a PNG; below them that of the copies."""
    copies = [(record["step"], record["copies"]) for record in records if "copies" in record]
    figure, grid = plt.subplots(
        1 + bool(copies), squeeze=False, figsize=(8, 3.6 + 2 * bool(copies)), dpi=110, layout="constrained"
    )
    axes, *more = grid[:, 0]
    for below in more:
        below.plot(*zip(*copies, strict=True), color="#a94a26", lw=1.8, marker="o", ms=4)
        below.set(xlabel="step", ylabel="share of copies", ylim=(0, 1))
        below.spines[["top", "right"]].set_visible(False)
    for name, label, style in (
        ("loss", "training images, noise drawn anew", {"color": "#9a9da3", "lw": 1}),
        ("validation_loss", "held-out images, the same noise", {"color": "#a94a26", "lw": 1.8, "marker": "o", "ms": 4}),
    ):
        points = [(record["step"], record[name]) for record in records if name in record]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
            axes.legend(frameon=False)
    axes.set(xlabel="step", ylabel="loss")
    axes.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    plt.close(figure)
    return file.getvalue()


def counts(concepts: Concepts) -> Counter:
    """Returns the number of images of each class, class images left out."""
    return Counter(record.label for _, record in concepts.instances)
