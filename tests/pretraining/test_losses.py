"""What teaches the autoencoder photographs: a teacher, a discriminator, and the figures that watch it."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax import reconstruction
from dermjax.errors import UserError
from dermjax.pretraining import losses

DINOV2 = Path(__file__).parents[3] / "shared/weights/dinov2_vits14"


@pytest.fixture(scope="module")
def dinov2():
    if not DINOV2.is_dir():
        pytest.skip("needs DINOv2's weights")
    return losses.read_teacher(str(DINOV2), 56)


def textures(seed):
    """Smooth random images [2, 56, 56, 3] in [-1, 1]."""
    coarse = np.random.default_rng(seed).uniform(-1, 1, (2, 7, 7, 3))
    return jnp.asarray(coarse.repeat(8, 1).repeat(8, 2), jnp.float32)


def test_the_teacher_s_distance_is_0_for_the_same_and_grows_with_the_change(dinov2):
    judge, params = dinov2
    distance, image = jax.jit(judge.distance), textures(0)
    values = [float(distance(params, image, other)) for other in (image, image + 0.05 * textures(1), textures(1))]
    assert abs(values[0]) < 1e-6 and values[0] < values[1] < values[2] < 1.2


def test_the_teacher_s_tokens_are_those_of_transformers(dinov2):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    judge, params = dinov2
    model = transformers.Dinov2Model.from_pretrained(DINOV2).eval()
    image = np.asarray(textures(2))
    mean, std = (np.array(each, np.float32) for each in (judge.network.mean, judge.network.std))
    pixels = torch.tensor((((image + 1) / 2 - mean) / std).transpose(0, 3, 1, 2))
    with torch.no_grad():
        wanted = model(pixels, output_hidden_states=True).hidden_states
    got = judge.network.tokens(params, {}, jnp.asarray(image), (2, 5))
    for depth, tokens in zip((2, 5), got, strict=True):
        # the position embeddings are resampled here by NumPy and there by PyTorch
        assert np.abs(np.asarray(tokens) - wanted[depth].numpy()).max() < 2e-3 * np.abs(wanted[depth].numpy()).max()


def test_another_network_and_a_size_beside_its_patches_are_refused(dinov2):
    with pytest.raises(UserError, match=r"patches of 14 pixels; give crops of a multiple, not 64"):
        losses.read_teacher(str(DINOV2), 64)
    if (other := DINOV2.with_name("mobilenet_v2_1.0_160")).is_dir():
        with pytest.raises(UserError, match="is a mobilenet_v2; give a folder of DINOv2"):
            losses.read_teacher(str(other), 56)


def test_each_side_of_the_discriminator_learns_by_its_own_loss_alone():
    params = losses.init_discriminator(0)
    image, again = textures(0), textures(1)
    fooled, own = losses.hinge(params, image, again)
    judge = losses.discriminator().merge(params)
    assert np.isclose(fooled, -judge(again).mean())
    assert np.isclose(own, np.maximum(0, 1 - judge(image)).mean() + np.maximum(0, 1 + judge(again)).mean())
    assert judge(image).shape == (2, 7, 7, 1)
    of_the_judge = jax.grad(lambda p: losses.hinge(p, image, again)[0])(params)
    of_the_image = jax.grad(lambda x: losses.hinge(params, image, x)[1])(again)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves((of_the_judge, of_the_image)))


def test_a_blurred_copy_has_less_of_the_gradients():
    image = np.asarray(textures(0))
    flat = np.broadcast_to(image.mean((1, 2), keepdims=True), image.shape)
    half = reconstruction.figures(image, 0.5 * image + 0.5 * flat)
    assert np.isclose(half["gradients"], 0.5, atol=1e-5)
    error = np.square(0.25 * (image - flat)).mean((1, 2, 3))
    assert np.isclose(half["psnr"], -10 * np.log10(error).mean(), atol=1e-4)


def test_photographs_are_not_marked_and_what_came_back_is():
    image = np.zeros((2, 64, 64, 3), np.float32)
    picture = reconstruction.side_by_side(image, image)
    above, below = np.split(picture, 2)
    assert picture.dtype == np.uint8 and above.shape[1] == 2 * len(above)
    assert (above == picture[0, 0]).all() and not (below == picture[0, 0]).all()


def test_without_photographs_there_is_nothing_to_look_at():
    assert reconstruction.watch(None, np.zeros((0, 8, 8, 3), np.uint8))(None, {}) == {}
