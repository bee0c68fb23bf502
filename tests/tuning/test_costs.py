"""What a run of `tune` takes is said of shapes alone, and so is what would fit."""

import runpy
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from dermjax import machine, sharding
from dermjax.models.stable_diffusion import SD15, StableDiffusion
from dermjax.sampling.requests import SamplerSettings
from dermjax.training import optimizers
from dermjax.tuning import autoencoder, costs, trainable
from dermjax.tuning.setup import Setup
from dermjax.tuning.task import Samples

CONFIG = Path(__file__).parents[2] / "configs" / "tune.py"


@pytest.fixture(scope="module")
def planned():
    """The work of a preset on Stable Diffusion 1.5, without its files."""

    def made(preset: str, size: int = 512):
        config = runpy.run_path(str(CONFIG))["get_config"](preset)
        sd = StableDiffusion(SD15, Path(), jnp.float32, config.remat)
        tuned = {name: config.tuned[name] for name in ("unet", "text_encoder")}
        divide = partial(trainable.divide, tuned=tuned, rank=config.lora.rank, targets=config.lora.targets, seed=0,
                          words=0, precision="float32")  # fmt: skip
        rule = optimizers.build(config.optimizer, rate=1e-4, warmup=0, steps=10, schedule="constant", weight_decay=0.0,
                                clip=0.0)  # fmt: skip
        shown = SimpleNamespace(sources=[None] * 10)
        settings = SamplerSettings(sampler="Euler", steps=20, guidance=5.0)
        samples = Samples(list(config.prompts.values()), config.samples.images, settings, size, config.batch)
        work = Setup(sharding.mesh(1, 1), shown, shown, sd, sd.shapes, None, samples, divide, trainable.assemble,
                    rule, config.ema_decay > 0)  # fmt: skip
        return work, config

    return made


def test_what_does_not_fit_is_told_what_would(planned):
    work, config = planned("lora")
    need = costs.memory(work)
    assert need(512, 8) > need(512, 4) > need(512, 1) > need(256, 1) > 4 * 1.07e9
    assert "config.accumulate = 2 " in costs.remedy(work, config, need(512, 4) + 1)
    assert "config.accumulate = 8 " in costs.remedy(work, config, need(512, 1) + 1)
    assert "config.batch = 1 and config.size = 256 " in costs.remedy(work, config, need(256, 1) + 1)
    assert "tune less" in costs.remedy(work, config, 1e9)


def test_presets_need_more_the_more_they_train(planned):
    paper, lora, full = (costs.memory(planned(preset)[0])(256, 1) for preset in ("paper", "lora", "full"))
    assert 4e9 < paper < lora < full < 24e9
    work, config = planned("paper")
    assert costs.files(work, config) < 3e9 < 4 * 3.4e9 < costs.files(*planned("full"))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="measured on a CPU")
def test_samples_count_as_much_as_they_were_measured_to_take(planned):
    """`paper` at 256 px held 10.6 GB while it drew its samples, and 7.8 GB without them."""
    work, config = planned("paper", 256)
    assert costs.sampling_memory(work, config) == pytest.approx(10.6e9, rel=0.1)
    assert costs.memory(work)(256, 2) == pytest.approx(7.8e9, rel=0.1)
    config.watch_every = 0
    assert costs.sampling_memory(work, config) == 0.0


def test_the_cost_line_counts_the_samples_and_says_that_without_them_it_fits(planned, monkeypatch, capsys):
    work, config = planned("paper", 256)
    step, samples = costs.memory(work)(256, 2), costs.sampling_memory(work, config)
    monkeypatch.setattr(sharding, "free_memory", lambda grid: (step + samples) / 2)
    costs.report(work, config)
    said = capsys.readouterr().out
    assert f"about {machine.format_bytes(samples)} of memory" in said
    assert "with config.samples.images = 0 it fits" in said


def test_the_autoencoder_s_step_needs_memory_where_it_is_tuned_and_more_for_more_images(planned):
    """At 512 px Stable Diffusion's autoencoder needs more for a batch of 8 than its UNet: it is said before it runs."""
    work, config = planned("full")
    assert autoencoder.memory(work, config) == 0
    config.tuned.vae = "full"
    eight = autoencoder.memory(work, config)
    config.vae.batch = 1
    one = autoencoder.memory(work, config)
    config.vae.size = 256
    assert 0 < autoencoder.memory(work, config) < one < eight and eight > 40e9
