"""What people say overrides the rules and is recorded; a file that says something else is named with its line."""

import json

import pytest

from dermjax.curation import reviews
from dermjax.curation.reviews import Verdict
from dermjax.data.records import Record
from dermjax.errors import UserError

SHA, OTHER = "a" * 64, "b" * 64
RECORD = Record(
    image="x.png", sha256=SHA, label="benign", split="train", source="t", image_manipulation="synthetic",
    rejected=("hairs", "blur"),
)  # fmt: skip


def line(**changed):
    return json.dumps({"sha256": SHA, "keep": True, "by": "Ada", "why": "sharp enough"} | changed)


def written(tmp_path, *lines):
    path = tmp_path / "verdicts.jsonl"
    path.write_text("\n".join(lines))
    return str(path)


def test_the_last_line_on_an_image_counts_and_null_takes_back(tmp_path):
    path = written(tmp_path, line(), line(keep=False, why=""), line(sha256=OTHER), "", line(sha256=OTHER, keep=None))
    assert reviews.read(path) == {SHA: Verdict(keep=False, by="Ada", why=""), OTHER: None}
    assert reviews.read("") == {}


def test_what_editors_and_other_programs_write_is_read(tmp_path):
    fields = {"sha256": SHA, "keep": True, "by": "Ada", "why": "one line\u2028and\x85another"}
    (tmp_path / "v.jsonl").write_bytes(f"\ufeff{json.dumps(fields, ensure_ascii=False)}\r\n".encode())
    assert reviews.read(str(tmp_path / "v.jsonl"))[SHA].why == fields["why"]


def test_kept_and_rejected_by_a_person():
    kept = reviews.apply(RECORD, Verdict(keep=True, by="Ada", why=""))
    assert kept.rejected == () and kept.attributes["verdict"]["overrules"] == ["hairs", "blur"]
    rejected = reviews.apply(RECORD, Verdict(keep=False, by="Ada", why="no lesion"))
    assert rejected.rejected == ("hairs", "blur", "person") and rejected.attributes["verdict"]["why"] == "no lesion"
    assert reviews.apply(RECORD, None) == RECORD


def test_an_earlier_verdict_stands_until_the_file_says_otherwise():
    earlier = Verdict(keep=True, by="Ada", why="")
    record = reviews.apply(RECORD, earlier)
    assert reviews.verdict_on(record, {}) == earlier
    later = Verdict(keep=False, by="Bo", why="")
    assert reviews.verdict_on(record, {SHA: later}) == later
    assert reviews.verdict_on(RECORD, {OTHER: later}) is None
    assert reviews.verdict_on(record, {SHA: None}) is None, "taken back"
    assert "verdict" not in reviews.apply(record, None).attributes


@pytest.mark.parametrize(
    "bad, told",
    [
        ("{", "not JSON"),
        (100_000 * "[", "not JSON"),
        ("[]", "a verdict has"),
        (json.dumps({"sha256": SHA, "keep": True}), "a verdict has"),
        (line(keep="yes"), "keep = 'yes'"),
        (line(sha256="../x"), "sha256 = '../x'"),
        (line(by=3), "by = 3"),
    ],
)
def test_a_bad_line_is_named(tmp_path, bad, told):
    with pytest.raises(UserError, match="line 2") as raised:
        reviews.read(written(tmp_path, line(), bad))
    assert told in str(raised.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        reviews.read(str(tmp_path / "none.jsonl"))
