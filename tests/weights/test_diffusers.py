"""Equality with PyTorch: random twins saved by diffusers and transformers, read by us, and the way back."""

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from dermjax.data import tokens
from dermjax.errors import UserError
from dermjax.models.stable_diffusion import TINY, StableDiffusion, count
from dermjax.weights import diffusers as ours
from dermjax.weights import model_files, tensor_files
from dermjax.weights.torch_layout import flatten


@pytest.fixture
def shared():
    """The reference configs beside the checkout."""
    folder = Path(__file__).parents[3] / "shared"
    if not folder.exists():
        pytest.skip("no shared material beside the checkout")
    return folder


def close(ours_, theirs, tolerance=1e-4):
    theirs = theirs.detach().numpy()
    error = np.abs(np.asarray(ours_) - theirs).max() / np.abs(theirs).max()
    assert error <= tolerance, error


def test_networks_equal_pytorch(twin):
    torch = pytest.importorskip("torch")
    pipeline, folder = twin
    sd, params = ours.read(folder)
    rng = np.random.default_rng(0)
    channels = sd.configs["unet"]["in_channels"]
    x, context = rng.normal(size=(2, 16, 16, channels)), rng.normal(size=(2, 77, 48))
    x, context, t = x.astype(np.float32), context.astype(np.float32), np.array([3, 977])
    with torch.no_grad():
        theirs = pipeline.unet(torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(t), torch.tensor(context)).sample
        close(jax.jit(sd.unet)(params, x, t, context), theirs.permute(0, 2, 3, 1))

        image = rng.uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)
        posterior = pipeline.vae.encode(torch.tensor(image).permute(0, 3, 1, 2)).latent_dist
        mean, log_variance = np.split(np.asarray(jax.jit(sd.encode)(params, image)), 2, axis=-1)
        close(mean, posterior.mean.permute(0, 2, 3, 1))
        close(log_variance, posterior.logvar.permute(0, 2, 3, 1))

        latents = rng.normal(size=(2, 8, 8, 4)).astype(np.float32)
        decoded = pipeline.vae.decode(torch.tensor(latents).permute(0, 3, 1, 2)).sample
        close(jax.jit(sd.reconstruct)(params, latents), decoded.permute(0, 2, 3, 1))

        words = tokens.tokenize(tokens.load_tokenizer(sd.tokenizer), ["benign mole", "malignant mole"])
        close(jax.jit(sd.encode_text)(params, words), pipeline.text_encoder(torch.tensor(words)).last_hidden_state)


def test_what_we_write_diffusers_reads(twin, tmp_path, same_weights):
    diffusers = pytest.importorskip("diffusers")
    pipeline, folder = twin
    sd, params = ours.read(folder)
    ours.write(tmp_path / "model", sd, params, dtype=np.float32)
    again = type(pipeline).from_pretrained(tmp_path / "model", safety_checker=None)
    same_weights(again, pipeline)
    assert diffusers.DiffusionPipeline.from_pretrained(tmp_path / "model").__class__ is type(pipeline)


def test_variants_and_shards_are_read(twin, tmp_path):
    """What save_pretrained leaves with variant and max_shard_size: many files with an index."""
    pipeline, folder = twin
    _, params = ours.read(folder)
    pipeline.save_pretrained(tmp_path / "sharded", variant="fp16", max_shard_size="500KB")
    assert len(list((tmp_path / "sharded" / "unet").glob("*.fp16*.safetensors"))) > 1
    for variant in ("fp16", ""):  # the only one is taken unasked
        jax.tree.map(np.testing.assert_array_equal, ours.read(tmp_path / "sharded", variant=variant)[1], params)
    with pytest.raises(UserError, match=r"no diffusion_pytorch_model\.bf16\.safetensors"):
        ours.read(tmp_path / "sharded", variant="bf16")


def test_a_variant_of_one_network_takes_the_others_plain(tiny):
    """Stable Diffusion 1.5's non_ema is of the UNet alone."""
    folder, params = tiny
    plain = folder / "unet" / "diffusion_pytorch_model.safetensors"
    changed = {name: each + 1 for name, each in load_file(plain).items()}
    save_file(changed, folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors")
    _, found = ours.read(folder, variant="non_ema")
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b + 1), found["unet"], params["unet"])
    jax.tree.map(np.testing.assert_array_equal, found["vae"], params["vae"])
    plain.rename(plain.with_name("diffusion_pytorch_model.fp16.bin"))
    with pytest.raises(UserError, match=r"there are the variants fp16, non_ema: write one out with `dermjax convert"):
        ours.read(folder)


@pytest.mark.parametrize("place, content, said", [
    ("model_index.json", "[1]", "holds list where an object with names"),
    ("unet/config.json", "[" * 100_000, "cannot be read as JSON"),
    ("vae/config.json", "null", "holds NoneType where"),
    ("unet/diffusion_pytorch_model.safetensors.index.json", '{"weight_map": 3}', "no weight_map with the files"),
])  # fmt: skip
def test_json_of_another_form_is_one_line(tiny, place, content, said):
    folder, _ = tiny
    (folder / place).write_text(content)
    if "index.json" in place and "unet" in place:
        (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match=said) as error:
        ours.read(folder)
    assert str(folder / place) in str(error.value) and "\n" not in str(error.value)


def test_values_beyond_half_precision_are_refused_and_nothing_is_left(tiny, tmp_path):
    folder, params = tiny
    sd, _ = ours.read(folder)
    spoilt = jax.tree.map(np.copy, params)
    spoilt["unet"]["conv_in"]["bias"][0] = 1e5
    with pytest.raises(UserError, match=r"conv_in\.bias: values beyond float16's largest; write bfloat16 or float32"):
        ours.write(tmp_path / "half", sd, spoilt, dtype=np.float16)
    assert not (tmp_path / "half").exists() and not list(tmp_path.glob(".half*"))
    ours.write(tmp_path / "wide", sd, spoilt, dtype=jnp.bfloat16)


def test_a_kill_while_the_old_folder_is_deleted_leaves_the_new_one(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def deletes(path, delete=ours.shutil.rmtree, **given):
        if (path / "file").exists() and (path / "file").read_text() == "old":
            (path / "file").unlink()
            raise Killed
        delete(path, **given)

    for content in ("old", "new"):
        with contextlib.suppress(Killed), ours.replaced(tmp_path / "model") as part:
            (part / "file").write_text(content)
        monkeypatch.setattr(ours.shutil, "rmtree", deletes)
    assert (tmp_path / "model" / "file").read_text() == "new"
    monkeypatch.undo()
    with ours.replaced(tmp_path / "model") as part:
        (part / "file").write_text("newer")
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "what was left is deleted"


def test_older_folders_are_read(twin, tmp_path):
    """PyTorch's .bin in place of safetensors, the VAE's attention by its first names, and a buffer of positions."""
    torch = pytest.importorskip("torch")
    pipeline, folder = twin
    _, params = ours.read(folder)
    shutil.copytree(folder, tmp_path / "model")
    for file in (tmp_path / "model").rglob("*.safetensors"):
        file.unlink()
    state = pipeline.vae.state_dict()
    for now, then in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        state = {name.replace(now, then): tensor for name, tensor in state.items()}
    assert "decoder.mid_block.attentions.0.proj_attn.bias" in state
    torch.save(state, tmp_path / "model" / "vae" / "diffusion_pytorch_model.bin")
    torch.save(pipeline.unet.state_dict(), tmp_path / "model" / "unet" / "diffusion_pytorch_model.bin")
    text = {f"text_model.{name}": tensor for name, tensor in pipeline.text_encoder.state_dict().items()}
    text["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    torch.save(text, tmp_path / "model" / "text_encoder" / "pytorch_model.bin")
    jax.tree.map(np.testing.assert_array_equal, ours.read(tmp_path / "model")[1], params)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A small random model, its parameters and its folder; drawing the parameters compiles for a while."""
    folder = tmp_path_factory.mktemp("tiny")
    tokens.write_word_tokenizer(folder / "words", ["mole"], 16)
    configs = json.loads(json.dumps(TINY))
    configs["text_encoder"] |= {
        "vocab_size": len(tokens.load_tokenizer(folder / "words")),
        "max_position_embeddings": 16,
    }
    configs["unet"] |= {"block_out_channels": [32, 32, 32]}
    sd = StableDiffusion(configs, folder / "words", jnp.float32)
    params = sd.init(0)
    ours.write(folder / "model", sd, params, dtype=np.float32)
    return folder / "model", params


@pytest.fixture
def tiny(written, tmp_path):
    """A copy of that folder to spoil."""
    folder, params = written
    return shutil.copytree(folder, tmp_path / "model"), params


def test_read_of_write_is_bit_equal(tiny):
    folder, params = tiny
    again = ours.read(folder)[1]
    assert all((again_leaf == leaf).all() for again_leaf, leaf in zip(
        jax.tree.leaves(again), jax.tree.leaves(params), strict=True))  # fmt: skip


CHANGES = {
    "scheduler/scheduler_config.json": ("0.012", "0.013"),
    "vae/config.json": ("silu", "gelu"),
    "tokenizer/tokenizer_config.json": ("16", "15"),
    "model_index.json": ("StableDiffusionPipeline", "StableDiffusionInpaintPipeline"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_digest_is_of_all_that_images_follow_from(name, tiny):
    """The weights stay as they are: a digest of these alone would not tell."""
    folder, _ = tiny
    before = model_files.digest(folder)
    assert len(before) == 16
    text = (folder / name).read_text()
    assert CHANGES[name][0] in text
    (folder / name).write_text(text.replace(*CHANGES[name]))
    assert model_files.digest(folder) != before
    (folder / name).write_text(text)
    assert model_files.digest(folder) == before


def test_a_digest_knows_neither_the_order_of_files_nor_what_is_not_read(tiny, monkeypatch):
    folder, _ = tiny
    before = model_files.digest(folder)
    (folder / "README.md").write_text("a card")
    (folder / "samples").mkdir()
    real = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda path, pattern: reversed(list(real(path, pattern))))
    assert model_files.digest(folder) == before
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    spoilt = bytearray(weights.read_bytes())
    spoilt[-1] ^= 1
    weights.write_bytes(spoilt)
    assert model_files.digest(folder) != before


def test_tensors_go_to_their_type_and_sharding(tiny):
    folder, params = tiny
    mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))

    _, lazy = ours.read(folder, params_dtype=jnp.bfloat16, lazy=True)
    placed = model_files.place(lazy, NamedSharding(mesh, PartitionSpec("fsdp")))
    for leaf, expected in zip(jax.tree.leaves(placed), jax.tree.leaves(params), strict=True):
        assert leaf.sharding.spec == PartitionSpec("fsdp")
        np.testing.assert_array_equal(leaf, expected.astype(jnp.bfloat16))


@pytest.mark.parametrize("content, said", [
    (b"", "is empty"), (b"<html>", "is a web page"), (b"<!DOCTYPE html>", "is a web page"),
    (b"GIF89a", "not a readable"), (b"version https://git-lfs.github.com/spec/v1", "is a git-lfs pointer"),
])  # fmt: skip
def test_a_broken_weight_file_is_named(tiny, content, said):
    folder, _ = tiny
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        ours.read(folder)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_all_misfits_come_in_one_error(tiny):
    folder, _ = tiny
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps(config | {"use_linear_projection": False}))
    # proj_in and proj_out of seven transformers: two on the way down, one in the middle, four on the way up
    with pytest.raises(UserError, match=r"14 of \d+ tensors do not fit: .*proj_in\.weight is"):
        ours.read(folder)


def test_an_option_that_we_do_not_have_is_named(tiny):
    folder, _ = tiny
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps(config | {"addition_embed_type": "text_time"}))
    with pytest.raises(UserError, match="addition_embed_type = 'text_time' is not implemented"):
        ours.read(folder)


def test_a_folder_that_is_no_model_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no model_index\.json"):
        ours.read(tmp_path)


def test_sd15_has_the_published_number_of_parameters(shared):
    configs = {name: json.loads((shared / "reference/sd15_config" / name / "config.json").read_text())
               for name in ("unet", "vae", "text_encoder")}  # fmt: skip
    sd = StableDiffusion(configs, shared / "reference/sd15_config/tokenizer", jnp.float32)
    assert {name: count(sd.shapes[name]) for name in configs} == {
        "unet": 859_520_964,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
    }
    assert len(flatten(sd.shapes["unet"])) == 686


HALF = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}


@pytest.mark.parametrize("dtype", HALF)
def test_the_plain_three_lines_run_on_what_we_write(small_model, tmp_path, dtype):
    """Whatever the type of the files: transformers and diffusers choose one for the arithmetic, and the same."""
    theirs = pytest.importorskip("diffusers")
    sd, params, _ = small_model
    configs = sd.configs | {"text_encoder": sd.configs["text_encoder"] | {"torch_dtype": "float16"}}
    ours.write(tmp_path / "model", dataclasses.replace(sd, configs=configs), params, dtype=HALF[dtype])
    said = json.loads((tmp_path / "model" / "text_encoder" / "config.json").read_text())
    assert said["dtype"] == "float32" and "torch_dtype" not in said
    pipeline = theirs.StableDiffusionPipeline.from_pretrained(str(tmp_path / "model"))
    image = pipeline("a mole", num_inference_steps=2, height=32, width=32).images[0]
    assert image.size == (32, 32)


def test_the_lines_of_derm_tiny_s_card_run(monkeypatch):
    pytest.importorskip("diffusers")
    folder = ours.locate("derm-tiny")
    monkeypatch.chdir(folder.parents[2])
    shown = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    scope = {}
    exec(shown.replace("width=128", "width=128, num_inference_steps=2"), scope)
    assert scope["image"].size == (128, 128) and np.ptp(np.asarray(scope["image"])) > 50


@pytest.mark.parametrize("main", [True, False], ids=["refs/main", "the only one"])
def test_a_repository_in_hugging_face_s_cache_is_its_files(small_model, tmp_path, main):
    """Files are links into blobs/, and a commit that is no longer that of main may be there too."""
    _, params, folder = small_model
    cache = tmp_path / "models--somebody--moles"
    for path in (path for path in folder.rglob("*") if path.is_file()):
        blob, link = cache / "blobs" / path.name, cache / "snapshots" / "1f2e" / path.relative_to(folder)
        blob = blob.with_name(f"{path.parent.name}-{path.name}")
        blob.parent.mkdir(parents=True, exist_ok=True), link.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(path.read_bytes())
        link.symlink_to(blob)
    if main:
        (cache / "refs").mkdir()
        (cache / "refs" / "main").write_text("1f2e\n")
        (cache / "snapshots" / "0000").mkdir()
    jax.tree.map(np.testing.assert_array_equal, ours.read(ours.locate(str(cache)))[1], params)


@pytest.mark.parametrize("main", [b"../../elsewhere", b"", b"\xff\xfe"], ids=repr)
def test_a_commit_of_a_cache_that_is_none_of_its_own_is_not_followed(tmp_path, main):
    (tmp_path / "elsewhere").mkdir()
    cache = tmp_path / "models--somebody--moles"
    (cache / "snapshots" / "1f2e").mkdir(parents=True), (cache / "refs").mkdir()
    (cache / "refs" / "main").write_bytes(main)
    assert tensor_files.snapshot(cache) == cache


def test_a_name_of_the_hub_is_told_how_to_fetch_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"nothing is fetched by itself: .*`hf download somebody/moles-v1.5`") as error:
        ours.locate("somebody/moles-v1.5")
    assert "\n" not in str(error.value)


def test_whole_numbers_in_place_of_weights_are_refused(tiny):
    """A quantised file's: read as weights they would make another model, silently."""
    folder, _ = tiny
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"conv_in.weight": tensors["conv_in.weight"].astype(np.int8)}, file)
    with pytest.raises(UserError, match=r"1 of \d+ tensors do not fit: unet/conv_in\.weight is int8, not floating"):
        ours.read(folder)
