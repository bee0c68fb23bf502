"""Verdicts are on the disk when the answer comes, in the file that `curate` reads; agreement is Cohen's."""

import io
import json
import threading

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import cohen_kappa_score

from dermjax.curation import reviews
from dermjax.curation.reviews import Verdict
from dermjax.data.records import Record
from dermjax.studio import review


def shown(client, by="Ada", manifest="generate"):
    return client.get("/api/review/images", params={"manifest": manifest, "by": by}).json()["images"]


def judge(client, sha, verdict, by="Ada", manifest="generate", why=""):
    body = {"manifest": manifest, "by": by, "sha256": sha, "verdict": verdict, "why": why}
    response = client.post("/api/review/verdicts", json=body)
    assert response.json() == {"saved": True}


def test_the_largest_doubt_comes_first(client):
    images = shown(client)
    assert [each["scores"]["label"] for each in images[:3]] == [0.5, 0.562, 0.625]  # a classifier that cannot say
    assert [review.doubt(record(scores, n)) for scores, n in (({"label": 0.5}, 0), ({}, 1), ({}, 3), ({}, 0))] == [
        1.0, 0.5, 0.25, 0.0
    ]  # fmt: skip
    assert all(each["verdict"] == "none" for each in images)


def record(scores, reasons):
    fixed = {"image": "x", "sha256": "a" * 64, "label": "mole", "split": "train", "source": "test"}
    return Record(**fixed, image_manipulation="synthetic", scores=scores, rejected=("hairs", "blur", "noise")[:reasons])


def test_verdicts_are_those_that_curate_reads(client, runs):
    a, b, c, d = (each["sha256"] for each in shown(client)[:4])
    judge(client, a, "keep", why="sharp")
    judge(client, b, "reject")
    judge(client, c, "keep")
    judge(client, c, "unsure")
    judge(client, d, "reject")
    judge(client, d, "none")  # undo
    path = runs / "generate" / review.FILE
    assert reviews.read(str(path)) == {
        a: Verdict(keep=True, by="Ada", why="sharp"),
        b: Verdict(keep=False, by="Ada", why=""),
        c: None,
        d: None,
    }
    assert [each["verdict"] for each in shown(client)[:4]] == ["keep", "reject", "unsure", "none"]
    assert [each["verdict"] for each in shown(client, by="Bo")[:4]] == ["none"] * 4


def test_a_line_that_a_kill_cut_is_lost_alone(client, runs):
    first, second = (each["sha256"] for each in shown(client)[:2])
    judge(client, first, "keep")
    path = runs / "generate" / review.FILE
    whole = path.read_bytes()
    path.write_bytes(whole + json.dumps({"sha256": second, "keep": True})[:20].encode())
    assert [each["verdict"] for each in shown(client)[:2]] == ["keep", "none"]
    judge(client, second, "reject")
    assert path.read_bytes().startswith(whole)
    assert {each.keep for each in reviews.read(str(path)).values()} == {True, False}


def test_a_last_line_without_its_end_counts_and_stays(client, runs):
    """As an editor writes it."""
    first, second = (each["sha256"] for each in shown(client)[:2])
    judge(client, first, "keep")
    path = runs / "generate" / review.FILE
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert [each["verdict"] for each in shown(client)[:2]] == ["keep", "none"]
    judge(client, second, "reject")
    assert [each["verdict"] for each in shown(client)[:2]] == ["keep", "reject"]


def test_what_cannot_be_saved_is_said_not_to_be(client, runs):
    first = shown(client)[0]["sha256"]
    (runs / "generate" / review.FILE).mkdir()
    body = {"manifest": "generate", "by": "Ada", "sha256": first, "verdict": "keep"}
    response = client.post("/api/review/verdicts", json=body)
    assert response.status_code == 507 and "nothing was saved" in response.json()["error"]


def test_every_synthetic_picture_is_marked_in_its_pixels(client):
    for manifest, dark in (("generate", True), ("prepare", False)):
        sha = shown(client, manifest=manifest)[0]["sha256"]
        response = client.get("/api/review/picture", params={"manifest": manifest, "sha256": sha})
        image = np.asarray(Image.open(io.BytesIO(response.content)))
        assert image.shape == (review.SIDE, review.SIDE, 3)
        assert (image[-8:, :60].mean() < 40) == dark  # the strip


def test_kappa_is_that_of_sklearn_and_its_interval_holds_it():
    rng = np.random.default_rng(0)
    one = rng.integers(0, 3, 200)
    other = np.where(rng.random(200) < 0.7, one, rng.integers(0, 3, 200))
    table = np.zeros((3, 3), int)
    np.add.at(table, (one, other), 1)
    found = review.kappa(table)
    assert found["value"] == pytest.approx(cohen_kappa_score(one, other), abs=1e-4)
    assert found["low"] < found["value"] < found["high"] and found["high"] - found["low"] < 0.2
    assert review.kappa(np.diag([5, 4, 0])) == {"value": 1.0, "low": None, "high": None, "n": 9}  # none differs
    assert review.kappa(np.diag([5, 0, 0]))["value"] is None  # one word only: chance explains it all
    assert review.kappa(np.zeros((3, 3), int))["value"] is None


def test_two_reviewers_agree_and_disagree(client):
    images = shown(client)
    for n, each in enumerate(images):
        judge(client, each["sha256"], "keep" if n % 2 else "reject", by="Ada")
        judge(client, each["sha256"], "keep" if n % 2 or n == 0 else "reject", by="Bo")
    answer = client.get("/api/review/agreement", params={"manifest": "generate"}).json()
    assert answer["reviewers"] == {"Ada": 8, "Bo": 8} and answer["file"] == "generate/verdicts.jsonl"
    (pair,) = answer["pairs"]
    assert pair["kappa"]["value"] == 0.75 and pair["kappa"]["n"] == 8
    assert [each["image"] for each in pair["disagreements"]] == [images[0]["image"]]
    assert pair["disagreements"][0]["verdicts"] == ["reject", "keep"]


def test_of_an_image_that_is_not_there_nothing_is_said(client, runs):
    body = {"manifest": "generate", "by": "Ada", "sha256": "0" * 64, "verdict": "keep"}
    assert client.post("/api/review/verdicts", json=body).status_code == 404
    assert not (runs / "generate" / review.FILE).exists()


def test_a_reason_is_kept_and_shown_again(client, runs):
    images = client.get("/api/review/images", params={"manifest": "generate", "by": "Ada"}).json()
    assert images["training"] == "none" and "blur" in images["reasons"]
    sha = images["images"][0]["sha256"]
    said = {"manifest": "generate", "by": "Ada", "sha256": sha, "verdict": "reject", "why": "blur"}
    assert client.post("/api/review/verdicts", json=said).json() == {"saved": True}
    again = client.get("/api/review/images", params={"manifest": "generate", "by": "Ada"}).json()["images"]
    assert [(each["verdict"], each["why"]) for each in again if each["sha256"] == sha] == [("reject", "blur")]


def test_the_nearest_training_image_is_found_whichever_way_round_it_is_held(client, runs, tmp_path):
    """A mirrored copy among the generated images; the run says itself which images the generator learnt."""
    from PIL import Image, ImageOps

    from dermjax.data.digests import sha256

    source, copy = runs / "prepare" / "images" / "003.png", runs / "generate" / "images" / "000.png"
    before = sha256(copy)
    ImageOps.mirror(Image.open(source)).save(copy)
    manifest = runs / "generate" / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace(before, sha256(copy)))
    (runs / "generate" / "config.json").write_text(json.dumps({"training": str(runs / "prepare")}))
    assert client.get("/api/review/images", params={"manifest": "generate", "by": "A"}).json()["training"] == "prepare"
    asked = {"manifest": "generate", "sha256": sha256(copy), "training": "prepare"}
    found = client.get("/api/review/nearest", params=asked).json()
    assert found["sha256"] == sha256(source) and found["bits"] <= 20
    assert client.get("/api/review/nearest", params=asked | {"training": "../prepare"}).status_code == 404
    (runs / "generate" / "config.json").write_text(json.dumps({"training": str(tmp_path)}))
    assert client.get("/api/review/images", params={"manifest": "generate", "by": "A"}).json()["training"] == "none"


def test_the_search_for_the_nearest_image_holds_nobody_up(client, runs, monkeypatch):
    """Asked again and again, it hashes every training image once; meanwhile pictures and verdicts are served."""
    from dermjax.data.leaks import copies

    go, hash_it, hashed = threading.Event(), copies.orientation_hashes, []

    def slowly(pixels):
        go.wait(30)
        hashed.append(pixels)
        return hash_it(pixels)

    monkeypatch.setattr(copies, "orientation_hashes", slowly)
    monkeypatch.setattr(review, "PATIENCE", 0.01)
    sha = shown(client)[0]["sha256"]
    asked = {"manifest": "generate", "sha256": sha, "training": "prepare"}
    for _ in range(3):
        waiting = client.get("/api/review/nearest", params=asked)
        assert waiting.status_code == 503 and "0 of 7 training images have been read" in waiting.json()["error"]
    assert client.get("/api/review/picture", params={"manifest": "generate", "sha256": sha}).status_code == 200
    judge(client, sha, "keep")
    go.set()
    monkeypatch.setattr(review, "PATIENCE", 30)
    assert client.get("/api/review/nearest", params=asked).status_code == 200
    assert len(hashed) == 7 + 1  # one training image is rejected; and the image itself


def test_a_training_image_that_cannot_be_read_is_said(client, runs):
    sha = shown(client)[0]["sha256"]
    (runs / "prepare" / "images" / "003.png").write_bytes(b"changed")
    asked = {"manifest": "generate", "sha256": sha, "training": "prepare"}
    for _ in range(2):
        refused = client.get("/api/review/nearest", params=asked)
        assert refused.status_code == 400 and "003.png" in refused.json()["error"]
