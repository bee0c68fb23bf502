"""MobileNetV2, its depthwise convolution and its batch normalisation against PyTorch, with gradients and statistics."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from dermjax.models.convolution import depthwise, xla_depthwise
from dermjax.models.mobilenetv2 import STATISTICS_KEPT, BatchNorm, padding
from dermjax.weights import classifiers, torch_layout

CONVOLUTIONS = {
    "plain": ((2, 8, 6, 5), (1, 1, ((1, 1), (1, 1)))),
    "halving": ((2, 8, 6, 5), (2, 1, ((0, 1), (0, 1)))),
    "halving odd": ((1, 7, 9, 3), (2, 1, ((1, 1), (1, 1)))),
    "dilated": ((1, 7, 9, 3), (1, 2, ((2, 2), (2, 2)))),
}
SHAPE = (4, 5, 6, 7)


@pytest.mark.parametrize(("shape", "geometry"), CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_the_fast_depthwise_convolution_is_the_library_s(shape, geometry):
    rng = np.random.default_rng(0)
    x, kernel = (np.float32(rng.normal(size=s)) for s in (shape, (3, 3, 1, shape[-1])))
    weight = np.float32(rng.normal(size=xla_depthwise(x, kernel, *geometry).shape))

    @partial(jax.jit, static_argnums=0)
    def value_and_gradients(convolve, x, kernel):
        y, back = jax.vjp(lambda x, kernel: convolve(x, kernel, *geometry), x, kernel)
        return y, *back(weight)

    fast, library = (value_and_gradients(way, x, kernel) for way in (depthwise, xla_depthwise))
    for ours, theirs in zip(fast, library, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_padding_is_tensorflow_s_or_pytorch_s():
    assert padding((1, 8, 7, 3), 3, 2, 1, True) == ((0, 1), (1, 1))
    assert padding((1, 8, 8, 3), 3, 1, 2, True) == ((2, 2), (2, 2))
    assert padding((1, 8, 7, 3), 3, 2, 1, False) == ((1, 1), (1, 1))


def twin(settings: dict):
    """A random PyTorch classifier whose batch statistics are not those of the start."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.MobileNetV2Config(
        **settings, image_size=32, classifier_dropout_prob=0.0, id2label={0: "a", 1: "b"}, label2id={}
    )
    model = transformers.MobileNetV2ForImageClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.copy_(0.5 + torch.rand_like(buffer))
    return torch, model


@pytest.mark.parametrize(
    "settings",
    [{"depth_multiplier": 0.35}, {"depth_multiplier": 0.5, "tf_padding": False, "output_stride": 16}],
    ids=["narrow", "dilated"],
)
def test_logits_equal_pytorch(settings, tmp_path):
    torch, model = twin(settings)
    model.save_pretrained(tmp_path)
    classifier, (params, variables) = classifiers.read(tmp_path, ("a", "b"), 32)
    image = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = model.eval()(torch.tensor(image.transpose(0, 3, 1, 2))).logits
    logits, unchanged = jax.jit(partial(classifier.logits, train=False))(params, variables, image)
    np.testing.assert_allclose(logits, theirs.numpy(), rtol=0, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, unchanged, variables)


def clear_of_kinks(torch, model):
    """Sets every batch normalisation so that no value comes near a kink of ReLU6: most channels pass as they are, and a
    fifth is below 0 or above 6 and has no gradient. Where rounding decides on which side a value is, all gradients
    before it differ."""
    rng = np.random.default_rng(2)
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith("normalization"):
                channels = len(module.bias)
                module.weight.copy_(torch.tensor(rng.uniform(0.2, 0.5, channels)))
                module.bias.copy_(torch.tensor(rng.choice([3.0, -3.0, 9.0], channels, p=[0.8, 0.1, 0.1])))


def test_training_takes_the_batch_s_statistics_and_pytorch_s_gradients(tmp_path):
    torch, model = twin({"depth_multiplier": 0.35})
    clear_of_kinks(torch, model)
    model.save_pretrained(tmp_path)
    classifier, (params, variables) = classifiers.read(tmp_path, ("a", "b"), 64)
    image = np.random.default_rng(1).uniform(-1, 1, (4, 64, 64, 3)).astype(np.float32)
    theirs = model.train()(torch.tensor(image.transpose(0, 3, 1, 2))).logits

    def total(params, variables, image):
        logits, after = classifier.logits(params, variables, image, train=True)
        return (logits**2).sum(), (logits, after)

    gradients, (logits, after) = jax.jit(jax.grad(total, has_aux=True))(params, variables, image)
    np.testing.assert_allclose(logits, theirs.detach().numpy(), rtol=0, atol=1e-3)

    stem = "mobilenet_v2.conv_stem.first_conv"
    old, new = (torch_layout.flatten(tree)[f"{stem}.normalization.mean"] for tree in (variables, after))
    with torch.no_grad():
        padded = torch.nn.functional.pad(torch.tensor(image.transpose(0, 3, 1, 2)), (0, 1, 0, 1))
        batch = model.mobilenet_v2.conv_stem.first_conv.convolution(padded).mean((0, 2, 3)).numpy()
    np.testing.assert_allclose(new, STATISTICS_KEPT * old + (1 - STATISTICS_KEPT) * batch, atol=1e-5)

    (theirs**2).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
    model.save_pretrained(tmp_path / "gradients")
    expected = load_file(tmp_path / "gradients" / "model.safetensors")
    # one scale for all: a bias that the next batch normalisation takes away has a gradient of rounding errors only
    scale = max(np.abs(gradient).max() for gradient in expected.values())
    for name, ours in classifiers.to_hugging_face(torch_layout.to_file(gradients, np.float32)).items():
        if "num_batches" not in name:
            np.testing.assert_allclose(ours.read() / scale, expected[name] / scale, rtol=0, atol=1e-4, err_msg=name)


def module(activate: bool, dtype, scale, bias) -> BatchNorm:
    norm = BatchNorm(SHAPE[-1], momentum=0.9, epsilon=1e-3, activate=activate, dtype=dtype)
    norm.scale[...], norm.bias[...] = jnp.asarray(scale), jnp.asarray(bias)
    return norm


@pytest.mark.parametrize("activate", [True, False])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_batch_norm_is_pytorch_s(activate, offset):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, weight = (np.float32(rng.normal(size=SHAPE)) for _ in range(2))
    x += np.float32(offset)
    scale, bias = (np.float32(3 + rng.normal(size=SHAPE[-1])) for _ in range(2))
    theirs = torch.nn.BatchNorm2d(SHAPE[-1], eps=1e-3, momentum=0.1).train()
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(scale))
        theirs.bias.copy_(torch.tensor(bias))
    given = torch.tensor(x, requires_grad=True)
    expected = theirs(given.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    expected = torch.nn.functional.relu6(expected) if activate else expected
    (expected * torch.tensor(weight)).sum().backward()
    graph, params, rest = nnx.split(module(activate, jnp.float32, scale, bias), nnx.Param, ...)

    def total(params, x):
        norm = nnx.merge(graph, params, rest, copy=True)
        y = norm(x, train=True)
        return (y * weight).sum(), (y, norm.mean[...])

    (by_params, by_x), (y, mean) = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(params, x)
    clipped = ((np.asarray(y) == 0) | (np.asarray(y) == 6)).mean()
    assert 0.1 < clipped < 0.9 if activate else clipped == 0
    np.testing.assert_allclose(y, expected.detach(), atol=2e-4)
    np.testing.assert_allclose(by_x, given.grad, atol=2e-4)
    np.testing.assert_allclose(by_params["scale"][...], theirs.weight.grad, atol=2e-3)
    np.testing.assert_allclose(by_params["bias"][...], theirs.bias.grad, atol=1e-4)
    np.testing.assert_allclose(mean, theirs.running_mean, atol=1e-5)


def test_batch_norm_in_bfloat16_comes_out_as_it_went_in_and_is_near_float32():
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=SHAPE), jnp.bfloat16)
    ones = np.ones(SHAPE[-1], np.float32)

    def gradient(x, dtype):
        y, back = jax.vjp(lambda x: module(True, dtype, ones, ones)(x, train=True), x)
        return y, back(jnp.sin(y))[0]

    half, whole = gradient(x, jnp.bfloat16), gradient(x.astype(jnp.float32), jnp.float32)
    for ours, exact in zip(half, whole, strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(ours.astype(jnp.float32), exact, atol=2e-2)
