"""A manifest goes to Label Studio and comes back as verdicts; FiftyOne finds every image by its name."""

import json

import pytest

from dermjax.curation import reviews
from dermjax.data import records


def exported(client, chosen, **changed):
    """What Label Studio gives back of the tasks that it was given: a verdict a task."""
    tasks = client.get("/api/review/label_studio", params={"manifest": "generate"}).json()
    for number, (task, verdict) in enumerate(zip(tasks, chosen, strict=False)):
        result = [
            {"from_name": "verdict", "to_name": "image", "type": "choices", "value": {"choices": [verdict]}},
            {"from_name": "reason", "to_name": "image", "type": "textarea", "value": {"text": ["blur"]}},
        ]
        task["id"] = number
        task["annotations"] = [
            {"completed_by": {"email": "ada@clinic"}, "was_cancelled": False, "result": result} | changed
        ]
    return tasks


def sent(client, content):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    headers = {"content-type": "application/octet-stream"}
    return client.post("/api/review/label_studio?manifest=generate", content=body, headers=headers)


def test_tasks_carry_scores_as_predictions_and_come_back_as_verdicts(client, runs):
    tasks = exported(client, ["keep", "reject", "unsure"])
    assert len(tasks) == 8 and tasks[0]["data"]["image"] == "/data/local-files/?d=generate/images/000.png"
    assert tasks[0]["data"]["synthetic"] is True and 0 <= tasks[0]["predictions"][0]["score"] <= 1
    said = [task["predictions"][0]["result"][0]["value"]["choices"] for task in tasks]
    assert said[5] == ["reject"] and said[0] == ["keep"]
    assert sent(client, tasks).json() == {"saved": 3, "left_out": 0}
    verdicts = reviews.read(str(runs / "generate" / "verdicts.jsonl"))
    assert [(each.keep, each.by, each.why) for each in verdicts.values()] == [
        (True, "ada@clinic", "blur"), (False, "ada@clinic", "blur")
    ]  # fmt: skip
    seen = client.get("/api/review/images", params={"manifest": "generate", "by": "ada@clinic"}).json()["images"]
    assert sorted(each["verdict"] for each in seen if each["verdict"] != "none") == ["keep", "reject", "unsure"]
    assert sent(client, exported(client, ["keep"], was_cancelled=True)).json() == {"saved": 0, "left_out": 1}
    other = exported(client, ["keep"], completed_by=3)
    other[0]["data"]["sha256"] = "0" * 64
    assert sent(client, other).json() == {"saved": 0, "left_out": 1}
    assert "<Choice value=" in client.get("/api/review/labelling").json()["xml"]


@pytest.mark.parametrize(
    "content", [b"{", b"[1]", b"[[]]", [{"data": {}}, 1], [{"data": {}, "annotations": [{}]}], b"\xff", b"[" * 100_000]
)
def test_what_is_no_export_saves_nothing(client, runs, content):
    response = sent(client, content)
    assert response.status_code == 400 and "no JSON export of Label Studio" in response.json()["error"]
    half = exported(client, ["keep", "<b>"])
    assert sent(client, half).status_code == 400
    assert not (runs / "generate" / "verdicts.jsonl").exists()


def test_fiftyone_finds_every_image_by_its_name(client, runs):
    labels = client.get("/api/review/fiftyone", params={"manifest": "generate"}).json()
    files = {path.relative_to(runs / "generate").with_suffix("").as_posix() for path in runs.rglob("generate/**/*.png")}
    assert set(labels["labels"]) == files and labels["classes"] == ["mole"]
    first = labels["labels"]["images/000"]
    assert first["label"] == "mole" and first["confidence"] == 0.5 and first["attributes"]["synthetic"] is True
    assert len(records.read(runs / "generate").records) == len(labels["labels"])
