"""What parts leave becomes the records of the whole, in its order; what does not belong together is one line."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace

import numpy as np
import pytest

from dermjax import merge, parts, run_folder
from dermjax.curation import measurements
from dermjax.curation.measurements import Measurement
from dermjax.curation.rules import Rule
from dermjax.data import records
from dermjax.data.leaks import training_images
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.parts import Finished, Part

LABELS = ("benign", "malignant")
CONFIG = {"steps": 4, "part": ""}
MANY = int(os.environ.get("DERMJAX_MERGE_IMAGES", 20_000))


def record(place):
    return Record(image=f"images/{place}.png", sha256=f"{place:064x}", label=LABELS[place % 2], split="train",
                  source="dermjax", image_manipulation="synthetic")  # fmt: skip


def write(workdir, part, places, stage="generate", **changes):
    """What a part leaves that made the images of some places of a plan of ten."""
    folder = workdir / part.folder
    run_folder.claim(folder, CONFIG | {"part": str(part)})
    made = Manifest(labels=LABELS, root=workdir, records=tuple(map(record, places)))
    records.write(folder / records.FILE, made)
    known = {"total": 10, "left_out": [], "causes": {"model": "a"}, "findings": {}} | changes
    parts.finish(folder, Finished(stage=stage, part=str(part), places=list(places), **known))
    return folder


@pytest.fixture
def workdir(tmp_path):
    for index in range(3):
        write(tmp_path, Part(3, index), range(index, 10, 3))
    return tmp_path


def joined(workdir, **options):
    merge.merge(str(workdir), **{"any_versions": False} | options)
    return records.read(workdir)


def refused(workdir, message):
    with pytest.raises(UserError, match=message) as caught:
        merge.merge(str(workdir), any_versions=False)
    assert "\n" not in str(caught.value) and not (workdir / records.FILE).exists()


def test_the_records_are_those_of_the_whole_in_its_order(workdir, capsys):
    (workdir / "part-00000-of-00003" / training_images.FILE).write_bytes(b"a line\n")
    assert joined(workdir) == Manifest(labels=LABELS, root=workdir.resolve(), records=tuple(map(record, range(10))))
    assert (workdir / training_images.FILE).read_bytes() == b"a line\n"
    assert json.loads((workdir / run_folder.CONFIG).read_text()) == CONFIG
    before = (workdir / records.FILE).stat().st_mtime_ns
    joined(workdir)
    assert "nothing to do" in capsys.readouterr().out and (workdir / records.FILE).stat().st_mtime_ns == before


def test_a_part_that_was_made_again_is_merged_again(workdir):
    joined(workdir)
    folder = workdir / "part-00001-of-00003"
    made = records.read(folder)
    records.write(folder / records.FILE, replace(made, records=(replace(made.records[0], licence="own"),
                                                                *made.records[1:])))  # fmt: skip
    assert joined(workdir).records[1].licence == "own"


def test_places_that_came_to_nothing_are_no_gap(tmp_path):
    for index, places in enumerate(([0, 2, 3], [5, 6, 9])):
        left_out = [[1, 4], [7, 8]][index]
        folder = write(tmp_path, Part(2, index), places, stage="transform", left_out=left_out)
        (folder / merge.CHANGES).write_text(json.dumps([{"image": place} for place in places]))
    assert joined(tmp_path).records == tuple(map(record, (0, 2, 3, 5, 6, 9)))
    assert [each["image"] for each in json.loads((tmp_path / merge.CHANGES).read_text())] == [0, 2, 3, 5, 6, 9]


def test_missing_and_unfinished_parts_are_named(workdir, tmp_path_factory):
    (workdir / "part-00000-of-00003" / parts.FILE).unlink()
    shutil.rmtree(workdir / "part-00002-of-00003")
    refused(workdir, r"missing or not finished: 0/3, 2/3; start with --config.part=0/3")
    refused(tmp_path_factory.mktemp("none"), "no parts in it")


def test_parts_of_another_division_are_refused(workdir):
    write(workdir, Part(2, 0), range(5))
    refused(workdir, "part-00000-of-00002 is of another division")


def test_a_renamed_part_is_refused(workdir):
    shutil.rmtree(workdir / "part-00002-of-00003")
    shutil.copytree(workdir / "part-00001-of-00003", workdir / "part-00002-of-00003")
    refused(workdir, "part-00002-of-00003: holds part 1/3; its name says 2/3")


def test_an_image_in_two_parts_or_in_none_is_refused(workdir):
    write(workdir, Part(3, 2), (2, 4))
    refused(workdir, "part-00002-of-00003: image 4 of the plan is in another part as well")
    write(workdir, Part(3, 2), (2, 5))
    refused(workdir, "image 8 of the plan is in no part")
    write(workdir, Part(3, 2), (2, 5, 11))
    refused(workdir, "place 11 of a plan of 10")


@pytest.mark.parametrize(
    "change, said",
    [
        ({"places": [7, 4, 1]}, "places do not ascend"), ({"places": [1, 1, 7]}, "places do not ascend"),
        ({"places": None}, "places is no list"), ({"places": ["a", 4, 7]}, "no whole number"),
        ({"places": [1.0, 4, 7]}, "no whole number"), ({"left_out": [-1]}, "no whole number"),
        ({"total": 10.0}, "total is no int"), ({"causes": [1]}, "causes is no dict"),
        ({"places": [1, 4, 10**30]}, "place 10+ of a plan of 10"),
    ],
)  # fmt: skip
def test_what_a_part_says_is_in_shape_or_a_line(workdir, change, said):
    path = workdir / "part-00001-of-00003" / parts.FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(workdir, said)


def test_a_plan_beyond_memory_is_a_line(tmp_path):
    for index in range(2):
        write(tmp_path, Part(2, index), range(index, 10, 2), total=10**13)
    refused(tmp_path, "image 10 of the plan is in no part")


@pytest.mark.parametrize(
    "stage, outcomes, said",
    [("transform", None, r"transformations\.json: cannot be read"), ("transform", "[1]", "not the outcomes of 0/2"),
     ("transform", "{", "cannot be read"), ("curate", None, "no findings of curate")],
)  # fmt: skip
def test_a_part_without_its_outcomes_or_findings_is_refused(tmp_path, stage, outcomes, said):
    for index in range(2):
        folder = write(tmp_path, Part(2, index), range(index, 10, 2), stage=stage)
        if outcomes:
            (folder / merge.CHANGES).write_text(outcomes)
    refused(tmp_path, said)


def test_parts_of_another_config_are_refused(workdir):
    path = workdir / "part-00001-of-00003" / run_folder.CONFIG
    path.write_text(json.dumps(CONFIG | {"part": "1/3", "steps": 5}))
    refused(workdir, r"part-00001-of-00003 has other config than part-00000-of-00003 \(steps: 4 -> 5\)")


@pytest.mark.parametrize(
    ("change", "said"),
    [({"causes": {"model": "b"}}, 'model: "a" -> "b"'), ({"total": 11}, "total: 10"), ({"stage": "curate"}, "stage: ")],
)
def test_parts_of_other_inputs_are_refused(workdir, change, said):
    write(workdir, Part(3, 1), range(1, 10, 3), **change)
    refused(workdir, rf"part-00001-of-00003 has other inputs than part-00000-of-00003 \({said}")


def test_parts_of_other_versions_are_refused_unless_they_are_wanted(workdir):
    path = workdir / "part-00001-of-00003" / run_folder.VERSIONS
    said = json.loads(path.read_text())
    path.write_text(json.dumps(said | {"platform": "another host"}))
    joined(workdir)
    (workdir / records.FILE).unlink()
    path.write_text(json.dumps(said | {"jax": "0.0.1"}))
    refused(workdir, r"has other versions than .* -> \"0\.0\.1\"\).*or give --any_versions")
    assert len(joined(workdir, any_versions=True).records) == 10
    (workdir / records.FILE).unlink()
    refused(workdir, "; remove its folder and run the part again, or give --any_versions")
    shutil.rmtree(path.parent)
    write(workdir, Part(3, 1), range(1, 10, 3))
    assert len(joined(workdir).records) == 10


def test_what_lies_there_of_another_config_is_not_written_over_until_it_is_let_go(workdir):
    """`merge` has no --allow_config_change."""
    run_folder.claim(workdir, CONFIG | {"steps": 5})
    refused(
        workdir, r"of another config \(steps: 5 -> 4\); delete that config\.json to merge these parts in its place$"
    )
    (workdir / run_folder.CONFIG).unlink()
    assert len(joined(workdir).records) == 10


def test_a_part_without_its_records_is_refused(workdir):
    path = workdir / "part-00001-of-00003" / records.FILE
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    refused(workdir, "2 records of 3; delete the part's part.json and run it again")
    path.write_text("not json\n")
    refused(workdir, "0 records of 3")


def test_a_merge_waits_for_parts_at_work_and_says_so(workdir, monkeypatch):
    monkeypatch.setattr(run_folder, "PATIENCE", 0.2)
    with run_folder.lock(workdir, alone=False):
        refused(workdir, "another run works in it")


def test_the_command_refuses_in_one_line(tmp_path, command):
    code, _, error = command("merge", tmp_path)
    assert (code, len(error.splitlines())) == (2, 1) and "no parts in it" in error


@pytest.mark.slow
def test_many_curated_parts_are_merged_in_bounded_memory(tmp_path):
    """Made-up hashes of DERMJAX_MERGE_IMAGES images, every twentieth a near-duplicate of an earlier one; no pixels."""
    rng, count, limit, flipped = np.random.default_rng(0), 8, 40.0, 20
    hashes = rng.integers(0, 2**64, (MANY, 8, 4), np.uint64)
    copies = np.arange(20, MANY, 20)
    bits = np.zeros((len(copies), 4), np.uint64)
    for row, places in zip(bits, rng.integers(0, 256, (len(copies), flipped)), strict=True):
        np.bitwise_or.at(row, places // 64, np.uint64(1) << (places % 64).astype(np.uint64))
    # the original is no copy itself
    hashes[copies] = hashes[rng.integers(0, copies // 20) * 20 + 1] ^ bits[:, None]
    rule = Rule(reason="near_duplicate", score="near_duplicate", limit=limit, high=False, rejects=True)
    findings = {"rules": [asdict(rule)], "training_images": 0}
    for index in range(count):
        places = range(index, MANY, count)
        folder = tmp_path / Part(count, index).folder
        run_folder.claim(folder, {"gallery": 0, "hits": 0, "size": 64, "part": f"{index}/{count}"})
        made = Manifest(labels=LABELS, root=tmp_path, records=tuple(map(record, places)))
        records.write(folder / records.FILE, made)
        with (folder / measurements.FILE).open("wb") as file:
            for place, each in zip(places, made.records, strict=True):
                file.write(measurements._line(each.sha256, Measurement(hashes[place], {}), measurements.causes(64)))
        parts.finish(folder, Finished(stage="curate", part=f"{index}/{count}", total=MANY, places=list(places),
                                      left_out=[], causes={}, findings=findings))  # fmt: skip
    del hashes
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "dermjax", "merge", str(tmp_path)], check=True)
    seconds, peak = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"\n{MANY} records of {count} parts merged in {seconds:.0f} s, peak {peak / 1e9:.2f} GB")
    rejected = [place for place, each in enumerate(records.stream(tmp_path / records.FILE)[2]) if not each.kept]
    assert rejected == copies.tolist()
    assert peak < 16e9
