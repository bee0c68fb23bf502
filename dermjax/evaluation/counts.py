"""How many images there are of each kind, and how many of them each reason rejected, by class."""

from collections.abc import Iterable

from dermjax.data.records import SPLITS, Manifest, Record


def by_class(records: Iterable[Record], classes: tuple[str, ...]) -> dict[str, int]:
    """The number of records of each class."""
    labels = [record.label for record in records]
    return {name: labels.count(name) for name in classes}


def images(prepared: Manifest, generated: Manifest | None, curated: Manifest | None) -> dict[str, dict[str, int]]:
    """By kind and class: the real images of each split, the synthetic ones that were made and that were kept."""
    found = {f"real, {split}": by_class(prepared.split(split), prepared.labels) for split in SPLITS}
    for kind, records in (
        ("synthetic, made", generated and generated.records),
        ("synthetic, kept", curated and curated.split("train")),
    ):
        if records is not None:
            found[kind] = by_class((record for record in records if record.synthetic), prepared.labels)
    return found


def rejections(curated: Manifest) -> dict[str, dict[str, int]]:
    """By reason and class; an image with two reasons counts under both."""
    rejected = [record for record in curated.records if not record.kept]
    reasons = sorted({reason for record in rejected for reason in record.rejected})
    return {
        reason: by_class((record for record in rejected if reason in record.rejected), curated.labels)
        for reason in reasons
    }
