"""Annotations: the same review in the tools that hospitals run. A manifest as tasks of Label Studio, whose export comes
back as verdicts, and as labels of FiftyOne.

Label Studio (labelstud.io/guide/task_format): `data` is shown, `predictions` are what rules and scores say, each
`annotations` entry is one person's word. FiftyOne (its FiftyOneImageClassificationDataset): `labels.json`, in which an
image is named by its path below the images' folder without the suffix.
"""

import json
from pathlib import Path, PurePosixPath
from typing import Any

from starlette.responses import Response

from dermjax.data.records import DIGEST, Manifest, Record
from dermjax.studio.calls import Refused
from dermjax.studio.folder import Folder
from dermjax.studio.review import CATEGORIES, Review, doubt, line

LABELLING = """<View>
  <Header value="Research use only, not a diagnosis"/>
  <Image name="image" value="$image" zoom="true"/>
  <Choices name="verdict" toName="image" choice="single" showInline="true">
    <Choice value="keep" hotkey="k"/><Choice value="reject" hotkey="x"/><Choice value="unsure" hotkey="u"/>
  </Choices>
  <TextArea name="reason" toName="image" maxSubmissions="1"/>
</View>
"""
NO_EXPORT = "this is no JSON export of Label Studio: a list of tasks, each with its data and annotations"


class Annotations:
    """The manifests of a folder in the words of other tools."""

    def __init__(self, folder: Folder, review: Review):
        self.folder, self.review = folder, review

    def tasks(self, manifest: str) -> Response:
        """Tasks to import into Label Studio, with scores as predictions; images by its local storage, below RUNS."""
        read = self.folder.manifest(manifest)
        return _file([_task(read, record, self.folder.root) for record in read.records], "label_studio_tasks.json")

    def labelling(self) -> dict:
        """The labelling interface that the tasks belong to."""
        return {"xml": LABELLING}

    def take(self, manifest: str, body: bytes) -> dict:
        """Saves the verdicts of an export of Label Studio; nothing is saved where any of it is no verdict.

        Cancelled annotations, and images that are not in the manifest, are left out and counted.
        """
        known = {record.sha256 for record in self.folder.manifest(manifest).records}
        try:
            given = json.loads(body.decode())
            found = [_verdict(task["data"], each) for task in given for each in task.get("annotations", [])]
        except Refused:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise Refused(NO_EXPORT) from None
        kept = [each for each in found if each and each["sha256"] in known]
        self.review.save(manifest, kept)
        return {"saved": len(kept), "left_out": len(found) - len(kept)}

    def labels(self, manifest: str) -> Response:
        """labels.json of FiftyOne's image classification data sets; data_path is the folder of the images."""
        read = self.folder.manifest(manifest)
        named = {PurePosixPath(each.image).with_suffix("").as_posix(): _label(each) for each in read.records}
        return _file({"classes": list(read.labels), "labels": named}, "labels.json")


def _task(manifest: Manifest, record: Record, root: Path) -> dict:
    path = manifest.unchecked_path(record)
    below = path.relative_to(root).as_posix() if path.is_relative_to(root) else record.image
    result: list[dict] = [
        {"from_name": "verdict", "to_name": "image", "type": "choices",
         "value": {"choices": ["keep" if record.kept else "reject"]}},
    ]  # fmt: skip
    if record.rejected:
        reasons = {"text": [", ".join(record.rejected)]}
        result.append({"from_name": "reason", "to_name": "image", "type": "textarea", "value": reasons})
    data = {"image": f"/data/local-files/?d={below}", "file": record.image, "sha256": record.sha256}
    data |= {"label": record.label, "synthetic": record.synthetic, "scores": record.scores}
    prediction = {"model_version": "dermjax", "score": round(1 - doubt(record), 4), "result": result}
    return {"data": data, "predictions": [prediction]}


def _verdict(data: dict, annotation: dict) -> dict | None:
    """The line of an annotation, None where it is no verdict; Refused for one that no verdicts file can hold."""
    if annotation.get("was_cancelled"):
        return None
    values = {each["from_name"]: each["value"] for each in annotation["result"]}
    chosen = values.get("verdict", {}).get("choices", [])
    if not chosen:
        return None
    person = annotation.get("completed_by")
    by = person.get("email") or f"Label Studio {person.get('id')}" if isinstance(person, dict) else person
    by = f"Label Studio {by}" if isinstance(by, int) else by
    why = " ".join(values.get("reason", {}).get("text", []))
    sha256, verdict = data["sha256"], chosen[0]
    fits = isinstance(sha256, str) and DIGEST.fullmatch(sha256) and verdict in CATEGORIES
    if not fits or not _is_short(by, 60) or not _is_short(why, 300):
        raise Refused(f"{NO_EXPORT}, made with the interface that the studio gives")
    return line(sha256, by, verdict, why)


def _is_short(text: Any, most: int) -> bool:
    return isinstance(text, str) and len(text) <= most and text.isprintable()


def _label(record: Record) -> dict:
    told = {"synthetic": record.synthetic, "split": record.split, "kept": record.kept}
    told |= {"rejected": list(record.rejected)} | record.scores
    label = record.scores.get("label")
    confidence = {"confidence": label} if isinstance(label, float) and 0 <= label <= 1 else {}
    return {"label": record.label, **confidence, "attributes": told}


def _file(content: Any, name: str) -> Response:
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return Response(json.dumps(content, indent=1), media_type="application/json", headers=headers)
