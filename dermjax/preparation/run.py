"""`prepare`: a folder of labelled images, or phantoms -> manifest.jsonl with leak-free splits, and report.html.

The user's images are read where they lie and never copied, unless hairs are to be taken out of them. The manifest is
written last: where it stands, the stage is finished.
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from ml_collections import ConfigDict

from dermjax import machine, progress
from dermjax.data import digests, images, records, splits
from dermjax.data.archives import folders, hdf5, tfds
from dermjax.data.archives.table_records import TableOptions
from dermjax.data.imaging import hair
from dermjax.data.leaks import fingerprints
from dermjax.data.phantoms.appearance import LABELS
from dermjax.data.phantoms.painting import SIDES, phantom
from dermjax.data.records import SPLITS, Manifest, Record
from dermjax.data.splits import COPY, SYNTHETIC, SplitSettings
from dermjax.errors import UserError
from dermjax.preparation import listing, report
from dermjax.preparation.examination import examine
from dermjax.preparation.report import Findings
from dermjax.run_folder import write_atomically

COPIES, MASKS = "images", "masks"  # of photographs without hairs, in the workdir
CELL = 16  # pixels; the side of phantoms is a multiple, as images are compared in cells
PHANTOMS_A_SECOND = 90  # one core at 128 px
# The base model was pretrained on phantoms of the seeds 0 to 9,999,999. Seeds from here on are new to it, so that a
# classifier is never tested on an image that the generator was trained on; each config.seed has a million to itself.
FIRST_SEED = 10_000_000
SEEDS_A_RUN = 1_000_000


def run(config: ConfigDict, workdir: Path) -> None:
    """Writes the manifest and the report of config.images into the workdir."""
    if (workdir / records.FILE).exists():
        progress.say(f"prepare: {workdir / records.FILE} is finished")
        return
    check(config)
    prepare = prepare_phantoms if config.images == "phantoms" else prepare_images
    manifest, findings = prepare(config, workdir)
    write_atomically(workdir / "report.html", report.page(replace(manifest, home=workdir), findings, config.to_dict()))
    records.write(workdir / records.FILE, manifest)
    summarise(manifest, findings)


def check(config: ConfigDict) -> None:
    """UserError for the first setting that cannot be meant, before anything is read."""
    if not config.images:
        raise UserError("config.images is empty; give a folder with class/*.jpg, or phantoms")
    if config.on_bad_image not in ("fail", "skip"):
        raise UserError(f"config.on_bad_image {config.on_bad_image!r}: give fail or skip")
    if config.images == "phantoms" and (config.size % CELL or not SIDES[0] <= config.size <= SIDES[1]):
        raise UserError(f"config.size {config.size}: give the side of phantoms in pixels, a multiple of {CELL} from "
                        f"{SIDES[0]} to {SIDES[1]}")  # fmt: skip
    if config.limit < 0:
        raise UserError(f"config.limit {config.limit}: give the most images a class and split, or 0 for all")
    if config.images == "phantoms":
        unused = [key for key in ("positive", "previous", "own_splits", "remove_hairs") if config[key]]
        unused += [f"columns.{field}" for field, column in config.columns.items() if column]
        if unused:
            raise UserError(f"config.{unused[0]}: is for photographs, phantoms have none of it; leave it out")
    if config.synthetic and (config.images == "phantoms" or config.folds or config.previous):
        raise UserError("config.synthetic: images that a model made are for training alone; leave out phantoms, "
                        "config.folds and config.previous")  # fmt: skip
    if config.folds and config.images == "phantoms":
        raise UserError("config.folds: phantoms have none; give another config.seed for others")
    if config.folds and config.previous:
        raise UserError("config.previous: every fold would test what it has for the test; leave it or config.folds out")
    if config.fold and not config.folds:
        raise UserError(f"config.fold {config.fold}: of how many? give config.folds")
    if config.folds and not (config.folds > 1 and 0 <= config.fold < config.folds):
        raise UserError(f"config.fold {config.fold} of {config.folds}: give 2 folds or more, and a fold from 0 on")
    shares = (config.ratios.validation, config.ratios.test)
    if not (min(shares) >= 0 and sum(shares) < 1):  # NaN is neither
        raise UserError(
            f"config.ratios {shares}: give shares of 0 or more for validation and test that leave some to train"
        )


def prepare_phantoms(config: ConfigDict, workdir: Path) -> tuple[Manifest, Findings]:
    """Paints phantoms as workdir/images/<label>/NNNNN.png: the same bytes for the same seed.

    Classes are of one size and divided alike: of each, the first round(ratios.test * phantoms_per_class) images are for
    the test, the next for validation. Images that are there already, from a run that was killed, are not written again.
    """
    per_class = min(config.phantoms_per_class, config.limit or config.phantoms_per_class)
    count = per_class * len(LABELS)
    progress.cost("prepare", phantoms=count, seconds=count / PHANTOMS_A_SECOND * (config.size / 128) ** 2)
    divided = divide(per_class, config.ratios.validation, config.ratios.test)
    if not 0 < count <= SEEDS_A_RUN or config.seed < 0:
        raise UserError(
            f"phantoms_per_class {config.phantoms_per_class} with seed {config.seed}: give 1 to 500000, and a seed of "
            "0 or more"
        )
    painted, prints, first = [], [], FIRST_SEED + config.seed * SEEDS_A_RUN
    with progress.bar(count, "painting", "phantoms", 0) as bar:
        for number, split in enumerate(divided):
            for row, label in enumerate(LABELS):
                each = phantom(first + number * len(LABELS) + row, config.size, label=label)
                image = f"images/{label}/{number:05d}.png"
                images.write_if_changed(workdir / image, images.encode_png(each.image))
                record = Record(
                    image=image,
                    sha256=digests.sha256(workdir / image),
                    label=each.label,
                    split=split,
                    source="phantom",
                    image_manipulation="none",
                    attributes={"caption": each.caption, "parameters": each.parameters},
                )
                painted.append(record)
                prints.append(fingerprints.from_pixels(each.image, record.sha256, {}, None))
                bar.update()
    write_atomically(workdir / fingerprints.FILE, b"".join(each.line() for each in prints))
    manifest = Manifest(labels=LABELS, root=workdir, records=tuple(painted))
    return manifest, Findings(skipped=(), ignored=(), near=fingerprints.near_duplicates(prints))


def divide(per_class: int, validation: float, test: float) -> list[str]:
    """The split of each phantom of a class."""
    counts = {"test": round(test * per_class), "validation": round(validation * per_class)}
    counts["train"] = per_class - sum(counts.values())
    shares = {"test": test, "validation": validation, "train": 1}
    short = [name for name, share in shares.items() if share > 0 and counts[name] < 1]
    if short:
        raise UserError(f"{per_class} phantoms a class: too few for {', '.join(short)} at these ratios; ask for more")
    return [name for name, count in counts.items() for _ in range(count)]


def prepare_images(config: ConfigDict, workdir: Path) -> tuple[Manifest, Findings]:
    """Lists, examines and divides the images of folders; of a run that is refused its examinations alone stay."""
    for folder in listing.split_paths(config.images):
        if workdir.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"workdir {workdir}: lies in the folder of images, {folder}, and would be read with them; "
                            "give another --workdir")  # fmt: skip
        for place in (workdir / COPIES, workdir / MASKS) if config.remove_hairs else ():
            one, other = place.resolve(), folder.resolve()
            if one.is_relative_to(other) or other.is_relative_to(one):
                raise UserError(f"workdir {workdir}: copies without hairs would lie in {place}, among the images of "
                                f"{folder}; give another --workdir")  # fmt: skip
    options = TableOptions(
        classes=config.classes, skip=config.on_bad_image == "skip", kind=config.image_kind,
        own_splits=config.own_splits, into=workdir,
    )  # fmt: skip
    settings = SplitSettings(
        validation=config.ratios.validation,
        test=1 / config.folds if config.folds else config.ratios.test,
        rotation=config.fold / config.folds if config.folds else 0.0,
        seed=config.seed,
        folds=config.folds,
        stratified=config.stratified,
    )
    try:
        archive = listing.list_images(
            config.images, layout=config.layout, columns=config.columns.to_dict(), positive=config.positive,
            options=options,
        )  # fmt: skip
        chosen = folders.limit(archive.records, config.limit, config.seed)
        if config.synthetic:
            chosen = tuple(replace(each, image_manipulation="synthetic", split="train") for each in chosen)
        hdf5.unpack(archive.root, archive.packed, [record.image for record in chosen])
        previous = splits.placements(records.read(Path(config.previous)).records) if config.previous else {}
        progress.cost("prepare", images=len(chosen), classes=len(archive.labels))
        progress.say(f"prepare: the positive class is {archive.labels[-1]}; config.positive names another")
        examination = examine(chosen, archive.root, config.on_bad_image, config.attributes, workdir)
        near = fingerprints.near_duplicates(examination.fingerprints)
        assigned = examination.records  # of a generator's images, which are all for training
        if not config.synthetic:
            assigned = splits.divide(examination.records, near, settings, previous)
        manifest = Manifest(labels=archive.labels, root=archive.root, records=assigned)
        refuse_gaps(manifest)
        if config.remove_hairs:
            manifest = remove_hairs(manifest, workdir)
    except UserError:
        tfds.discard(workdir)
        raise
    return manifest, Findings(skipped=examination.skipped, ignored=archive.ignored, near=near)


def refuse_gaps(manifest: Manifest) -> None:
    """UserError for a class that lost all its images of one split, as bad images were skipped."""
    for name in SPLITS:
        present = {record.label for record in manifest.split(name)}
        for label in manifest.labels:
            if present and label not in present:
                raise UserError(f"folder {manifest.root}: class {label!r} has no sound image in {name}; add images")


def remove_hairs(manifest: Manifest, workdir: Path) -> Manifest:
    """Writes images/<image>.png without dark hairs for every record; the manifest of these, each tied to its original.
    An ablation, see `imaging.hair`."""

    def copy(record: Record) -> Record:
        image = f"{COPIES}/{record.image}.png"
        pixels = hair.remove_hairs(images.decode(manifest.path(record)))
        images.write_if_changed(workdir / image, images.encode_png(pixels))
        attributes = record.attributes | {"hairs_removed": "as DullRazor", splits.ORIGINAL: record.sha256}
        mask = manifest.mask(record)
        if mask:
            beside = f"{MASKS}/{record.image}{mask.suffix}"
            images.write_if_changed(workdir / beside, mask.read_bytes())
            attributes["mask"] = attributes["mask"] | {"image": beside}
        return replace(record, image=image, sha256=digests.sha256(workdir / image), attributes=attributes)

    copies, count = [], len(manifest.records)
    with ThreadPoolExecutor(machine.cores()) as pool, progress.bar(count, "removing hairs", "images", 0) as bar:
        for record in pool.map(copy, manifest.records):
            copies.append(record)
            bar.update()
    return Manifest(labels=manifest.labels, root=workdir, records=tuple(copies))


def summarise(manifest: Manifest, findings: Findings) -> None:
    """Prints in plain lines how many images there are, and what was left out, changed or set aside."""

    def join(counts: Counter) -> str:
        return ", ".join(f"{count} {name}" for name, count in counts.items())

    for name in SPLITS:
        labels = Counter(record.label for record in manifest.split(name))
        if labels:
            progress.say(f"prepare: {name}: {join(Counter({each: labels[each] for each in manifest.labels}))}")
    ignored = Counter(reason for _, reason in findings.ignored)
    changes = Counter(sorted(change for each in manifest.records for change in each.attributes.get("decoded", ())))
    rejected = Counter(reason for record in manifest.records for reason in record.rejected)
    doubtful = len(report.contradictions(manifest, findings.near))
    for count, line in (
        (len(findings.skipped), "bad images skipped: {}, each with its reason in report.html"),
        (join(ignored), "left out: {}, listed in report.html"),
        (join(changes), "changed wherever they are decoded: {}; recorded in the attributes of each"),
        (rejected[SYNTHETIC], "set aside, as a model made them: {}"),
        (doubtful, "near-duplicates under two classes, shown in report.html: {} pairs; mend a label"),
        (rejected[COPY], "set aside, as they share an image, a lesion or a patient with validation or test images: {}; "
                         "near-duplicates are shown in report.html"),
    ):  # fmt: skip
        if count:
            progress.say(f"prepare: {line.format(count)}")
