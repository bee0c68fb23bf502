"""Arms: what a classifier is trained on. Everything else (steps, batch, optimiser, seed, judges) an arm shares.

real                      real images only, each seen as often as in hybrid_3: a quarter of the steps
real_equal_steps          real images only, as many steps as every other arm: the baseline
real_augmented            the same with strong augmentation
synthetic                 synthetic images only
hybrid_<r>                r synthetic images for each real one, in every batch and in number, as long as there are
                          so many (the paper's is hybrid_3); each seed draws its own, those of a smaller r or of fewer
                          shots among those of a larger one
hybrid_<r>_light          the same, where a synthetic image weighs a quarter of a real one
hybrid_<r>_judged         the same, where it teaches its class as far as a judge of real images sees it
hybrid_<r>_apart          the same, with batch statistics of its own (fine-tuned MobileNetV2 alone)
all_<r>                   as hybrid_<r> in every batch, from all the synthetic images that there are
all_<r>_light, …          with the same endings
<arm>@<name>              an arm with synthetic images, which takes them from config.sets.<name>: made at another
                          guidance, from other starts or by another model
synthetic_then_real       half of the steps on synthetic images, then half on real ones
real_tested_on_synthetic  no training of its own: what real_equal_steps says of the synthetic images, on the page of
                          every study that has that arm
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from dermjax.data.records import Manifest
from dermjax.errors import UserError
from dermjax.evaluation.findings import record_subgroups

PAPER_RATIO = 3
RATIOS = (0.25, 10.0)
TRUST = {  # endings of a hybrid arm: what of the classifier's config they change
    "": {},
    "light": {"synthetic_weight": 0.25},
    "judged": {"synthetic_targets": "judge"},
    "apart": {"synthetic_statistics": "separate"},
}
BASELINE, TESTED_ON_SYNTHETIC = "real_equal_steps", "real_tested_on_synthetic"


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of training: its share of the steps, and the synthetic images to each real one (None: no real ones).

    limited: whether the ratio holds in number as well, or in batches alone, which draw from all synthetic images.
    changes: of the classifier's own config.
    """

    steps: float
    ratio: float | None
    limited: bool = True
    changes: dict[str, str | float] = field(default_factory=dict)

    @property
    def fraction(self) -> float:
        """The share of synthetic images in a batch."""
        return 1.0 if self.ratio is None else self.ratio / (1 + self.ratio)

    @property
    def draws(self) -> bool:
        """Whether some of the synthetic images are drawn, see `take_ratio`, rather than all taken."""
        return bool(self.limited and self.ratio)


def phases(arm: str) -> tuple[Phase, ...]:
    """Returns the phases of an arm by its name; none for what is only a test.

    Raises:
      UserError: the name is unknown, or its ratio is outside RATIOS.
    """
    name, at, _ = arm.partition("@")
    if name in ARMS and not (at and not any(phase.fraction for phase in ARMS[name])):
        return ARMS[name]
    hybrid = parse_hybrid(arm)
    if hybrid is None or not RATIOS[0] <= hybrid.ratio <= RATIOS[1]:
        known = f"hybrid_<{RATIOS[0]:g} to {RATIOS[1]:g}> or all_<…>, with {', '.join(filter(None, TRUST))} behind"
        raise UserError(f"config.arms: {arm!r} is none of {', '.join(ARMS)}, {known}")
    changes = TRUST[hybrid.trust]
    return (Phase(steps=1.0, ratio=hybrid.ratio, limited=hybrid.kind == "hybrid", changes=changes),)


class Hybrid(NamedTuple):
    """The parts of the name of an arm of real and synthetic images, such as hybrid_3_judged."""

    kind: str
    ratio: float
    trust: str


def synthetic_set(arm: str) -> str:
    """Returns the name of the set that an arm's synthetic images are of, "" for the study's own."""
    return arm.partition("@")[2]


def parse_hybrid(arm: str) -> Hybrid | None:
    """Returns the parts of a hybrid arm's name, None for any other name."""
    arm = arm.partition("@")[0]
    kind, _, rest = arm.partition("_")
    ratio, _, trust = rest.partition("_")
    try:
        return Hybrid(kind, float(ratio), trust) if kind in ("hybrid", "all") and trust in TRUST else None
    except ValueError:
        return None


def hybrid_ratio(arm: str) -> float | None:
    """Returns the synthetic images to each real one of a plain hybrid arm, None for any other name."""
    hybrid = parse_hybrid(arm)
    plain = hybrid and hybrid.kind == "hybrid" and not hybrid.trust and not synthetic_set(arm)
    return hybrid.ratio if plain else None


def shots_of(label: str, shots: int, rare: Mapping[str, int]) -> int:
    """Returns the real training images of a class: `shots`, or those of `rare` where they are fewer; 0 is all."""
    return min(filter(None, (rare.get(label, 0), shots)), default=0)


def take_shots(manifest: Manifest, shots: int, rank: dict[str, float], rare: Mapping[str, int]) -> Manifest:
    """Returns the manifest with `shots_of` training images a class, those of the lowest rank by image.

    Raises:
      UserError: a class has fewer, or `rare` names one that there is not.
    """
    unknown = sorted(set(rare) - set(manifest.labels))
    if unknown:
        raise UserError(f"config.rare.{unknown[0]}: the manifest's classes are {', '.join(manifest.labels)}")
    if not shots and not rare:
        return manifest
    chosen = set()
    for label in manifest.labels:
        images, most = sorted(_training_images(manifest, label), key=rank.__getitem__), shots_of(label, shots, rare)
        if len(images) < most:
            key = f"config.rare.{label}" if most == rare.get(label) else "config.shots"
            raise UserError(f"{key}: {most} images a class, {label} has {len(images)}; take fewer")
        chosen.update(images[: most or None])
    records = tuple(record for record in manifest.records if record.split != "train" or record.image in chosen)
    return Manifest(labels=manifest.labels, root=manifest.root, records=records)


def leave_out(manifest: Manifest, without: Mapping[str, Sequence[str]]) -> Manifest:
    """Returns the manifest without the training images of some subgroups, such as {"tone": ("dark", "brown")}.

    Raises:
      UserError: no training image is of such a subgroup, or a class has no image left.
    """
    if not without:
        return manifest
    kinds = {record.image: record_subgroups(record) for record in manifest.split("train")}
    for kind, names in without.items():
        known = sorted({each[kind] for each in kinds.values() if kind in each})
        unknown = sorted(set(names) - set(known))
        if unknown or not names:
            raise UserError(
                f"config.without.{kind} = {tuple(names)}: training images have {', '.join(known) or 'none'}"
            )
    shown = [record_subgroups(record) for record in manifest.split("test")]
    for kind, name in ((kind, name) for kind, names in without.items() for name in names):
        if all(each.get(kind) != name for each in shown):
            raise UserError(f"config.without.{kind}: no test image is of {name}; nothing could be judged on it")
    gone = {image for image, each in kinds.items() if any(each.get(kind) in names for kind, names in without.items())}
    left = replace(manifest, records=tuple(record for record in manifest.records if record.image not in gone))
    empty = [label for label in manifest.labels if not _training_images(left, label)]
    if empty:
        raise UserError(f"config.without leaves no training image of {empty[0]}; leave less out")
    return left


def take_ratio(synthetic: Manifest, real: Manifest, ratio: float, rank: Mapping[str, float]) -> Manifest:
    """Returns `ratio` synthetic images of each class for each real one, one at least, or as many as there are.

    They are those of the lowest rank by image: the first of a plan are those of its quotas, and of one kind.
    """
    chosen = set()
    for label in real.labels:
        most = max(1, round(ratio * len(_training_images(real, label))))
        chosen.update(sorted(_training_images(synthetic, label), key=rank.__getitem__)[:most])
    records = tuple(record for record in synthetic.records if record.image in chosen)
    return Manifest(labels=synthetic.labels, root=synthetic.root, records=records)


def _training_images(manifest: Manifest, label: str) -> list[str]:
    return [record.image for record in manifest.split("train", label)]


ARMS = {
    "real": (Phase(steps=1 / (1 + PAPER_RATIO), ratio=0.0),),
    BASELINE: (Phase(steps=1.0, ratio=0.0),),
    "real_augmented": (Phase(steps=1.0, ratio=0.0, changes={"augment": "strong"}),),
    "synthetic": (Phase(steps=1.0, ratio=None),),
    "synthetic_then_real": (Phase(steps=0.5, ratio=None), Phase(steps=0.5, ratio=0.0)),
    TESTED_ON_SYNTHETIC: (),
}
