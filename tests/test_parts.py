"""Which part a process makes, whose folder it is, and that shares cover the whole once."""

import json

import pytest

from dermjax import parts, run_folder
from dermjax.errors import UserError
from dermjax.parts import Finished, Part

SLURM = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_ARRAY_TASK_MIN": "0",
         "SLURM_ARRAY_TASK_MAX": "7"}  # fmt: skip
KUBERNETES = {"JOB_COMPLETION_INDEX": "3", "JOB_COMPLETION_COUNT": "8"}
SKYPILOT = {"SKYPILOT_NODE_RANK": "3", "SKYPILOT_NUM_NODES": "8"}


def test_a_part_by_its_words():
    assert parts.read("3/8") == Part(8, 3) and str(Part(8, 3)) == "3/8"
    assert Part(8, 3).folder == "part-00003-of-00008"
    assert parts.read("") is None and parts.read("0/1") is None


@pytest.mark.parametrize("text", ["8/8", "9/8", "0/0", "-1/8", "3", "3/", "1.5/8", "3/8 ", "a/b", "1/" + "9" * 20])
def test_what_is_no_part_is_one_line(text):
    with pytest.raises(UserError, match=r"give i/n with i from 0 to n - 1") as caught:
        parts.read(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("environment", [SLURM, KUBERNETES, SKYPILOT])
def test_a_cluster_gives_the_part(environment):
    assert parts.assigned(environment, joined=False) == "3/8"
    assert parts.assigned({}, joined=False) == ""


def test_an_array_of_slurm_may_begin_at_one():
    environment = SLURM | {"SLURM_ARRAY_TASK_ID": "8", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "8"}
    assert parts.assigned(environment, joined=False) == "7/8"


def test_processes_of_one_program_are_no_parts_but_a_task_of_an_array_may_have_several():
    assert parts.assigned(KUBERNETES | SKYPILOT, joined=True) == ""
    assert parts.assigned(SLURM | SKYPILOT, joined=True) == "3/8"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"JOB_COMPLETION_INDEX": "3"}, "JOB_COMPLETION_COUNT not"),
        (SLURM | {"SLURM_ARRAY_TASK_MAX": "9"}, "gaps"),  # such as the two tasks that failed, submitted again
        (SKYPILOT | {"SKYPILOT_NUM_NODES": "many"}, "not whole numbers"),
    ],
)
def test_an_environment_that_gives_no_part_is_refused(environment, message):
    with pytest.raises(UserError, match=message):
        parts.assigned(environment, joined=False)


@pytest.mark.parametrize(("total", "count"), [(20, 8), (8, 8), (1_000_003, 7)])
def test_blocks_cover_every_place_once(total, count):
    blocks = [Part(count, index).block(total) for index in range(count)]
    assert [place for block in blocks for place in block] == list(range(total))
    assert max(map(len, blocks)) - min(map(len, blocks)) <= 1


def test_more_parts_than_work_are_refused():
    with pytest.raises(UserError, match=r"there are 5 shards to divide; take at most as many parts"):
        Part(8, 3).check(5, "shards")


def test_folders_are_found_in_order_and_others_are_not(tmp_path):
    for name in ("part-00010-of-00012", "part-00002-of-00012", "part-2-of-12", "images"):
        (tmp_path / name).mkdir()
    assert list(parts.folders(tmp_path)) == [Part(12, 2), Part(12, 10)]
    assert parts.folders(tmp_path / "none") == {}


def test_parts_of_another_division_or_config_are_refused_as_they_begin(tmp_path):
    config = {"steps": 4, "part": "0/8"}
    run_folder.claim(tmp_path / Part(8, 0).folder, config)
    parts.refuse_others(tmp_path, Part(8, 1), config | {"part": "1/8"})
    with pytest.raises(UserError, match="divided into 8 parts and not 4"):
        parts.refuse_others(tmp_path, Part(4, 1), config | {"part": "1/4"})
    with pytest.raises(UserError, match=r"of another config \(steps: 4 -> 5\)") as caught:
        parts.refuse_others(tmp_path, Part(8, 1), {"steps": 5, "part": "1/8"})
    assert "part:" not in str(caught.value)


def test_what_a_finished_part_says_comes_back_until_it_begins_again(tmp_path):
    assert parts.read_finished(tmp_path) is None
    said = Finished(stage="generate", part="3/8", total=9, places=[3], left_out=[4], causes={"model": "a"}, findings={})
    parts.finish(tmp_path, said)
    assert parts.read_finished(tmp_path) == said
    parts.begin(tmp_path)
    assert parts.read_finished(tmp_path) is None
    parts.begin(tmp_path)
    for damaged in ("{", json.dumps({"stage": "generate"}), "[]"):
        (tmp_path / parts.FILE).write_text(damaged)
        with pytest.raises(UserError, match=r"part\.json: damaged"):
            parts.read_finished(tmp_path)


@pytest.mark.parametrize("part", [None, Part(8, 3)])
def test_what_is_begun_again_is_finished_once_it_has_ended(tmp_path, capsys, part):
    """A run of another model that was killed leaves images of that beside the manifest of the one before it."""
    causes = {"model": "a"}
    said = Finished(stage="transform", part="3/8", total=9, places=[3], left_out=[], causes=causes, findings={})
    (tmp_path / "manifest.jsonl").touch()
    parts.finish(tmp_path, said)
    run_folder.mark_finished(tmp_path, causes)
    assert parts.is_finished(tmp_path, part, "manifest.jsonl", causes)
    assert not parts.is_finished(tmp_path, part, "manifest.jsonl", {"model": "b"})
    parts.begin(tmp_path)
    assert not parts.is_finished(tmp_path, part, "manifest.jsonl", causes)
    assert "manifest.jsonl is made again (begun again and not finished" in capsys.readouterr().out


def test_a_part_without_its_part_json_is_not_finished_as_merge_needs_it(tmp_path):
    (tmp_path / "manifest.jsonl").touch()
    run_folder.mark_finished(tmp_path, {"model": "a"})
    assert parts.is_finished(tmp_path, None, "manifest.jsonl", {"model": "a"})
    assert not parts.is_finished(tmp_path, Part(8, 3), "manifest.jsonl", {"model": "a"})
    (tmp_path / parts.FILE).write_text("{")
    with pytest.raises(UserError, match=r"part\.json: damaged .*; delete it and run the part again"):
        parts.is_finished(tmp_path, Part(8, 3), "manifest.jsonl", {"model": "a"})
