"""A network made wider computes what it did, and its copies can learn to differ."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax.errors import UserError
from dermjax.models.stable_diffusion import BASE
from dermjax.pretraining import run, widening
from dermjax.weights import diffusers
from dermjax.weights.tensor_files import SHIPPED


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """derm-tiny's autoencoder, and derm-base's made of it."""
    narrow, params = diffusers.read(SHIPPED["derm-tiny"])
    wide = run.prepare_model(tmp_path_factory.mktemp("base"), BASE)
    return narrow, params["vae"], wide, widening.widen(params["vae"], wide.shapes["vae"], seed=0)


def test_wider_autoencoder_gives_the_same_latents_and_the_same_picture(networks):
    narrow, params, wide, wider = networks
    image = np.random.default_rng(0).uniform(-1, 1, (1, 64, 64, 3)).astype(np.float32)
    np.testing.assert_allclose(wide.encode({"vae": wider}, image), narrow.encode({"vae": params}, image), atol=2e-3)
    latents = np.random.default_rng(1).normal(size=(1, 8, 8, 4)).astype(np.float32)
    before, after = (sd.reconstruct({"vae": vae}, latents) for sd, vae in ((narrow, params), (wide, wider)))
    np.testing.assert_allclose(after, before, atol=2e-3)


def test_copies_of_a_channel_get_gradients_of_their_own(networks):
    """Copies that all readers weigh alike would stay copies for ever."""
    _, _, wide, wider = networks
    image = jnp.asarray(np.random.default_rng(2).uniform(-1, 1, (1, 32, 32, 3)), jnp.float32)
    gradients = jax.grad(lambda vae: jnp.square(wide.encode({"vae": vae}, image)).mean())(wider)
    of_first = np.asarray(gradients["encoder"]["conv_in"]["kernel"])
    apart = np.abs(of_first[..., 0::2] - of_first[..., 1::2]).max() / np.abs(of_first).max()
    assert apart > 0.1


def test_what_cannot_be_widened_is_said():
    shapes = {"a": {"kernel": jax.ShapeDtypeStruct((4, 9), np.float32)}}
    with pytest.raises(ValueError, match=r"a\.kernel: 9 is no multiple of 2"):
        widening.widen({"a": {"kernel": np.ones((2, 2))}}, shapes, seed=0)
    with pytest.raises(ValueError, match="networks differ in"):
        widening.widen({"b": {"kernel": np.ones((2, 2))}}, shapes, seed=0)


def test_a_start_of_other_layers_is_one_line(tmp_path, monkeypatch):
    base = run.prepare_model(tmp_path, BASE)
    monkeypatch.setattr(run.diffusers, "read", lambda path: (None, {"vae": {"encoder": {"bias": np.ones(2)}}}))
    config = run.config_file.preset("pretrain", "smoke")
    config.start = str(Path("derm-tiny"))
    with pytest.raises(UserError, match=r"config\.start = derm-tiny: cannot be widened to derm-tiny"):
        run.start_autoencoder(base, config)
