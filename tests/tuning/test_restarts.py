"""`tune` stopped by force: at random moments, by a full disk; and started again."""

import resource
import time

import numpy as np
import pytest

from dermjax.training import checkpoints, writers
from dermjax.weights import diffusers

pytestmark = pytest.mark.slow

KILLS = 20
SAVING = {"steps": 120, "save_every": 1, "log_every": 1, "watch_every": 40, "samples.images": 0}


def finish(process) -> str:
    out, said = process.communicate()
    assert process.returncode == 0, said
    return out


def same_model(one, other):
    for folder, file in diffusers.FILES.items():
        paths = [run / "model" / folder / file for run in (one, other)]
        assert paths[0].read_bytes() == paths[1].read_bytes(), folder


def progress(workdir) -> int:
    return max(checkpoints.steps(workdir / "checkpoints"), default=0)


def test_killed_at_random_it_always_goes_on_and_ends_the_same(tune, tmp_path, capsys):
    finish(tune(tmp_path / "whole", **SAVING))
    run, rng = tmp_path / "killed", np.random.default_rng(0)
    at, during_saves = [], 0
    while len(at) < KILLS:
        before = progress(run)
        process = tune(run, **SAVING)
        while progress(run) == before and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.8))
        process.kill()
        _, said = process.communicate()
        assert process.returncode == -9, said  # neither failed nor ended
        at.append(progress(run))
        during_saves += bool(list((run / "checkpoints").glob("*.part")))
    out = finish(tune(run, **SAVING))
    assert f"resuming from {run}" in out
    same_model(tmp_path / "whole", run)
    assert writers.read(tmp_path / "whole" / "metrics.jsonl") == writers.read(run / "metrics.jsonl")
    with capsys.disabled():
        print(f"\nkilled {KILLS} times, {during_saves} of them within a save, after steps {', '.join(map(str, at))}")
    assert during_saves


def small_files():
    """No file may grow beyond 50 kB, which stops a checkpoint in the middle as a full disk does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))


FULL = {  # when the disk is found to be full
    "as it is asked": ("-m", "dermjax"),
    "as Orbax writes": (
        "-c",
        "import sys; from dermjax import __main__, machine; machine.probe_disk = lambda *given: None; "
        "sys.exit(__main__.main())",
    ),
}


@pytest.mark.parametrize("when", FULL)
def test_without_room_it_says_so_on_one_line_and_the_checkpoint_before_is_whole(tune, tmp_path, when):
    # no look at held-out images: its report would be the first file that does not fit
    run, changes = tmp_path / "run", {"samples.images": 0, "schedule": "constant", "watch_every": 100}
    finish(tune(run, steps=2, **changes))
    process = tune(run, "--allow_config_change", before=small_files, program=FULL[when], steps=6, **changes)
    _, said = process.communicate()
    assert process.returncode == 2
    assert said.count("\n") == 1 and "no room for a checkpoint of" in said and "before are whole; make room" in said
    assert checkpoints.steps(run / "checkpoints") == [2] and not checkpoints.damage(run / "checkpoints" / "00000002")
    assert not list((run / "checkpoints").glob("*.part"))
    finish(tune(run, steps=6, **changes))
    finish(tune(tmp_path / "whole", steps=6, **changes))
    same_model(tmp_path / "whole", run)
