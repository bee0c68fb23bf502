"""Arms: what a classifier is trained on. Everything else (steps, batch, optimiser, seed, judges) an arm shares.

real                      real images only, each seen as often as in hybrid_3: a quarter of the steps
real_equal_steps          real images only, as many steps as every other arm: the baseline
real_augmented            the same with strong augmentation
synthetic                 synthetic images only
hybrid_<r>                r synthetic images for each real one, in every batch and in number, as long as there are
                          so many (the paper's is hybrid_3)
hybrid_<r>_light          the same, where a synthetic image weighs a quarter of a real one
hybrid_<r>_judged         the same, where it teaches its class as far as a judge of real images sees it
hybrid_<r>_apart          the same, with batch statistics of its own (fine-tuned MobileNetV2 alone)
all_<r>                   as hybrid_<r> in every batch, from all the synthetic images that there are
all_<r>_light, …          with the same endings
synthetic_then_real       half of the steps on synthetic images, then half on real ones
real_tested_on_synthetic  no training of its own: what real_equal_steps says of the synthetic images
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from dermjax.data.records import Manifest
from dermjax.errors import UserError

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


def phases(arm: str) -> tuple[Phase, ...]:
    """Returns the phases of an arm by its name; none for what is only a test.

    Raises:
      UserError: the name is unknown, or its ratio is outside RATIOS.
    """
    if arm in ARMS:
        return ARMS[arm]
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


def parse_hybrid(arm: str) -> Hybrid | None:
    """Returns the parts of a hybrid arm's name, None for any other name."""
    kind, _, rest = arm.partition("_")
    ratio, _, trust = rest.partition("_")
    try:
        return Hybrid(kind, float(ratio), trust) if kind in ("hybrid", "all") and trust in TRUST else None
    except ValueError:
        return None


def hybrid_ratio(arm: str) -> float | None:
    """Returns the synthetic images to each real one of a plain hybrid arm, None for any other name."""
    hybrid = parse_hybrid(arm)
    return hybrid.ratio if hybrid and hybrid.kind == "hybrid" and not hybrid.trust else None


def take_shots(manifest: Manifest, shots: int, rank: dict[str, float]) -> Manifest:
    """Returns the manifest with `shots` training images a class, those of the lowest rank by image; 0 is all.

    Raises:
      UserError: a class has fewer.
    """
    if not shots:
        return manifest
    chosen = set()
    for label in manifest.labels:
        images = sorted(_training_images(manifest, label), key=rank.__getitem__)
        if len(images) < shots:
            raise UserError(f"config.shots: {shots} images a class, {label} has {len(images)}; take fewer")
        chosen.update(images[:shots])
    records = tuple(record for record in manifest.records if record.split != "train" or record.image in chosen)
    return Manifest(labels=manifest.labels, root=manifest.root, records=records)


def take_ratio(synthetic: Manifest, real: Manifest, ratio: float | None) -> Manifest:
    """Returns the first `ratio` synthetic images of each class for each real one, or as many as there are."""
    if ratio is None:
        return synthetic
    chosen = set()
    for label in real.labels:
        most = round(ratio * len(_training_images(real, label)))
        chosen.update(_training_images(synthetic, label)[:most])
    records = tuple(record for record in synthetic.records if record.image in chosen)
    return Manifest(labels=synthetic.labels, root=synthetic.root, records=records)


def _training_images(manifest: Manifest, label: str) -> list[str]:
    return [record.image for record in manifest.split("train") if record.label == label]


ARMS = {
    "real": (Phase(steps=1 / (1 + PAPER_RATIO), ratio=0.0),),
    BASELINE: (Phase(steps=1.0, ratio=0.0),),
    "real_augmented": (Phase(steps=1.0, ratio=0.0, changes={"augment": "strong"}),),
    "synthetic": (Phase(steps=1.0, ratio=None),),
    "synthetic_then_real": (Phase(steps=0.5, ratio=None), Phase(steps=0.5, ratio=0.0)),
    TESTED_ON_SYNTHETIC: (),
}
