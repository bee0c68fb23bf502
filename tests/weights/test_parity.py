"""The networks against PyTorch beyond their outputs: gradients, bfloat16, and where a difference begins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dermjax.weights import diffusers as folders
from dermjax.weights.torch_layout import flatten, to_torch

TOLERANCE = 1e-4


def inputs(sd, seed=0):
    """Noisy latents, timesteps, context and a target of the UNet, float32."""
    rng = np.random.default_rng(seed)
    x, context, target = (
        rng.normal(size=shape).astype(np.float32)
        for shape in ((2, 16, 16, sd.configs["unet"]["in_channels"]), (2, 77, 48), (2, 16, 16, 4))
    )
    return x, np.array([3, 977]), context, target


def as_torch(torch, array):
    """A tensor of PyTorch, images with the channels first."""
    tensor = torch.tensor(np.asarray(array))
    return tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor


def from_torch(tensor):
    """An array of numpy, images with the channels last."""
    array = tensor.detach().float().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def error(ours, theirs) -> float:
    """The largest difference over the largest value; pixels in a row or in an image are the same."""
    ours = np.asarray(ours, np.float32).reshape(theirs.shape)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def layerwise(network, params, twin, call, call_twin, monkeypatch) -> list[tuple[str, float]]:
    """Returns (module, error) of every module that both networks call, in PyTorch's order.

    `call` and `call_twin` run the network that they are given. Names of modules are equal by design, so that what a
    module of PyTorch returns is compared with what ours of the same path does.
    """
    theirs = {}

    def keep(name):
        def hook(module, given, out):  # returning nothing: what a hook returns would replace the output
            theirs.setdefault(name, out)

        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, module in twin.named_modules()]
    call_twin(twin)
    for hook in hooks:
        hook.remove()

    model = network.merge(params)
    paths = {id(module): ".".join(map(str, path)) for path, module in nnx.iter_modules(model)}
    found = {}
    for kind in {type(module) for _, module in nnx.iter_modules(model)}:
        if "__call__" not in vars(kind):
            continue

        def recording(self, *given, original=kind.__call__, **named):
            out = original(self, *given, **named)
            found.setdefault(paths.get(id(self), "?"), out)
            return out

        monkeypatch.setattr(kind, "__call__", recording)
    call(model)
    monkeypatch.undo()
    both = ((name, out) for name, out in theirs.items() if name in found and hasattr(out, "detach"))
    return [(name, error(found[name], from_torch(out))) for name, out in both if hasattr(found[name], "shape")]


def first_difference(errors: list[tuple[str, float]]) -> str:
    """The first module whose output differs, empty where none does."""
    return next((name for name, each in errors if each > TOLERANCE), "")


@pytest.mark.slow  # test_depth has them at real depth; this one names the first module that differs
def test_gradients_of_every_parameter(twin):
    torch = pytest.importorskip("torch")
    pipeline, folder = twin
    sd, params = folders.read(folder)
    x, t, context, target = inputs(sd)

    def loss(unet):
        return ((sd.unet(params | {"unet": unet}, x, t, context) - target) ** 2).mean()

    ours = jax.jit(jax.grad(loss))(params["unet"])
    network = pipeline.unet
    network.zero_grad()
    predicted = network(as_torch(torch, x), torch.tensor(t), torch.tensor(context)).sample
    ((predicted - as_torch(torch, target)) ** 2).mean().backward()
    theirs = {name: parameter.grad.numpy() for name, parameter in network.named_parameters()}
    errors = {}
    for path, gradient in flatten(ours).items():
        name, array = to_torch(path, np.asarray(gradient))
        errors[name] = error(array, theirs.pop(name))
    network.zero_grad()
    worst = max(errors, key=errors.get)
    assert not theirs and errors[worst] <= TOLERANCE, (worst, errors[worst])


def test_images_that_do_not_halve(twin):
    """13 x 18 latents, which become 7 x 9 and 4 x 5, and grow to their old sizes again."""
    torch = pytest.importorskip("torch")
    pipeline, folder = twin
    sd, params = folders.read(folder)
    _, t, context, _ = inputs(sd)
    x = np.random.default_rng(2).normal(size=(2, 13, 18, sd.configs["unet"]["in_channels"])).astype(np.float32)
    with torch.no_grad():
        theirs = pipeline.unet(as_torch(torch, x), torch.tensor(t), torch.tensor(context)).sample
    assert error(jax.jit(sd.unet)(params, x, t, context), from_torch(theirs)) <= TOLERANCE


@pytest.mark.slow
def test_bfloat16_differs_no_more_than_pytorch_s(twin, capsys):
    """Root mean square over six inputs, ours and PyTorch's against PyTorch's float32."""
    torch = pytest.importorskip("torch")
    pipeline, folder = twin
    half, params = folders.read(folder, dtype=jnp.bfloat16)
    rng = np.random.default_rng(1)
    given = {
        "unet": [inputs(half, seed)[:3] for seed in range(6)],
        "encoder": [(rng.uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32),) for _ in range(6)],
        "decoder": [(rng.normal(size=(2, 8, 8, 4)).astype(np.float32),) for _ in range(6)],
        "text_encoder": [(rng.integers(0, 49408, (2, 77)).astype(np.int32),) for _ in range(6)],
    }
    ours = {
        "unet": half.unet,
        "encoder": half.encode,
        "decoder": half.reconstruct,
        "text_encoder": half.encode_text,
    }
    theirs = {
        "unet": lambda network, x, t, context: network(x, t, context).sample,
        "encoder": lambda network, image: network.encode(image).latent_dist.parameters,
        "decoder": lambda network, latents: network.decode(latents).sample,
        "text_encoder": lambda network, words: network(words).last_hidden_state,
    }
    errors = {}
    for name, rows in given.items():
        network = pipeline.vae if name in ("encoder", "decoder") else getattr(pipeline, name)

        def answers(kind, name=name, rows=rows, network=network):
            tensors = ([as_torch(torch, array) for array in row] for row in rows)
            tensors = ([each.to(kind) if each.is_floating_point() else each for each in row] for row in tensors)
            return np.stack([from_torch(theirs[name](network, *row)) for row in tensors])

        with torch.no_grad():
            exact = answers(torch.float32)
            state = {key: each.clone() for key, each in network.state_dict().items()}
            network.to(torch.bfloat16)
            rounded = answers(torch.bfloat16)
            network.to(torch.float32).load_state_dict(state)  # what bfloat16 rounded away
        call = jax.jit(ours[name])
        found = np.stack([np.asarray(call(params, *row)) for row in rows])
        errors[name] = [float(np.sqrt(np.mean((each - exact) ** 2))) for each in (found, rounded)]
        with capsys.disabled():
            print(f"\n{name} in bfloat16: ours {errors[name][0]:.4g}, PyTorch's {errors[name][1]:.4g}")
    assert all(ours <= theirs for ours, theirs in errors.values())


@pytest.mark.slow
def test_where_a_difference_begins_is_found(twin, monkeypatch):
    """Layer by layer the UNet is PyTorch's; with one kernel spoilt, the first layer to differ is that one."""
    torch = pytest.importorskip("torch")
    pipeline, folder = twin
    sd, params = folders.read(folder)
    x, t, context, _ = inputs(sd)

    def compare(tree):
        with torch.no_grad():
            return layerwise(
                sd.networks["unet"], tree, pipeline.unet, lambda model: model(x, t, context),
                lambda network: network(as_torch(torch, x), torch.tensor(t), torch.tensor(context)), monkeypatch,
            )  # fmt: skip

    errors = compare(params["unet"])
    assert len(errors) > 100 and not first_difference(errors)
    spoilt = "mid_block.resnets.1.conv1"
    kernel = params["unet"]["mid_block"]["resnets"]["1"]["conv1"]["kernel"]
    kernel *= 1.01
    assert first_difference(compare(params["unet"])) == spoilt
