"""Images are looked at once: a killed run goes on, and an audit afterwards decodes nothing."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dermjax.data import digests, images, records
from dermjax.data.leaks import audit, duplicates, fingerprints
from dermjax.preparation import examination
from dermjax.preparation.run import run

CONFIG = Path(__file__).parents[2] / "configs" / "prepare.py"


KILLED = """
import os, runpy, signal, sys
from pathlib import Path
from dermjax.data import images
from dermjax.preparation.run import run
load, seen = images.load, []
def until(path, size):
    seen.append(path)
    if len(seen) == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
    return load(path, size)
images.load = until
config = runpy.run_path(sys.argv[1])["get_config"]()
config.images, config.attributes = sys.argv[2], False
run(config, Path(sys.argv[3]))
"""


@pytest.fixture
def decoded(monkeypatch):
    """The files that are decoded in full from now on, for their hashes."""
    looked, load = [], images.load

    def noted(path, size):
        if size == duplicates.HASHED:
            looked.append(path)
        return load(path, size)

    monkeypatch.setattr(images, "load", noted)
    return looked


def kill(folder, workdir, after):
    """A run of `prepare` that is killed when it decodes its `after`-th image."""
    arguments = [sys.executable, "-c", KILLED, str(CONFIG), str(folder), str(workdir), str(after)]
    assert subprocess.run(arguments, check=False, stdout=subprocess.DEVNULL).returncode == -9


def test_a_killed_examination_goes_on_to_the_same_bytes(folder, tmp_path, decoded, settings, prepare):
    prepare(folder, tmp_path / "whole")
    (tmp_path / "run").mkdir()
    kill(folder, tmp_path / "run", 25)
    kept = (tmp_path / "run" / fingerprints.FILE).read_bytes()
    assert 0 < kept.count(b"\n") < 40
    with (tmp_path / "run" / fingerprints.FILE).open("ab") as torn:
        torn.write(b'{"sha256": "beni')
    decoded.clear()
    run(settings(images=str(folder)), tmp_path / "run")
    assert len(decoded) == 40 - kept.count(b"\n")
    assert (tmp_path / "run" / records.FILE).read_bytes() == (tmp_path / "whole" / records.FILE).read_bytes()
    assert fingerprints.read(tmp_path / "run").keys() == fingerprints.read(tmp_path / "whole").keys()


def test_what_a_refused_run_has_found_out_is_kept(folder, tmp_path, decoded, command, settings):
    """One bad image near the end of 40,000 need not cost an hour twice; and the folder is no config's yet."""
    (folder / "malignant" / "9.png").write_bytes(b"<html>")
    given = ("prepare", f"--config={CONFIG}", f"--config.images={folder}", "--config.attributes=False",
             f"--workdir={tmp_path / 'run'}")  # fmt: skip
    code, _, error = command(*given)
    assert code == 2 and "9.png: cannot be decoded" in error
    assert [path.name for path in (tmp_path / "run").iterdir()] == [fingerprints.FILE]
    known = len(fingerprints.read(tmp_path / "run"))
    assert known >= 10, "those before it"
    decoded.clear()
    assert command(*given, "--config.on_bad_image=skip")[0] == 0
    assert len(decoded) == 40 - known


def test_looks_of_other_code_are_taken_again(folder, tmp_path, decoded, settings, monkeypatch, capsys):
    (tmp_path / "run").mkdir()
    kill(folder, tmp_path / "run", 25)
    kept = (tmp_path / "run" / fingerprints.FILE).read_bytes().count(b"\n")
    later = fingerprints.VERSIONS | {"looks": 99}
    monkeypatch.setattr(fingerprints, "VERSIONS", later)
    decoded.clear()
    run(settings(images=str(folder)), tmp_path / "run")
    assert len(decoded) == 40
    assert f"{fingerprints.FILE}, taken again: {kept}" in capsys.readouterr().out
    assert {look.versions["looks"] for look in fingerprints.read(tmp_path / "run").values()} == {99}
    assert (tmp_path / "run" / fingerprints.FILE).read_bytes().count(b"\n") == 40


def test_lines_that_say_no_version_are_of_the_first(folder):
    path = folder / "benign/3.png"
    told = json.loads(fingerprints.from_file(path, digests.sha256(path), None).line())
    del told["numeric_versions"]
    assert fingerprints.parse(json.dumps(told).encode()).versions == {"images": 1, "looks": 1}


def test_an_audit_decodes_only_what_was_not_looked_at(folder, tmp_path, decoded, prepare, capsys):
    manifest = prepare(folder, tmp_path / "run")
    decoded.clear()
    audit.show(str(tmp_path / "run"))
    assert not decoded and "nothing leaks: 40 images" in capsys.readouterr().out
    (tmp_path / "run" / fingerprints.FILE).unlink()
    audit.refuse([manifest])
    assert len(decoded) == 40


def test_what_was_looked_at_is_read_back_equal_and_damaged_lines_do_not_count(folder, tmp_path):
    path = folder / "benign/3.png"
    looks = [fingerprints.from_file(path, digests.sha256(path), measure) for measure in (None, examination.measure)]
    (tmp_path / fingerprints.FILE).write_bytes(b"".join(look.line() for look in looks))
    (read,) = fingerprints.read(tmp_path).values()
    assert read.measured == looks[1].measured and read.sha256 == digests.sha256(path)
    np.testing.assert_array_equal(read.views, looks[1].views)
    np.testing.assert_array_equal(read.cells, looks[1].cells)
    (tmp_path / fingerprints.FILE).write_bytes(looks[0].line()[:90] + b"\n[]\n{}\nnull\n\xff\n" + looks[1].line()[:-40])
    assert fingerprints.read(tmp_path) == {}


@pytest.mark.slow
def test_ten_thousand_images_killed_twice_end_in_the_same_bytes(tmp_path, fill, decoded, settings, prepare):
    folder = fill(tmp_path / "moles", ("benign", "malignant"), 5000)
    prepare(folder, tmp_path / "whole")
    (tmp_path / "run").mkdir()
    for after in (3000, 4000):
        kill(folder, tmp_path / "run", after)
    decoded.clear()
    run(settings(images=str(folder)), tmp_path / "run")
    print(f"decoded after two kills: {len(decoded)} of 10000")
    assert 2900 < len(decoded) < 3200
    for name in (records.FILE, "report.html"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
