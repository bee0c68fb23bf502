"""Stages killed at each of their writes: the same command ends with the same files as if nothing had happened."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dermjax.data import digests, records
from dermjax.sampling import provenance

CONFIGS = Path(__file__).parents[1] / "configs"
# Runs a stage in folders of one name each: once as it is, then for every stride-th write killed before it by a signal,
# and started again. Processes are forked, so that the stage is imported once.
DRIVER = """
import importlib, os, signal, sys
from pathlib import Path
from dermjax import __main__ as command

stage, root, stride, *arguments = sys.argv[1:]
root, left, chosen = Path(root), None, signal.SIGKILL
CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}

def count(event, given):
    global left
    writes = event in ("os.rename", "os.remove", "os.mkdir") or (
        event == "open" and isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR))
    if left is not None and writes and str(given[0]).startswith(str(root)):
        left -= 1
        if left < 0:
            left = None
            os.kill(os.getpid(), chosen)

def start(workdir, writes=None):
    global left
    child = os.fork()
    if not child:
        sys.stdout = sys.stderr = open(os.devnull, "w")
        sys.argv, left = ["dermjax", stage, f"--workdir={workdir}", *arguments], writes
        os._exit(command.main())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

signal.signal(signal.SIGINT, signal.default_int_handler)
importlib.import_module(command.STAGES[stage])
sys.addaudithook(count)
assert start(root / "whole" / "run") == 0
for kills in range(10_000):
    chosen = (*CODES,)[kills % 3]
    workdir = root / f"killed{kills}" / "run"
    code = start(workdir, 1 + kills * int(stride))
    if code == 0:
        break
    assert code == CODES[chosen], (code, chosen)
    assert start(workdir) == 0
assert kills
"""


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def kill_everywhere(root, stage, stride, *arguments):
    """Runs a stage killed at every stride-th write; asserts that each run ends with the files of a whole one."""
    root.mkdir()
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "JAX_PLATFORMS": "cpu"}
    driven = [sys.executable, "-c", DRIVER, stage, str(root), str(stride), *map(str, arguments)]
    subprocess.run(driven, check=True, env=environment)
    whole = content(root / "whole")
    assert Path("run/manifest.jsonl") in whole and not [path for path in whole if "part" in path.suffixes]
    for killed in sorted(root.glob("killed*")):
        found = content(killed)
        assert found.keys() == whole.keys(), killed.name
        assert [path for path in whole if whole[path] != found[path]] == [], killed.name


def config(stage, variant, **changes):
    return f"--config={CONFIGS / stage}.py{variant}", *(f"--config.{key}={value}" for key, value in changes.items())


PHANTOMS = config("prepare", ":phantoms", phantoms_per_class=6, size=64, **{"ratios.validation": 0.2})
EVERYWHERE = pytest.param(1, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Phantoms as `prepare` leaves them, and others whose files say that a model made them: (real, synthetic)."""
    folder = tmp_path_factory.mktemp("prepared")
    for name, seed in (("real", 0), ("others", 1)):
        command = [sys.executable, "-m", "dermjax", "prepare", f"--workdir={folder / name}", *PHANTOMS]
        subprocess.run([*command, f"--config.seed={seed}"], check=True, stdout=subprocess.DEVNULL)
    others = records.read(folder / "others")
    generation = {"synthetic": True, "prompt": "one mole"}
    texts = PngInfo()
    texts.add_itxt(provenance.KEY, json.dumps(generation))
    made = []
    for each in others.records:
        path = folder / "made" / each.image
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(others.path(each)).save(path, pnginfo=texts)
        made.append(replace(each, sha256=digests.sha256(path), split="train", image_manipulation="synthetic",
                            generation=generation))  # fmt: skip
    records.write(folder / "made" / records.FILE, replace(others, root=folder / "made", records=tuple(made), home=None))
    return folder / "real", folder / "made"


@pytest.mark.parametrize("stride", [29, EVERYWHERE])
def test_prepare_of_phantoms(tmp_path, stride):
    kill_everywhere(tmp_path / "runs", "prepare", stride, *PHANTOMS)


@pytest.mark.parametrize("stride", [19, EVERYWHERE])
def test_prepare_of_a_folder(prepared, tmp_path, stride):
    images = prepared[0] / "images"
    asked = config("prepare", "", images=images, attributes=stride == 1, remove_hairs=stride == 1)
    kill_everywhere(tmp_path / "runs", "prepare", stride, *asked)


@pytest.mark.parametrize("stride", [5, EVERYWHERE])
def test_curate(prepared, tmp_path, stride):
    real, made = prepared
    kill_everywhere(tmp_path / "runs", "curate", stride, *config("curate", ":demo", manifest=made, training=real))


@pytest.mark.parametrize("stride", [29, EVERYWHERE])
def test_publish(prepared, tmp_path, stride):
    real, made = prepared
    thresholds = {"thresholds.bits": 0, "thresholds.sharpness": -9}
    curated = config("curate", ":demo", manifest=made, training=real, **thresholds)
    command = [sys.executable, "-m", "dermjax", "curate", f"--workdir={tmp_path / 'curated'}", *curated]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    asked = config("publish", "", manifest=tmp_path / "curated", training=real)
    kill_everywhere(tmp_path / "runs", "publish", stride, *asked)
