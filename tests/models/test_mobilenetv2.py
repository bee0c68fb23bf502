"""MobileNetV2 and its depthwise convolution against PyTorch: forward, gradients, batch statistics, every padding."""

from functools import partial

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from dermjax.models.convolution import depthwise, xla_depthwise
from dermjax.models.mobilenetv2 import STATISTICS_KEPT, padding
from dermjax.weights import classifiers, torch_layout

CONVOLUTIONS = {
    "plain": ((2, 8, 6, 5), (1, 1, ((1, 1), (1, 1)))),
    "halving": ((2, 8, 6, 5), (2, 1, ((0, 1), (0, 1)))),
    "halving odd": ((1, 7, 9, 3), (2, 1, ((1, 1), (1, 1)))),
    "dilated": ((1, 7, 9, 3), (1, 2, ((2, 2), (2, 2)))),
}


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
