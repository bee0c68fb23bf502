import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from dermjax import run_folder
from dermjax.errors import UserError

CONFIG = {"steps": 150, "plan": {"prompts": {"benign": ("a", "b")}}, "synthetic": ""}


def refusal(workdir, config):
    with pytest.raises(UserError) as caught:
        run_folder.claim(workdir, config)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_claim_leaves_the_config_and_the_versions_and_nothing_else(tmp_path):
    workdir = tmp_path / "runs" / "tune"
    run_folder.claim(workdir, CONFIG)
    assert sorted(path.name for path in workdir.iterdir()) == ["config.json", "versions.json"]
    assert json.loads((workdir / "config.json").read_text()) == json.loads(json.dumps(CONFIG))
    assert {"python", "platform", "jax", "flax", "numpy"} <= json.loads((workdir / "versions.json").read_text()).keys()


def test_the_same_config_again_is_a_resume_that_touches_nothing(tmp_path, capsys):
    run_folder.claim(tmp_path, CONFIG)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    run_folder.claim(tmp_path, CONFIG)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert capsys.readouterr().out == ""


def test_another_config_is_refused_with_what_changed_old_to_new(tmp_path):
    run_folder.claim(tmp_path, CONFIG)
    other = {"steps": 300, "plan": {"prompts": {"malignant": ("a",)}}, "synthetic": ""}
    message = refusal(tmp_path, other)
    assert "steps: 150 -> 300" in message
    assert 'plan.prompts.benign: ["a", "b"] -> (absent)' in message
    assert 'plan.prompts.malignant: (absent) -> ["a"]' in message
    assert "synthetic" not in message
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == 150


def test_many_changes_are_counted_rather_than_listed(tmp_path):
    run_folder.claim(tmp_path, {f"key{i}": 0 for i in range(20)})
    assert "and 12 more" in refusal(tmp_path, {f"key{i}": 1 for i in range(20)})


def test_an_allowed_change_is_told_recorded_and_replaces_the_config(tmp_path, capsys):
    run_folder.claim(tmp_path, CONFIG)
    run_folder.claim(tmp_path, CONFIG | {"steps": 300}, allow_change=True)
    assert "the config changes: steps: 150 -> 300" in capsys.readouterr().out
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == 300
    run_folder.claim(tmp_path, CONFIG | {"steps": 400}, allow_change=True)
    past = [json.loads(line) for line in (tmp_path / "config_changes.jsonl").read_text().splitlines()]
    assert past == [{"steps": "150 -> 300"}, {"steps": "300 -> 400"}]
    run_folder.claim(tmp_path, CONFIG | {"steps": 400}, allow_change=True)
    assert len((tmp_path / "config_changes.jsonl").read_text().splitlines()) == 2


def test_what_is_finished_keeps_the_config_that_it_was_made_by(tmp_path):
    run_folder.claim(tmp_path, CONFIG, last="metrics.json")
    run_folder.claim(tmp_path, CONFIG | {"steps": 300}, allow_change=True, last="metrics.json")
    (tmp_path / "metrics.json").write_text("{}")
    run_folder.claim(tmp_path, CONFIG | {"steps": 300}, allow_change=True, last="metrics.json")
    with pytest.raises(UserError, match=r"metrics\.json is of another config \(steps: 300 -> 400\) and finished"):
        run_folder.claim(tmp_path, CONFIG | {"steps": 400}, allow_change=True, last="metrics.json")
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == 300


def test_a_refused_change_says_how_to_allow_it(tmp_path):
    """Where there is a flag for it: what a command of several stages begins in folders within has none."""
    run_folder.claim(tmp_path, CONFIG)
    assert refusal(tmp_path, CONFIG | {"steps": 300}).endswith("(steps: 150 -> 300); give another --workdir")
    with pytest.raises(UserError, match="give another --workdir, or --allow_config_change to go on with it"):
        run_folder.claim(tmp_path, CONFIG | {"steps": 300}, hint=run_folder.OR_ALLOW)


def test_a_flag_is_offered_for_the_keys_alone_that_it_helps_with(tmp_path):
    """Not for those that a stage within would refuse after it."""
    run_folder.claim(tmp_path, CONFIG | {"trials": 3})
    for change, told in (({"trials": 4}, "or --allow_config_change"), ({"steps": 1}, "give another --workdir$"),
                         ({"trials": 4, "steps": 1}, "give another --workdir$")):  # fmt: skip
        with pytest.raises(UserError, match=told):
            run_folder.claim(tmp_path, CONFIG | {"trials": 3} | change, hint=run_folder.OR_ALLOW, keys=("trials",))


def test_a_folder_that_was_moved_is_of_the_same_config(tmp_path):
    def asked(home, **changes):
        return {
            "manifest": str(home / "prepare" / "manifest.jsonl"),
            "model": "/models/sd15",
            "plan": {"steps": 3},
        } | changes

    old, new = tmp_path / "old" / "demo", tmp_path / "new place"
    run_folder.claim(old / "tune", asked(old), within=old)
    old.rename(new)
    with pytest.raises(UserError, match="manifest: "):
        run_folder.claim(new / "tune", asked(new))
    for changes in ({"model": "/other/sd15"}, {"plan": {"steps": 4}}, {"manifest": str(new / "other.jsonl")}):
        with pytest.raises(UserError, match=rf"is of another config \({next(iter(changes))}"):
            run_folder.claim(new / "tune", asked(new, **changes), within=new)
    for within in (new, None):
        run_folder.claim(new / "tune", asked(new), within=within)
    assert json.loads((new / "tune" / "config.json").read_text()) == asked(new)


def test_other_versions_are_told_and_the_first_ones_kept(tmp_path, capsys):
    run_folder.claim(tmp_path, CONFIG)
    versions = json.loads((tmp_path / "versions.json").read_text())
    (tmp_path / "versions.json").write_text(json.dumps(versions | {"jax": "0.1"}))
    run_folder.claim(tmp_path, CONFIG)
    assert f"jax 0.1 -> {versions['jax']}" in capsys.readouterr().out
    assert json.loads((tmp_path / "versions.json").read_text())["jax"] == "0.1"


def test_a_broken_config_json_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"steps": ')
    assert "config.json: not JSON" in refusal(tmp_path, CONFIG)
    (tmp_path / "config.json").write_text(100_000 * "[")
    assert "config.json: not JSON" in refusal(tmp_path, CONFIG)
    (tmp_path / "config.json").write_text("[]")
    assert "config.json: holds list, not keys with values" in refusal(tmp_path, CONFIG)


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_workdir_that_is_a_file_is_refused(tmp_path, below):
    (tmp_path / "file").write_text("mine")
    assert "is a file" in refusal(tmp_path / "file" / below, CONFIG)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_workdir_that_links_to_nowhere_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert "link is a link to nowhere" in refusal(tmp_path / "link", CONFIG)


def test_a_workdir_that_cannot_be_made_is_refused():
    assert "cannot be made" in refusal(run_folder.Path("/proc/dermjax"), CONFIG)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_workdir_that_cannot_be_written_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    assert "cannot be written" in refusal(tmp_path, CONFIG)


def test_a_claim_of_which_nothing_came_is_taken_back(tmp_path):
    run_folder.claim(tmp_path / "run", CONFIG)
    run_folder.disclaim(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_claim_in_a_folder_with_other_files_is_taken_back_and_they_stay(tmp_path):
    (tmp_path / ".DS_Store").touch(), (tmp_path / "moles").mkdir()
    run_folder.claim(tmp_path, CONFIG)
    run_folder.disclaim(tmp_path, {".DS_Store", "moles"})
    assert {path.name for path in tmp_path.iterdir()} == {".DS_Store", "moles"}


def test_what_is_refused_within_a_claim_leaves_the_folder_as_it_was(tmp_path):
    (tmp_path / ".DS_Store").touch()
    with pytest.raises(UserError, match="no image"), run_folder.claimed(tmp_path, CONFIG):
        raise UserError("no image")
    assert [path.name for path in tmp_path.iterdir()] == [".DS_Store"]
    run_folder.claim(tmp_path, CONFIG)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError), run_folder.claimed(tmp_path, {"steps": 7}, allow_change=True):
        raise UserError("no image")
    run_folder.claim(tmp_path, CONFIG)  # another would be refused


def test_a_claim_of_which_something_came_stays(tmp_path):
    run_folder.claim(tmp_path, CONFIG)
    (tmp_path / "metrics.jsonl").write_text("")
    run_folder.disclaim(tmp_path)
    assert {"config.json", "versions.json"} < {path.name for path in tmp_path.iterdir()}


def test_a_write_replaces_the_whole_file_and_takes_text_or_bytes(tmp_path):
    path = tmp_path / "report.html"
    run_folder.write_atomically(path, "long old content ä")
    run_folder.write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_content_and_no_part(tmp_path, monkeypatch):
    path = tmp_path / "manifest.jsonl"
    run_folder.write_atomically(path, "old")

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_folder.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        run_folder.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_names_its_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/report.html'"):
        run_folder.write_atomically(tmp_path / "report.html", "page")
    assert not list(tmp_path.iterdir())


def test_writers_of_the_same_process_number_do_not_meet(tmp_path):
    """As those of pods on several hosts; a killed one's part is swept."""
    path = tmp_path / "image.npy"
    with run_folder.writing(path) as one:
        with run_folder.writing(path) as other:
            assert len(parts := list(tmp_path.iterdir())) == 2
            assert all(run_folder.PART.fullmatch(part.name) for part in parts)
            one.write(b"one")
            other.write(b"the other")
        assert path.read_bytes() == b"the other"
    assert path.read_bytes() == b"one" and list(tmp_path.iterdir()) == [path]


CAUSES = {"numeric_versions": {"vae": 2}, "arithmetic": "float32", "images": "0123"}


def test_a_result_stands_while_its_causes_are_the_same(tmp_path, capsys):
    assert not run_folder.is_finished(tmp_path, "manifest.jsonl", CAUSES)
    (tmp_path / "manifest.jsonl").touch()
    assert not run_folder.is_finished(tmp_path, "manifest.jsonl", CAUSES)
    assert "is made again (begun again and not finished, or made by an older version)" in capsys.readouterr().out
    run_folder.mark_finished(tmp_path, CAUSES)
    assert run_folder.is_finished(tmp_path, "manifest.jsonl", CAUSES) and capsys.readouterr().out == ""
    assert not run_folder.is_finished(tmp_path, "manifest.jsonl", CAUSES | {"arithmetic": "bfloat16"})
    assert 'is made again (arithmetic: "float32" -> "bfloat16")' in capsys.readouterr().out


def test_a_training_says_what_it_was_begun_from(tmp_path):
    assert run_folder.changed_since_start(tmp_path, CAUSES | {"images": "89ab"}, ("checkpoints",)) == ""
    assert run_folder.changed_since_start(tmp_path, CAUSES, ("checkpoints",)) == "", "nothing was begun from the others"
    (tmp_path / "checkpoints").mkdir()
    assert run_folder.changed_since_start(tmp_path, CAUSES, ("checkpoints",)) == ""
    assert run_folder.changed_since_start(tmp_path, {"images": "0123"}, ("checkpoints",)) == ""
    assert (
        run_folder.changed_since_start(tmp_path, CAUSES | {"images": "4567"}, ("checkpoints",))
        == 'images: "0123" -> "4567"'
    )
    (tmp_path / "causes.json").unlink()
    assert "made by an older version" in run_folder.changed_since_start(tmp_path, CAUSES, ("checkpoints",))
    assert not (tmp_path / "causes.json").exists(), "what an older version began is not taken for ours"


def test_a_refused_run_leaves_no_causes_behind(tmp_path):
    run_folder.claim(tmp_path / "run", CONFIG)
    run_folder.changed_since_start(tmp_path / "run", CAUSES, ("checkpoints",))
    run_folder.disclaim(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_newer_versions_keep_what_they_made_and_strangers_keep_their_files(tmp_path, capsys):
    newer = run_folder.derived(tmp_path, "moments", CAUSES | {"numeric_versions": {"vae": 3}}).with_suffix(".npy")
    run_folder.write_causes(newer, CAUSES | {"numeric_versions": {"vae": 3}})
    stranger, other = tmp_path / "photographs.npy", tmp_path / "contexts_0123456789abcdef.npy"
    for path in (newer, stranger, other):
        path.touch()
    (tmp_path / "0123456789abcdef").mkdir()
    (tmp_path / "0123456789abcdef" / "a photograph.png").touch()
    run_folder.report_stale(run_folder.derived(tmp_path, "moments", CAUSES).with_suffix(".npy"), CAUSES)
    assert newer.exists() and stranger.exists() and other.exists()
    assert "(numeric_versions.vae: 3 -> 2)" in capsys.readouterr().out
    run_folder.report_stale(run_folder.derived(tmp_path, "features", CAUSES), CAUSES)
    assert (tmp_path / "0123456789abcdef" / "a photograph.png").exists() and capsys.readouterr().out == ""


@pytest.mark.parametrize("when", ["looks", "removes"])
def test_what_another_run_removes_at_the_same_time_is_let_go(tmp_path, monkeypatch, when):
    """Two runs of new code that share a folder both find what an older version left."""
    old = tmp_path / "features_0123456789abcdef"
    old.mkdir()
    (old / "0.npy").touch()
    is_dir, rmtree = run_folder.Path.is_dir, shutil.rmtree

    def looked(path):
        found = is_dir(path)
        if path == old:
            rmtree(old)
        return found

    if when == "looks":
        monkeypatch.setattr(run_folder.Path, "is_dir", looked)
    else:
        monkeypatch.setattr(shutil, "rmtree", lambda path: (rmtree(path), rmtree(path)))
    run_folder.report_stale(run_folder.derived(tmp_path, "features", CAUSES), CAUSES)
    assert list(tmp_path.iterdir()) == []


def test_one_run_at_a_time_works_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "PATIENCE", 0.0)
    with run_folder.lock(tmp_path / "run", alone=True):
        for alone in (True, False):
            with (
                pytest.raises(UserError, match="another run works in it"),
                run_folder.lock(tmp_path / "run", alone=alone),
            ):
                pass
    with (
        run_folder.lock(tmp_path / "run", alone=False),
        run_folder.lock(tmp_path / "run", alone=False),
        pytest.raises(UserError, match="another run works in it"),
        run_folder.lock(tmp_path / "run", alone=True),
    ):
        pass
    with run_folder.lock(tmp_path / "run", alone=True):
        pass


def test_a_run_leaves_no_lock_behind(tmp_path):
    with run_folder.lock(tmp_path, alone=True):
        assert run_folder.is_locked(tmp_path) and (tmp_path / ".lock").exists()
    with run_folder.lock(tmp_path, alone=False):
        with run_folder.lock(tmp_path, alone=False):
            pass
        assert (tmp_path / ".lock").exists()
    with pytest.raises(ZeroDivisionError), run_folder.lock(tmp_path, alone=True):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == [] and not run_folder.is_locked(tmp_path)


def held_elsewhere(path, beat=0):
    holder = {"host": "elsewhere 1", "name": "elsewhere", "process": 7, "run": "0123", "beat": beat}
    path.write_text(json.dumps(holder))


def test_a_run_of_another_host_that_gives_signs_of_life_is_let_be(tmp_path, monkeypatch):
    """As on a file system whose locks do not reach other hosts."""
    monkeypatch.setattr(run_folder, "SILENCE", 20.0)
    held_elsewhere(tmp_path / ".lock")
    (tmp_path / ".a.png.7.part").touch()
    sign = threading.Timer(0.3, held_elsewhere, (tmp_path / ".lock", 1))
    sign.start()
    with pytest.raises(UserError, match="a run of elsewhere works in it; wait for it or end it"):
        run_folder.lock(tmp_path, alone=True).__enter__()
    assert json.loads((tmp_path / ".lock").read_text())["beat"] == 1 and (tmp_path / ".a.png.7.part").exists()


def test_a_run_of_another_host_that_ends_meanwhile_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "SILENCE", 20.0)
    held_elsewhere(tmp_path / ".lock")
    threading.Timer(0.3, (tmp_path / ".lock").unlink).start()
    with run_folder.lock(tmp_path, alone=True):
        pass


@pytest.mark.parametrize("alone", [True, False])
def test_a_run_of_another_host_that_is_silent_is_dead(tmp_path, monkeypatch, capsys, alone):
    monkeypatch.setattr(run_folder, "SILENCE", 0.3)
    held_elsewhere(tmp_path / ".lock")
    (tmp_path / ".a.png.7.part").touch()
    os.utime(tmp_path / ".a.png.7.part", (LONG_AGO, LONG_AGO))
    with run_folder.lock(tmp_path, alone=alone):
        assert not (tmp_path / ".a.png.7.part").exists()
    assert "a run of elsewhere was in it; waiting up to 0 s for a sign of it" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_dead_run_of_this_host_is_followed_at_once(tmp_path):
    before = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert before.stdout.readline() == "held\n"
    before.kill(), before.wait(), before.stdout.close(), before.stdin.close()
    assert json.loads((tmp_path / ".lock").read_text())["process"] == before.pid
    begun = time.monotonic()
    with run_folder.lock(tmp_path, alone=True):
        assert time.monotonic() - begun < 1
        assert json.loads((tmp_path / ".lock").read_text())["process"] == os.getpid()


def test_a_run_gives_signs_of_life_and_ends_once_another_host_has_taken_it_for_dead(tmp_path):
    """It stood still, as a suspended machine does, and must not write into what is another's now."""
    holds = HOLDS.replace("with", "run_folder.BEAT = 0.1\nwith", 1)
    run = subprocess.Popen(
        [sys.executable, "-c", holds, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert run.stdout.readline() == "held\n"
    while json.loads((tmp_path / ".lock").read_text())["beat"] < 2:
        time.sleep(0.02)
    run.send_signal(signal.SIGSTOP)
    held_elsewhere(tmp_path / ".lock")
    run.send_signal(signal.SIGCONT)
    assert run.wait(timeout=60) == 75
    _, said = run.communicate()
    assert said == (
        f"workdir {tmp_path}: a run of elsewhere took over while this one stood still; it is that one's now\n"
    )
    assert json.loads((tmp_path / ".lock").read_text())["name"] == "elsewhere"


def test_a_file_system_without_locks_leaves_it_to_the_signs_of_life(tmp_path, monkeypatch):
    def none(file, kind):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with run_folder.lock(tmp_path, alone=True):
        assert json.loads((tmp_path / ".lock").read_text())["process"] == os.getpid()


def test_a_run_waits_for_one_before_it_that_ends(tmp_path):
    before = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert before.stdout.readline() == "held\n"
    threading.Timer(0.3, before.kill).start()
    with run_folder.lock(tmp_path / "run", alone=True):
        assert before.wait() == -9
    before.stdout.close(), before.stdin.close()


HOLDS = """
import sys
from pathlib import Path
from dermjax import run_folder
with run_folder.lock(Path(sys.argv[1]), alone=True):
    print("held", flush=True)
    input()
"""
LITTER = ("images/.0.png.812.part", ".metrics.jsonl.7.part", ".classifier.part/config.json", "samples/.part.png",
          "latents/moments_ab.31.part.npy", "checkpoints/00000120.part/state/d")  # fmt: skip
LONG_AGO = time.time() - 2 * run_folder.DESERTED
KEPT = ("images/a.part.jpg", "images/part", "x.part", "checkpoints/00000120/state/d", ".hidden")


def litter(folder):
    for name in (*LITTER, *KEPT):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def left(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_a_killed_run_left_half_written_is_swept_by_the_next_alone(tmp_path):
    litter(tmp_path)
    with run_folder.lock(tmp_path, alone=True):
        assert left(tmp_path) == {*KEPT, ".lock"}


def test_what_a_run_further_down_is_writing_stays(tmp_path):
    """As where somebody gives the folder of all runs as --workdir."""
    litter(tmp_path / "tune"), litter(tmp_path / "killed")
    with run_folder.lock(tmp_path / "tune", alone=True):
        litter(tmp_path / "tune")
        with run_folder.lock(tmp_path, alone=True):
            assert left(tmp_path / "tune") == {*LITTER, *KEPT, ".lock"}
            assert left(tmp_path / "killed") == set(KEPT)


def test_of_a_shared_folder_what_runs_of_other_hosts_may_be_writing_stays(tmp_path):
    """Their locks do not reach this host on every file system; what has not changed for long is nobody's."""
    litter(tmp_path)
    with run_folder.lock(tmp_path, alone=False):
        assert left(tmp_path) == {*LITTER, *KEPT, ".lock"}
    old = (LITTER[0], "checkpoints/00000120.part", KEPT[0])
    for name in old:
        os.utime(tmp_path / name, (LONG_AGO, LONG_AGO))
    with run_folder.lock(tmp_path, alone=False):
        assert left(tmp_path) == {*LITTER[1:-1], *KEPT, ".lock"}
        litter(tmp_path)
        os.utime(tmp_path / LITTER[0], (LONG_AGO, LONG_AGO))
        with run_folder.lock(tmp_path, alone=False):  # the other may be at it
            assert (tmp_path / LITTER[0]).exists()


def test_lines_go_on_after_the_last_whole_one(tmp_path):
    path = tmp_path / "lines.jsonl"
    for before, whole in (
        (None, b""), (b'{"n": 1}\n{"n": ', b'{"n": 1}\n'), (b'{"n": 1}\n', b'{"n": 1}\n'), (b"{", b""),
        (b'{"n": 1}\n{"n": 2}', b'{"n": 1}\n{"n": 2}\n'), (b'{"n": "\xc3', b""),
    ):  # fmt: skip
        if before is not None:
            path.write_bytes(before)
            assert b"".join(line + b"\n" for line in run_folder.whole_lines(path)) == whole
        with run_folder.open_for_append(path) as file:
            file.write(b"new\n")
        assert path.read_bytes() == whole + b"new\n"
