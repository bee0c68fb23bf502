"""A network made wider computes what it did, and its copies can learn to differ."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax.data.tokens import load_tokenizer, tokenize
from dermjax.errors import UserError
from dermjax.models.stable_diffusion import BASE
from dermjax.pretraining import growth, run
from dermjax.weights import diffusers
from dermjax.weights.tensor_files import SHIPPED


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """derm-tiny's autoencoder, and derm-base's made of it."""
    narrow, params = diffusers.read(SHIPPED["derm-tiny"])
    wide = run.prepare_model(tmp_path_factory.mktemp("base"), BASE)
    return narrow, params["vae"], wide, growth.widen(params["vae"], wide.shapes["vae"], seed=0)


def test_wider_autoencoder_gives_the_same_latents_and_the_same_picture(networks):
    narrow, params, wide, wider = networks
    image = np.random.default_rng(0).uniform(-1, 1, (1, 64, 64, 3)).astype(np.float32)
    latents = np.random.default_rng(1).normal(size=(1, 8, 8, 4)).astype(np.float32)
    encoded = [jax.jit(sd.encode)({"vae": vae}, image) for sd, vae in ((narrow, params), (wide, wider))]
    painted = [jax.jit(sd.reconstruct)({"vae": vae}, latents) for sd, vae in ((narrow, params), (wide, wider))]
    for before, after in (encoded, painted):
        np.testing.assert_allclose(after, before, atol=2e-3)


def test_copies_of_a_channel_get_gradients_of_their_own():
    """Copies that all readers weigh alike would stay copies for ever."""
    rng = np.random.default_rng(2)
    narrow = {"a": {"kernel": rng.normal(size=(3, 4))}, "b": {"kernel": rng.normal(size=(4, 5))}}
    shapes = {
        name: {"kernel": jax.ShapeDtypeStruct(shape, np.float32)} for name, shape in (("a", (3, 8)), ("b", (8, 5)))
    }
    wide = growth.widen(narrow, shapes, seed=0)
    x = rng.normal(size=(7, 3)).astype(np.float32)

    def network(params):
        return jnp.tanh(x @ params["a"]["kernel"]) @ params["b"]["kernel"]

    np.testing.assert_allclose(network(wide), network(narrow), atol=1e-5)
    of_copies = jax.grad(lambda params: jnp.square(network(params)).mean())(wide)["a"]["kernel"]
    assert np.abs(of_copies[:, 0::2] - of_copies[:, 1::2]).max() > 0.1 * np.abs(of_copies).max()


def test_what_cannot_be_widened_is_said():
    shapes = {"a": {"kernel": jax.ShapeDtypeStruct((4, 9), np.float32)}}
    with pytest.raises(ValueError, match=r"a\.kernel: 9 is no multiple of 2"):
        growth.widen({"a": {"kernel": np.ones((2, 2))}}, shapes, seed=0)
    with pytest.raises(ValueError, match="networks differ in"):
        growth.widen({"b": {"kernel": np.ones((2, 2))}}, shapes, seed=0)


def test_a_unet_around_a_smaller_one_begins_as_it(tmp_path):
    """On a latent image whose every pixel stands four times, the larger UNet paints what the smaller one does."""
    narrow, params = diffusers.read(SHIPPED["derm-tiny"])
    wide = run.prepare_model(tmp_path, BASE)
    deeper = growth.deepen(params["unet"], wide.init(0)["unet"])
    rng = np.random.default_rng(3)
    latents = rng.normal(size=(2, 16, 16, 4)).astype(np.float32)
    times = np.array([300, 700])
    context = rng.normal(size=(2, 40, 128)).astype(np.float32)
    before = jax.jit(narrow.unet)({"unet": params["unet"]}, latents, times, context)
    again = jax.jit(wide.unet)({"unet": deeper}, latents.repeat(2, 1).repeat(2, 2), times, context)
    inner = again[:, 1::2, 1::2]
    assert np.corrcoef(inner.ravel(), np.asarray(before).ravel())[0, 1] > 0.5


def test_words_known_keep_their_vectors_and_new_ones_get_fresh(tmp_path):
    narrow, params = diffusers.read(SHIPPED["derm-tiny"])
    wide = run.prepare_model(tmp_path, BASE)
    fresh = wide.init(0)["text_encoder"]
    known, words = (load_tokenizer(each.tokenizer).get_vocab() for each in (narrow, wide))
    knowing = growth.with_words(params["text_encoder"], fresh, known, words)
    prompts = ["a large brown lesion with hairs"]
    texts = [tokenize(load_tokenizer(each.tokenizer, 40), prompts) for each in (narrow, wide)]
    before = narrow.encode_text({"text_encoder": params["text_encoder"]}, texts[0])
    after = wide.encode_text({"text_encoder": knowing}, texts[1])
    np.testing.assert_allclose(after, before, atol=1e-6)
    new = words["sticker</w>"]
    table = knowing["text_model"]["embeddings"]["token_embedding"]["embedding"]
    np.testing.assert_array_equal(table[new], fresh["text_model"]["embeddings"]["token_embedding"]["embedding"][new])


def test_what_does_not_grow_is_said():
    level = {"down_blocks": {"0": {"bias": np.ones(2)}}}
    with pytest.raises(ValueError, match=r"down_blocks\.1\.bias is no array of a UNet with one more level"):
        growth.deepen(level, level)
    text = {"token_embedding": {"embedding": np.ones((5, 2))}, "norm": {"bias": np.ones(2)}}
    with pytest.raises(ValueError, match=r"norm\.bias is of another text encoder"):
        growth.with_words(text, text | {"norm": {"bias": np.ones(3)}}, {}, {})


def test_a_start_of_other_layers_is_one_line(tmp_path, monkeypatch):
    base = run.prepare_model(tmp_path, BASE)
    monkeypatch.setattr(run.diffusers, "read", lambda path: (base, {"vae": {"encoder": {"bias": np.ones(2)}}}))
    config = run.config_file.preset("pretrain", "smoke")
    config.start = str(Path("derm-tiny"))
    with pytest.raises(UserError, match=r"config\.start = derm-tiny: cannot grow into derm-tiny"):
        run.start(base, config)
