"""LoRA: the mathematics, both forms of file against diffusers and PEFT, rank and alpha kept, and what does not fit."""

import json
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dermjax.errors import UserError
from dermjax.models.stable_diffusion import SD15, SD21, TINY, StableDiffusion
from dermjax.weights import diffusers as folders
from dermjax.weights import ldm_names, lora, safetensors
from dermjax.weights.safetensors import LazyTensor, from_array
from dermjax.weights.torch_layout import flatten, unflatten

EVERYTHING = tuple(lora.TARGETS)


@pytest.fixture(scope="module")
def shapes():
    """The shapes of a small model with every kind of layer."""
    configs = json.loads(json.dumps(TINY))
    configs["text_encoder"]["vocab_size"] = 100
    configs["text_encoder"]["num_hidden_layers"] = 11  # a kohya name with layers 1 and 10
    configs["unet"] |= {"block_out_channels": [32, 32, 32], "use_linear_projection": False}
    return StableDiffusion(configs, None, jnp.float32).shapes


def filled(shapes, rank=3, targets=EVERYTHING) -> lora.Lora:
    """Adapters of UNet and text encoder with noise in `up` as well, each module with a rank and an alpha of its own."""
    rng = np.random.default_rng(0)
    kernels = {path: leaf.shape for path, leaf in flatten(shapes).items() if not path.startswith("vae.")}
    pattern = "|".join(lora.TARGETS[target] for target in targets)
    adapters, alphas = {}, {}
    chosen = [path for path in kernels if re.search(pattern, path)]
    for i, path in enumerate(chosen):
        module, r = path.removesuffix(".kernel"), rank + (i == 0)
        adapters[f"{module}.down"] = rng.normal(size=(*kernels[path][:-1], r)).astype(np.float32)
        adapters[f"{module}.up"] = rng.normal(size=(r, kernels[path][-1])).astype(np.float32)
        alphas[module] = float(r if i % 3 else 2)
    return lora.Lora(unflatten(adapters), alphas)


def same(one: lora.Lora, other: lora.Lora):
    assert one.alphas == other.alphas and one.ranks == other.ranks
    jax.tree.map(np.testing.assert_array_equal, one.adapters, other.adapters)


def test_targets_cover_what_they_name(shapes):
    """Attention, feed-forward, convolutions and embeddings of time of both networks are all kernels."""
    counts = {target: len(filled(shapes, targets=(target,)).alphas) for target in EVERYTHING}
    kernels = [path for name in ("unet", "text_encoder") for path in flatten(shapes[name]) if path.endswith(".kernel")]
    assert sum(counts.values()) == len(kernels)
    assert counts["attention"] == 7 * 8 + 11 * 4  # two attentions in each of 7 transformers, 11 layers of text


def test_fresh_adapters_change_nothing_and_start_as_peft_does(shapes):
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), {"unet": shapes["unet"]})
    adapters = lora.init(params, rank=2, seed=0, targets=("attention", "convolution"))
    merged = lora.merge(params, lora.uniform(adapters, 4.0), 1.0)
    jax.tree.map(np.testing.assert_array_equal, merged, params)
    down = flatten(adapters)["unet.conv_in.down"]
    assert down.shape == (3, 3, 4, 2) and 0 < jnp.abs(down).max() <= (3 * 3 * 4) ** -0.5


def test_a_kernel_that_is_still_in_its_file_is_changed_when_it_is_read():
    rng = np.random.default_rng(0)
    kernel, reads = rng.normal(size=(3, 3, 4, 5)).astype(np.float32), []

    def read():
        reads.append(1)
        return kernel

    pair = {"down": rng.normal(size=(3, 3, 4, 2)), "up": rng.normal(size=(2, 5))}
    adapters = lora.Lora({"conv": jax.tree.map(np.float32, pair)}, {"conv": 1.0})
    merged = lora.merge({"conv": {"kernel": LazyTensor(kernel.shape, kernel.dtype, read)}}, adapters, 0.5)
    assert not reads
    np.testing.assert_array_equal(
        merged["conv"]["kernel"], lora.merge({"conv": {"kernel": kernel}}, adapters, 0.5)["conv"]["kernel"]
    )


def test_a_merge_is_the_convolution_of_convolutions():
    """What PyTorch computes for an adapted convolution, conv(x) + alpha / r * up(down(x)), is one merged kernel."""
    rng = np.random.default_rng(1)
    kernel, down, up = (rng.normal(size=size).astype(np.float32) for size in ((3, 3, 4, 5), (3, 3, 4, 2), (2, 5)))
    x = rng.normal(size=(1, 6, 6, 4)).astype(np.float32)

    def conv(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    made = lora.Lora({"conv": {"down": down, "up": up}}, {"conv": 3.0})
    merged = lora.merge({"conv": {"kernel": kernel}}, made, 0.8)["conv"]["kernel"]
    apart = conv(x, kernel) + 0.8 * 3 / 2 * conv(conv(x, down), up[None, None])
    np.testing.assert_allclose(conv(x, merged), apart, rtol=0, atol=2e-5 * np.abs(apart).max())


@pytest.mark.parametrize("write", [lora.write_peft, lora.write_kohya])
def test_read_of_write_is_bit_equal(shapes, tmp_path, write):
    made = filled(shapes)
    write(tmp_path / "lora.safetensors", made, dtype=np.float32)
    same(lora.read(tmp_path / "lora.safetensors", shapes), made)


@pytest.mark.parametrize("preset", [SD15, SD21], ids=["SD 1.5", "SD 2.1"])
def test_no_two_layers_share_a_name(preset):
    """Flattened names are ambiguous in general; the table says that those of these models are not."""
    shapes = StableDiffusion(preset, None, jnp.float32).shapes
    for network, prefix in lora.KOHYA.items():
        modules = [path.removesuffix(".kernel") for path in flatten(shapes[network]) if path.endswith(".kernel")]
        names = {prefix + module.replace(".", "_"): f"{network}.{module}" for module in modules}
        assert len(names) == len(modules)
        table = lora.spellings(shapes)
        assert all(table[name] == module for name, module in names.items())
    assert table["lora_unet_input_blocks_1_1_proj_in"] == "unet.down_blocks.0.attentions.0.proj_in"
    assert table["lora_unet_output_blocks_11_0_skip_connection"] == "unet.up_blocks.3.resnets.2.conv_shortcut"


RENAMED = {
    "PEFT": (lambda name: f"base_model.model.{name}", "base_model.model.unet."),
    "default": (lambda name: name.replace(".lora_A.", ".lora_A.default.").replace("_B.", "_B.default."), "default"),
    "down and up": (lambda name: name.replace("lora_A", "lora.down").replace("lora_B", "lora.up"), "lora.down"),
    "one network": (lambda name: name.removeprefix("unet.").removeprefix("text_encoder."), "text_model.encoder."),
    "PEFT's one network": (
        lambda name: "base_model.model." + name.removeprefix("unet.").removeprefix("text_encoder."),
        "base_model.model.text_model.",
    ),
    "the text's by the UNet's names": (
        lambda name: re.sub(r"(self_attn)\.(\w+)_proj\.lora_", r"\1.to_\2_lora.", name).replace("_lora.A", "_lora.down")
        .replace("_lora.B", "_lora.up"),
        "self_attn.to_out_lora.down.weight",
    ),
    "ComfyUI's text encoder": (
        lambda name: name.replace("text_encoder.", "text_encoders.clip_l.transformer.")
        .replace("lora_A", "lora_down").replace("lora_B", "lora_up"),
        "text_encoders.clip_l.transformer.text_model.",
    ),
    "no prefix": (lambda name: name.replace("text_model.", ""), "text_encoder.encoder."),
    "processors": (
        lambda name: name.replace(".to_", ".processor.to_").replace("to_out.0", "to_out")
        .replace(".lora_A", "_lora.down").replace(".lora_B", "_lora.up"),
        ".processor.to_out_lora.up.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", RENAMED)
def test_earlier_names_are_read(shapes, tmp_path, form):
    rename, seen = RENAMED[form]
    made = filled(shapes, targets=("attention",))
    lora.write_peft(tmp_path / "now.safetensors", made, dtype=np.float32)
    tensors = {rename(name): tensor for name, tensor in load_file(tmp_path / "now.safetensors").items()}
    assert any(seen in name for name in tensors)
    save_file(tensors, tmp_path / "then.safetensors")
    read = lora.read(tmp_path / "then.safetensors", shapes)
    assert read.alphas == made.ranks  # no metadata: alpha is the rank
    jax.tree.map(np.testing.assert_array_equal, read.adapters, made.adapters)


def test_linear_adapters_for_1x1_convolutions_and_back(shapes, tmp_path):
    """SD 1.x projects by 1x1 convolutions and 2.x by linear layers; files mix the two forms up."""
    made = filled(shapes)
    lora.write_kohya(tmp_path / "now.safetensors", made, dtype=np.float32)
    tensors = load_file(tmp_path / "now.safetensors")
    flat = {name: each.reshape(each.shape[:2]) if each.shape[2:] == (1, 1) else each for name, each in tensors.items()}
    save_file(flat, tmp_path / "flat.safetensors")
    same(lora.read(tmp_path / "flat.safetensors", shapes), made)
    tall = {name: each[..., None, None] if each.ndim == 2 else each for name, each in tensors.items()}
    save_file({name: np.ascontiguousarray(each) for name, each in tall.items()}, tmp_path / "tall.safetensors")
    same(lora.read(tmp_path / "tall.safetensors", shapes), made)


def test_rank_stabilised_alpha(shapes, tmp_path):
    made = filled(shapes, rank=4, targets=("attention",))
    lora.write_peft(tmp_path / "x.safetensors", made, dtype=np.float32)
    said = {lora.METADATA: json.dumps({"unet.lora_alpha": 8, "unet.use_rslora": True})}
    save_file(load_file(tmp_path / "x.safetensors"), tmp_path / "y.safetensors", metadata=said)
    read = lora.read(tmp_path / "y.safetensors", shapes)
    module = next(name for name in list(read.alphas)[::-1] if name.startswith("unet."))
    assert read.alphas[module] / read.ranks[module] == 8 / read.ranks[module] ** 0.5


def test_what_peft_itself_saves_of_one_network(shapes, tmp_path):
    """Its alphas are in a config beside the file."""
    made = filled(shapes, targets=("attention",))
    made = lora.Lora({"unet": made.adapters["unet"]}, {k: v for k, v in made.alphas.items() if k.startswith("unet.")})
    lora.write_peft(tmp_path / "x.safetensors", made, dtype=np.float32)
    tensors = load_file(tmp_path / "x.safetensors")
    bare = {f"base_model.model.{name.removeprefix('unet.')}": tensor for name, tensor in tensors.items()}
    save_file(bare, tmp_path / "adapter_model.safetensors")
    twos = {path.removeprefix("unet."): 2.0 for path, alpha in made.alphas.items() if alpha == 2}
    config = {
        "r": 3,
        "lora_alpha": 3,
        "rank_pattern": {next(iter(made.ranks)).removeprefix("unet."): 4},
        "alpha_pattern": twos | {"down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k": 5},
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    read = lora.read(tmp_path / "adapter_model.safetensors", shapes)
    jax.tree.map(np.testing.assert_array_equal, read.adapters, made.adapters)
    assert all(
        read.alphas[path] == 2 for path, alpha in made.alphas.items() if alpha == 2 and "1.attentions" not in path
    )
    assert read.alphas["unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k"] == 5
    named = lora.digest(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text("[]")
    assert lora.digest(tmp_path / "adapter_model.safetensors") != named, "the config is part of the LoRA"
    with pytest.raises(UserError, match=r"adapter_config\.json: holds list where an object"):
        lora.read(tmp_path / "adapter_model.safetensors", shapes)


@pytest.mark.parametrize("said", ["[", "[]", json.dumps({"unet.lora_alpha": None}),
                                  json.dumps({"unet.alpha_pattern": {"(": 1}})])  # fmt: skip
def test_metadata_that_cannot_be_read_is_one_line(shapes, tmp_path, said):
    lora.write_peft(tmp_path / "x.safetensors", filled(shapes, targets=("attention",)), dtype=np.float32)
    save_file(load_file(tmp_path / "x.safetensors"), tmp_path / "y.safetensors", metadata={lora.METADATA: said})
    with pytest.raises(UserError, match=r"y\.safetensors: (its lora_adapter_metadata|what it says of)") as error:
        lora.read(tmp_path / "y.safetensors", shapes)
    assert "\n" not in str(error.value)


def wrong(tensors, change):
    tensors = dict(tensors)
    change(tensors)
    return tensors


FIRST = "unet.conv_in"


@pytest.mark.parametrize("change, said", [
    (lambda t: t.pop(f"{FIRST}.lora_A.weight"), "unet.conv_in has only up"),
    (lambda t: t.update({"unet.nowhere.lora_A.weight": np.zeros((2, 2), np.float32)}), "nowhere.*belongs to no layer"),
    (lambda t: t.update({f"{FIRST}.lora_B.weight": np.zeros((7, 4), np.float32)}), r"conv_in's up is \(7, 4\), the"),
    (lambda t: t.update({f"{FIRST}.lora_B.weight": np.ones((32, 4), np.int8)}), "conv_in's up is int8, not floating"),
    (lambda t: t.update({f"{FIRST}.lora_A.default.weight": np.zeros((4, 4, 3, 3), np.float32)}),
     "is a second down of unet.conv_in"),
    (lambda t: t.update({"lora_unet_input_blocks_0_0.lora_up.weight": np.zeros((32, 4, 1, 1), np.float32)}),
     "is a second up of unet.conv_in"),
    (lambda t: t.update({f"{FIRST}.alpha": np.zeros(2, np.float32)}), r"conv_in's alpha is \(2,\)"),
    (lambda t: t.update({f"{FIRST}.alpha": np.zeros(1, np.float32)}), "conv_in's alpha is 0, no positive number"),
    (lambda t: t.update({f"{FIRST}.alpha": np.full(1, -2, np.float32)}), "conv_in's alpha is -2, no positive number"),
    (lambda t: t.update({f"{FIRST}.alpha": np.full(1, np.inf, np.float32)}), "alpha is inf, no positive number"),
    (lambda t: t.update({f"{FIRST}.alpha": np.full(1, np.nan, np.float32)}), "alpha is nan, no positive number"),
    (lambda t: t.update({f"{FIRST}.lora_A.weight": np.zeros((), np.float32)}), r"conv_in's down is \(\), the"),
    (lambda t: t.update({f"{FIRST}.lora_mid.weight": np.zeros((2, 2), np.float32)}), "is a Tucker decomposition"),
    (lambda t: t.update({f"{FIRST}.hada_w1_a": np.zeros((2, 2), np.float32)}), "is LoHa, not plain LoRA"),
    (lambda t: t.update({f"{FIRST}.lokr_w1": np.zeros((2, 2), np.float32)}), "is LoKr"),
    (lambda t: t.update({f"{FIRST}.lora_magnitude_vector": np.zeros(2, np.float32)}), "is DoRA"),
    (lambda t: t.update({"x.attn2.to_k.lora_A.weight": np.zeros((2, 2048), np.float32)}) or
     [t.pop(name) for name in list(t) if name.startswith("unet.")], "is SDXL, which is not supported"),
    (lambda t: t.clear() or t.update({"model.diffusion_model.out.2.bias": np.zeros(4, np.float32)}), "not a LoRA"),
])  # fmt: skip
def test_what_does_not_fit_is_one_line(shapes, tmp_path, change, said):
    lora.write_peft(tmp_path / "good.safetensors", filled(shapes), dtype=np.float32)
    save_file(wrong(load_file(tmp_path / "good.safetensors"), change), tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match=said) as error:
        lora.read(tmp_path / "bad.safetensors", shapes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("write", [lora.write_peft, lora.write_kohya])
def test_diffusers_computes_with_our_file_what_we_merge(twin, fused, tmp_path, write):
    """diffusers with PEFT loads the file into a twin, fuses it at 0.8, and has our merged weights."""
    pytest.importorskip("peft")
    _, folder = twin
    sd, _ = folders.read(folder)
    if write is lora.write_kohya:  # diffusers' converter guesses names, and loses alphas that differ
        made = lora.uniform(filled(sd.shapes, targets=("attention", "feed_forward")).adapters, 2.0)
    else:
        made = filled(sd.shapes)
    write(tmp_path / "lora.safetensors", made, dtype=np.float32)
    fused(folder, tmp_path / "lora.safetensors")


@pytest.mark.parametrize("name, said", [
    ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "is Flux, which"),
    ("lora_unet_single_blocks_3_linear1.lora_down.weight", "is Flux, which"),
    ("lora_unet_joint_blocks_0_context_block_attn_qkv.lora_down.weight", "is Stable Diffusion 3, which"),
    ("transformer.transformer_blocks.0.attn.to_q.lora_A.weight", "is of a family without a UNet"),
])  # fmt: skip
def test_loras_of_other_families_are_named(shapes, tmp_path, name, said):
    save_file({name: np.zeros((4, 64), np.float16)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=said) as error:
        lora.read(tmp_path / "x.safetensors", shapes)
    assert "\n" not in str(error.value)


def test_a_lora_of_a_training_that_diverged_is_refused(shapes, tmp_path):
    """Merged, it would make a model of which every image is black."""
    made = filled(shapes)
    flat = flatten(made.adapters)
    flat[next(iter(flat))].flat[0] = np.nan
    lora.write_kohya(tmp_path / "x.safetensors", made, dtype=np.float32)
    with pytest.raises(UserError, match="holds what is no number, as a training that diverged") as error:
        lora.read(tmp_path / "x.safetensors", shapes)
    assert "\n" not in str(error.value)


def test_the_names_of_comfyui_are_read(shapes, tmp_path):
    """LDM's names of the UNet's layers with their dots: what its trainer saves."""
    made = filled({"unet": shapes["unet"]})
    names, tensors = ldm_names.unet(shapes["unet"]), {}
    for module, (down, up) in lora.to_torch(made, np.float32).items():
        name = f"diffusion_model.{names[module.removeprefix('unet.')]}"
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        tensors[f"{name}.alpha"] = from_array(np.array(made.alphas[module], np.float32))
    assert "diffusion_model.input_blocks.0.0.lora_up.weight" in tensors
    safetensors.write(tmp_path / "x.safetensors", tensors, {})
    same(lora.read(tmp_path / "x.safetensors", shapes), made)


def test_a_lora_in_the_cache_of_hugging_face_is_found(shapes, tmp_path):
    made, folder = filled(shapes), tmp_path / "models--someone--moles"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123abc")
    (folder / "snapshots" / "0123abc").mkdir(parents=True)
    lora.write_peft(folder / "snapshots" / "0123abc" / lora.FILES[2], made, dtype=np.float32)
    same(lora.read(folder, shapes), made)
    assert lora.digest(folder) == lora.digest(folder / "snapshots" / "0123abc" / lora.FILES[2])


def test_a_named_pipe_does_not_hang(shapes, tmp_path):
    os.mkfifo(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"x\.safetensors: is a named pipe, a socket or a device; give a file"):
        lora.read(tmp_path / "x.safetensors", shapes)


def test_a_lora_of_zeros_is_refused(shapes, tmp_path):
    """As a download leaves it whose space was reserved beforehand; zeros in `up` alone are those of a fresh one."""
    fresh = lora.init(shapes, 2, seed=0)
    lora.write_peft(tmp_path / "fresh.safetensors", lora.uniform(fresh, 2.0), dtype=np.float32)
    lora.read(tmp_path / "fresh.safetensors", shapes)
    empty = jax.tree.map(np.zeros_like, fresh)
    lora.write_peft(tmp_path / "x.safetensors", lora.uniform(empty, 2.0), dtype=np.float32)
    with pytest.raises(UserError, match=r"x\.safetensors: is zeros throughout"):
        lora.read(tmp_path / "x.safetensors", shapes)


def test_a_lora_of_rank_0_is_refused(shapes, tmp_path):
    lora.write_kohya(tmp_path / "x.safetensors", filled(shapes), dtype=np.float32)
    tensors = load_file(tmp_path / "x.safetensors")
    down = next(name for name in tensors if name.endswith("to_q.lora_down.weight"))
    tensors[down] = tensors[down][:0]
    up = down.replace("lora_down", "lora_up")
    tensors[up] = tensors[up][:, :0]
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="has rank 0"):
        lora.read(tmp_path / "x.safetensors", shapes)
