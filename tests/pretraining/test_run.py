"""`pretrain` from pictures to a model folder, with photographs, a teacher and a discriminator, in a few steps each."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from dermjax.pretraining import run as stage
from dermjax.weights import diffusers

CONFIG = Path(__file__).parents[2] / "configs" / "pretrain.py"
DINOV2 = Path(__file__).parents[3] / "shared/weights/dinov2_vits14"


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
