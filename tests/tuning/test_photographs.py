"""The preset `photographs` on real photographs, with derm-tiny: the autoencoder learns them, and the model draws."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from dermjax import config_file
from dermjax.preparation import run as preparation
from dermjax.training import writers
from dermjax.tuning import run as tuning
from dermjax.weights import diffusers

PHOTOGRAPHS = Path(__file__).parents[3] / "shared" / "data" / "dermoscopy" / "train"


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="needs ../shared/data/dermoscopy")
def test_the_preset_for_photographs_learns_them(tmp_path):
    for label in ("benign", "malignant"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for source in sorted((PHOTOGRAPHS / label).glob("*.jpg"))[:40]:
            (tmp_path / "images" / label / source.name).symlink_to(source)
    prepare = runpy.run_path(str(config_file.PRESETS / "prepare.py"))["get_config"]()
    prepare.images = str(tmp_path / "images")
    (tmp_path / "prepare").mkdir()
    preparation.run(prepare, tmp_path / "prepare")
    config = config_file.preset("tune", "photographs")
    config.update(manifest=str(tmp_path / "prepare"), steps=20, watch_every=10, save_every=10, validation_draws=1)
    config.model, config.tuned.vae = "derm-tiny", "full"  # whose autoencoder has seen no photograph
    config.vae.steps, config.patience = 60, 20
    tuning.run(config, tmp_path / "tune")
    looks = [each for each in writers.read(tmp_path / "tune" / "autoencoder" / "metrics.jsonl") if "gradients" in each]
    assert looks[-1]["psnr"] > looks[0]["psnr"] + 1  # 25 dB before
    sd, params = diffusers.read(tmp_path / "tune" / "model")
    assert sd.size == 128 and all(np.isfinite(each).all() for each in params["vae"]["quant_conv"].values())
