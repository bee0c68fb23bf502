"""The gradients of one step of tuning against PyTorch's, with diffusers' networks and PEFT's adapters."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from dermjax import sharding
from dermjax.diffusion import objective, schedule
from dermjax.models.stable_diffusion import StableDiffusion
from dermjax.tuning import latents as inputs
from dermjax.tuning import task, trainable
from dermjax.tuning.task import PLAIN
from dermjax.weights import diffusers as folders
from dermjax.weights import lora
from dermjax.weights.torch_layout import flatten, to_torch

TOLERANCE = 1e-4
RANK, ALPHA, GAMMA = 3, 6.0, 5.0
PROMPTS = ["a benign mole", "a malignant mole"]
TIMES = np.array([3, 400, 977], np.int32)
WEIGHTS = np.array([0.5, 1.5, 1.0], np.float32)
TUNED = {
    "full": {"unet": "full", "text_encoder": "frozen"},
    "lora": {"unet": "lora", "text_encoder": "frozen"},
    "text encoder": {"unet": "full", "text_encoder": "full"},
    "lora on both": {"unet": "lora", "text_encoder": "lora"},
    "text encoder alone": {"unet": "frozen", "text_encoder": "full"},
}


@pytest.fixture(scope="module")
def random_model(small_model, tmp_path_factory):
    """The small model with noise on every parameter, since zeros and ones hide mistakes: (sd, params, folder)."""
    sd, params, _ = small_model
    rng = np.random.default_rng(1)
    noisy = jax.tree.map(lambda leaf: (np.asarray(leaf) + 0.1 * rng.normal(size=leaf.shape)).astype(np.float32), params)
    folder = tmp_path_factory.mktemp("random") / "model"
    folders.write(folder, sd, noisy, dtype=np.float32)
    return sd, noisy, folder


def batch():
    """Moments of three images, the same mirrored, their prompts and weights; the draw and the noise."""
    rng = np.random.default_rng(2)
    moments, draw, noise = (rng.normal(size=(3, 4, 4, c)).astype(np.float32) for c in (8, 4, 4))
    rows = {"moments": np.stack([moments, moments], 1), "prompt": np.array([0, 1, 1], np.int32), "weight": WEIGHTS}
    return rows | {"index": np.arange(3, dtype=np.int32)}, draw, noise


def ours(sd: StableDiffusion, trained, constants, monkeypatch):
    """The loss and the gradient of what is trained, with the given noise and times in place of drawn ones."""
    rows, draw, noise = batch()
    given = itertools.cycle((draw, noise))
    monkeypatch.setattr(schedule, "normal", lambda keys, shape: jnp.asarray(next(given)))
    monkeypatch.setattr(objective, "times", lambda keys, steps, bias: jnp.asarray(TIMES))
    loss = task.dreambooth_loss(sd, partial(trainable.assemble, alpha=ALPHA), **PLAIN | {"snr_gamma": GAMMA})
    step = jax.jit(jax.value_and_grad(lambda params: loss(params, {}, constants, rows, jax.random.key(0))[0]))
    return step(trained)


def theirs(torch, diffusers, folder, unet, text, tokens):
    """diffusers' training step up to the gradients: its scheduler's noise, its min-SNR weight; returns the loss."""
    rows, draw, noise = (jax.tree.map(np.asarray, each) for each in batch())

    def image(array):
        return torch.tensor(array).permute(0, 3, 1, 2)

    mean, log_variance = image(rows["moments"][:, 0]).chunk(2, 1)
    latents = (mean + torch.exp(0.5 * log_variance) * image(draw)) * 0.18215
    scheduler = diffusers.DDPMScheduler.from_pretrained(folder / "scheduler")
    t = torch.tensor(TIMES).long()
    context = text(torch.tensor(tokens)).last_hidden_state
    predicted = unet(scheduler.add_noise(latents, image(noise), t), t, context).sample
    alpha_bar = scheduler.alphas_cumprod[t]
    snr = alpha_bar / (1 - alpha_bar)
    error = ((predicted - image(noise)) ** 2).mean((1, 2, 3))
    loss = (torch.clamp(snr, max=GAMMA) / snr * torch.tensor(WEIGHTS) * error).mean()
    loss.backward()
    return float(loss.detach())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks transformers by an old name
@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=[pytest.mark.slow] * (what not in ("full", "lora on both"))) for what in TUNED]
)
def test_gradients_of_a_step(random_model, tmp_path, monkeypatch, what):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    sd, params, folder = random_model
    trained, frozen = trainable.divide(
        params, TUNED[what], rank=RANK, targets=("attention",), seed=0, words=0, precision="float32"
    )
    rng = np.random.default_rng(3)
    if "lora" in trained:  # with `up` at zero half of the gradients are zero
        trained["lora"] = jax.tree.map(
            lambda leaf: jnp.asarray(0.1 * rng.normal(size=leaf.shape), jnp.float32), trained["lora"]
        )
    said = inputs.tokenize_prompts(sd, PROMPTS, [])
    constants = frozen | {"tokens": said.tokens}
    if not trainable.needs_text_encoder(trained, frozen):
        encoder = inputs.Encoder(sd, params, 2, tmp_path, sharding.mesh(1, 1))
        constants = frozen | {"contexts": encoder.contexts(said)}
    value, gradient = ours(sd, trained, jax.tree.map(jnp.asarray, constants), monkeypatch)

    networks = {
        "unet": diffusers.UNet2DConditionModel.from_pretrained(folder / "unet"),
        "text_encoder": transformers.CLIPTextModel.from_pretrained(folder / "text_encoder"),
    }
    for network in networks.values():
        network.requires_grad_(False).eval()
    expected = {}
    if "lora" in trained:
        file, slopes = tmp_path / "lora.safetensors", tmp_path / "gradient.safetensors"
        lora.write_peft(file, lora.uniform(trained["lora"], ALPHA), dtype=np.float32)
        lora.write_peft(slopes, lora.uniform(gradient["lora"], ALPHA), dtype=np.float32)
        expected |= load_file(slopes)
        tensors = load_file(file)
        for name in trained["lora"]:
            asked = (
                ["to_q", "to_k", "to_v", "to_out.0"] if name == "unet" else ["q_proj", "k_proj", "v_proj", "out_proj"]
            )
            settings = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=asked)
            networks[name] = peft.get_peft_model(networks[name], settings)
            for path, parameter in networks[name].named_parameters():
                if "lora_" in path:
                    parameter.data.copy_(torch.tensor(tensors[in_files(name, path, tensors)]))
    for name in trained.get("full", {}):
        networks[name].requires_grad_(True)
        for path, array in flatten(gradient["full"][name]).items():
            key, tensor = to_torch(path, np.asarray(array))
            expected[f"{name}.{key}"] = tensor
    tokens = said.tokens[said.rows([PROMPTS[i] for i in (0, 1, 1)])]
    loss = theirs(torch, diffusers, folder, networks["unet"], networks["text_encoder"], tokens)

    assert float(value) == pytest.approx(loss, rel=1e-5)
    found = {}
    for name, network in networks.items():
        for path, parameter in network.named_parameters():
            if parameter.requires_grad:
                found[in_files(name, path, expected)] = parameter.grad.numpy()
    assert found.keys() == expected.keys()
    largest = max(np.abs(array).max() for array in found.values())
    # softmax does not see a bias on all keys: its slope is nothing, and what comes out is rounding
    nothing = {key for key in found if key.endswith("k_proj.bias")}
    assert all(max(np.abs(found[key]).max(), np.abs(expected[key]).max()) < 1e-6 * largest for key in nothing)
    errors = {
        key: np.abs(found[key] - expected[key]).max() / np.abs(found[key]).max() for key in found.keys() - nothing
    }
    worst = max(errors, key=errors.get)
    assert errors[worst] <= TOLERANCE, (worst, errors[worst])
    print(f"\n{what}: {len(errors)} tensors, the largest difference {errors[worst]:.2g} in {worst}")


def in_files(network: str, path: str, names) -> str:
    """The name that a parameter of PyTorch has in our files: without PEFT's wrappers, with text_model. before it."""
    plain = path.removeprefix("base_model.model.").replace(".default", "")
    found = [f"{network}.{plain}", f"{network}.text_model.{plain}"]
    return next((name for name in found if name in names), found[0])
