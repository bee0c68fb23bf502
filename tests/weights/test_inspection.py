"""`inspect` and `convert`: what they say and write, without JAX and in time; every bad file is one line."""

import json
import resource
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dermjax.data import tokens
from dermjax.errors import UserError
from dermjax.models.stable_diffusion import SD15, TINY, StableDiffusion
from dermjax.weights import (
    conversion,
    diffusers,
    inspection,
    ldm_names,
    lora,
    model_files,
    single_file,
    tensor_files,
    torch_layout,
)
from dermjax.weights.safetensors import from_array

AS_FOUND = ("found", False, "found")  # variant, running averages, prediction
COMMAND = (
    "import sys; from dermjax import __main__ as m; code = m.main(); sys.exit(99 if 'jax' in sys.modules else code)"
)


def constants(shapes, dtype):
    """A tree of one number that take no memory."""
    return jax.tree.map(lambda leaf: np.broadcast_to(dtype(0.5), leaf.shape), shapes)


def rows(path):
    title, found = inspection.describe(path)
    return title, dict(found)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A small model of one number in half precision: (sd, params, folder)."""
    folder = tmp_path_factory.mktemp("tiny")
    tokens.write_word_tokenizer(folder / "words", ["mole"], 16)
    configs = json.loads(json.dumps(TINY))
    configs["text_encoder"] |= {
        "vocab_size": len(tokens.load_tokenizer(folder / "words")),
        "max_position_embeddings": 16,
    }
    sd = StableDiffusion(configs, folder / "words", np.float32)
    params = constants(sd.shapes, np.float32)
    diffusers.write(folder / "model", sd, params, dtype=np.float16)
    return sd, params, folder / "model"


@pytest.fixture(scope="module")
def adapters(tiny, tmp_path_factory):
    """A LoRA of rank 3 and alpha 6 for that model, in PEFT's form."""
    _, params, _ = tiny
    made = lora.init({"unet": params["unet"], "text_encoder": params["text_encoder"]}, 3, seed=0)
    made = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), made)
    path = tmp_path_factory.mktemp("lora") / "lora.safetensors"
    lora.write_peft(path, lora.uniform(made, 6.0), dtype=np.float16)
    return path


def published(path, dtype=np.float16):
    """The names and shapes of an SD 1.5 file, with holes in the file where the elements are."""
    layout = single_file.layout(StableDiffusion(SD15, None, np.float32), False)
    header, end = {}, 0
    for name, entry in (item for each in layout.values() for item in each.items()):
        first, end = end, end + int(np.prod(entry.shape)) * np.dtype(dtype).itemsize
        header[name] = {"dtype": "F16", "shape": entry.shape, "data_offsets": (first, end)}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def test_a_model_folder(tiny):
    title, said = rows(tiny[2])
    assert title == "model folder, Stable Diffusion's architecture with a context 128 wide"
    assert said["scheduler"] == "DDIMScheduler, v_prediction" and said["image"] == "128 x 128"
    count = sum(leaf.size for leaf in jax.tree.leaves(tiny[0].shapes["unet"]))
    assert said["unet"] == f"{count:,} parameters, float16, diffusion_pytorch_model.safetensors"


def test_a_published_file_is_told_by_its_header_in_two_seconds(tmp_path):
    path = tmp_path / "v1-5-pruned-emaonly.safetensors"
    published(path)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", COMMAND, "inspect", str(path)], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert "single-file model, Stable Diffusion 1.x, safetensors" in done.stdout
    assert "859,520,964 parameters, float16" in done.stdout and "83,653,863 parameters" in done.stdout
    # processor time: the machine of the tests is shared
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0


@pytest.mark.parametrize("width, spread, said", [(768, 1.0, "epsilon"), (1024, 1.0, "v_pred"), (1024, 0.01, "epsilon")])
def test_what_a_single_file_predicts(tmp_path, width, spread, said):
    """By a bias, which alone is read, where the file does not say it."""
    bias = np.array([-spread, spread], np.float32)
    words = f"{ldm_names.UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    tensors = {tensor_files.TELLING: bias, words: np.zeros((2, width), np.float32)}
    save_file(tensors, tmp_path / "x.safetensors")
    assert rows(tmp_path / "x.safetensors")[1]["scheduler"].startswith(f"not in such files; the UNet predicts {said}")
    save_file(tensors, tmp_path / "y.safetensors", metadata={"modelspec.prediction_type": "v"})
    assert "predicts v_prediction" in rows(tmp_path / "y.safetensors")[1]["scheduler"]


def test_a_model_that_ships_is_found_by_name(command):
    code, out, _ = command("inspect", "derm-tiny")
    assert code == 0 and "derm-tiny: model folder" in out and "v_prediction" in out


def test_a_lora(adapters):
    title, said = rows(adapters)
    assert title == "LoRA, Stable Diffusion's architecture with a context 128 wide"
    assert (said["form"], said["rank"], said["alpha"]) == ("PEFT", "3", "6")
    assert said["adapts"] == "56 layers of the UNet, 12 of the text encoder"


def test_embeddings_classifiers_and_parts(tmp_path):
    save_file({"emb_params": np.zeros((2, 768), np.float32)}, tmp_path / "mole.safetensors")
    title, said = rows(tmp_path / "mole.safetensors")
    assert title == "embedding, Stable Diffusion 1.x" and said == {"token": "mole", "vectors": "2 x 768"}
    (tmp_path / "concept").mkdir()
    save_file({"<mole>": np.zeros((1, 768), np.float32)}, tmp_path / "concept" / "learned_embeds.safetensors")
    assert rows(tmp_path / "concept") == (title, {"token": "<mole>", "vectors": "1 x 768"})
    folder = tmp_path / "classifier"
    folder.mkdir()
    config = {"model_type": "vit", "id2label": {"0": "benign", "1": "malignant"}, "image_size": 224}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"classifier.weight": np.zeros((2, 4), np.float32)}, folder / "model.safetensors")
    title, said = rows(folder)
    assert title == "classifier, vit" and said["labels"] == "benign, malignant"


@pytest.mark.parametrize("content, said", [
    (None, "no such file"), (b"", "is empty"), (b"<html>", "is a web page"), (b"GIF89a", "not a readable"),
    (b"version https://git-lfs.github.com/spec/v1", "git-lfs pointer"),
])  # fmt: skip
def test_a_bad_file_is_one_line_and_exit_code_2(tmp_path, content, said):
    if content is not None:
        (tmp_path / "x.ckpt").write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "inspect", str(tmp_path / "x.ckpt")], capture_output=True, text=True
    )
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_convert_takes_a_folder_to_another_type_and_back(tiny, tmp_path):
    conversion.convert(str(tiny[2]), str(tmp_path / "b" / "model"), "none", 0.8, "bfloat16", *AS_FOUND)
    assert "bfloat16" in rows(tmp_path / "b" / "model")[1]["unet"]
    sd, params = model_files.read(tmp_path / "b" / "model")
    said = tiny[0].configs["text_encoder"] | {"dtype": "float32"}  # what transformers needs to be told
    assert sd.configs == tiny[0].configs | {"text_encoder": said}
    assert all((leaf == 0.5).all() for leaf in jax.tree.leaves(params))


def test_convert_takes_the_variant_the_averages_and_the_prediction_that_it_is_told(small_model, command, tmp_path):
    sd, params, folder = small_model
    shutil.copytree(folder, tmp_path / "model")
    unet = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    twice = {name: 2 * each for name, each in load_file(unet).items()}
    save_file(twice, unet.with_name("diffusion_pytorch_model.non_ema.safetensors"))
    to = ("convert", f"--from={tmp_path / 'model'}", "--dtype=float32", f"--to={tmp_path / 'other'}")
    assert command(*to, "--variant=non_ema")[0] == 0
    _, other = model_files.read(tmp_path / "other")
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, 2 * b), other["unet"], params["unet"])

    single_file.write(tmp_path / "single.safetensors", sd, params, dtype=np.float32)
    tensors = load_file(tmp_path / "single.safetensors")
    mine = [name for name in tensors if name.startswith(ldm_names.UNET)]
    averages = {f"model_ema.{name.removeprefix('model.').replace('.', '')}": 3 * tensors[name] for name in mine}
    told = {single_file.CONFIGS: json.dumps(sd.configs)}
    save_file(tensors | averages, tmp_path / "both.safetensors", metadata=told)
    to = ("convert", f"--from={tmp_path / 'both.safetensors'}", "--dtype=float32")
    assert command(*to, f"--to={tmp_path / 'averages'}", "--ema", "--prediction=v_prediction")[0] == 0
    described, averaged = model_files.read(tmp_path / "averages")
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, 3 * b), averaged["unet"], params["unet"])
    assert described.prediction == "v_prediction" and sd.prediction == "epsilon"
    assert command(*to, f"--to={tmp_path / 'plain'}")[0] == 0
    jax.tree.map(np.testing.assert_array_equal, model_files.read(tmp_path / "plain")[1], params)

    for flags, said in (
        ((f"--from={tmp_path / 'both.safetensors'}", "--variant=fp16"), "is a single file; variants are of folders"),
        ((f"--from={folder}", "--ema"), "is a folder; running averages and the prediction are asked of single files"),
        ((f"--from={folder}", "--prediction=sample"), "prediction 'sample' is unknown; there are found, epsilon, v_"),
    ):
        code, _, error = command("convert", *flags, f"--to={tmp_path / 'x'}")
        assert code == 2 and said in error and error.count("\n") == 1 and not (tmp_path / "x").exists()


def test_convert_merges_a_lora(tiny, adapters, tmp_path):
    conversion.convert(str(tiny[2]), str(tmp_path / "merged"), str(adapters), 0.5, "float32", *AS_FOUND)
    _, params = model_files.read(tmp_path / "merged")
    flat = torch_layout.flatten(params)
    for path, array in flat.items():
        # 0.5, and ones times ones over a rank of 3, times alpha / rank = 2, times 0.5
        adapted = "attn1.to_q.kernel" in path or "attn2.to_k.kernel" in path or "self_attn.q_proj.kernel" in path
        assert not adapted or (array == 3.5).all(), path
    assert (flat["unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.kernel"] == 3.5).all()
    assert (flat["unet.conv_in.kernel"] == 0.5).all()


def test_convert_turns_a_lora_into_the_other_form(tmp_path):
    sd = StableDiffusion(SD15, None, np.float32)
    module = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    pair = {"lora_A": np.ones((4, 768), np.float32), "lora_B": np.ones((320, 4), np.float32)}
    save_file({f"{module}.{name}.weight": array for name, array in pair.items()}, tmp_path / "peft.safetensors")
    conversion.convert(
        str(tmp_path / "peft.safetensors"), str(tmp_path / "kohya.safetensors"), "none", 0.8, "float32", *AS_FOUND
    )
    assert rows(tmp_path / "kohya.safetensors")[1]["form"] == "kohya"
    conversion.convert(
        str(tmp_path / "kohya.safetensors"), str(tmp_path / "again.safetensors"), "none", 0.8, "float32", *AS_FOUND
    )
    assert rows(tmp_path / "again.safetensors")[1]["form"] == "PEFT"
    one, other = (lora.read(tmp_path / f"{name}.safetensors", sd.shapes) for name in ("peft", "again"))
    assert one.alphas == other.alphas == {module: 4.0}


@pytest.mark.parametrize("to, lora_, dtype, said", [
    ("x.ckpt", "none", "float16", "pickles can run code"), ("x", "none", "float8", "dtype 'float8' is unknown"),
    ("", "none", "float16", "is there already"), ("x", "nowhere", "float16", "nowhere: cannot be read"),
    ("x.safetensors", "none", "float16", "holds no tokenizer"), ("x.SAFETENSORS", "none", "float16", "holds no token"),
    ("x.CKPT", "none", "float16", "pickles can run code"), ("x.pth", "none", "float16", "name it x.safetensors"),
])  # fmt: skip
def test_convert_refuses_before_it_writes(tiny, tmp_path, to, lora_, dtype, said):
    with pytest.raises(UserError, match=said):
        conversion.convert(str(tiny[2]), str(tmp_path / to), lora_, 0.8, dtype, *AS_FOUND)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_convert_merges_by_numbers_alone(tiny, adapters, tmp_path, weight):
    with pytest.raises(UserError, match=f"lora_weight {weight} is no number"):
        conversion.convert(str(tiny[2]), str(tmp_path / "x"), str(adapters), weight, "float16", *AS_FOUND)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name, said", [
    ("x.ckpt", r"pickles can run code and are not written; name it x\.safetensors"), ("x.PT", "pickles can run code"),
    ("x", r"x: a LoRA is one file; name it x\.safetensors"),
])  # fmt: skip
def test_convert_writes_no_lora_under_a_name_that_other_programs_could_not_open(tmp_path, name, said):
    module = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    pair = {"lora_A": np.ones((4, 768), np.float32), "lora_B": np.ones((320, 4), np.float32)}
    save_file({f"{module}.{name}.weight": array for name, array in pair.items()}, tmp_path / "peft.safetensors")
    with pytest.raises(UserError, match=said):
        conversion.convert(str(tmp_path / "peft.safetensors"), str(tmp_path / name), "none", 0.8, "float32", *AS_FOUND)
    assert not (tmp_path / name).exists()


def test_a_file_without_its_suffix_is_what_it_holds(adapters, tmp_path):
    """As the blobs of Hugging Face's cache are; a number beyond all others is shown as none."""
    said = {lora.METADATA: json.dumps({"unet.lora_alpha": 10**400})}
    save_file({"a.lora_A.weight": np.zeros((2, 4), np.float32)}, tmp_path / "blob", metadata=said)
    assert rows(tmp_path / "blob")[1]["alpha"] == "that of the rank"
    save_file({"conv_in.weight": np.zeros((2, 4, 3, 3), np.float32)}, tmp_path / "other")
    assert rows(tmp_path / "other")[0] == "one network of a model, safetensors"


def test_a_lora_is_no_model_and_a_model_no_lora(tiny, adapters, tmp_path):
    with pytest.raises(UserError, match="is a LoRA, not a single-file model; give a model, and a LoRA beside it"):
        model_files.read(model_files.locate(str(adapters)))
    weights = tiny[2] / "unet" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(UserError, match="is one network of a model, not a LoRA"):
        conversion.convert(str(tiny[2]), str(tmp_path / "x"), str(weights), 0.8, "float16", *AS_FOUND)


def test_networks_of_two_families_are_told_apart(tiny, tmp_path):
    """A text encoder of SD 2.x beside a UNet of SD 1.x, as folders that were mended by hand have it."""
    sd, params, _ = tiny
    diffusers.write(tmp_path / "model", sd, params, dtype=np.float16)
    for name, key, width in (("text_encoder", "hidden_size", 1024), ("unet", "cross_attention_dim", 768)):
        path = tmp_path / "model" / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: width}))
    with pytest.raises(
        UserError, match=r"hidden_size = 1024 \(SD 2.x\), but the UNet takes a context of 768 \(SD 1.x\)"
    ):
        model_files.read(tmp_path / "model")


def test_sdxl_is_refused_by_name(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    with pytest.raises(UserError, match="a StableDiffusionXLPipeline is not supported; dermjax knows"):
        model_files.locate(str(tmp_path))


def test_a_config_without_a_key_or_with_an_unknown_one_is_named(tiny, tmp_path):
    sd, params, _ = tiny
    diffusers.write(tmp_path / "model", sd, params, dtype=np.float16)
    path = tmp_path / "model" / "vae" / "config.json"
    good = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in good.items() if key != "latent_channels"}))
    with pytest.raises(UserError, match=r"vae/config\.json: 'latent_channels' is missing"):
        model_files.read(tmp_path / "model")
    path.write_text(json.dumps(good | {"decoder_magic": 3}))
    with pytest.raises(UserError, match=r"vae/config\.json: decoder_magic = 3 is not known"):
        model_files.read(tmp_path / "model")
    path.write_text(json.dumps(good | {"use_quant_conv": False}))
    with pytest.raises(UserError, match="use_quant_conv = False is not implemented"):
        model_files.read(tmp_path / "model")


def test_in_memory_tensors_count_as_stored():
    tensor = from_array(np.zeros((2, 3), np.float16))
    assert inspection.size({"a": tensor, "b": tensor}) == "12 parameters, float16"
