"""Whether anything leaks: between the splits of manifests, from what a generator saw, from synthetic images.

Place in the flow: any manifests -> findings -> `dermjax audit` prints them, `classify` and `evaluate` refuse to go on.

All manifests are looked at as one. Give the manifest that a generator was tuned on beside the one that a classifier is
judged on, and what the generator saw and the evaluation uses is found. Every file is read: its bytes must be those that
the manifest names, and near-duplicates are found by their hashes, also mirrored, turned and cropped. Where `prepare`
left the hashes of the same bytes beside its manifest (`examined`), the image is not decoded again. Where a manifest of
synthetic images lies beside the list of what its generator saw (`seen`), that list is a training set as well. Records
that curation or `prepare` rejected take no part, as no stage uses them.
"""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from dermjax import machine, progress
from dermjax.data import digests, records, splits
from dermjax.data.leaks import duplicates, index, neighbours, training_images
from dermjax.data.leaks.index import Look
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


@dataclass(frozen=True, order=True)
class Finding:
    """Something that makes a result untrue: its kind, a key of MEANINGS, and the images, one or two, with details."""

    kind: str
    images: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """A kept record with its file, or with its look where a generator's list has it."""

    record: Record
    path: Path
    look: Look | None = None

    @property
    def told(self) -> str:
        """The file and its split, as findings name them."""
        if self.look:
            return f"{self.record.image} (seen by the generator, in {self.path})"
        return f"{self.path} ({self.record.split})"

    @property
    def identities(self) -> list[tuple[str, str]]:
        """What ties it to others: its own, and the photograph that a synthetic image was started from."""
        started = self.record.generation.get("init_image")
        return splits.identities(self.record) + ([("sha256", started)] if isinstance(started, str) else [])


def show(*paths: str) -> None:
    """Prints what leaks in and between manifests; raises UserError when anything does."""
    manifests = [records.read_unaudited(Path(path)) for path in paths]
    entries, findings = _find(manifests)
    for kind, meaning in MEANINGS.items():
        of_kind = [finding for finding in findings if finding.kind == kind]
        print(f"{kind:11}{len(of_kind):6}  {meaning}")
        for finding in of_kind:
            told = ", ".join(finding.images).encode("utf-8", "backslashreplace")  # file names need not be UTF-8
            print("".ljust(19) + told.decode())
    if findings:
        raise UserError(f"{len(findings)} findings in {len(entries)} images, listed above; mend or remove these images")
    print(f"nothing leaks: {sum(not entry.look for entry in entries)} images in {', '.join(paths)}")
    shown = sum(bool(entry.look) for entry in entries)
    if shown:
        print(f"nor does any of {shown} images that the generator saw stand in validation or test")
    for manifest in manifests:
        if any(record.synthetic for record in manifest.records) and not seen_beside(manifest):
            print(f"{manifest.home}: no list of what its generator saw; give the manifest that it was tuned on as well")


def refuse(manifests: Sequence[Manifest]) -> None:
    """Raises UserError with the first finding and the number of all where anything leaks between manifests."""
    _, findings = _find(manifests)
    if findings:
        first = findings[0]
        told = f"{MEANINGS[first.kind]}: {', '.join(first.images)}"
        raise UserError(f"{told}; findings in all: {len(findings)}, which dermjax audit lists; mend them and prepare")


def seen_beside(manifest: Manifest) -> list[Entry]:
    """What the generator of a manifest's synthetic images saw, where a list of it lies beside the manifest."""
    listed = training_images.read(manifest.home) if manifest.home else []
    return [Entry(each.record, manifest.home / training_images.FILE, each.look) for each in listed]


def _entries(manifests: Sequence[Manifest]) -> list[Entry]:
    """The kept records of all manifests and what generators saw; one that several hold on one side counts once."""
    found = {}
    for manifest in manifests:
        for record in manifest.records:
            if record.kept:
                path = manifest.place(record)
                found.setdefault((os.path.realpath(path), record.split, record.sha256), Entry(record, path))
        for entry in seen_beside(manifest):
            found.setdefault(("seen", entry.record.image, entry.record.sha256), entry)
    return list(found.values())


def _find(manifests: Sequence[Manifest]) -> tuple[list[Entry], list[Finding]]:
    """What was looked at, and every finding in the order of MEANINGS."""
    entries, known = _entries(manifests), {}
    for home in {manifest.home for manifest in manifests if manifest.home}:
        known |= index.read(home)
    views, cells, faults = _examined(entries, known)
    findings = [Finding("file", (fault,)) for fault in faults if fault]
    findings += [Finding("synthetic", (entry.told,)) for entry in entries if records.is_misplaced(entry.record)]
    holders = defaultdict(list)
    for entry in entries:
        for identity in entry.identities:
            holders[identity].append(entry)
    for (kind, _), members in holders.items():
        findings += _crossings(kind, members)
    sound = [row for row, fault in enumerate(faults) if not fault]
    near = duplicates.confirmed(neighbours.near(views[sound]), cells[sound])
    groups = defaultdict(list)
    for row, group in zip(sound, duplicates.groups(near, [[] for _ in sound]).tolist(), strict=True):
        groups[group].append(entries[row])
    for members in groups.values():
        if len({entry.record.sha256 for entry in members}) > 1:  # else the finding by bytes has said it
            findings += _crossings("near", members)
    order = list(MEANINGS)
    return entries, sorted(findings, key=lambda finding: (order.index(finding.kind), finding.images))


def _crossings(kind: str, members: Sequence[Entry]) -> list[Finding]:
    """A finding for every member on another side than the most judged of them, which it is named with."""
    anchor = max(members, key=lambda entry: SPLITS.index(entry.record.split))
    return [Finding(kind, (anchor.told, entry.told)) for entry in members if entry.record.split != anchor.record.split]


def _examined(entries: Sequence[Entry], known: Mapping[str, Look]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The hashes uint64 [N, V, 4] and cells uint8 [N, C, C, 3] of the files, and what is wrong with each, or ""."""
    views = np.zeros((len(entries), len(duplicates.VIEWS), 4), np.uint64)
    cells = np.zeros((len(entries), duplicates.CELLS, duplicates.CELLS, 3), np.uint8)
    faults = []
    with ThreadPoolExecutor(machine.cores()) as pool, progress.bar(len(entries), "audit", "images", 0) as bar:
        for row, seen in enumerate(pool.map(partial(_look, known), entries)):
            if not isinstance(seen, str):
                views[row], cells[row] = seen.views, seen.cells
            faults.append(seen if isinstance(seen, str) else "")
            bar.update()
    return views, cells, faults


def _look(known: Mapping[str, Look], entry: Entry) -> Look | str:
    """What the file of an entry looks like, or what is wrong with it."""
    digest = entry.record.sha256
    if entry.look:
        return entry.look
    try:
        if digests.cached_sha256(entry.path) != digest:
            return f"{entry.path}: not the bytes that the manifest names"
        return known.get(digest) or index.look(entry.path, digest, measured=False)
    except UserError as error:
        return str(error)
