"""`pretrain` from pictures to a model folder, with photographs, a teacher and a discriminator, in a few steps each."""

import json
import resource
import runpy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dermjax import __main__
from dermjax.errors import UserError
from dermjax.models.classifier import describe, fresh
from dermjax.pretraining import run as stage
from dermjax.weights import classifiers, diffusers

CONFIG = Path(__file__).parents[2] / "configs" / "pretrain.py"
DINOV2 = Path(__file__).parents[3] / "shared/weights/dinov2_vits14"


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """drawn(number, size, first_seed): how many phantoms are made, of which all are as they should be; four a chunk."""
    made = []

    def phantom(seed, size):
        made.append(seed)
        return SimpleNamespace(image=np.full((size, size, 3), seed, np.uint8), caption=f"{seed} of {size}")

    monkeypatch.setattr(stage, "CHUNK", 4)
    monkeypatch.setattr(stage, "phantom", phantom)
    monkeypatch.setattr(stage, "ProcessPoolExecutor", lambda workers, context: ThreadPoolExecutor(1))

    def make(number, size=8, first_seed=0):
        made.clear()
        images, captions = stage.make_phantoms(tmp_path, number, size, first_seed)
        seeds = range(first_seed, first_seed + number)
        assert captions == [f"{seed} of {size}" for seed in seeds] and images.shape == (number, size, size, 3)
        np.testing.assert_array_equal(images[:, 0, 0, 0], seeds)
        return len(made)

    return make


def test_phantoms_are_made_once_and_anew_for_another_number_size_or_seed(drawn):
    assert drawn(6) == 6 and drawn(6) == 0
    assert drawn(12) == 12 and drawn(12) == 0 and drawn(6) == 0
    assert drawn(6, size=4) == 6 and drawn(6, first_seed=50) == 6 and drawn(6) == 0


def test_a_killed_run_makes_the_chunks_alone_that_are_missing(drawn, monkeypatch):
    class Killed(Exception):
        pass

    def dies(path, array, write=stage.write_array):
        if array[0, 0, 0, 0] >= 4:
            path.write_bytes(b"half of it")
            raise Killed
        write(path, array)

    for number in (12, 10):  # the second takes the first chunk, whose images the first has joined
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(stage, "write_array", dies)
            drawn(number)
        assert drawn(number) == number - 4


@pytest.mark.parametrize("room", [500_000, 2_000_000], ids=["for no chunk", "for chunks alone"])
def test_phantoms_without_room_are_one_line_and_are_made_once_there_is(drawn, tmp_path, room):
    """A chunk has 0.8 MB, all have 2.4. A file that is mapped would end the process by a signal on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(OSError) as error:
            drawn(12, size=256)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert __main__._mendable(error.value).endswith("File too large; make room, then the same command")
    assert not list(tmp_path.glob("images_*"))
    assert drawn(12, size=256) == (12 if room < 800_000 else 0)


@pytest.fixture
def unpainted(monkeypatch):
    """A config of `pretrain`, where nothing may be painted: what is wrong with it is found before."""

    def paints(*_):
        raise AssertionError("it paints, and trains for hours, before it refuses")

    monkeypatch.setattr(stage, "make_phantoms", paints)
    config = runpy.run_path(str(CONFIG))["get_config"]("smoke")
    config.phantoms = 12
    return config


def test_a_training_photograph_without_a_mask_is_named_before_anything_is_painted(unpainted, photographs, tmp_path):
    """Those of the validation split are only looked at."""
    unpainted.update(photographs=str(photographs), photographs_share=0.5)
    header, *lines = photographs.read_text().splitlines()
    bare = {split: [header] for split in ("train", "validation")}
    for entry in map(json.loads, lines):
        for split, written in bare.items():
            written.append(json.dumps(entry | ({"attributes": {}} if entry["split"] == split else {})))
    photographs.write_text("\n".join(bare["train"]) + "\n")
    with pytest.raises(UserError, match=r"0\.png has no mask beside it, nor have 7 others"):
        stage.run(unpainted, tmp_path / "run")
    photographs.write_text("\n".join(bare["validation"]) + "\n")
    with pytest.raises(AssertionError, match="it paints"):
        stage.run(unpainted, tmp_path / "run")


@pytest.mark.parametrize(("kind", "size", "told"), [
    ("vit", 56, "is a vit; give a folder of DINOv2"),
    ("dinov2", 64, "has patches of 14 pixels; give crops of a multiple, not 64"),
    (None, 56, "config.json: cannot be read"),
])  # fmt: skip
def test_a_wrong_teacher_is_refused_before_anything_is_painted(kind, size, told, unpainted, tmp_path):
    """Also one that the last phase alone asks for."""
    if kind:
        small = {"patch_size": 14, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        teacher = fresh(describe(kind, small, ("a", "b"), 56), np.float32)
        classifiers.write(tmp_path / "teacher", teacher, *teacher.init(0))
    unpainted.teacher = str(tmp_path / "teacher")
    unpainted.decoder.whole.update(size=size, sides=(64, 64))
    unpainted.decoder.whole.weights.features = 0.2
    with pytest.raises(UserError, match=told):
        stage.run(unpainted, tmp_path / "run")


@pytest.mark.parametrize("variant", ["smoke", "segmenter"])
def test_several_processes_are_refused(variant, tmp_path, monkeypatch):
    """All of them would paint, join and delete the same files."""
    monkeypatch.setattr(stage.jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="pretrain: runs in one process, over all of its devices"):
        stage.run(runpy.run_path(str(CONFIG))["get_config"](variant), tmp_path)


@pytest.mark.slow
def test_photographs_and_phantoms_become_a_model_that_is_loaded(photographs, tmp_path, capsys):
    config = runpy.run_path(str(CONFIG))["get_config"]("smoke")
    config.update(phantoms=12, normalise_over=8, encode_batch=4, photographs=str(photographs), photographs_share=0.5)
    config.diffusion.update(images=12, steps=2, batch=4)
    config.autoencoder.phases = ("crops",)
    config.teacher = str(DINOV2) if DINOV2.is_dir() else ""
    for phase in (config.autoencoder.crops, config.decoder.whole):
        phase.update(size=56, sides=(56, 64), batch=2, steps=2, evaluate_every=1)
        phase.weights.update(features=0.2 if config.teacher else 0.0, adversary=0.1, texture=1.0)
    stage.run(config.lock(), tmp_path / "run")
    sd, params = diffusers.read(tmp_path / "run" / "model")
    assert all(np.isfinite(leaf).all() for leaf in params["vae"]["decoder"]["conv_out"].values())
    assert sd.size == 128
    curve = (tmp_path / "run" / "autoencoder" / "crops" / "metrics.jsonl").read_text()
    assert '"psnr"' in curve and '"gradients"' in curve and '"discriminator"' in curve
    capsys.readouterr()
    stage.run(config, tmp_path / "run")
    assert "0/2 steps" not in capsys.readouterr().out
