"""`publish`: a curated manifest -> its kept images in the forms that loaders read, and the card of the data set.

Each form is there in full or not at all, and the card comes last: killed, the same command goes on. The card beside the
forms shows some of the images; those within them do not, as loaders take every image there for one of the set.

What is published was made by a model. A manifest may be mistaken or forged, so each file's own text must say that it is
synthetic, and the file must not be a near-duplicate of a photograph of the training manifest, or of one that the
generator saw, also mirrored, turned or cropped. Whose photograph an image was transformed from is left out, and no file
may name it.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from dermjax import machine, progress
from dermjax.data import export, images, records, thumbnails
from dermjax.data.digests import sha256
from dermjax.data.leaks import fingerprints, training_images
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.evaluation.images import table
from dermjax.publication import card
from dermjax.run_folder import write_atomically
from dermjax.sampling import provenance
from dermjax.weights.tensor_files import read_json

FIGURES = "results.json"  # as `evaluate` leaves it
SHOWN = 6  # images of each class on the card
PRIVATE = ("masks", "mask", "linked_as")  # attributes that name files which are not published
SECONDS_AN_IMAGE = 0.003  # and form, measured on one core at 128 px


def run(config: ConfigDict, workdir: Path) -> None:
    """Writes a folder a form, the manifest and the card; what is there of the same manifest is left as it is."""
    unknown = sorted(set(config.forms) - set(export.FORMS))
    if unknown or not config.forms:
        raise UserError(f"config.forms: {unknown or 'none'}; give some of {', '.join(export.FORMS)}")
    curated = licensed(without_patients(records.read_named(config.manifest, "manifest")), config.licence)
    training = records.read_named(config.training, "training")
    _refuse_uncurated(curated, config.manifest)
    _refuse_unreal(training, config.training)
    text = card.text(
        curated, training, _fidelity(config.evaluation, curated), _evidence(config.evidence, curated), name=config.name,
        licence=config.licence, contact=config.contact, digest=sha256(curated.home / records.FILE),
    )  # fmt: skip
    cards = {workdir / form / export.CARD: text for form in config.forms}
    cards[workdir / export.CARD] = card.with_samples(text)
    if any(path.exists() and path.read_bytes() != export.encoded(content) for path, content in cards.items()):
        raise UserError(f"workdir {workdir}: another data set was published here; give another --workdir or delete it")
    refuse_photographs(curated, training, config.manifest)

    kept = [record for record in curated.records if record.kept]
    missing = [form for form in config.forms if not (workdir / form).exists()]
    size = sum(curated.unchecked_path(record).stat().st_size for record in kept) * len(missing)
    machine.check_disk(workdir, size, f"{len(kept)} images in {len(missing)} forms")
    progress.cost("publish", images=len(kept), forms=len(missing), disk=machine.format_bytes(size),
                  seconds=len(kept) * len(missing) * SECONDS_AN_IMAGE)  # fmt: skip
    for form in missing:
        export.write(curated, workdir / form, form, config.name, text)
    records.write(workdir / records.FILE, replace(curated, home=None), relative=True)
    write_atomically(workdir / card.SAMPLES, _samples(curated))
    write_atomically(workdir / export.CARD, card.with_samples(text))
    progress.say(f"publish: {len(kept)} images as {', '.join(config.forms)}; the card is {workdir / export.CARD}")


def without_patients(manifest: Manifest) -> Manifest:
    """Returns a manifest without what `transform` keeps of photographs, patient, lesion and the file's name, without
    paths of masks, images and links that are not published, and without name and words of who reviewed an image."""

    def anonymous(record: Record) -> Record:
        attributes = {name: value for name, value in record.attributes.items() if name not in PRIVATE}
        if "verdict" in attributes:
            attributes["verdict"] = attributes["verdict"] | {"by": "", "why": ""}
        if isinstance(told := attributes.get("transformation"), dict):
            attributes["transformation"] = {name: value for name, value in told.items() if name not in ("of", "image")}
        return replace(record, lesion_id="", patient_id="", attributes=attributes)

    return replace(manifest, records=tuple(map(anonymous, manifest.records)))


def licensed(manifest: Manifest, licence: str) -> Manifest:
    """Returns a manifest whose images have the licence of the data set, so that its tables say what its card says.

    The licence of the photograph that an image was transformed from holds beside it.
    """

    def of(record: Record) -> str:
        return licence if record.licence in ("", provenance.USE) else f"{licence}; of its photograph: {record.licence}"

    return replace(manifest, records=tuple(replace(each, licence=of(each)) for each in manifest.records))


def refuse_photographs(curated: Manifest, training: Manifest, name: str) -> None:
    """Raises UserError for the first kept image that does not say of itself that it is synthetic, that names the
    photograph that it was transformed from, or that is near to a photograph of the training manifest or to one that
    the generator saw; every file's bytes must be those that its manifest names."""
    kept = [record for record in curated.records if record.kept]
    with ThreadPoolExecutor(machine.cores()) as pool:
        origins = list(pool.map(lambda record: provenance.origin(curated.path(record)) or {}, kept))
    silent = [record for record, own in zip(kept, origins, strict=True) if own.get("synthetic") is not True]
    if silent:
        raise UserError(f"manifest {name}: {silent[0].image} does not say of itself that a model made it (one of "
                        f"{len(silent)} such files); publish files as `generate` wrote them")  # fmt: skip
    told = [*zip(kept, origins, strict=True), *((record, record.generation) for record in curated.records)]
    naming = [record for record, own in told if _names_its_source(own)]
    if naming:
        raise UserError(f"manifest {name}: {naming[0].image} names the photograph that it was transformed from, as "
                        "older versions did; transform again in another --workdir, and curate that")  # fmt: skip
    photographs, known = [each for each in training.records if not each.synthetic], fingerprints.read_beside([training])
    given = {record.sha256 for record in photographs}
    seen = [each for each in training_images.read(curated.home) if each.record.sha256 not in given]
    both = [(curated, record) for record in kept] + [(training, record) for record in photographs]
    with progress.bar(len(both), "comparing with photographs", "images", 0) as bar:
        prints = list(machine.map_in_threads(lambda pair: fingerprints.from_record(*pair, known), both, bar.update))
    prints += [each.fingerprint for each in seen]
    photographs += [each.record for each in seen]
    near = fingerprints.near_duplicates(prints)[:, :2].tolist()
    copies = [(kept[one], photographs[other - len(kept)]) for one, other in near if one < len(kept) <= other]
    if copies:
        copy, photograph = copies[0]
        raise UserError(f"manifest {name}: {copy.image} is nearly equal to the training photograph {photograph.image} "
                        f"(one of {len(copies)} such pairs); put a verdict against each and curate again")  # fmt: skip


def _names_its_source(generation: Mapping) -> bool:
    """Returns whether what an image says of itself names the file that it was transformed from."""
    told = generation.get("transformation")
    return isinstance(told, dict) and "of" in told


def _refuse_unreal(training: Manifest, path: str) -> None:
    """Raises UserError for a training manifest without a training image to compare with, or with synthetic ones."""
    learnt = training.split("train")
    if not learnt or any(record.synthetic for record in learnt):
        fault = "holds synthetic images" if learnt else "has no training image"
        raise UserError(f"config.training {path}: {fault}; give the manifest of the photographs that the generator was "
                        "tuned on, so that no copy of them gets out")  # fmt: skip


def _refuse_uncurated(curated: Manifest, path: str) -> None:
    """Raises UserError for photographs, for what was not curated, and for a manifest of which nothing was kept."""
    photographs = sum(not record.synthetic for record in curated.records)
    if photographs:
        raise UserError(f"manifest {path}: {photographs} photographs in it; `publish` is for images that a model made")
    if not any(record.kept for record in curated.records):
        raise UserError(f"manifest {path}: curation kept no image; there is nothing to publish")
    if any(card.COPY not in record.scores for record in curated.records):
        raise UserError(
            f"manifest {path}: not compared with the training images; publish what `curate` left, so that no copy of a "
            "patient's photograph gets out"
        )


def _fidelity(folder: str, curated: Manifest) -> list[tuple[str, Mapping, Mapping]]:
    """Returns each classifier of an `evaluate` run of the images that are published with its agreement with the labels
    and its accuracy, both means over classes, [] for ""."""
    if not folder:
        return []
    path = Path(folder) / FIGURES
    if not path.is_file():
        raise UserError(f"config.evaluation {folder}: no {FIGURES}; give the workdir of `evaluate`, or leave it empty")
    results = read_json(path)
    if "line" in results:
        raise UserError(f"config.evaluation {folder}: of evaluate.py:images; give it as config.evidence")
    if results.get("synthetic") != table.digest(curated.split("train")):
        raise UserError(f"config.evaluation {folder}: not of the images that are published; evaluate with "
                        "--config.curated=MANIFEST of these")  # fmt: skip
    try:
        runs, fidelity = results["runs"], results["label_fidelity"]
        return [(name, figure, runs[name]["figures"]["balanced_accuracy"]) for name, figure in fidelity.items()]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"config.evaluation {path}: not of `evaluate` ({error!r}); evaluate again") from error


def _evidence(folder: str, curated: Manifest) -> Mapping | None:
    """Returns the results of an `evaluate` run, variant images, of the images that are published, None for ""."""
    if not folder:
        return None
    path = Path(folder) / FIGURES
    if not path.is_file():
        raise UserError(f"config.evidence {folder}: no {FIGURES}; give the workdir of evaluate.py:images, or leave it "
                        "empty")  # fmt: skip
    results = read_json(path)
    line = results.get("line")
    own = {"synthetic": table.digest(curated.split("train")), "version": table.NUMERIC_VERSION}
    if not isinstance(line, dict) or not own.items() <= line.items():
        raise UserError(f"config.evidence {folder}: not of the images that are published, or of an older version; "
                        "evaluate this manifest with evaluate.py:images")  # fmt: skip
    return results


def _samples(curated: Manifest) -> bytes:
    """Returns a PNG file: a row of kept images a class, evenly spaced through the set, each marked as synthetic."""
    kept = [[record for record in curated.records if record.kept and record.label == label] for label in curated.labels]
    chosen = [thumbnails.evenly_spaced(group, SHOWN) for group in kept if group]
    rows = [np.stack([images.load(curated.path(record), thumbnails.SIDE) for record in group]) for group in chosen]
    return images.encode_png(np.asarray(thumbnails.grid(rows)))
