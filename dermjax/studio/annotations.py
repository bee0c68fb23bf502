"""Annotations: the same review in the tools that hospitals run. A manifest as tasks of Label Studio, whose export comes
back as verdicts, and as labels of FiftyOne.

Label Studio (labelstud.io/guide/task_format): `data` is shown, `predictions` are what rules and scores say, each
`annotations` entry is one person's word. It serves images below its document root, of folders that a project names as
a local storage, which may not be the document root itself: so that is the folder above RUNS. FiftyOne (its
FiftyOneImageClassificationDataset): `labels.json`, in which an image is named by its path below the images' folder
without the suffix.
"""

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from starlette.responses import Response

from dermjax.data import shards
from dermjax.data.records import DIGEST, Manifest, Record
from dermjax.studio.calls import Refused
from dermjax.studio.folder import Folder
from dermjax.studio.review import CATEGORIES, FIELDS, VERDICT_FIELDS, Review, doubt, line

LABELLING = """<View>
  <Header value="Research use only, not a diagnosis"/>
  <Header value="$kind"/>
  <Header value="$rules"/>
  <Choices name="verdict" toName="image" choice="single" showInline="true" required="true">
    <Choice value="keep" hotkey="k"/><Choice value="reject" hotkey="x"/><Choice value="unsure" hotkey="u"/>
  </Choices>
  <Image name="image" value="$image" zoom="true"/>
  <TextArea name="reason" toName="image" maxSubmissions="1" placeholder="Why"/>
</View>
"""
NO_EXPORT = "this is no JSON export of Label Studio: take JSON or JSON-MIN, of a project with the studio's interface"
IN_TAR = "the images of this run lie in tar files, which other programs do not open; review them here"


class Annotations:
    """The manifests of a folder in the words of other tools."""

    def __init__(self, folder: Folder, review: Review):
        self.folder, self.review = folder, review

    def tasks(self, manifest: str) -> Response:
        """Tasks to import into Label Studio, largest doubt first, with scores as predictions."""
        read = self._manifest(manifest)
        ordered = sorted(read.records, key=lambda record: (-doubt(record), record.image))
        return _file([self._task(read, record) for record in ordered], "label_studio_tasks.json")

    def labelling(self, manifest: str) -> dict:
        """The labelling interface that the tasks belong to, and which folders hold the images.

        storage: the one that Label Studio is to serve; images: the one that FiftyOne is to read. Both by their names
        in the folder that holds the storage.
        """
        root = self.folder.manifest(manifest).root
        storage = self._storage(root)
        return {"xml": LABELLING, "storage": storage.name, "images": root.relative_to(storage.parent).as_posix()}

    def take(self, manifest: str, body: bytes) -> dict:
        """Saves the verdicts of an export of Label Studio; nothing is saved where any of it is no verdict.

        Of one image's annotations the one that was changed last comes last, and counts. Skipped ones, and images that
        are not in the manifest, are left out and counted.
        """
        known = {record.sha256 for record in self.folder.manifest(manifest).records}
        try:
            found = sorted(_annotations(json.loads(body.decode())), key=lambda each: each["updated_at"])
            lines = [_verdict(each) for each in found]
        except Refused:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise Refused(NO_EXPORT) from None
        kept = [each for each in lines if each and each["sha256"] in known]
        self.review.save(manifest, kept)
        return {"saved": len(kept), "left_out": len(lines) - len(kept)}

    def labels(self, manifest: str) -> Response:
        """labels.json of FiftyOne's image classification data sets; data_path is the folder of the images."""
        read = self._manifest(manifest)
        named = {PurePosixPath(each.image).with_suffix("").as_posix(): _label(each) for each in read.records}
        return _file({"classes": list(read.labels), "labels": named}, "labels.json")

    def _manifest(self, name: str) -> Manifest:
        """A manifest whose images are files, as other programs need them."""
        read = self.folder.manifest(name)
        if any(shards.container(Path(each.image)) != Path(each.image) for each in read.records):
            raise Refused(IN_TAR, 409)
        return read

    def _task(self, manifest: Manifest, record: Record) -> dict:
        path = manifest.unchecked_path(record)
        image = f"/data/local-files/?d={quote(path.relative_to(self._storage(path).parent).as_posix())}"
        against = ", ".join(record.rejected)
        data = {"image": image, "file": record.image, "sha256": record.sha256, "label": record.label}
        data |= {"synthetic": record.synthetic, "scores": record.scores}
        data |= {"kind": f"{'SYNTHETIC' if record.synthetic else 'real'}, {record.label}"}
        data |= {"rules": f"Rules speak against it: {against}" if against else "No rule speaks against it"}
        choice = {"choices": ["keep" if record.kept else "reject"]}
        result = [{"from_name": "verdict", "to_name": "image", "type": "choices", "value": choice}]
        prediction = {"model_version": "dermjax", "score": round(1 - doubt(record), 4), "result": result}
        return {"data": data, "predictions": [prediction]}

    def _storage(self, path: Path) -> Path:
        """RUNS, or the folder of photographs where a path lies in that."""
        return next(root for root in self.folder.roots if path.is_relative_to(root))


def _annotations(export: list[dict]) -> Iterator[dict]:
    """The annotations of an export as JSON-MIN has them: an annotation an entry, with its answers and its image."""
    for entry in export:
        if "data" not in entry:
            yield entry
            continue
        for each in entry.get("annotations", []):
            answers = {part["from_name"]: part["value"] for part in each["result"]}
            yield {
                "sha256": entry["data"]["sha256"],
                "verdict": "".join(answers.get("verdict", {}).get("choices", [])) if not each["was_cancelled"] else "",
                "reason": " ".join(answers.get("reason", {}).get("text", [])),
                "annotator": each["completed_by"],
                "updated_at": each["updated_at"],
            }


def _verdict(said: dict) -> dict | None:
    """The line of an annotation, None where it is no verdict; Refused for one that no verdicts file can hold."""
    sha256, verdict, why, by = said["sha256"], said.get("verdict"), said.get("reason", ""), said["annotator"]
    if not verdict:
        return None
    by = by.get("email") or by["id"] if isinstance(by, dict) else by
    by = _one_line(by if isinstance(by, str) else f"Label Studio {by}")
    if not (isinstance(sha256, str) and DIGEST.fullmatch(sha256) and verdict in CATEGORIES):
        raise Refused(NO_EXPORT)
    if not FIELDS["by"].least <= len(by) <= FIELDS["by"].most:
        raise Refused(f"the annotator {by[:20]!r} of an image has a name of {len(by)} characters; give 1 to 60")
    why, most = _one_line(why), int(VERDICT_FIELDS["why"].most)
    return line(sha256, by, verdict, why if len(why) <= most else f"{why[: most - 1]}…")


def _one_line(text: str) -> str:
    """A text that people wrote, without line breaks and what cannot be shown."""
    return "".join(each for each in " ".join(text.split()) if each.isprintable())


def _label(record: Record) -> dict:
    told = {"synthetic": record.synthetic, "split": record.split, "kept": record.kept}
    told |= {"rejected": list(record.rejected)} | {f"score_{name}": score for name, score in record.scores.items()}
    label = record.scores.get("label")
    confidence = {"confidence": label} if isinstance(label, float) and 0 <= label <= 1 else {}
    return {"label": record.label, **confidence, "attributes": told}


def _file(content: Any, name: str) -> Response:
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return Response(json.dumps(content, indent=1), media_type="application/json", headers=headers)
