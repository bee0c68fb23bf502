"""A folder in a bucket is worked on as one of this machine; fsspec's own memory stands in for the bucket."""

import hashlib
import json
from pathlib import Path

import fsspec
import pytest
from ml_collections import ConfigDict

from dermjax import buckets, config_file, merge, parts, run_folder
from dermjax.data import records, shards
from dermjax.data.leaks import training_images
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.parts import Finished, Part

CONTENT = {"run/manifest.jsonl": b"a", "run/images/0.png": b"b", "run/part-00000-of-00002/config.json": b"c"}


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """The bucket memory://bucket, which no process has mirrored yet; `new_process()` forgets the mirror."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    memory = fsspec.filesystem("memory")
    memory.store.clear()

    def new_process():
        buckets._mirrors.clear()
        buckets._absent.clear()

    new_process()
    for key, content in CONTENT.items():
        memory.pipe_file(f"memory://bucket/{key}", content)
    memory.new_process = new_process
    yield memory
    new_process()
    memory.store.clear()


def keys(memory):
    return {key.removeprefix("/bucket/") for key in memory.store}


def test_small_files_are_fetched_at_once_and_images_when_they_are_read(bucket):
    path = buckets.local("memory://bucket/run")
    assert [each.name for each in path.rglob("*") if each.is_file()] == ["manifest.jsonl"]
    assert shards.locate(path / "images" / "0.png").read_bytes() == b"b"
    assert not shards.locate(path / "images" / "1.png").exists()
    assert buckets.local("memory://bucket/run/manifest.jsonl") == path / "manifest.jsonl"


def test_what_is_complete_is_in_the_bucket_and_what_fails_is_not(bucket):
    path = buckets.local("memory://bucket/run")
    run_folder.write_atomically(path / "report.html", "page")
    assert bucket.cat_file("memory://bucket/run/report.html") == b"page"
    with pytest.raises(RuntimeError), run_folder.writing(path / "other.html") as file:
        file.write(b"half")
        raise RuntimeError
    assert keys(bucket) == {*CONTENT, "run/report.html"}
    buckets.remove(path / "report.html")
    assert keys(bucket) == set(CONTENT)


def test_a_path_outside_of_buckets_is_left_alone(bucket, tmp_path):
    buckets.local("memory://bucket/run")
    run_folder.write_atomically(tmp_path / "a.txt", "a")
    assert keys(bucket) == set(CONTENT) and not buckets.mirrors(tmp_path / "a.txt")
    assert buckets.local(tmp_path.as_uri()) == tmp_path


@pytest.mark.parametrize("text", ["s3://bucket/run", "gs://b", Path("/tmp").as_uri(), "memory://bucket"])
def test_what_is_a_url(text):
    assert buckets.is_url(text)
    assert not buckets.is_url(text.removeprefix(text.split(":")[0])) and not buckets.is_url("runs/tune")


def test_a_missing_package_and_an_unknown_scheme_are_one_line(bucket, monkeypatch):
    with pytest.raises(UserError, match=r"nosuch://a/b: nothing reads nosuch://"):
        buckets.local("nosuch://a/b")

    def missing(*given, **more):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(UserError, match=r"s3://a/b: s3fs is missing; pip install 'dermjax\[buckets\]'"):
        buckets.local("s3://a/b")


def test_a_bucket_that_cannot_be_read_or_written_is_one_line(bucket, monkeypatch):
    path = buckets.local("memory://bucket/run")

    def refuse(*given, **more):
        raise PermissionError("not allowed\nhere")

    monkeypatch.setattr(type(bucket), "find", refuse)
    with pytest.raises(UserError, match=r"memory://bucket/run: cannot be read \(not allowed\)"):
        buckets.local("memory://bucket/run")
    monkeypatch.setattr(type(bucket), "put_file", refuse)
    with pytest.raises(UserError, match=r"a\.txt: cannot be written \(not allowed\)"):
        run_folder.write_atomically(path / "a.txt", "a")


def test_a_manifest_here_leads_to_images_there_and_to_no_other_server(bucket, tmp_path):
    path = buckets.local("memory://bucket/run")
    image = Record(image="images/0.png", sha256=hashlib.sha256(b"b").hexdigest(), label="a", split="train",
                   source="dermjax", image_manipulation="synthetic")  # fmt: skip
    records.write(tmp_path / records.FILE, Manifest(labels=("a",), root=path, records=(image,)))
    bucket.new_process()
    manifest = records.read(tmp_path)
    assert manifest.path(image).read_bytes() == b"b" and buckets.shown(manifest.root) == "memory://bucket/run"
    (tmp_path / records.FILE).write_text('{"dermjax_manifest": 1, "labels": ["a"], "root": "http://host/a"}\n')
    with pytest.raises(UserError, match=r"http://host/a: nothing reads http://; give s3://"):
        records.read(tmp_path)


def test_a_command_reads_a_manifest_there(bucket, command):
    made = Manifest(labels=("a",), root=buckets.local("memory://bucket/run"), records=())
    records.write(made.root / records.FILE, made)
    bucket.new_process()
    assert command("audit", "memory://bucket/run")[0] == 0
    code, _, error = command("audit", "memory://bucket/none")
    assert (code, len(error.splitlines())) == (2, 1) and "manifest memory://bucket/none: no such file" in error


def test_a_run_knows_what_it_read_there_in_another_process(bucket, tmp_path):
    """A mirror lies elsewhere each time: the claim and the card have the URL."""
    from dermjax.tuning import outputs

    for _ in range(2):
        bucket.new_process()
        manifest = str(buckets.local("memory://bucket/run/manifest.jsonl"))
        config = ConfigDict({"tune": {"manifest": manifest, "prompts": ("a", manifest)}, "size": 64, "model": ""})
        run_folder.claim(tmp_path, config.to_dict())
        run_folder.check_config(tmp_path, config.to_dict(), "")
        first = not (tmp_path / outputs.CARD).exists()
        assert outputs.is_finished(tmp_path, config) == (not first)
        (tmp_path / outputs.CARD).write_text(outputs._settings(config))
    assert manifest not in (tmp_path / "config.json").read_text() + (tmp_path / outputs.CARD).read_text()
    recorded = json.loads((tmp_path / "config.json").read_text())
    assert recorded["tune"] == {"manifest": "memory://bucket/run/manifest.jsonl",
                                "prompts": ["a", "memory://bucket/run/manifest.jsonl"]}  # fmt: skip
    assert recorded["size"] == 64 and recorded["model"] == ""


def test_a_cache_in_a_bucket_is_refused(bucket):
    from dermjax.classification import run as classification
    from dermjax.tuning import run as tuning

    there = str(buckets.local("memory://bucket/kept"))
    tune, classify = config_file.preset("tune", "lora"), config_file.preset("classify", "probe")
    tune.cache = classify.features = there
    with pytest.raises(UserError, match=r"config\.cache = memory://bucket/kept: it is read from a disk; give a folder"):
        tuning.check(tune)
    with pytest.raises(UserError, match=r"config\.features = memory://bucket/kept: they are read from a disk; give a"):
        classification.check(classify)


def test_parts_in_a_bucket_are_merged_there(bucket):
    made = [
        Record(image=f"shards/{place}.tar/a/{place}.png", sha256=f"{place:064x}", label="a", split="train",
               source="dermjax", image_manipulation="synthetic")
        for place in range(4)
    ]  # fmt: skip
    for index in range(2):
        bucket.new_process()
        part = Part(2, index)
        workdir = buckets.local("memory://bucket/merged", lambda key: False)
        run_folder.claim(workdir / part.folder, {"part": str(part)})
        manifest = Manifest(labels=("a",), root=workdir, records=tuple(made[index::2]))
        records.write(workdir / part.folder / records.FILE, manifest)
        (workdir / part.folder / training_images.FILE).write_bytes(b"a line\n")  # as what is appended to, goes at last
        done = Finished(stage="generate", part=str(part), total=4, places=[index, index + 2], left_out=[], causes={},
                        findings={})  # fmt: skip
        parts.finish(workdir / part.folder, done)
    bucket.new_process()
    merge.merge("memory://bucket/merged", any_versions=False)
    bucket.new_process()
    merged = records.read(buckets.local("memory://bucket/merged"))
    assert list(merged.records) == made and merged.root == merged.home
    assert bucket.cat_file(f"memory://bucket/merged/{training_images.FILE}") == b"a line\n"
    header = json.loads(bucket.cat_file("memory://bucket/merged/manifest.jsonl").splitlines()[0])
    assert header["root"] == "."
