"""Review: verdicts of people on a manifest's images, saved at once in the file of `curate`, and how they agree.

The file lies beside the manifest, `verdicts.jsonl`, in the form of `curation.reviews`: the last line on an image
counts. Unsure, and a verdict that is taken back, are lines that take back. Each reviewer's own last line on an image
stays their word; agreement is measured on these.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from starlette.responses import Response

from dermjax import run_folder
from dermjax.curation import reviews
from dermjax.data import images, thumbnails
from dermjax.data.leaks import copies
from dermjax.data.records import Manifest, Record
from dermjax.studio import runs
from dermjax.studio.calls import Field, Refused
from dermjax.studio.folder import Folder, append

FILE = "verdicts.jsonl"
VERDICTS = {"keep": True, "reject": False, "unsure": None, "none": None}
CATEGORIES = ("keep", "reject", "unsure")
UNSURE = "unsure"  # how `why` begins where somebody is
SIDE = 480  # pixels of an image under review
RESAMPLES = 2000
HASHED = 128  # pixels at which images are compared, as curate does
PATIENCE = 1.0  # seconds that a search for the nearest image waits for hashes
# why an image is rejected, by the keys 1 to 9: words of `curation.rules`
REASONS = (
    "blur",
    "noise",
    "colour_cast",
    "hairs",
    "ruler",
    "wrong_number",
    "wrong_tone",
    "other_class",
    "training_copy",
)
FIELDS = {
    "manifest": Field(kind=str, summary="a run with a manifest"),
    "by": Field(kind=str, summary="who says so", least=1, most=60),
}
VERDICT_FIELDS = FIELDS | {
    "sha256": Field(kind=str, summary="of the image", least=64, most=64),
    "verdict": Field(kind=str, summary="none takes an earlier one back", choices=tuple(VERDICTS)),
    "why": Field(kind=str, summary="a reason", default="", most=300),
}


class Review:
    """The verdicts of all manifests of a folder."""

    def __init__(self, folder: Folder):
        self.folder = folder
        self.lock = threading.Lock()
        self.known: dict[str, np.ndarray] = {}  # hashes by digest
        self.hashing = ThreadPoolExecutor(1)  # so that pictures and verdicts do not wait
        self.learning: dict[str, Future] = {}  # of training runs whose images are being hashed

    def images(self, manifest: str, by: str) -> dict:
        """The images, largest doubt first, with what speaks against them and what `by` said before."""
        read, path = self.folder.manifest(manifest), self.folder.path(manifest) if manifest else self.folder.root
        said = self._said(manifest).get(by, {})
        ordered = sorted(read.records, key=lambda record: (-doubt(record), record.image))
        return {
            "images": [
                {
                    "sha256": each.sha256,
                    "image": each.image,
                    "label": each.label,
                    "split": each.split,
                    "synthetic": each.synthetic,
                    "rejected": list(each.rejected),
                    "scores": {name: round(float(score), 4) for name, score in each.scores.items()},
                    "verdict": said.get(each.sha256, ("none", ""))[0],
                    "why": said.get(each.sha256, ("none", ""))[1],
                }
                for each in ordered
            ],
            "reasons": REASONS,
            "training": self.folder.run_of(runs.config_of(path).get("training")) or "none",
        }

    def picture(self, manifest: str, sha256: str) -> Response:
        """An image of a manifest, a JPEG of SIDE pixels a side, with SYNTHETIC in its pixels where a model made it."""
        read, record = self.folder.record(manifest, sha256)
        return Response(thumbnails.jpeg(read, record, SIDE), media_type="image/jpeg")

    def judge(self, manifest: str, by: str, sha256: str, verdict: str, why: str) -> dict:
        """Appends a verdict; when this returns it is on the disk."""
        if all(each.sha256 != sha256 for each in self.folder.manifest(manifest).records):
            raise Refused("there is no such image in this manifest", 404)
        self.save(manifest, [line(sha256, by, verdict, why)])
        return {"saved": True}

    def save(self, manifest: str, lines: Sequence[dict]) -> None:
        """Appends lines to the verdicts of a manifest, all in one."""
        with self.lock:
            append(self._file(manifest), *lines)

    def nearest(self, manifest: str, sha256: str, training: str) -> dict:
        """The training image that is nearest to an image, and by how many of 256 bits of their hashes they differ.

        Whichever way round it is held; below about 20 bits it is a copy, between two photographs 59 or more lie.
        """
        read, record = self.folder.record(manifest, sha256)
        others = self.folder.manifest(training)
        of = [each for each in others.split("train") if each.sha256 != sha256]
        if not of:
            raise Refused("this run has no other training images")
        self._learn(training, others, of)
        turned = np.stack([self._hashes(others, each) for each in of])
        bits = copies.distances(self._hashes(read, record)[None, 0], turned)[0]
        at = int(bits.argmin())
        return {"sha256": of[at].sha256, "image": of[at].image, "label": of[at].label, "bits": int(bits[at])}

    def _learn(self, name: str, manifest: Manifest, of: Sequence[Record]) -> None:
        """Hashes a run's training images, once and in the background; Refused, soon, where that takes longer."""
        if all(each.sha256 in self.known for each in of):
            return
        with self.lock:
            if name not in self.learning or self.learning[name].done():  # also where an image could not be read
                self.learning[name] = self.hashing.submit(lambda: [self._hashes(manifest, each) for each in of])
            learning = self.learning[name]
        try:
            learning.result(PATIENCE)
        except TimeoutError:
            done = sum(each.sha256 in self.known for each in of)
            raise Refused(f"{done} of {len(of)} training images have been read; ask again in a moment", 503) from None

    def _hashes(self, manifest: Manifest, record: Record) -> np.ndarray:
        """The hashes of the eight orientations of an image, uint64 [8, 4], made once for its bytes."""
        if record.sha256 not in self.known:
            self.folder.check(manifest.unchecked_path(record))
            self.known[record.sha256] = copies.orientation_hashes(images.load(manifest.path(record), HASHED))
        return self.known[record.sha256]

    def agreement(self, manifest: str) -> dict:
        """Cohen's kappa of every two reviewers with its interval, and the images that they disagree on."""
        names = {record.sha256: record.image for record in self.folder.manifest(manifest).records}
        said = {by: {sha: verdict for sha, (verdict, _) in of.items() if verdict != "none" and sha in names}
                for by, of in self._said(manifest).items()}  # fmt: skip
        people = sorted(by for by, of in said.items() if of)
        pairs = [
            _pair(one, other, said[one], said[other], names)
            for n, one in enumerate(people)
            for other in people[n + 1 :]
        ]
        return {"reviewers": {by: len(said[by]) for by in people}, "pairs": pairs, "file": self._name(manifest)}

    def _said(self, manifest: str) -> dict[str, dict[str, tuple[str, str]]]:
        """Reviewer -> image -> (the last verdict, why); a last line that a kill left half-written does not count."""
        said: dict[str, dict[str, tuple[str, str]]] = {}
        path = self._file(manifest)
        for number, line in enumerate(run_folder.whole_lines(path) if path.exists() else (), start=1):
            if line.strip():
                fields = reviews.parse(line, f"{self._name(manifest)} line {number}")
                said.setdefault(fields["by"], {})[fields["sha256"]] = (_word(fields), fields["why"])
        return said

    def _file(self, manifest: str) -> Path:
        """The verdicts file of a manifest, which may not be there yet; a link in its place is Refused."""
        path = self.folder.path(manifest) / FILE if manifest else self.folder.root / FILE
        if path.is_symlink():
            raise Refused(f"{FILE} is a link; replace it by a file", 403)
        return path

    def _name(self, manifest: str) -> str:
        return "/".join(filter(None, (manifest, FILE)))


def line(sha256: str, by: str, verdict: str, why: str) -> dict:
    """A verdict as its file has it."""
    why = f"{UNSURE}: {why}".rstrip(": ") if verdict == "unsure" else why
    return {"sha256": sha256, "keep": VERDICTS[verdict], "by": by, "why": why}


def doubt(record: Record) -> float:
    """How much a person's word is worth on an image, in [0, 1].

    A classifier that gives half to its label is in the largest doubt. A rule that rejects may err, one more than
    several that agree; an image that nothing is known of is in the least.
    """
    label = record.scores.get("label")
    unsure = 1 - abs(2 * float(label) - 1) if label is not None and 0 <= label <= 1 else 0.0
    return max(unsure, 1 / (1 + len(record.rejected)) if record.rejected else 0.0)


def kappa(table: np.ndarray) -> dict:
    """Cohen's kappa of counts [C, C], the one reviewer in rows, with a 95 % interval over images drawn again.

    value None where chance alone explains all: no image, or both use one word only. low and high None where the images
    drawn again do not differ, as where the two agree on every one: that says nothing of the next.
    """
    n = int(table.sum())
    value = float(_kappas(table[None])[0]) if n else np.nan
    if not np.isfinite(value):
        return {"value": None, "low": None, "high": None, "n": n}
    drawn = np.random.default_rng(0).multinomial(n, table.ravel() / n, RESAMPLES).reshape(-1, *table.shape)
    again = _kappas(drawn)
    again = again[np.isfinite(again)]
    if not len(again) or np.ptp(again) == 0:
        return {"value": round(value, 4), "low": None, "high": None, "n": n}
    low, high = np.percentile(again, (2.5, 97.5))
    return {"value": round(value, 4), "low": round(float(low), 4), "high": round(float(high), 4), "n": n}


def _kappas(tables: np.ndarray) -> np.ndarray:
    """Kappa of each of counts [R, C, C]; NaN where agreement by chance is complete."""
    shares = tables / tables.sum((1, 2), keepdims=True)
    observed = np.trace(shares, axis1=1, axis2=2)
    chance = (shares.sum(1) * shares.sum(2)).sum(1)
    usual = chance < 1
    return np.where(usual, (observed - chance) / np.where(usual, 1 - chance, 1), np.nan)


def _pair(one: str, other: str, first: dict[str, str], second: dict[str, str], names: dict[str, str]) -> dict:
    both = sorted(first.keys() & second.keys(), key=names.__getitem__)
    table = np.zeros((len(CATEGORIES), len(CATEGORIES)), int)
    place: Callable[[str], int] = CATEGORIES.index
    for sha in both:
        table[place(first[sha]), place(second[sha])] += 1
    differing = [
        {"sha256": sha, "image": names[sha], "verdicts": [first[sha], second[sha]]}
        for sha in both
        if first[sha] != second[sha]
    ]
    return {"reviewers": [one, other], "kappa": kappa(table), "disagreements": differing}


def _word(fields: dict) -> str:
    """The verdict of a line, as VERDICTS has it."""
    if fields["keep"] is None:
        return "unsure" if fields["why"].startswith(UNSURE) else "none"
    return "keep" if fields["keep"] else "reject"
