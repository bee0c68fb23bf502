"""`dermjax merge WORKDIR`: the parts of `generate`, `transform` or `curate` become the run that they are shares of.

Place in the flow: parts (`parts`) -> the records in the order of the plan -> workdir/manifest.jsonl, the same records
as those of an undivided run. Of curated parts near-duplicates are found anew, among all images. Records pass through
one by one: what stays in memory is a path, a digest and 256 bytes of hashes an image, and the tables of
`neighbours.Index`. No image is read, but those that a report shows.
"""

import heapq
import json
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dermjax import buckets, parts, run_folder
from dermjax.curation.rules import NUMERIC_VERSION, Rule
from dermjax.data import digests, records
from dermjax.data.leaks import training_images
from dermjax.data.records import Record
from dermjax.errors import UserError
from dermjax.parts import Finished, Part
from dermjax.progress import bar, cost, say
from dermjax.run_folder import write_atomically

CHANGES = "transformations.json"
SECONDS_AN_IMAGE = 1e-3  # of one core, near-duplicates and records; measured to 100,000 images
LIMITS_APART = 1e-6  # relative: what machines of two kinds round otherwise
AGAIN = f"delete the part's {parts.FILE} and run it again"  # it would call itself finished otherwise


@dataclass(frozen=True)
class Share:
    """A finished part with its folder."""

    folder: Path
    finished: Finished

    @property
    def manifest(self) -> Path:
        """The file of its records."""
        return self.folder / records.FILE


def merge(workdir: str, *, any_versions: bool) -> None:
    """Joins the parts in a workdir; any_versions: also those that other versions of packages made.

    Raises:
      UserError: a part is missing, unfinished, of another plan, config or version, or there twice.
    """
    home = Path(workdir).expanduser().absolute()
    if buckets.is_url(workdir):
        home = buckets.local(workdir, lambda key: not buckets.IMAGES.fullmatch(key))
    if not parts.folders(home):
        raise UserError(f"{workdir}: no parts in it; give the --workdir of the parts")
    with run_folder.lock(home, alone=True):
        shares, config = _read(home, any_versions)
        stage, total = shares[0].finished.stage, sum(len(each.finished.places) for each in shares)
        causes = {"parts": [digests.sha256(each.manifest) for each in shares],
                  run_folder.NUMERIC_VERSIONS: {"rules": NUMERIC_VERSION}}  # fmt: skip
        # what an earlier merge, or an undivided run, left there is not taken for these parts'
        run_folder.claim(home, config, hint=f"delete that {run_folder.CONFIG} to merge these parts in its place")
        if run_folder.is_finished(home, records.FILE, causes):
            say(f"merge: {workdir} is merged; nothing to do")
            return
        JOINS[stage](home, shares, config)
        training_images.pass_on([shares[0].folder], home)
        run_folder.mark_finished(home, causes)
        say(f"merge: {total} images of {len(shares)} parts of {stage} in {buckets.shown(home / records.FILE)}")


def _read(home: Path, any_versions: bool) -> tuple[list[Share], dict]:
    """Returns the parts in order, all of them and of one kind, and the config of the whole."""
    folders = parts.folders(home)
    count = max(part.count for part in folders)
    expected = [Part(count, index) for index in range(count)]
    strange = next((part for part in folders if part.count != count), None)
    if strange:
        raise UserError(
            f"{buckets.shown(home)}: {folders[strange].name} is of another division than the other parts; remove either"
        )
    read = {part: parts.read_finished(home / part.folder) for part in expected}
    unfinished = [str(part) for part, finished in read.items() if not finished]
    if unfinished:
        listed = ", ".join(unfinished[:8]) + (f" and {len(unfinished) - 8} more" if len(unfinished) > 8 else "")
        raise UserError(
            f"{buckets.shown(home)}: missing or not finished: {listed}; start with --config.part={unfinished[0]}"
        )
    shares = [Share(home / part.folder, finished) for part, finished in read.items()]
    configs = [_json(each.folder / run_folder.CONFIG) for each in shares]
    versions = [_json(each.folder / run_folder.VERSIONS) for each in shares]
    for part, share, config, version in zip(expected, shares, configs, versions, strict=True):
        if not share.finished.part == config.get("part") == str(part):
            raise UserError(
                f"{buckets.shown(share.folder)}: holds part {share.finished.part}; its name says {part}; rename it back"
            )
        same = {
            "config": (configs[0] | {"part": str(part)}, config),
            "inputs": (_common(shares[0].finished), _common(share.finished)),
            "versions": ({}, {}) if any_versions else (_packages(versions[0]), _packages(version)),
        }
        for what, (first, this) in same.items():
            if first != this:
                hint = "remove its folder and run the part again, or give --any_versions"  # versions.json is kept
                raise UserError(
                    f"{share.folder.name} has other {what} than {shares[0].folder.name} "
                    f"({run_folder.differences(first, this)}); {hint if what == 'versions' else 'make either again'}"
                )
    _check_places(shares)
    return shares, configs[0] | {"part": ""}


def _check_places(shares: Sequence[Share]) -> None:
    """Raises UserError where a place of the plan is in two parts, or in none."""
    total = shares[0].finished.total
    held = sum(len(share.finished.places) + len(share.finished.left_out) for share in shares)
    times = np.zeros(min(total, held + 1), np.int32)  # of a longer plan, one of these places is missing
    for share in shares:
        last = max((*share.finished.places, *share.finished.left_out), default=-1)
        if last >= total:
            raise UserError(f"{share.folder / parts.FILE}: place {last} of a plan of {total}; {AGAIN}")
        places = np.array([*share.finished.places, *share.finished.left_out], np.int64)
        np.add.at(times, places[places < len(times)], 1)
        if times.max(initial=0) > 1:
            raise UserError(
                f"{buckets.shown(share.folder)}: image {int(times.argmax())} of the plan is in another part as well"
            )
        if (have := records.count(share.manifest)) != len(share.finished.places):
            raise UserError(f"{buckets.shown(share.manifest)}: {have} records of {len(share.finished.places)}; {AGAIN}")
    if not times.all():
        raise UserError(f"{shares[0].folder.parent}: image {int(times.argmin())} of the plan is in no part")


def _common(finished: Finished) -> dict:
    """Returns what all parts must have in common."""
    return {"stage": finished.stage, "total": finished.total, **finished.causes}


def _packages(versions: Mapping[str, str]) -> dict[str, str]:
    """Returns the versions of packages alone: hosts may differ in their systems."""
    return {name: version for name, version in versions.items() if name in run_folder.PACKAGES}


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {AGAIN}") from error


def _joined(shares: Sequence[Share]) -> tuple[tuple[str, ...], Path, Iterator[Record]]:
    """Returns the labels and the root of the parts, and their records in the order of the plan, one by one."""
    streams = [records.stream(share.manifest) for share in shares]
    labels, root, _ = streams[0]
    for share, (its_labels, its_root, _) in zip(shares, streams, strict=True):
        if (its_labels, its_root) != (labels, root):
            raise UserError(
                f"{buckets.shown(share.manifest)}: has other labels, or another root, than {shares[0].manifest}"
            )
    return labels, root, _in_order(shares, [lines for _, _, lines in streams])


def _in_order(shares: Sequence[Share], streams: Sequence[Iterator[Any]]) -> Iterator[Any]:
    """Yields what the parts have for each of their places, in the order of the places."""
    placed = [zip(share.finished.places, lines, strict=True) for share, lines in zip(shares, streams, strict=True)]
    return (each for _, each in heapq.merge(*placed, key=lambda pair: pair[0]))


def _join(home: Path, shares: Sequence[Share], config: Mapping) -> None:
    """Writes the records of all parts."""
    records.write_stream(home / records.FILE, *_joined(shares))


def _join_transformed(home: Path, shares: Sequence[Share], config: Mapping) -> None:
    """Writes the records and the outcomes of all parts; their reports stay theirs."""
    outcomes = [_json(share.folder / CHANGES) for share in shares]
    for share, each in zip(shares, outcomes, strict=True):
        if not isinstance(each, list) or len(each) != len(share.finished.places):
            raise UserError(f"{share.folder / CHANGES}: not the outcomes of {share.finished.part}; {AGAIN}")
    write_atomically(home / CHANGES, json.dumps(list(_in_order(shares, list(map(iter, outcomes)))), indent=1) + "\n")
    _join(home, shares, config)


def _join_curated(home: Path, shares: Sequence[Share], config: Mapping) -> None:
    """Judges the records of all parts as one set, and writes them and the report."""
    from dermjax.curation import judging, report  # here, as they import JAX

    limits = _rules(shares)
    labels, root, _ = _joined(shares)
    total = len(hashes := _hashes(shares))
    cost("merge", images=total, seconds=SECONDS_AN_IMAGE * total)
    with bar(total, "merge, near-duplicates", "images", 0) as progress:
        judged = judging.judge(lambda: _joined(shares)[2], hashes, limits, {}, progress.update)
        records.write_stream(home / records.FILE, labels, root, judged)
    training = shares[0].finished.findings["training_images"]
    page = report.page(records.read(home), limits, training, config)
    write_atomically(home / "report.html", page)


def _rules(shares: Sequence[Share]) -> tuple[Rule, ...]:
    """Returns the rules of the first part; UserError where another one has other limits."""
    read = []
    for share in shares:
        try:
            read.append([Rule(**rule) for rule in share.finished.findings["rules"]])
            operator.index(share.finished.findings["training_images"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{share.folder / parts.FILE}: no findings of curate ({error}); {AGAIN}") from error
    first, *others = read
    for share, limits in zip(shares[1:], others, strict=True):
        same = [rule.reason for rule in limits] == [rule.reason for rule in first]
        if not same or not np.allclose([r.limit for r in limits], [r.limit for r in first], LIMITS_APART):
            raise UserError(f"{share.folder.name} measured other limits than {shares[0].folder.name}; {AGAIN}, on a "
                            "machine of the same kind")  # fmt: skip
    return tuple(first)


def _hashes(shares: Sequence[Share]) -> np.ndarray:
    """Returns the hashes of all images in the order of the plan, uint64 [N, 8, 4]."""
    from dermjax.curation import measurements  # here, as it imports JAX

    hashes = np.empty((shares[0].finished.total, 8, 4), np.uint64)
    for share in shares:
        known = measurements.read_hashes(share.folder)
        for place, record in zip(share.finished.places, records.stream(share.manifest)[2], strict=True):
            if record.sha256 not in known:
                raise UserError(f"{share.folder / measurements.FILE}: no hashes of {record.image}; {AGAIN}")
            hashes[place] = known[record.sha256]
    return hashes


JOINS = {"generate": _join, "transform": _join_transformed, "curate": _join_curated}
