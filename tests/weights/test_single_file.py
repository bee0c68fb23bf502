"""Single LDM files: what diffusers makes of ours, what we make of ours and of checkpoints, and what is refused."""

import json
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from dermjax.data import tokens
from dermjax.diffusion import samplers
from dermjax.errors import UserError
from dermjax.models.stable_diffusion import SD15, SD21, StableDiffusion
from dermjax.weights import diffusers as folders
from dermjax.weights import inspection, ldm_names, model_files, single_file, tensor_files, torch_layout
from dermjax.weights.safetensors import LazyTensor, from_array, write


def equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def shapes_only(names: dict[str, tuple]) -> dict[str, LazyTensor]:
    """Tensors of which only names and shapes are asked."""
    return {name: LazyTensor(shape, np.dtype(np.float16), lambda: pytest.fail("read")) for name, shape in names.items()}


@pytest.fixture(scope="module")
def ours(twin, tmp_path_factory):
    """A twin read by us and written as a single file of float32: (sd, params, file, the folder of the twin)."""
    _, folder = twin
    sd, params = folders.read(folder)
    path = tmp_path_factory.mktemp("single") / "model.safetensors"
    single_file.write(path, sd, params, dtype=np.float32)
    return sd, params, path, folder


def test_read_of_write_is_bit_equal(ours, tmp_path):
    sd, params, path, _ = ours
    again, read = single_file.read(path)
    assert again.configs == sd.configs
    equal(read, params)
    single_file.write(tmp_path / "half.safetensors", sd, params, dtype=np.float16)
    equal(single_file.read(tmp_path / "half.safetensors")[1], jax.tree.map(lambda a: np.float32(np.float16(a)), params))


def test_diffusers_reads_what_we_write(twin, ours, same_weights):
    pipeline, folder = twin
    again = type(pipeline).from_single_file(
        str(ours[2]), config=str(folder), local_files_only=True, safety_checker=None
    )
    same_weights(again, pipeline)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_training_checkpoint_is_read(ours, tmp_path, zipped):
    """What PyTorch Lightning saves: buffers, averages without dots, optimizer, a strided tensor, shared storages."""
    torch = pytest.importorskip("torch")
    _, _, path, _ = ours
    state = {name: torch.tensor(tensor) for name, tensor in load_file(path).items()}
    kernel = f"{ldm_names.UNET}time_embed.0.weight"
    state[kernel] = state[kernel].T.contiguous().T
    unet = [name for name in state if name.startswith(ldm_names.UNET)]
    averages = {f"model_ema.{name.removeprefix('model.').replace('.', '')}": state[name] + 1 for name in unet}
    extras = {"betas": torch.zeros(1000), "model_ema.decay": torch.tensor(0.9999), "logvar": torch.zeros(1000)}
    torch.save({"state_dict": state | averages | extras, "global_step": 470000, "epoch": 3,
                "optimizer_states": [{"state": torch.ones(3)}], "callbacks": {}}, tmp_path / "model.ckpt",
               _use_new_zipfile_serialization=zipped)  # fmt: skip
    tensors, texts = single_file.open_file(tmp_path / "model.ckpt")
    assert texts["global_step"] == "470000"
    assert tensors.keys() == (state | averages | extras).keys()
    for name, tensor in (state | averages).items():
        np.testing.assert_array_equal(tensors[name].read(), tensor.numpy())
    averaged = single_file.averaged(tensors, {}, "x")
    assert (averaged[kernel].read() == state[kernel].numpy() + 1).all()


def test_every_extra_and_every_gap_is_named(ours, tmp_path):
    _, _, path, _ = ours
    tensors = load_file(path)
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    del tensors["first_stage_model.quant_conv.bias"]
    tensors["control_model.zero"] = np.zeros(3, np.float32)
    tensors[f"{ldm_names.UNET}out.2.bias"] = np.zeros(7, np.float32)
    tensors["betas"] = np.zeros(1000, np.float32)  # belongs there, and nobody reads it
    save_file(tensors, tmp_path / "bad.safetensors", metadata=header["__metadata__"])
    with pytest.raises(UserError) as error:
        single_file.read(tmp_path / "bad.safetensors")
    told = str(error.value)
    for word in (
        "3 of",
        "quant_conv.bias is missing",
        "out.2.bias is (7,), the config asks for (4,)",
        "control_model.zero",
    ):
        assert word in told
    assert "\n" not in told and "betas" not in told


def test_a_file_without_a_network_or_averages_says_so(ours, tmp_path):
    _, _, path, _ = ours
    with pytest.raises(UserError, match="no running averages"):
        single_file.read(path, ema=True)
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    kept = {name: tensor for name, tensor in load_file(path).items() if not name.startswith(ldm_names.VAE)}
    save_file(kept, tmp_path / "pruned.safetensors", metadata=header["__metadata__"])
    with pytest.raises(UserError, match="holds no vae"):
        single_file.read(tmp_path / "pruned.safetensors")


def test_a_file_of_running_averages_alone(ours, tmp_path):
    """Pruned to them: read with `ema`, and without it the message says so."""
    _, params, path, _ = ours
    with safe_open(path, "np") as file:
        texts = file.metadata()
    tensors = {
        f"model_ema.{name.removeprefix('model.').replace('.', '')}" if name.startswith(ldm_names.UNET) else name: tensor
        for name, tensor in load_file(path).items()
    }
    save_file(tensors | {"model_ema.decay": np.ones((), np.float32)}, tmp_path / "x.safetensors", metadata=texts)
    equal(single_file.read(tmp_path / "x.safetensors", ema=True)[1], params)
    with pytest.raises(UserError, match="no unet; its running averages alone; write it out with `dermjax convert --e"):
        single_file.read(tmp_path / "x.safetensors")


@pytest.mark.parametrize("told", ["{", "[]", "{}", '{"text_encoder": {"hidden_act": "gelu"}}', "[" * 10**5])
def test_configs_that_cannot_be_read_are_one_line(ours, tmp_path, told):
    save_file(load_file(ours[2]), tmp_path / "x.safetensors", metadata={single_file.CONFIGS: told})
    with pytest.raises(UserError, match=r"x\.safetensors: its dermjax\.configs cannot be read") as error:
        single_file.read(tmp_path / "x.safetensors")
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def presets():
    """The published models by their shapes alone."""
    return {name: StableDiffusion(preset, None, np.float32) for name, preset in (("1", SD15), ("2", SD21))}


def test_published_names(presets):
    """Names of the published files, from their listings; the counts are those of diffusers and of the files."""
    one, two = single_file.layout(presets["1"], False), single_file.layout(presets["2"], True)
    assert {name: len(each) for name, each in one.items()} == {"text_encoder": 196, "unet": 686, "vae": 248}
    for name, shape in {
        "model.diffusion_model.input_blocks.3.0.op.weight": (320, 320, 3, 3),
        "model.diffusion_model.output_blocks.5.2.conv.bias": (1280,),
        "model.diffusion_model.output_blocks.2.1.conv.bias": (1280,),
        "model.diffusion_model.output_blocks.11.0.skip_connection.weight": (320, 640, 1, 1),
        "model.diffusion_model.middle_block.1.transformer_blocks.0.ff.net.0.proj.weight": (10240, 1280),
        "model.diffusion_model.input_blocks.1.1.proj_in.weight": (320, 320, 1, 1),
    }.items():
        assert one["unet"][name].shape == shape
    assert two["unet"]["model.diffusion_model.input_blocks.1.1.proj_in.weight"].shape == (320, 320)
    for name, shape in {
        "first_stage_model.decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
        "first_stage_model.encoder.down.2.block.0.nin_shortcut.weight": (512, 256, 1, 1),
        "first_stage_model.decoder.mid.attn_1.proj_out.weight": (512, 512, 1, 1),
    }.items():
        assert one["vae"][name].shape == shape
    clip = "cond_stage_model.transformer.text_model.encoder.layers.11.self_attn.q_proj.weight"
    assert clip in one["text_encoder"]
    fused = two["text_encoder"]["cond_stage_model.model.transformer.resblocks.22.attn.in_proj_weight"]
    assert fused.shape == (3072, 1024) and len(fused.ours) == 3
    assert "cond_stage_model.model.positional_embedding" in two["text_encoder"]


@pytest.mark.parametrize("name", ["1", "2"])
def test_each_tensor_of_ours_has_one_place(presets, name):
    sd = presets[name]
    for network, entries in single_file.layout(sd, name == "2").items():
        held = [our for entry in entries.values() for our in entry.ours]
        assert sorted(held) == sorted(torch_layout.expected(sd.shapes[network]))


@pytest.mark.parametrize("width, channels, spread, texts, said", [
    (768, 4, 1.0, {}, ("epsilon", 512)),
    (768, 9, 1.0, {}, ("epsilon", 512)),
    (1024, 4, 1.0, {}, ("v_prediction", 768)),
    (1024, 4, 0.01, {}, ("epsilon", 512)),
    (1024, 9, 1.0, {}, ("epsilon", 512)),
    (1024, 4, 0.01, {"modelspec.prediction_type": "v"}, ("v_prediction", 768)),
])  # fmt: skip
def test_a_published_model_is_recognised(width, channels, spread, texts, said):
    tensors = shapes_only({
        f"{ldm_names.UNET}input_blocks.0.0.weight": (320, channels, 3, 3),
        f"{ldm_names.UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, width),
    })  # fmt: skip
    bias = np.array([-spread, spread], np.float16)
    tensors[tensor_files.TELLING] = LazyTensor((2,), bias.dtype, lambda: bias)
    sd = single_file.describe(tensors, texts, "", np.float32, "model.ckpt")
    assert (sd.prediction, sd.size, sd.configs["unet"]["in_channels"]) == (*said, channels)
    assert tensor_files.family(tensors) == f"Stable Diffusion {'2' if width == 1024 else '1'}.x"


@pytest.mark.parametrize("names, said", [
    ({"conditioner.embedders.0.transformer.x": (3,), "model.diffusion_model.label_emb.0.0.weight": (3, 3)},
     "is SDXL, which is not supported"),
    ({"model.diffusion_model.joint_blocks.0.x": (3,)}, "is Stable Diffusion 3, which is not supported"),
    ({"model.diffusion_model.double_blocks.0.x": (3,)}, "is Flux, which is not supported"),
    ({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (4, 64)}, "is a LoRA, not a single-file model"),
    ({"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 320)}, "is a LoRA, not a single-file model"),
    ({"<mole>": (1, 768)}, "is an embedding, not a single-file model"),
    ({"conv_in.weight": (320, 4, 3, 3)}, "is one network of a model, not"),
    ({"weights": (3, 3), "bias": (3,)}, "is nothing that dermjax knows, not"),
])  # fmt: skip
def test_other_files_are_told_by_name(tmp_path, names, said):
    save_file({name: np.zeros(shape, np.float16) for name, shape in names.items()}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=said) as error:
        single_file.read(tmp_path / "x.safetensors")
    assert "\n" not in str(error.value)


def test_a_model_with_its_own_tokenizer_stays_a_folder(presets, tmp_path):
    configs = json.loads(json.dumps(SD15))
    configs["text_encoder"]["vocab_size"] = 600
    with pytest.raises(UserError, match="holds no tokenizer"):
        single_file.write(tmp_path / "x.safetensors", StableDiffusion(configs, None, np.float32), {}, dtype=np.float16)


def test_the_tokenizers_of_single_files_are_clips():
    """Stable Diffusion 1.x pads with the end, 2.x with "!", whose number is 0."""
    folder = Path(single_file.__file__).parent
    rows = [
        tokens.tokenize(tokens.load_tokenizer(folder / name), ["a photo of a Mole"])[0]
        for _, name in single_file.PRESETS.values()
    ]
    assert rows[0][:8].tolist() == [49406, 320, 1125, 539, 320, 23529, 49407, 49407] and len(rows[0]) == 77
    assert rows[1][:8].tolist() == [49406, 320, 1125, 539, 320, 23529, 49407, 0]


def test_markers_say_velocity_and_pure_noise(ours, tmp_path, capsys):
    """What ComfyUI and merges write: empty tensors whose names are all they say."""
    _, params, path, folder = ours
    tensors = load_file(path) | {"v_pred": np.zeros(0, np.float32), "ztsnr": np.zeros(0, np.float32)}
    configs = json.dumps(folders.read(folder)[0].configs)
    save_file(tensors, tmp_path / "x.safetensors", metadata={single_file.CONFIGS: configs})
    equal(single_file.read(tmp_path / "x.safetensors")[1], params)
    assert "2 left out (v_pred, ztsnr)" in capsys.readouterr().out


@pytest.mark.parametrize("text, prediction", [
    ("model:\n  params:\n    parameterization: \"v\"\n", "v_prediction"),
    ("    parameterization: v # so\r\n", "v_prediction"),
    ("  parameterization: eps\n", "epsilon"), ("  # parameterization: v\n  timesteps: 1000\n", ""), ("\x00\udcff", ""),
])  # fmt: skip
def test_the_config_beside_a_file_says_what_it_predicts(ours, tmp_path, text, prediction, capsys):
    """Models of SD 1.x that predict v are published so; AUTOMATIC1111 goes by it too."""
    sd, _, path, _ = ours
    file = shutil.copy(path, tmp_path / "fluff v1.2.safetensors")
    before = model_files.digest(file)
    (tmp_path / "fluff v1.2.yaml").write_text(text, encoding="utf-8", errors="surrogateescape", newline="")
    assert single_file.read(file, lazy=True)[0].prediction == (prediction or sd.prediction)
    assert ("as fluff v1.2.yaml beside it says" in capsys.readouterr().out) == bool(prediction)
    assert (model_files.digest(file) != before) == bool(prediction)
    assert f"predicts {prediction or sd.prediction}" in dict(inspection.describe(file)[1])["scheduler"]
    assert single_file.read(file, lazy=True, prediction="sample")[0].prediction == "sample"


NAMES = {f"{ldm_names.CLIP}text_model.encoder.layers.0.self_attn.q_proj.weight": (768, 768)}


@pytest.mark.parametrize("marks, prediction, pure", [
    ((), "epsilon", False), (("v_pred",), "v_prediction", False), (("v_pred", "ztsnr"), "v_prediction", True),
    (("ztsnr",), "epsilon", True),
])  # fmt: skip
@pytest.mark.parametrize("where", ["tensors", "texts"])
def test_the_scheduler_of_marked_files(marks, prediction, pure, where):
    names = NAMES | (dict.fromkeys(marks, (0,)) if where == "tensors" else {})
    texts = dict.fromkeys(marks, "True") if where == "texts" else {}
    sd = single_file.describe(shapes_only(names), texts, "", np.float32, "x")
    scheduler = sd.configs["scheduler"]
    assert sd.prediction == prediction and scheduler.get("rescale_betas_zero_snr", False) == pure
    if pure:  # where the last training time is asked for, by a scheduler of diffusers that rescales
        assert (scheduler["timestep_spacing"], scheduler["_class_name"]) == ("trailing", "DDIMScheduler")
        assert scheduler["clip_sample"] is False
    else:  # as in Stable Diffusion's published files, which each sampler reads as its own
        first = {
            name: samplers.get_sampler(name).ladder(scheduler, 20, "").times[0] for name in ("Euler", "DDIM", "PLMS")
        }
        assert first == {"Euler": 999, "DDIM": 951, "PLMS": 951}
    forced = single_file.describe(shapes_only(names), texts, "epsilon", np.float32, "x")
    assert forced.prediction == "epsilon"


@pytest.mark.parametrize("key", tensor_files.PREDICTION_KEYS)
@pytest.mark.parametrize("word, prediction", [
    ("v", "v_prediction"), ("epsilon", "epsilon"), ("V", "v_prediction"), ("v_prediction", "v_prediction"),
    ("v-prediction", "v_prediction"), ("eps", "epsilon"), (" v ", "v_prediction"), ("", "epsilon"), ("edm", "edm"),
])  # fmt: skip
def test_words_for_the_prediction(key, word, prediction):
    assert tensor_files.prediction(shapes_only(NAMES), {key: word}) == prediction
    marked = tensor_files.prediction(shapes_only(NAMES | {"v_pred": (0,)}), {key: word})
    assert marked == "v_prediction"


@pytest.mark.parametrize("dtype", ["U16", "U32", "F4", "I8", "F8_E4M3"])
def test_an_extra_tensor_of_a_type_that_no_weight_has_is_left_out(ours, tmp_path, dtype, capsys):
    sd, params, path, _ = ours
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:start])
    end = len(whole) - start
    header["extra"] = {
        "dtype": dtype,
        "shape": [8],
        "data_offsets": [end, end + {"U16": 16, "U32": 32, "F4": 4}.get(dtype, 8)],
    }
    text = json.dumps(header).encode()
    extra = bytes(header["extra"]["data_offsets"][1] - end)
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + whole[start:] + extra)
    again, read = single_file.read(tmp_path / "x.safetensors")
    assert again.configs == sd.configs
    equal(read, params)
    assert "1 left out (extra)" in capsys.readouterr().out


@pytest.mark.parametrize("name, dtype", [("weight_scale", ml_dtypes.float8_e8m0fnu), ("comfy_quant", np.uint8)])
def test_the_scales_of_a_quantisation_are_not_left_out(ours, tmp_path, name, dtype):
    """Without them the weights beside them are other numbers."""
    tensors = {name: from_array(each) for name, each in load_file(ours[2]).items()}
    scale = f"{ldm_names.UNET}input_blocks.1.1.proj_in.{name}"
    write(tmp_path / "x.safetensors", tensors | {scale: from_array(np.ones(2, dtype))}, single_file.metadata(ours[0]))
    with pytest.raises(UserError, match=rf"1 of \d+ tensors do not fit: \S+{name} is not expected"):
        single_file.read(tmp_path / "x.safetensors")


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, np.float64])
def test_weights_of_other_types_are_read(ours, tmp_path, dtype):
    sd, params, _, _ = ours
    single_file.write(tmp_path / "x.safetensors", sd, params, dtype=dtype)
    equal(single_file.read(tmp_path / "x.safetensors")[1], jax.tree.map(lambda a: np.float32(a.astype(dtype)), params))


def test_a_weight_of_a_type_that_is_not_known_is_one_line(ours, tmp_path):
    whole = ours[2].read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:start])
    header[f"{ldm_names.UNET}out.2.bias"]["dtype"] = "X7"
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + whole[start:])
    with pytest.raises(UserError, match="a tensor is of the type X7, which dermjax does not read; give the"):
        single_file.read(tmp_path / "x.safetensors")
