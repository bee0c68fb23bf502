"""The phantoms of a run, as PNG files and a manifest: the same bytes for the same seed, however often it is killed."""

from pathlib import Path

from dermjax import progress
from dermjax.data import digests, images
from dermjax.data.leaks import fingerprints
from dermjax.data.leaks.fingerprints import Fingerprint
from dermjax.data.phantoms.appearance import LABELS
from dermjax.data.phantoms.painting import phantom
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError

# The base model was pretrained on phantoms of the seeds 0 to 9,999,999. Seeds from here on are new to it, so that a
# classifier is never tested on an image that the generator was trained on; each config.seed has a million to itself.
FIRST_SEED = 10_000_000
SEEDS_A_RUN = 1_000_000


def paint(
    workdir: Path, *, per_class: int, size: int, seed: int, validation: float, test: float
) -> tuple[Manifest, list[Fingerprint]]:
    """Writes images/<label>/NNNNN.png of `size` pixels; returns their manifest and their fingerprints.

    Classes are of one size and divided alike: of each, the first round(test * per_class) images are for the test, the
    next for validation. Images that are there already, from a run that was killed, are not written again.
    """
    splits = _splits(per_class, validation, test)
    if not 0 < per_class * len(LABELS) <= SEEDS_A_RUN or seed < 0:
        raise UserError(f"phantoms_per_class {per_class} with seed {seed}: give 1 to 500000, and a seed of 0 or more")
    records, prints, first = [], [], FIRST_SEED + seed * SEEDS_A_RUN
    with progress.bar(per_class * len(LABELS), "painting", "phantoms", 0) as bar:
        for number, split in enumerate(splits):
            for row, label in enumerate(LABELS):
                painted = phantom(first + number * len(LABELS) + row, size, label=label)
                image = f"images/{label}/{number:05d}.png"
                images.write_if_changed(workdir / image, images.encode_png(painted.image))
                record = Record(
                    image=image,
                    sha256=digests.sha256(workdir / image),
                    label=painted.label,
                    split=split,
                    source="phantom",
                    image_manipulation="none",
                    attributes={"caption": painted.caption, "parameters": painted.parameters},
                )
                records.append(record)
                prints.append(fingerprints.from_pixels(painted.image, record.sha256, {}, None))
                bar.update()
    return Manifest(labels=LABELS, root=workdir, records=tuple(records)), prints


def _splits(per_class: int, validation: float, test: float) -> list[str]:
    """The split of each phantom of a class."""
    counts = {"test": round(test * per_class), "validation": round(validation * per_class)}
    counts["train"] = per_class - sum(counts.values())
    shares = {"test": test, "validation": validation, "train": 1}
    short = [name for name, share in shares.items() if share > 0 and counts[name] < 1]
    if short:
        raise UserError(f"phantoms_per_class {per_class}: too few for {', '.join(short)} at these ratios; ask for more")
    return [name for name, count in counts.items() for _ in range(count)]
