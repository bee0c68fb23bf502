"""Eight parts as processes of their own, four killed at random and started again, are the undivided run once merged."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dermjax.data import records
from dermjax.parts import Part

CONFIGS = Path(__file__).parents[2] / "configs"
PARTS, KILLED = 8, 4
IMAGES = int(os.environ.get("DERMJAX_PARTS_IMAGES", 192))
A_SHARD = max(8, IMAGES // 24)  # three shards a part
AT_ONCE = 2
PATIENCE = 3600 + IMAGES  # seconds


def start(workdir, *arguments):
    settings = (f"--config.plan.images_per_class={IMAGES // 2}", "--config.plan.steps=2", "--config.plan.guidance=1.0",
                f"--config.plan.batch={min(32, A_SHARD // 2)}", f"--config.shard={A_SHARD}")  # fmt: skip
    command = ("generate", f"--config={CONFIGS / 'generate.py'}:tiny", f"--workdir={workdir}", *settings, *arguments)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    return subprocess.Popen([sys.executable, "-m", "dermjax", *command], env=environment, stdout=subprocess.DEVNULL)


def kill_after(process, shards, number, seconds):
    """Kills a process once there are so many shards, and so many seconds later."""
    until = time.monotonic() + PATIENCE
    while process.poll() is None and len(list(shards.glob("*.tar"))) < number and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    return process.wait()


@pytest.mark.slow
def test_parts_killed_at_random_are_the_undivided_run(tmp_path):
    whole, divided, chance = tmp_path / "whole", tmp_path / "divided", random.Random(0)
    assert start(whole).wait(PATIENCE) == 0
    parts = [f"--config.part={Part(PARTS, index)}" for index in range(PARTS)]
    chance.shuffle(parts)
    codes = []
    for number, part in enumerate(parts[:KILLED]):
        # each leaves up to three shards, and is killed at any moment of the next one
        shards = number + chance.randrange(3)
        codes.append(kill_after(start(divided, part), divided / "shards", shards, chance.random()))
    assert -signal.SIGKILL in codes and not set(codes) - {-signal.SIGKILL, 0}
    for first in range(0, PARTS, AT_ONCE):
        together = [start(divided, part) for part in parts[first : first + AT_ONCE]]
        assert [process.wait(PATIENCE) for process in together] == len(together) * [0]
    subprocess.run([sys.executable, "-m", "dermjax", "merge", str(divided)], check=True)
    assert (divided / records.FILE).read_bytes() == (whole / records.FILE).read_bytes()
    assert [path.name for path in divided.rglob("*.part")] == []
    shards = sorted(path.relative_to(whole) for path in whole.rglob("*.tar"))
    assert len(shards) >= PARTS and shards == sorted(path.relative_to(divided) for path in divided.rglob("*.tar"))
    assert all((divided / path).read_bytes() == (whole / path).read_bytes() for path in shards)
    assert len(records.read(divided).records) == IMAGES // 2 * 2
