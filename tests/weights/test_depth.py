"""Every network that README names at its real depth and options, narrow: values and gradients are PyTorch's.

Small twins of two or three layers hide what depth does: text encoders of eleven or more layers ran in scrambled order
while every shallow one was exact.
"""

import copy
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax.models.classifier import describe, fresh
from dermjax.models.stable_diffusion import SD15, SD21
from dermjax.weights import classifiers, lora
from dermjax.weights import diffusers as folders
from dermjax.weights.safetensors import from_array
from dermjax.weights.torch_layout import flatten
from dermjax.weights.torch_layout import from_torch as from_torch_tree

torch = pytest.importorskip("torch")
diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")

TOLERANCE = 1e-4  # of the largest value of a tensor
REFERENCE = Path(__file__).parents[2] / ".." / "shared" / "reference" / "sd15_config"
NARROW = {  # widths alone; heads, groups (of two channels and more), layers and blocks are the real ones
    "sd1": {
        "text_encoder": {"hidden_size": 24, "intermediate_size": 48},
        "unet": {"block_out_channels": [64, 64, 128, 128], "cross_attention_dim": 24},
        "vae": {"block_out_channels": [64, 64, 96, 96]},
    },
    "sd2": {
        "text_encoder": {"hidden_size": 32, "intermediate_size": 64},
        "unet": {"block_out_channels": [160] * 4, "cross_attention_dim": 32},
        "vae": {"block_out_channels": [64, 64, 96, 96]},
    },
}
BUNDLES = {  # 2.1 base is 2.1's networks at 512 px, and predicts epsilon
    "SD 1.5": (SD15, "sd1", {}),
    "SD 1.5 inpainting": (SD15, "sd1", {"in_channels": 9}),
    "SD 2.1": (SD21, "sd2", {}),
}
VITS = {  # hidden size, heads, layers; arXiv 2010.11929 table 1, 2012.12877 table 1, 2304.07193 table 17
    "vit Ti": ("vit", 192, 3, 12),
    "vit S": ("vit", 384, 6, 12),
    "vit B": ("vit", 768, 12, 12),
    "vit L": ("vit", 1024, 16, 24),
    "dinov2 S": ("dinov2", 384, 6, 12),
    "dinov2 B": ("dinov2", 768, 12, 12),
    "dinov2 L": ("dinov2", 1024, 16, 24),
}
CLASSIFIERS = [*VITS, "mobilenet_v2"]
ALIKE = pytest.mark.parametrize("bundle", ["SD 1.5", "SD 2.1"], indirect=True)  # inpainting has another UNet alone


def narrowed(name: str) -> dict[str, dict]:
    """The configs of a bundle with few channels."""
    preset, widths, unet = BUNDLES[name]
    configs = copy.deepcopy(preset)
    for network, changes in NARROW[widths].items():
        configs[network] |= changes
    configs["unet"] |= unet
    return configs


@pytest.fixture(scope="module", params=BUNDLES)
def bundle(request, random_pipeline, tmp_path_factory):
    """A random PyTorch pipeline of one bundle, and what we read of its folder: (pipeline, folder, sd, params)."""
    pipeline = random_pipeline(narrowed(request.param))
    folder = tmp_path_factory.mktemp("bundle") / "model"
    pipeline.save_pretrained(folder)
    return pipeline, folder, *folders.read(folder)


def as_torch(array):
    """A tensor of PyTorch, images with the channels first."""
    tensor = torch.tensor(np.asarray(array))
    return tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor


def from_torch(tensor) -> np.ndarray:
    """An array of numpy, images with the channels last."""
    array = tensor.detach().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def compare(ours, theirs, params, network, folder) -> None:
    """Asserts that outputs, and the gradient of every parameter of a fixed sum of them, are equal.

    `ours(params)` and `theirs()` return lists of arrays and of tensors; `folder(network)` saves a network of PyTorch
    and reads it as our tree, which is how its gradients come by our names.
    """
    expected = theirs()
    rng = np.random.default_rng(1)
    weights = [rng.normal(size=from_torch(out).shape).astype(np.float32) for out in expected]

    def total(params):
        outputs = ours(params)
        return sum((out * weight).sum() for out, weight in zip(outputs, weights, strict=True)), outputs

    gradient, outputs = jax.jit(jax.grad(total, has_aux=True))(params)
    for out, tensor in zip(outputs, expected, strict=True):
        exact = from_torch(tensor)
        np.testing.assert_allclose(out, exact, rtol=0, atol=TOLERANCE * np.abs(exact).max())
    sum((out * as_torch(weight)).sum() for out, weight in zip(expected, weights, strict=True)).backward()
    slopes = copy.deepcopy(network)
    for slope, parameter in zip(slopes.parameters(), network.parameters(), strict=True):
        slope.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
    network.zero_grad()
    slopes, gradient = flatten(folder(slopes)), flatten(gradient)
    assert slopes.keys() == gradient.keys()
    largest = max(np.abs(slope).max() for slope in slopes.values())
    for path, slope in slopes.items():
        # softmax does not see a bias on all keys: its slope is nothing, and what comes out is rounding
        floor = 1e-2 * largest if path.endswith(("k_proj.bias", "key.bias", "to_k.bias")) else 0
        limit = TOLERANCE * max(np.abs(slope).max(), floor)
        np.testing.assert_allclose(gradient[path], slope, rtol=0, atol=limit, err_msg=path)


def reader(sd, name: str):
    """A function from a network of PyTorch to our tree of it."""

    def read(network):
        tensors = {key: from_array(tensor.numpy()) for key, tensor in network.state_dict().items()}
        if name == "text_encoder":  # as published files have it, which transformers 5 leaves out
            tensors = {f"text_model.{key}": tensor for key, tensor in tensors.items()}
        return from_torch_tree(sd.shapes[name], tensors, name, dtype=np.float32)

    return read


@ALIKE
def test_the_text_encoder(bundle):
    pipeline, _, sd, params = bundle
    network = pipeline.text_encoder
    assert len(network.encoder.layers) == (23 if sd.configs["text_encoder"]["num_attention_heads"] == 16 else 12)
    words = np.random.default_rng(0).integers(0, 49408, (2, 77)).astype(np.int32)
    compare(
        lambda text: [sd.encode_text({"text_encoder": text}, jnp.asarray(words))],
        lambda: [network(torch.tensor(words)).last_hidden_state],
        params["text_encoder"],
        network,
        reader(sd, "text_encoder"),
    )


def test_the_unet(bundle):
    pipeline, _, sd, params = bundle
    rng = np.random.default_rng(0)
    config = sd.configs["unet"]
    x, context = (
        rng.normal(size=shape).astype(np.float32)
        for shape in ((2, 16, 16, config["in_channels"]), (2, 77, config["cross_attention_dim"]))
    )
    t = np.array([3, 977])
    compare(
        lambda unet: [sd.unet({"unet": unet}, x, t, context)],
        lambda: [pipeline.unet(as_torch(x), torch.tensor(t), torch.tensor(context)).sample],
        params["unet"],
        pipeline.unet,
        reader(sd, "unet"),
    )


@ALIKE
def test_the_autoencoder(bundle):
    pipeline, _, sd, params = bundle
    rng = np.random.default_rng(0)
    image, latents = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 32, 32, 3), (2, 4, 4, 4)))
    compare(
        lambda vae: [sd.encode({"vae": vae}, image), sd.reconstruct({"vae": vae}, latents)],
        lambda: [
            pipeline.vae.encode(as_torch(image)).latent_dist.parameters,
            pipeline.vae.decode(as_torch(latents)).sample,
        ],
        params["vae"],
        pipeline.vae,
        reader(sd, "vae"),
    )


@ALIKE
@pytest.mark.parametrize("write", [lora.write_peft, lora.write_kohya])
def test_lora_on_all_layers(bundle, fused, tmp_path, write):
    """Adapters on every attention and feed-forward layer of both networks: diffusers fuses what we merge, and the text
    encoders then say the same."""
    pytest.importorskip("peft")
    pipeline, folder, sd, params = bundle
    rng = np.random.default_rng(2)
    fresh_ones = lora.init(
        {name: params[name] for name in ("unet", "text_encoder")}, rank=2, seed=0, targets=("attention", "feed_forward")
    )
    made = lora.uniform(
        jax.tree.map(lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32), fresh_ones), 2.0
    )
    depth = sd.configs["text_encoder"]["num_hidden_layers"]
    assert sum(path.startswith("text_encoder") for path in made.alphas) == 6 * depth
    write(tmp_path / "lora.safetensors", made, dtype=np.float32)
    theirs, merged = fused(folder, tmp_path / "lora.safetensors")
    words = rng.integers(0, 49408, (2, 77)).astype(np.int32)
    with torch.no_grad():
        exact, before = (
            each.text_encoder(torch.tensor(words)).last_hidden_state.numpy() for each in (theirs, pipeline)
        )
    ours = np.asarray(jax.jit(sd.encode_text)(merged, words))
    assert np.abs(exact - before).max() > 0.1 * np.abs(exact).max(), "the adapters change what the network says"
    np.testing.assert_allclose(ours, exact, rtol=0, atol=TOLERANCE * np.abs(exact).max())


def test_the_options_are_those_of_the_published_model():
    """SD 1.5's configs as they were published differ from the preset in nothing that a network reads."""
    if not REFERENCE.is_dir():
        pytest.skip("the published configs are not here")
    published = {name: json.loads((REFERENCE / name / "config.json").read_text()) for name in NARROW["sd1"]}
    ours = narrowed("SD 1.5")
    for network, widths in NARROW["sd1"].items():
        for key in published[network].keys() & ours[network].keys() - widths.keys():
            assert published[network][key] == ours[network][key] or key.startswith("_"), (network, key)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers(name, tmp_path, randomise):
    """Real layers, heads and 224 px; widths of four channels a head."""
    labels = ("benign", "malignant")
    if name == "mobilenet_v2":
        kind, settings = name, {"depth_multiplier": 0.35}
    else:
        kind, _, heads, layers = VITS[name]
        settings = {"hidden_size": 4 * heads, "num_attention_heads": heads, "num_hidden_layers": layers}
        settings |= {"intermediate_size": 16 * heads} if kind == "vit" else {}
    ours = fresh(describe(kind, settings, labels, 224), jnp.float32)
    params, variables = ours.init(0)
    classifiers.write(tmp_path / "ours", ours, params, variables)
    twin = getattr(transformers, ours.architecture.name).from_pretrained(tmp_path / "ours").eval()
    randomise(twin).save_pretrained(tmp_path / "theirs")
    shutil.copy(tmp_path / "ours" / "preprocessor_config.json", tmp_path / "theirs")
    classifier, (params, variables) = classifiers.read(tmp_path / "theirs", labels, 224)
    image = np.random.default_rng(2).uniform(-1, 1, (1, 224, 224, 3)).astype(np.float32)
    pixels = np.float32(((image + 1) / 2 - np.array(classifier.mean)) / np.array(classifier.std))

    def read(network):
        network.save_pretrained(tmp_path / "theirs")
        return classifiers.read(tmp_path / "theirs", labels, 224)[1][0]

    compare(
        lambda tree: [classifier.logits(tree, variables, image, train=False)[0]],
        lambda: [twin(as_torch(pixels)).logits],
        params,
        twin,
        read,
    )
