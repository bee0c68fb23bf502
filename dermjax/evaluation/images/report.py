"""The page about a set of synthetic images: what was measured, in words, tables and pictures that nobody picked."""

import base64
import hashlib
from pathlib import Path

import numpy as np

from dermjax.data.records import Record
from dermjax.data.thumbnails import Thumbnail, thumbnail
from dermjax.evaluation import distances, findings, wording
from dermjax.evaluation.images.fidelity import HIGHER_IS_BETTER
from dermjax.evaluation.intervals import CONSTANT
from dermjax.page import fill

TEMPLATE = Path(__file__).with_name("report.html.jinja")
SORT = Path(__file__).with_name("sort.js")
MEANINGS = {
    "frechet": ("Fréchet distance", "of the mean and the covariance of what the network sees; 0 is the same"),
    "frechet_infinite": ("Fréchet distance, n → ∞", "the same, extrapolated to infinitely many images"),
    "kid": ("kernel distance (KID)", "of all moments up to the third; 0 is the same, and chance may put it below"),
    "mmd": ("MMD", "the distance of means under a wide Gaussian kernel, times 1000; 0 is the same"),
    "precision": ("precision", "share of images as near to held-out photographs as those are to each other"),
    "recall": ("recall", "share of held-out photographs that lie among the images"),
    "density": ("density", "how thickly held-out photographs lie around each image; 1 is as in real images"),
    "coverage": ("coverage", "share of held-out photographs with an image beside them"),
    "authentic": ("authentic", "share of images that are no nearer to a training image than another training image is"),
    "vendi": ("Vendi score", "how many different images there are"),
}


LABEL, AREA = "label fidelity", "AUROC on real test images, trained on these"
COLUMNS = {  # of the table of models
    "n": "n", "n_compared": "n of FD to C", "frechet": "FD", "frechet_of_real": "FD of real", "kid": "KID",
    "precision": "P", "recall": "R", "density": "D", "coverage": "C", "copies": "copies",
    "membership_found_at_0.01": "MIA found at 1 %",
    "label_fidelity": "label fidelity", "auroc_trained_on_real": "AUROC, real", "auroc_trained_on_both": "AUROC, both",
}  # fmt: skip
BY_NUMBER = ("frechet", "frechet_of_real", "kid", "precision", "recall", "density", "coverage")  # of n_compared images


def page(title: str, sets, results: dict, other: dict | None, lines: list[dict], count: int) -> str:
    """The HTML of the page; `sets` are `run.Sets`, results and those of another set as they stand in their file, lines
    those of the table of models, count: pictures a row."""
    script = SORT.read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return fill(
        TEMPLATE, {"estimate": estimate, **wording.FILTERS}, title=title, results=results, sets=sets, lines=lines,
        columns=COLUMNS, by_number=BY_NUMBER, line=results["line"], figures=figures(results),
        other=other, others=figures(other) if other else {},
        sentences=sentences(results), meanings=MEANINGS, better=HIGHER_IS_BETTER, script=script, script_digest=digest,
        units={name: findings.kind_of_units(each) for name, each in sets.records.items()},
        pictures=_pictures(sets, count), pairs=_pairs(sets, results["copies"]["pairs"]),
        artefacts=list(results["shortcuts"]["training"]["rates"]),
    )  # fmt: skip


def beside_real(results: dict) -> list[tuple[str, str, str]]:
    """(figure, of the set, of real images in its place), as text."""
    ceiling = next(iter(results["fidelity"].values()))["ceiling"]
    real = {MEANINGS[name][0]: value for name, value in ceiling.items()}
    real |= {f"MS-SSIM within {label}": each["training"] for label, each in results["ms_ssim"].items()}
    real |= {LABEL: results["use"]["accuracy_on_real"], AREA: results["use"]["auroc_on_test"]["training"]}
    return [(name, estimate(each), estimate(real.get(name))) for name, each in figures(results).items() if each]


def figures(results: dict) -> dict[str, dict | None]:
    """The figures of a set that another is compared by, under the names that people read."""
    every = next(iter(results["fidelity"].values()))["synthetic"]
    use, attacked = results["use"], results["membership"]
    attacked = next(iter(attacked.values())) if attacked else {"auroc": None, "found": {"0.01": None}}
    return {
        **{MEANINGS[name][0]: value for name, value in every.items()},
        **{f"MS-SSIM within {label}": each["synthetic"] for label, each in results["ms_ssim"].items()},
        "copies of training images": results["copies"]["share"],
        LABEL: use["label_fidelity"],
        AREA: use["auroc_on_test"]["synthetic"],
        "the same, trained on these and real ones": use["auroc_on_test"]["training + synthetic"],
        "AUROC of the attack on the model": attacked["auroc"],
        "training images found at 1 % of false alarms": attacked["found"]["0.01"],
    }


def sentences(results: dict) -> list[str]:
    """What the figures say, in a few words each; results as they stand in their file."""
    every_class = next(iter(results["fidelity"]))
    every = results["fidelity"][every_class]
    made, ceiling = every["synthetic"], every["ceiling"]
    use, copies, lines = results["use"], results["copies"], []
    lines.append(
        f"Fréchet distance {estimate(made['frechet'])} to {every['reference']} held-out real images, where real "
        f"training images, equally many, have {estimate(ceiling['frechet'])}."
    )
    shares = [
        f"{name} {made[name]['value'] / max(ceiling[name]['value'], 1e-9):.2f}" for name in ("recall", "coverage")
    ]
    lines.append(f"Variety, as a share of what real images reach: {', '.join(shares)}.")
    lines.append(
        f"A probe of real images sees the intended class in {estimate(use['label_fidelity'])} of synthetic ones and "
        f"is right on {estimate(use['accuracy_on_real'])} of real ones, both the mean over classes."
    )
    if use.get("begun_at_training_images"):  # results of before it was counted have none
        lines.append(
            f"{use['begun_at_training_images']} synthetic images begin at a training image that this probe has learnt: "
            "there their label is its memory too."
        )
    lines.append(
        f"Copies of training images: {estimate(copies['share'])} (after what the limit misses; "
        f"{copies['beyond']['value']:.3f} of the images lie beyond it, and {copies['limit']['found']} of "
        f"{copies['limit']['known']} known copies)."
    )
    auroc = use["auroc_on_test"]
    lines.append(
        f"A probe of synthetic images alone has AUROC {estimate(auroc['synthetic'])} on real test images, one of real "
        f"images {estimate(auroc['training'])}."
    )
    if results["membership"]:
        attacked = results["membership"][every_class]
        lines.append(
            f"Whoever has the model tells training images from others with AUROC {estimate(attacked['auroc'])}, and "
            f"finds {estimate(attacked['found']['0.01'])} of them at 1 % of false alarms."
        )
    hidden, alone = use["auroc_masked"].values()
    lines.append(
        f"With the lesion hidden, the probe of synthetic images has AUROC {estimate(hidden['synthetic'])}, that of "
        f"real ones {estimate(hidden['training'])}; with the lesion alone {estimate(alone['synthetic'])} and "
        f"{estimate(alone['training'])}."
    )
    for name, each in results["shortcuts"].items():
        if each["auroc"] and tells(each["auroc"]):
            lines.append(
                f"Shortcut: hairs, rulers, corners, ink and gel alone tell the label of {name} images, AUROC "
                f"{estimate(each['auroc'])}."
            )
    return lines


def tells(auroc: dict) -> bool:
    """Whether an AUROC is above chance; where every resample is the same, as of 1, its value decides."""
    low = auroc["value"] if auroc["note"] == CONSTANT else auroc["low"]
    return low is not None and low > 0.5


def estimate(each: dict | None) -> str:
    """A figure with its interval, 0.812 (0.790 to 0.834), or with the reason why there is none."""
    if each is None:
        return "–"
    value, low, high, note = (each[key] for key in ("value", "low", "high", "note"))
    digits = 1 if abs(value) >= 10 else 3
    return f"{value:.{digits}f} ({note if low is None else f'{low:.{digits}f} to {high:.{digits}f}'})"


def _pictures(sets, count: int) -> dict[str, list[Thumbnail]]:
    """Synthetic images of each class: the nearest to real training images, those in the middle, the farthest."""
    pictures = {}
    for number, label in enumerate(sets.real.labels):
        rows = np.flatnonzero(sets.classes("synthetic") == number)
        real = sets.features["training"][sets.classes("training") == number]
        apart = distances.nearest(sets.features["synthetic"][rows], real, 1)[:, 0]
        order = rows[np.argsort(apart, kind="stable")]
        middle = max(0, (len(order) - count) // 2)
        chosen = {
            "nearest to real images": order[:count],
            "in the middle": order[middle : middle + count],
            "farthest from real images": order[::-1][:count],
        }
        for name, some in chosen.items():
            pictures[f"{label}, {name}"] = [thumbnail(sets.synthetic, sets.records["synthetic"][at], "") for at in some]
    return pictures


def _pairs(sets, pairs: list[dict]) -> list[tuple[Thumbnail, Thumbnail]]:
    """The nearest pairs: synthetic image and training image, with their similarity."""

    def by_name(name: str) -> dict[str, Record]:
        return {record.image: record for record in sets.records[name]}

    made, real = by_name("synthetic"), by_name("training")
    return [
        (
            thumbnail(sets.synthetic, made[pair["synthetic"]], f"similarity {pair['similarity']:.3f}"),
            thumbnail(sets.real, real[pair["training"]], "nearest training image"),
        )
        for pair in pairs
    ]
