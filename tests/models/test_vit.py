"""ViT and DINOv2 against random PyTorch twins: forward, gradients, resampled positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from dermjax.weights import classifiers, torch_layout
from dermjax.weights.classifiers import resize_positions

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 8, "image_size": 32}
LABELS = {0: "benign", 1: "malignant"}


def twin(kind: str):
    """A random PyTorch classifier whose every parameter matters, biases and layer scales included."""
    torch.manual_seed(0)
    make = {
        "vit": lambda: transformers.ViTForImageClassification(
            transformers.ViTConfig(**SMALL, intermediate_size=48, id2label=LABELS, label2id={})
        ),
        "dinov2": lambda: transformers.Dinov2ForImageClassification(
            transformers.Dinov2Config(**SMALL, mlp_ratio=2, id2label=LABELS, label2id={})
        ),
    }
    model = make[kind]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(params=["vit", "dinov2"])
def pair(request, tmp_path):
    """The twin, and ours as read from the files that the twin wrote."""
    model = twin(request.param)
    model.save_pretrained(tmp_path)
    return model, *classifiers.read(tmp_path, tuple(LABELS.values()), SMALL["image_size"])


def test_logits_and_every_gradient_equal_pytorch(pair, tmp_path):
    model, classifier, (params, variables) = pair
    image = np.random.default_rng(0).uniform(-1, 1, (3, 32, 32, 3)).astype(np.float32)
    pixels = ((image + 1) / 2 - np.array(classifier.mean)) / np.array(classifier.std)
    theirs = model(torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32)).logits

    def total(params):
        logits, _ = classifier.logits(params, variables, jnp.asarray(image), train=True)
        return (logits**2).sum(), logits

    gradients, logits = jax.jit(jax.grad(total, has_aux=True))(params)
    np.testing.assert_allclose(logits, theirs.detach().numpy(), rtol=0, atol=1e-5)

    # the twin's gradients, saved in place of its parameters, come with the files' names
    (theirs**2).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    model.save_pretrained(tmp_path / "gradients")
    expected = load_file(tmp_path / "gradients" / "model.safetensors")
    for name, ours in classifiers.to_hugging_face(torch_layout.to_file(gradients, np.float32)).items():
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(ours.read(), expected[name], rtol=0, atol=1e-5 * scale + 1e-5, err_msg=name)


@pytest.mark.parametrize("side", [3, 5, 9])
def test_resampled_positions_equal_pytorch(side):
    positions = np.random.default_rng(1).normal(size=(1, 1 + 5 * 5, 6)).astype(np.float32)
    square = torch.tensor(positions[:, 1:].reshape(1, 5, 5, 6).transpose(0, 3, 1, 2))
    theirs = torch.nn.functional.interpolate(square, size=(side, side), mode="bicubic", align_corners=False)
    resized = resize_positions(positions, side)
    np.testing.assert_array_equal(resized[:, :1], positions[:, :1])
    np.testing.assert_allclose(resized[:, 1:].reshape(side, side, 6), theirs[0].permute(1, 2, 0), atol=1e-5)
