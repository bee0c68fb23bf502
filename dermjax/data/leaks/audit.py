"""Whether anything leaks: between the splits of manifests, from a generator's training images, from synthetic images.

Place in the flow: any manifests -> findings -> `dermjax audit` prints them, `classify` and `evaluate` refuse to go on.

All manifests are taken as one. Give the manifest that a generator was tuned on beside the one that a classifier is
evaluated on, and what both use is found. Every file is read: its bytes must be those that the manifest names, and
near-duplicates are found by their fingerprints, also mirrored, turned and cropped. Where `prepare` left the
fingerprints of the same bytes beside its manifest, the image is not decoded again. Where a list of the generator's
training images lies beside a manifest (`training_images`), that list is a training set as well. Records that curation
or `prepare` rejected take no part, as no stage uses them.
"""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dermjax import machine, progress
from dermjax.data import digests, records, splits
from dermjax.data.leaks import duplicates, fingerprints, training_images
from dermjax.data.leaks.fingerprints import Fingerprint
from dermjax.data.records import SPLITS, Manifest, Record
from dermjax.errors import UserError

MEANINGS = {
    "file": "the file is not what the manifest says",
    "synthetic": "a synthetic image outside of train",
    "isic_id": "one photograph of the ISIC archive on two sides",
    "sha256": "the same bytes on two sides",
    "lesion_id": "one lesion on two sides",
    "patient_id": "one patient on two sides",
    "duplicates": "images that their publisher calls duplicates, on two sides",
    "near": "near-duplicates on two sides",
}


@dataclass(frozen=True)
class Entry:
    """A kept record with its file, or with its fingerprint where a list of training images has it."""

    record: Record
    path: Path
    fingerprint: Fingerprint | None = None

    def __str__(self) -> str:
        if self.fingerprint:
            return f"{self.record.image} (seen by the generator, in {self.path})"
        return f"{self.path} ({self.record.split})"

    @property
    def identities(self) -> list[tuple[str, str]]:
        """What ties it to others: the record's identities, and the images that a synthetic one started from, or was
        transformed from: by way of a sketch."""
        generation = self.record.generation
        starts = (generation.get("init_image"), generation.get("transformation", {}).get("of_sha256"))
        return splits.identities(self.record) + [("sha256", start) for start in starts if start]


def show(*paths: str) -> None:
    """Prints what leaks in and between manifests; raises UserError when anything does."""
    manifests = [records.read_unaudited(Path(path)) for path in paths]
    entries, findings = _examine(manifests)
    for kind, meaning in MEANINGS.items():
        print(f"{kind:11}{len(findings[kind]):6}  {meaning}")
        for names in findings[kind]:
            print(" " * 19 + ", ".join(names).encode("utf-8", "backslashreplace").decode())  # names need not be UTF-8
    count = sum(map(len, findings.values()))
    if count:
        raise UserError(f"{count} findings in {len(entries)} images, listed above; mend or remove these images")
    training = sum(bool(entry.fingerprint) for entry in entries)
    print(f"nothing leaks: {len(entries) - training} images in {', '.join(paths)}")
    if training:
        print(f"nor does any of {training} images that the generator saw stand in validation or test")
    for manifest in manifests:
        if any(record.synthetic for record in manifest.records) and not _training_images(manifest):
            print(f"{manifest.home}: no list of what its generator saw; give the manifest that it was tuned on as well")


def refuse(manifests: Sequence[Manifest]) -> None:
    """Raises UserError with the first finding and the number of all where anything leaks between manifests."""
    _, findings = _examine(manifests)
    all_findings = [f"{MEANINGS[kind]}: {', '.join(names)}" for kind, of_kind in findings.items() for names in of_kind]
    if all_findings:
        count = f"findings in all: {len(all_findings)}"
        raise UserError(f"{all_findings[0]}; {count}, which dermjax audit lists; mend them and prepare")


def _training_images(manifest: Manifest) -> list[Entry]:
    """The generator's training images, where a list of them lies beside the manifest."""
    path = manifest.home and manifest.home / training_images.FILE
    return [Entry(each.record, path, each.fingerprint) for each in training_images.read(path.parent)] if path else []


def _entries(manifests: Sequence[Manifest]) -> list[Entry]:
    """The kept records of all manifests and their generators' training images, equal ones of one side once."""
    entries = {}
    for manifest in manifests:
        for record in manifest.records:
            if record.kept:
                path = manifest.unchecked_path(record)
                entries.setdefault((os.path.realpath(path), record.split, record.sha256), Entry(record, path))
        for entry in _training_images(manifest):
            entries.setdefault((training_images.FILE, entry.record.image, entry.record.sha256), entry)
    return list(entries.values())


def _examine(manifests: Sequence[Manifest]) -> tuple[list[Entry], dict[str, list[tuple[str, ...]]]]:
    """What was examined, and by kind, in the order of MEANINGS, the images of each finding, one or two of them."""
    entries, known = _entries(manifests), fingerprints.read_beside(manifests)
    with progress.bar(len(entries), "audit", "images", 0) as bar:
        prints = list(machine.map_in_threads(partial(_fingerprint, known), entries, bar.update))
    findings = {kind: [] for kind in MEANINGS}
    findings["file"] = [(fault,) for fault in prints if isinstance(fault, str)]
    findings["synthetic"] = [(str(entry),) for entry in entries if records.misplacement(entry.record)]
    holders = defaultdict(list)
    for entry in entries:
        for identity in entry.identities:
            holders[identity].append(entry)
    for (kind, _), members in holders.items():
        findings[kind] += _crossings(members)
    sound = [(entry, each) for entry, each in zip(entries, prints, strict=True) if isinstance(each, Fingerprint)]
    near = fingerprints.near_duplicates([each for _, each in sound])
    groups = defaultdict(list)
    for (entry, _), group in zip(sound, duplicates.group(near, [[] for _ in sound]).tolist(), strict=True):
        groups[group].append(entry)
    for members in groups.values():
        if len({entry.record.sha256 for entry in members}) > 1:  # else it is a finding by its bytes
            findings["near"] += _crossings(members)
    return entries, {kind: sorted(of_kind) for kind, of_kind in findings.items()}


def _crossings(members: Sequence[Entry]) -> list[tuple[str, str]]:
    """Every member in another split than the last split among them, beside the first member of that."""
    anchor = max(members, key=lambda entry: SPLITS.index(entry.record.split))
    return [(str(anchor), str(entry)) for entry in members if entry.record.split != anchor.record.split]


def _fingerprint(known: Mapping[str, Fingerprint], entry: Entry) -> Fingerprint | str:
    """The fingerprint of an entry's file, or what is wrong with the file."""
    digest = entry.record.sha256
    if entry.fingerprint:
        return entry.fingerprint
    try:
        if digests.cached_sha256(entry.path) != digest:
            return f"{entry.path}: not the bytes that the manifest names"
        return known.get(digest) or fingerprints.from_file(entry.path, digest, None)
    except UserError as error:
        return str(error)
