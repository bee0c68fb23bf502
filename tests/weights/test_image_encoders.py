"""Image encoders of others' files against PyTorch: CLIP's in transformers, InceptionV3 as pytorch-fid builds it."""

import json

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file, save_file
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

from dermjax.errors import UserError
from dermjax.models import inception
from dermjax.weights import image_encoders, processors

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 12, "num_attention_heads": 4,
         "image_size": 42, "patch_size": 14, "projection_dim": 20}  # fmt: skip


def random(model, seed=0):
    """The model with every parameter drawn anew, biases and norms too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def clip_image(encoder, n=3):
    rng = np.random.default_rng(1)
    image = rng.uniform(-1, 1, (n, encoder.size, encoder.size, 3)).astype(np.float32)
    mean, std = processors.CLIP
    pixels = torch.tensor((((image + 1) / 2 - mean) / std).transpose(0, 3, 1, 2), dtype=torch.float32)
    return image, pixels


@pytest.mark.parametrize("activation", ("quick_gelu", "gelu"))
@pytest.mark.parametrize("kind", ("alone", "projected", "whole"))
def test_clip_is_transformers(tmp_path, kind, activation):
    config = CLIPVisionConfig(**SMALL, hidden_act=activation)
    if kind == "whole":
        model = CLIPModel(CLIPConfig(
            text_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
            vision_config=config.to_dict(), projection_dim=20))  # fmt: skip
    else:
        model = {"alone": CLIPVisionModel, "projected": CLIPVisionModelWithProjection}[kind](config)
    random(model).save_pretrained(tmp_path)
    encoder = image_encoders.read(tmp_path)
    image, pixels = clip_image(encoder)
    with torch.no_grad():
        if kind == "whole":
            expected = model.visual_projection(model.vision_model(pixels).pooler_output)
        else:
            expected = model(pixels).pooler_output if kind == "alone" else model(pixels).image_embeds
    found = np.asarray(jax.jit(encoder.describe)(encoder.trees, image))
    assert found.shape == (3, 32 if kind == "alone" else 20)
    np.testing.assert_allclose(found, expected, atol=1e-4 * float(expected.abs().max()))


def test_a_clip_folder_that_does_not_fit_is_one_line(tmp_path):
    random(CLIPVisionModel(CLIPVisionConfig(**SMALL))).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "layers.3.mlp.fc1" not in k}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"2 of \d+ tensors do not fit: encoder\.layers\.3\.mlp\.fc1\.bias is missing"):
        image_encoders.read(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_attention_heads": 5}))
    with pytest.raises(UserError, match="num_attention_heads = 5 does not divide"):
        image_encoders.read(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="model_type 'bert' is not one of"):
        image_encoders.read(tmp_path)


class Conv(nn.Module):
    """torchvision's BasicConv2d."""

    def __init__(self, cin, cout, **shape):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(cin, cout, bias=False, **shape), nn.BatchNorm2d(cout, eps=0.001)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


def average(x):
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class A(nn.Module):
    def __init__(self, cin, pool):
        super().__init__()
        self.branch1x1 = Conv(cin, 64, kernel_size=1)
        self.branch5x5_1, self.branch5x5_2 = Conv(cin, 48, kernel_size=1), Conv(48, 64, kernel_size=5, padding=2)
        self.branch3x3dbl_1 = Conv(cin, 64, kernel_size=1)
        self.branch3x3dbl_2 = Conv(64, 96, kernel_size=3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, kernel_size=3, padding=1)
        self.branch_pool = Conv(cin, pool, kernel_size=1)

    def forward(self, x):
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        five = self.branch5x5_2(self.branch5x5_1(x))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(average(x))], 1)


class B(nn.Module):
    def __init__(self, cin):
        super().__init__()
        self.branch3x3 = Conv(cin, 384, kernel_size=3, stride=2)
        self.branch3x3dbl_1 = Conv(cin, 64, kernel_size=1)
        self.branch3x3dbl_2 = Conv(64, 96, kernel_size=3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, kernel_size=3, stride=2)

    def forward(self, x):
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], 1)


class C(nn.Module):
    def __init__(self, cin, c):
        super().__init__()
        flat, tall = {"kernel_size": (1, 7), "padding": (0, 3)}, {"kernel_size": (7, 1), "padding": (3, 0)}
        self.branch1x1 = Conv(cin, 192, kernel_size=1)
        self.branch7x7_1, self.branch7x7_2 = Conv(cin, c, kernel_size=1), Conv(c, c, **flat)
        self.branch7x7_3 = Conv(c, 192, **tall)
        self.branch7x7dbl_1, self.branch7x7dbl_2 = Conv(cin, c, kernel_size=1), Conv(c, c, **tall)
        self.branch7x7dbl_3, self.branch7x7dbl_4 = Conv(c, c, **flat), Conv(c, c, **tall)
        self.branch7x7dbl_5, self.branch_pool = Conv(c, 192, **flat), Conv(cin, 192, kernel_size=1)

    def forward(self, x):
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(average(x))], 1)


class D(nn.Module):
    def __init__(self, cin):
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Conv(cin, 192, kernel_size=1), Conv(192, 320, kernel_size=3, stride=2)
        self.branch7x7x3_1 = Conv(cin, 192, kernel_size=1)
        self.branch7x7x3_2 = Conv(192, 192, kernel_size=(1, 7), padding=(0, 3))
        self.branch7x7x3_3 = Conv(192, 192, kernel_size=(7, 1), padding=(3, 0))
        self.branch7x7x3_4 = Conv(192, 192, kernel_size=3, stride=2)

    def forward(self, x):
        seven = self.branch7x7x3_2(self.branch7x7x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(seven))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, F.max_pool2d(x, 3, stride=2)], 1)


class E(nn.Module):
    def __init__(self, cin, pool):
        super().__init__()
        self.pool = pool
        flat, tall = {"kernel_size": (1, 3), "padding": (0, 1)}, {"kernel_size": (3, 1), "padding": (1, 0)}
        self.branch1x1, self.branch3x3_1 = Conv(cin, 320, kernel_size=1), Conv(cin, 384, kernel_size=1)
        self.branch3x3_2a, self.branch3x3_2b = Conv(384, 384, **flat), Conv(384, 384, **tall)
        self.branch3x3dbl_1 = Conv(cin, 448, kernel_size=1)
        self.branch3x3dbl_2 = Conv(448, 384, kernel_size=3, padding=1)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = Conv(384, 384, **flat), Conv(384, 384, **tall)
        self.branch_pool = Conv(cin, 192, kernel_size=1)

    def forward(self, x):
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return torch.cat([
            self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three), self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double), self.branch_pool(self.pool(x)),
        ], 1)  # fmt: skip


class FIDInception(nn.Module):
    """pytorch-fid's InceptionV3, layer by layer as it is written there."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = Conv(3, 32, kernel_size=3, stride=2), Conv(32, 32, kernel_size=3)
        self.Conv2d_2b_3x3 = Conv(32, 64, kernel_size=3, padding=1)
        self.Conv2d_3b_1x1, self.Conv2d_4a_3x3 = Conv(64, 80, kernel_size=1), Conv(80, 192, kernel_size=3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d, self.Mixed_6a = A(192, 32), A(256, 64), A(288, 64), B(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d = C(768, 128), C(768, 160), C(768, 160)
        self.Mixed_6e, self.Mixed_7a = C(768, 192), D(768)
        self.Mixed_7b, self.Mixed_7c = E(1280, average), E(2048, lambda x: F.max_pool2d(x, 3, stride=1, padding=1))
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x):
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2)))))
        x = self.Mixed_7a(self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x)))))
        return self.Mixed_7c(self.Mixed_7b(x)).mean((2, 3))


def test_inception_is_that_of_the_frechet_inception_distance(tmp_path):
    torch.manual_seed(0)
    model = FIDInception()
    with torch.no_grad():
        for name, value in model.named_buffers():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape) * 0.3 + ("var" in name))
        for name, value in model.named_parameters():
            if "bn" in name:
                value.add_(0.2 * torch.rand(value.shape))
    model.eval()
    torch.save(model.state_dict(), tmp_path / "pt_inception-2015-12-05-6726825d.pth")
    encoder = image_encoders.read(tmp_path / "pt_inception-2015-12-05-6726825d.pth")
    image = np.random.default_rng(1).uniform(-1, 1, (2, inception.SIZE, inception.SIZE, 3)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.tensor(image.transpose(0, 3, 1, 2))).numpy()
    found = np.asarray(jax.jit(encoder.describe)(encoder.trees, image))
    assert found.shape == (2, 2048) and encoder.size == 299 and expected.std() > 0
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    state = model.state_dict()
    state.pop("Mixed_5b.branch1x1.bn.running_var")
    torch.save(state, tmp_path / "broken.pth")
    with pytest.raises(UserError, match=r"1 of \d+ tensors do not fit: Mixed_5b\.branch1x1\.bn\.var is missing"):
        image_encoders.read(tmp_path / "broken.pth")
