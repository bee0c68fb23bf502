"""The reader study: real or synthetic? Blinded, balanced, in an order that follows from a seed, answers kept at once.

A study is one file of the folder, reader_studies/<key>.jsonl: a header with the truth, which stays here until the last
answer, then a line an answer. All images are given out in one size and one compression, under the number of their
place, so that nothing but the picture tells them apart.
"""

import csv
import io
import json
import secrets
import threading
from pathlib import Path

import numpy as np
from PIL import Image
from starlette.responses import Response

from dermjax.data import images
from dermjax.data.records import Manifest, Record
from dermjax.evaluation import intervals
from dermjax.run_folder import whole_lines, write_atomically
from dermjax.studio.calls import Field, Refused
from dermjax.studio.folder import Folder, append

FOLDER = "reader_studies"
QUALITY = 90
KEY = Field(kind=str, summary="of the study", least=8, most=40)
ANSWERS = ("real", "synthetic")
FIELDS = {
    "real": Field(kind=str, summary="a run with a manifest that has real images"),
    "synthetic": Field(kind=str, summary="a run with a manifest that has synthetic images"),
    "reader": Field(kind=str, summary="who answers", least=1, most=60),
    "count": Field(kind=int, summary="images, half of them synthetic", default=40, least=2, most=400),
    "seed": Field(kind=int, summary="of the choice and the order", default=0, most=2**32 - 1),
    "side": Field(kind=int, summary="pixels that every image is shown in", default=256, least=64, most=512),
}
ANSWER_FIELDS = {
    "study": KEY,
    "place": Field(kind=int, summary="of the image", most=1000),
    "answer": Field(kind=str, summary="what the reader takes it for", choices=ANSWERS),
    "seconds": Field(kind=float, summary="that it took", default=0.0, most=86400),
}


class ReaderStudies:
    """The studies of a folder."""

    def __init__(self, folder: Folder):
        self.folder, self.lock = folder, threading.Lock()

    def begin(self, real: str, synthetic: str, reader: str, count: int, seed: int, side: int) -> dict:
        """Draws the images and their order; Refused where there are too few of either kind, or count is odd."""
        if count % 2:
            raise Refused("count: give an even number, half of it is synthetic")
        drawn = []
        rng = np.random.default_rng(seed)
        for name, kind in ((real, "real"), (synthetic, "synthetic")):
            there = _distinct(self.folder.manifest(name), kind == "synthetic")
            if len(there) < count // 2:
                raise Refused(f"{len(there)} {kind} images are there, {count // 2} are needed")
            drawn += [{"manifest": name, "sha256": there[n], "truth": kind}
                      for n in rng.choice(len(there), count // 2, replace=False)]  # fmt: skip
        items = [drawn[n] for n in rng.permutation(count)]
        header = {"reader": reader, "seed": seed, "side": side, "items": items}
        key = secrets.token_hex(8)
        folder = self._home(make=True)
        write_atomically(folder / f"{key}.jsonl", json.dumps(header) + "\n")
        return self.state(key)

    def state(self, study: str) -> dict:
        """How far a study is: the next place is that of the first image without an answer."""
        header, answers = self._read(study)
        count = len(header["items"])
        return {"study": study, "reader": header["reader"], "count": count, "next": len(answers)}

    def picture(self, study: str, place: int) -> Response:
        """The image at a place, a JPEG without a word in it; only up to the one after the next, in their order."""
        header, answers = self._read(study)
        if place > len(answers) + 1 or place >= len(header["items"]):
            raise Refused("this image is not due yet", 404)
        item = header["items"][place]
        manifest = self.folder.manifest(item["manifest"])
        record = next((each for each in manifest.records if each.sha256 == item["sha256"]), None)
        if record is None:
            raise Refused("this image has left its manifest", 404)
        self.folder.check(manifest.unchecked_path(record))
        buffer = io.BytesIO()
        pixels = images.load(manifest.path(record), header["side"])
        Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY)
        return Response(buffer.getvalue(), media_type="image/jpeg")

    def answer(self, study: str, place: int, answer: str, seconds: float) -> dict:
        """Keeps an answer, on the disk when this returns; each image is asked once, in order."""
        with self.lock:
            _, answers = self._read(study)
            if place != len(answers):
                raise Refused("this image has its answer, or is not due yet")
            append(self._file(study), {"answer": answer, "seconds": round(seconds, 2)})
        return self.state(study)

    def result(self, study: str) -> dict:
        """The share of right answers with its exact 95 % interval, also by kind; Refused before the last answer."""
        header, answers = self._finished(study)
        right = [item["truth"] == each["answer"] for item, each in zip(header["items"], answers, strict=True)]
        kinds = {kind: [r for r, item in zip(right, header["items"], strict=True) if item["truth"] == kind]
                 for kind in ANSWERS}  # fmt: skip
        return {"reader": header["reader"], "accuracy": _share(right)} | {k: _share(of) for k, of in kinds.items()}

    def table(self, study: str) -> Response:
        """The answers as CSV, a row an image in their order."""
        header, answers = self._finished(study)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["reader", "seed", "place", "manifest", "sha256", "truth", "answer", "right", "seconds"])
        for place, (item, each) in enumerate(zip(header["items"], answers, strict=True), 1):
            right = int(item["truth"] == each["answer"])
            writer.writerow([_cell(header["reader"]), header["seed"], place, _cell(item["manifest"]), item["sha256"],
                             item["truth"], each["answer"], right, each["seconds"]])  # fmt: skip
        headers = {"content-disposition": f'attachment; filename="reader_study_{study}.csv"'}
        return Response(text.getvalue(), media_type="text/csv; charset=utf-8", headers=headers)

    def _home(self, make: bool = False) -> Path:
        folder = self.folder.root / FOLDER
        if folder.is_symlink():
            raise Refused(f"{FOLDER} is a link; replace it by a folder", 403)
        if make:
            folder.mkdir(exist_ok=True)
        return folder

    def _file(self, study: str) -> Path:
        path = self._home() / f"{study}.jsonl"
        if not study.isalnum() or path.is_symlink() or not path.is_file():
            raise Refused("there is no such study", 404)
        return path

    def _read(self, study: str) -> tuple[dict, list[dict]]:
        """The header and the answers; a last line that a kill left half-written does not count."""
        header, *answers = (json.loads(line) for line in whole_lines(self._file(study)) if line)
        return header, answers

    def _finished(self, study: str) -> tuple[dict, list[dict]]:
        header, answers = self._read(study)
        left = len(header["items"]) - len(answers)
        if left:
            raise Refused(f"the truth comes after the last answer; {left} images are left", 403)
        return header, answers


def _distinct(manifest: Manifest, synthetic: bool) -> list[str]:
    """The digests of the kept images of one kind, each once."""

    def of_kind(record: Record) -> bool:
        return record.synthetic == synthetic and record.kept

    return list(dict.fromkeys(each.sha256 for each in manifest.records if of_kind(each)))


def _share(right: list[bool]) -> dict:
    share = intervals.share(sum(right), len(right))
    return {"value": round(share.value, 4), "low": round(share.low, 4), "high": round(share.high, 4), "n": share.n}


def _cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
