"""From predictions to what may be said: the figures of each group, each arm against its baseline, and a verdict.

`evaluate` has one run of each classifier and arm, `study` several seeds, perhaps on several folds. The verdict is read
off one figure that is named beforehand, AUROC, so that the best of several cannot be picked afterwards.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from dermjax.data import splits
from dermjax.data.leaks import duplicates
from dermjax.data.records import Manifest, Record, age_band
from dermjax.evaluation import intervals, metrics
from dermjax.evaluation.intervals import LEVEL, Bootstrap, Estimate, Fold
from dermjax.evaluation.predictions import Predictions

PRIMARY = "auroc"
BALANCED = "balanced_accuracy"
TIES = ("patient_id", "lesion_id")  # what images are drawn together by
ALPHA = 1 - LEVEL
GAIN, LOSS, NONE, UNKNOWN = "gain", "loss", "no gain was shown", "no gain was shown, with too few test images to tell"


class Group(NamedTuple):
    """What is trained alike but for seed and fold: a classifier, its real images a class (0 is all) and its arm."""

    classifier: str
    shots: int
    arm: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """An arm against the baseline, on the same test images: arm - baseline by figure, and McNemar's test.

    p is that of the primary difference, `adjusted` the same for the number of comparisons; one run has none. McNemar's
    test is on the decisions of the mean probability over the seeds.
    """

    group: Group
    baseline: str
    differences: dict[str, Estimate]
    mcnemar: dict[str, float]
    p: float | None
    adjusted: float | None

    @property
    def verdict(self) -> str:
        """GAIN or LOSS when the interval of the primary difference leaves out zero and p, where there is one, stays
        below ALPHA when adjusted; UNKNOWN without an interval, unless nothing differs at all; else NONE."""
        difference = self.differences[PRIMARY]
        if difference.low is None:
            differs = difference.value != 0 if self.p is None else math.isnan(self.p)
            return UNKNOWN if differs else NONE
        if self.adjusted is not None and self.adjusted >= ALPHA:
            return NONE
        return GAIN if difference.low > 0 else LOSS if difference.high < 0 else NONE


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that the predictions say.

    fidelity: how often synthetic images get the class that they were made for, the mean over classes: in that of real
    images, beside which it stands, classes are mixed otherwise.
    """

    classes: tuple[str, ...]
    folds: dict[Group, list[Fold]]
    figures: dict[Group, dict[str, Estimate]]
    comparisons: dict[Group, Comparison]
    fidelity: dict[Group, Estimate]
    units_of_synthetic: str = ""  # what was drawn for `fidelity`, in words
    chosen: tuple[Comparison, ...] = ()  # one arm of each setting, by validation images, adjusted among themselves
    subgroups: dict[tuple[str, str], dict[Group, Estimate]] = field(default_factory=dict)  # AUROC by kind and name
    # figure and difference by name, on further test sets
    elsewhere: dict[str, dict[Group, dict[str, tuple[Estimate, Estimate]]]] = field(default_factory=dict)

    @property
    def settings(self) -> dict[tuple[str, int], list[Group]]:
        """The groups of each classifier and number of real images."""
        settings: dict[tuple[str, int], list[Group]] = {}
        for group in self.figures:
            settings.setdefault(group[:2], []).append(group)
        return settings

    @property
    def units(self) -> str:
        """What was drawn in the bootstraps, in words."""
        return _drawn(self.folds)

    @property
    def observed(self) -> float | None:
        """The share of the positive class among the test images of all folds; None of more classes than two."""
        labels = np.concatenate([fold.seeds[0].labels for fold in next(iter(self.folds.values()))])
        return float(labels.mean()) if len(self.classes) == 2 else None

    def compared(self, groups: list[Group]) -> list[Comparison]:
        """The comparisons of some groups; a baseline has none."""
        return [self.comparisons[group] for group in groups if group in self.comparisons]

    def confusion(self, group: Group) -> np.ndarray:
        """The confusions of the seeds, summed, int [folds, classes, classes]."""
        return np.array([sum(map(metrics.confusion, fold.seeds)) for fold in self.folds[group]])

    def seeds(self, group: Group) -> list[float]:
        """The primary figure of each seed, averaged over folds."""
        return np.mean([fold.spreads[PRIMARY].values for fold in self.folds[group]], axis=0).tolist()


def fold(seeds: list[Predictions], manifest: Manifest, bootstrap: dict[str, int]) -> Fold:
    """The fold of predictions of a manifest's test images.

    bootstrap: the resamples, seed and smallest of `Bootstrap`.
    """
    drawn = drawing(seeds[0].images, manifest.split("test"), bootstrap)
    return Fold(seeds=seeds, classes=manifest.labels, bootstrap=drawn, names=metrics.names(seeds[0]))


def of_synthetic(seeds: list[Predictions], synthetic: Manifest, bootstrap: dict[str, int]) -> Fold:
    """The fold of predictions of synthetic images, for how often each class is seen in what was made for it."""
    drawn = drawing(seeds[0].images, synthetic.records, bootstrap)
    return Fold(seeds=seeds, classes=synthetic.labels, bootstrap=drawn, names=(BALANCED,))


def begun_at(synthetic: Iterable[Record], real: Iterable[Record]) -> int:
    """How many synthetic images begin at one of some real ones: a judge that was trained on these remembers them."""
    known = {record.sha256 for record in real}
    return sum(not known.isdisjoint(_init_images(record)) for record in synthetic)


def drawing(images: Sequence[str], records: Sequence[Record], bootstrap: dict[str, int]) -> Bootstrap:
    """How images of some records are drawn in a bootstrap of such resamples, seed and smallest.

    An image without a record is drawn alone.
    """
    unit_of = dict(zip((record.image for record in records), units(records), strict=True))
    return Bootstrap(
        units=tuple(unit_of.get(image, image) for image in images), kind=kind_of_units(records), **bootstrap
    )


def units(records: Sequence[Record]) -> list[str]:
    """The name of what each image is drawn with: all that shows one patient or one lesion, or begins at one image, else
    the image alone.

    A patient with several lesions is one unit, and so are two patients whom a lesion is said to be of: what images
    share, a resample may not take for two chances. Names are compared as `prepare` does.
    """
    ties = [
        [(name, splits.spelled_alike(getattr(record, name))) for name in TIES if getattr(record, name)]
        + [("init_image", digest) for digest in _init_images(record)]
        for record in records
    ]
    groups = duplicates.group(np.empty((0, 2), np.int64), ties).tolist()
    first: dict[int, str] = {}
    for record, group in zip(records, groups, strict=True):
        name = record.lesion_id or record.image
        first[group] = min(first.get(group, name), name)
    return [first[group] for group in groups]


def _init_images(record: Record) -> list[str]:
    """The digests of what a synthetic image begins at: an init image, and the image that it was transformed from."""
    starts = record.generation.get("init_image"), record.generation.get("transformation", {}).get("of_sha256")
    return [digest for digest in starts if digest]


def _drawn(folds: dict[Group, list[Fold]]) -> str:
    return " or ".join(dict.fromkeys(fold.bootstrap.kind for each in folds.values() for fold in each))


def kind_of_units(records: Iterable[Record]) -> str:
    """What the units of images are, in words: patients, lesions, init images or images, as far as their records name
    them."""
    kinds = {
        "patients" if r.patient_id else "lesions" if r.lesion_id else "init images" if _init_images(r) else "images"
        for r in records
    }
    *others, last = [kind for kind in ("patients", "lesions", "init images", "images") if kind in kinds]
    return f"{', '.join(others)} or {last}" if others else last


def find(
    folds: dict[Group, list[Fold]],
    baseline: str,
    synthetic: dict[Group, list[Fold]],
    *,
    pooled: bool,
    chosen: Collection[Group] = (),
) -> Findings:
    """Every figure, every arm against the baseline of its classifier and size, and label fidelity.

    pooled: groups are means over seeds and folds, with p adjusted by Holm's method; else each is one run.
    chosen: groups that validation images named. They are compared once more, as a family of their own.
    synthetic: predictions of synthetic images by classifiers of real images only, see `of_synthetic`.
    """
    comparisons = {}
    for group, after in folds.items():
        before = folds.get(group._replace(arm=baseline))
        if before and group.arm != baseline:
            differences = intervals.differences(before, after, pooled=pooled)
            comparisons[group] = Comparison(
                group=group,
                baseline=baseline,
                differences={name: estimate for name, (estimate, _) in differences.items()},
                mcnemar=intervals.mcnemar([fold.mean for fold in before], [fold.mean for fold in after]),
                p=differences[PRIMARY][1],
                adjusted=None,
            )
    if pooled:
        comparisons = {each.group: each for each in _adjusted(comparisons.values())}
    return Findings(
        classes=next(iter(folds.values()))[0].classes,
        folds=folds,
        figures={group: intervals.figures(each, pooled=pooled) for group, each in folds.items()},
        comparisons=comparisons,
        fidelity={group: intervals.figures(each, pooled=pooled)[BALANCED] for group, each in synthetic.items()},
        units_of_synthetic=_drawn(synthetic),
        chosen=_adjusted([comparisons[group] for group in chosen if group in comparisons]) if pooled else (),
    )


def _adjusted(family: Collection[Comparison]) -> tuple[Comparison, ...]:
    """Comparisons with p adjusted by Holm's method for their number."""
    adjusted = intervals.holm([each.p for each in family])
    return tuple(replace(each, adjusted=p) for each, p in zip(family, adjusted, strict=True))


def in_subgroup(folds: dict[Group, list[Fold]], images: set[str]) -> dict[Group, Estimate]:
    """AUROC on some of the images, where every class is among them."""
    estimates = {}
    for group, each in folds.items():
        some = [fold.only(images, (PRIMARY,)) for fold in each]
        if len(set(some[0].seeds[0].labels)) == len(some[0].classes):
            estimates[group] = intervals.figures(some, pooled=True)[PRIMARY]
    return estimates


def elsewhere(folds: dict[Group, list[Fold]], baseline: str) -> dict[Group, dict[str, tuple[Estimate, Estimate]]]:
    """Every figure, and its difference from the baseline, on a further test set."""
    estimates = {}
    for group, after in folds.items():
        figures = intervals.figures(after, pooled=True)
        differences = intervals.differences(folds[group._replace(arm=baseline)], after, pooled=True)
        estimates[group] = {name: (figures[name], difference) for name, (difference, _) in differences.items()}
    return estimates


def subgroups(manifest: Manifest) -> dict[tuple[str, str], set[str]]:
    """The test images of each (kind, name), where others are not of it."""
    groups: dict[tuple[str, str], set[str]] = {}
    records = manifest.split("test")
    for record in records:
        for key in record_subgroups(record).items():
            groups.setdefault(key, set()).add(record.image)
    return {key: groups[key] for key in sorted(groups) if len(groups[key]) < len(records)}


def record_subgroups(record: Record) -> dict[str, str]:
    """{kind: name} of the subgroups of a record: tone as measured and as its table says (by Fitzpatrick's types or
    MILK10k's classes), sex, age band, site and source, as far as it says."""
    attributes = record.attributes
    tone = attributes.get("skin_tone", {}).get("group", "") or attributes.get("parameters", {}).get("tone", "")
    try:
        band = age_band(float(attributes.get("age")))
    except (TypeError, ValueError):
        band = ""
    names = {
        "tone": tone,
        "fitzpatrick": str(attributes.get("fitzpatrick", "")),
        "skin_tone_class": str(attributes.get("skin_tone_class", "")),
        "sex": str(attributes.get("sex", "")),
        "age": attributes.get("age_band", "") or band,
        "site": str(attributes.get("site", "")),
        "source": record.source,
    }
    return {kind: name for kind, name in names.items() if name}
