"""Claims: one at a time, taken over from the dead, never from the living."""

import os
import socket
import subprocess
import sys
import time

import pytest

from dermjax.errors import UserError
from dermjax.evaluation import wording
from dermjax.study import arms, cells
from dermjax.study.cells import claimed


def test_a_cell_is_claimed_once(tmp_path):
    with claimed(tmp_path / "cell") as first, claimed(tmp_path / "cell") as second:
        assert first and not second
    with claimed(tmp_path / "cell") as again:
        assert again
    assert [path.name for path in (tmp_path / "cell").iterdir()] == []


def test_a_claim_of_a_dead_process_is_taken_over(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    ended.wait()
    (tmp_path / "claim").write_text(f"{socket.gethostname()} {ended.pid}\n")
    with claimed(tmp_path) as ours:
        assert ours
    (tmp_path / "claim").write_text(f"{socket.gethostname()} {os.getpid()}\n")
    with claimed(tmp_path) as ours:
        assert not ours


def test_another_host_keeps_its_claim_until_it_falls_silent(tmp_path):
    (tmp_path / "claim").write_text("another-host 1\n")
    with claimed(tmp_path) as ours:
        assert not ours
    long_ago = time.time() - 2 * cells.STALE
    os.utime(tmp_path / "claim", (long_ago, long_ago))
    with claimed(tmp_path) as ours:
        assert ours
    assert not list(tmp_path.iterdir())


def test_processes_that_race_for_cells_never_share_one(tmp_path):
    program = (
        "import sys, time, pathlib\n"
        "from dermjax.study.cells import claimed\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "for number in range(20):\n"
        "    folder = root / str(number)\n"
        "    with claimed(folder) as ours:\n"
        "        if ours and not (folder / 'metrics.json').exists():\n"
        "            with (folder / 'log').open('a') as log: log.write('x')\n"
        "            time.sleep(0.01)\n"
        "            (folder / 'metrics.json').write_text('{}')\n"
    )
    racers = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) for _ in range(2)]
    assert [racer.wait(timeout=120) for racer in racers] == [0, 0]
    assert [(tmp_path / str(number) / "log").read_text() for number in range(20)] == ["x"] * 20


def test_arms_by_name():
    (hybrid,) = arms.phases("hybrid_3")
    assert (hybrid.fraction, hybrid.steps) == (0.75, 1.0)
    assert [phase.fraction for phase in arms.phases("synthetic_then_real")] == [1.0, 0.0]
    assert arms.phases("real")[0].steps == 0.25 and arms.phases("real_tested_on_synthetic") == ()
    (judged,) = arms.phases("all_3_judged")
    assert judged.changes == {"synthetic_targets": "judge"} and not judged.limited and judged.fraction == 0.75
    assert arms.phases("hybrid_1_light")[0].changes == {"synthetic_weight": 0.25}
    assert arms.hybrid_ratio("hybrid_3") == 3 and arms.hybrid_ratio("hybrid_3_light") is None
    assert wording.arm("all_3_judged") == "all synthetic 3 : 1, judged" and wording.arm("hybrid_3") == "hybrid 3 : 1"
    assert arms.phases("all_3_judged@gentle") == (judged,) and arms.synthetic_set("all_3_judged@gentle") == "gentle"
    assert arms.hybrid_ratio("hybrid_3@gentle") is None and arms.synthetic_set("hybrid_3") == ""
    assert wording.arm("hybrid_3_light@gentle") == "hybrid 3 : 1, light, of “gentle”"
    for wrong in ("real@gentle", "hybrid", "hybrid_0.1", "hybrid_11", "hybrid_nan", "hybrid_3_heavy", "all", "reel"):
        with pytest.raises(UserError, match="is none of real"):
            arms.phases(wrong)
