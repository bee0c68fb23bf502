"""A manifest goes to Label Studio and comes back as verdicts; FiftyOne finds every image by its name.

label_studio/ has what Label Studio 1.23.2 exported of four phantoms, one in JSON and one in JSON-MIN: its user 1 keeps
the first, rejects the second, is unsure of the third and skips the fourth; then user 2 rejects the first two and keeps
the third; then user 1 is unsure of the first.
"""

import json
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from dermjax.curation import reviews
from dermjax.data import records

EXPORTS = Path(__file__).with_name("label_studio")


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
            {"completed_by": {"email": "ada@clinic"}, "was_cancelled": False, "result": result, "updated_at": "2026"}
            | changed
        ]
    return tasks


def sent(client, content):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    headers = {"content-type": "application/octet-stream"}
    return client.post("/api/review/label_studio?manifest=generate", content=body, headers=headers)


def test_tasks_carry_scores_as_predictions_and_come_back_as_verdicts(client, runs):
    tasks = exported(client, ["keep", "reject", "unsure"])
    said = {task["data"]["file"]: task["predictions"][0] for task in tasks}
    assert said["images/005.png"]["result"][0]["value"]["choices"] == ["reject"]
    assert said["images/000.png"]["result"][0]["value"]["choices"] == ["keep"]
    scores = [each["score"] for each in said.values()]
    assert len(tasks) == 8 and scores == sorted(scores) and 0 <= scores[0] <= scores[-1] <= 1
    (first,) = (task["data"] for task in tasks if task["data"]["file"] == "images/005.png")
    assert first["kind"] == "SYNTHETIC, mole" and first["rules"] == "Rules speak against it: hairs, blur"
    assert sent(client, tasks).json() == {"saved": 3, "left_out": 0}
    verdicts = reviews.read(str(runs / "generate" / "verdicts.jsonl"))
    assert [(each.keep, each.by, each.why) for each in verdicts.values() if each] == [
        (True, "ada@clinic", "blur"), (False, "ada@clinic", "blur")
    ]  # fmt: skip
    seen = client.get("/api/review/images", params={"manifest": "generate", "by": "ada@clinic"}).json()["images"]
    assert sorted(each["verdict"] for each in seen if each["verdict"] != "none") == ["keep", "reject", "unsure"]
    assert sent(client, exported(client, ["keep"], was_cancelled=True)).json() == {"saved": 0, "left_out": 1}
    other = exported(client, ["keep"], completed_by=3)
    other[0]["data"]["sha256"] = "0" * 64
    assert sent(client, other).json() == {"saved": 0, "left_out": 1}


@pytest.mark.parametrize("form", ["json", "json_min"])
def test_real_exports_become_the_verdicts_that_people_gave(client, runs, form):
    content = (EXPORTS / f"{form}.json").read_bytes()
    tasks = json.loads((EXPORTS / "json.json").read_bytes())
    digests = [task["data"]["sha256"] for task in tasks]
    manifest = records.read(runs / "generate")
    known = [replace(each, sha256=sha) for each, sha in zip(manifest.records, digests, strict=False)]
    records.write(runs / "generate" / records.FILE, replace(manifest, records=tuple(known)))
    assert sent(client, content).json() == {"saved": 6, "left_out": 1 if form == "json" else 0}
    lines = [json.loads(each) for each in (runs / "generate" / "verdicts.jsonl").read_text().splitlines()]
    assert [(digests.index(each["sha256"]), each["keep"], each["by"], each["why"]) for each in lines] == [
        (1, False, "Label Studio 1", "ruler"),
        (2, None, "Label Studio 1", 'unsure: ärmel "x"'),
        (0, False, "Label Studio 2", "not a mole"),
        (1, False, "Label Studio 2", ""),
        (2, True, "Label Studio 2", ""),
        (0, None, "Label Studio 1", "unsure"),
    ]
    counted = reviews.read(str(runs / "generate" / "verdicts.jsonl"))
    assert {digests.index(sha): each.keep for sha, each in counted.items() if each} == {1: False, 2: True}


def test_label_studio_finds_every_image_below_the_folder_above_the_runs(client, runs, tmp_path):
    """Whatever its name; it refuses a storage that is its document root, so the runs are the storage."""
    old, new = (runs / "generate" / "images" / name for name in ("000.png", "odd name #2 & 50%+ä?.png"))
    old.rename(new)
    manifest = runs / "generate" / records.FILE
    manifest.write_text(manifest.read_text().replace("images/000.png", f"images/{new.name}"), encoding="utf-8")
    told = client.get("/api/review/labelling", params={"manifest": "generate"}).json()
    assert (told["storage"], told["images"]) == ("runs", "runs/generate") and '<Choice value="keep"' in told["xml"]
    for task in client.get("/api/review/label_studio", params={"manifest": "generate"}).json():
        address = urlsplit(task["data"]["image"])
        (named,) = parse_qs(address.query)["d"]
        assert address.path == "/data/local-files/" and not address.fragment
        assert (tmp_path / named).samefile(runs / "generate" / task["data"]["file"])


def test_images_in_tar_files_are_not_for_other_programs(client, runs):
    manifest = runs / "generate" / records.FILE
    manifest.write_text(manifest.read_text().replace("images/000.png", "00000.tar/000.png"))
    for path in ("label_studio", "fiftyone"):
        refused = client.get(f"/api/review/{path}", params={"manifest": "generate"})
        assert refused.status_code == 409 and "tar files" in refused.json()["error"]


@pytest.mark.parametrize(
    "content", [b"{", b"[1]", b"[[]]", [{"data": {}}, 1], [{"data": {}, "annotations": [{}]}], b"\xff", b"[" * 100_000]
)
def test_what_is_no_export_saves_nothing(client, runs, content):
    response = sent(client, content)
    assert response.status_code == 400 and "no JSON export of Label Studio" in response.json()["error"]
    half = exported(client, ["keep", "<b>"])
    assert sent(client, half).status_code == 400
    assert not (runs / "generate" / "verdicts.jsonl").exists()


@pytest.mark.parametrize(
    ("written", "kept"),
    [("hairs,\nand a\u00a0ruler\x00", "hairs, and a ruler"), ("x" * 300, "x" * 300), ("x" * 301, "x" * 299 + "…")],
)
def test_a_reason_as_people_write_it_is_taken_on_one_line(client, runs, written, kept):
    tasks = exported(client, ["reject"])
    tasks[0]["annotations"][0]["result"][1]["value"]["text"] = [written]
    assert sent(client, tasks).json() == {"saved": 1, "left_out": 0}
    assert json.loads((runs / "generate" / "verdicts.jsonl").read_text())["why"] == kept


def test_an_annotator_with_a_long_name_is_named(client, runs):
    response = sent(client, exported(client, ["reject"], completed_by="Ada " * 20))
    assert (
        response.status_code == 400
        and "'Ada Ada Ada Ada Ada ' of an image has a name of 79" in response.json()["error"]
    )


def test_fiftyone_finds_every_image_by_its_name(client, runs):
    labels = client.get("/api/review/fiftyone", params={"manifest": "generate"}).json()
    files = {path.relative_to(runs / "generate").with_suffix("").as_posix() for path in runs.rglob("generate/**/*.png")}
    assert set(labels["labels"]) == files and labels["classes"] == ["mole"]
    first = labels["labels"]["images/000"]
    assert first["label"] == "mole" and first["confidence"] == 0.5 and first["attributes"]["synthetic"] is True
    # each becomes an attribute beside these, and FiftyOne refuses a name twice
    assert not {"label", "confidence", "id", "tags", "logits"} & set(first["attributes"])
    assert first["attributes"]["score_label"] == 0.5
    assert len(records.read(runs / "generate").records) == len(labels["labels"])
