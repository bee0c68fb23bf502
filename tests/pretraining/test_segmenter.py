"""The segmenter's training: its loss, its overlap, its temperature, and the folder that a run leaves."""

import json
import runpy
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from dermjax.errors import UserError
from dermjax.pretraining import segmenter
from dermjax.pretraining.run import run
from dermjax.weights import segmenters

CONFIG = Path(__file__).parents[2] / "configs" / "pretrain.py"


def test_the_loss_is_least_where_the_mask_is_right(monkeypatch):
    mask = np.zeros((2, 16, 16), np.float32)
    mask[:, 4:12, 4:12] = 1
    losses = {}
    for name, given in {"right": 20 * mask - 10, "empty": 0 * mask - 10, "wrong": 10 - 20 * mask}.items():
        monkeypatch.setattr("dermjax.models.segmenter.logits", lambda params, image, given=given: jnp.asarray(given))
        losses[name] = float(segmenter.loss({}, {}, {}, {"image": mask, "mask": jnp.asarray(mask)}, None)[0])
    assert losses["right"] < 0.01 < losses["empty"] < losses["wrong"]


def test_overlaps_are_intersections_over_unions():
    one, two = np.zeros((3, 4, 4), bool), np.zeros((3, 4, 4), bool)
    one[0, :2], two[0, :1] = True, True
    one[1, :2], two[1, 2:] = True, True
    assert segmenter.overlaps(one, two).tolist() == [0.5, 0.0, 1.0]


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.0])
def test_the_temperature_of_logits_is_found(temperature):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 200_000)
    truth = rng.random(len(logits)) < 1 / (1 + np.exp(-logits))
    assert segmenter.fit_temperature(logits * temperature, truth) == pytest.approx(temperature, rel=0.03)


def settings(photographs, **changes):
    config = runpy.run_path(str(CONFIG))["get_config"]("segmenter")
    config.update(photographs=str(photographs), phantoms=2, steps=2, warmup=1, batch=2, evaluate_every=0, save_every=0)
    config.update(changes)
    return config


@pytest.mark.slow
def test_a_run_leaves_a_folder_that_is_read(photographs, tmp_path):
    run(settings(photographs), tmp_path / "run")
    params, config = segmenters.read(tmp_path / "run" / "segmenter")
    assert config["temperature"] > 0 and 0 <= config["validation_iou"] <= 1
    assert params["conv_out"]["kernel"].shape == (3, 3, 32, 16)
    assert (tmp_path / "run" / "segmenter" / "model.safetensors").stat().st_size < 6e6


def test_a_photograph_without_a_mask_is_named(photographs, tmp_path):
    header, *lines = photographs.read_text().splitlines()
    bare = [json.dumps(json.loads(line) | {"attributes": {}}) for line in lines]
    photographs.write_text("\n".join([header, *bare]) + "\n")
    with pytest.raises(UserError, match="has no mask beside it"):
        run(settings(photographs), tmp_path / "run")
    with pytest.raises(UserError, match=r"config\.photographs: give the manifest"):
        run(settings(""), tmp_path / "run")
