"""Bad files through the commands: each is one line on the error output and exit code 2, and nothing is left behind."""

import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from dermjax.weights import lora, single_file, textual_inversion, torch_layout
from dermjax.weights.textual_inversion import Embedding

GENERATE = Path(__file__).parents[2] / "configs" / "generate.py"
FILES = {
    "empty": (b"", "is empty; fetch the file again"),
    "a web page": (b"<!DOCTYPE html><html>", "is a web page, saved in place of the file"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a git-lfs pointer"),
    "GGUF": (b"GGUF\x03\x00\x00\x00", "is a GGUF file of quantised tensors"),
    "JSON": (b'{"weight_map": {}}', "is JSON, no file of tensors"),
    "noise": (b"GIF89a", "not a readable safetensors or PyTorch file"),
}


class Payload:
    """Unpickled by Python, it would make a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def generate(command, workdir, **config):
    """Runs `generate` with these keys of its config."""
    flags = [f"--config.{key}={value}" for key, value in config.items()]
    return command("generate", f"--config={GENERATE}", f"--workdir={workdir}", *flags)


def refused(answer, target: Path, *said: str):
    """Checks an answer: exit code 2, one line that says it, and no target."""
    code, _, error = answer
    assert code == 2 and all(each in error for each in said) and error.count("\n") == 1, error
    assert not target.exists() and not list(target.parent.glob(f".{target.name}*"))


def both(command, folder: Path, model: Path, *said: str):
    """Gives a model to `generate` and to `convert`."""
    refused(generate(command, folder / "run", model=model), folder / "run", *said)
    answer = command("convert", f"--from={model}", f"--to={folder / 'converted'}")
    refused(answer, folder / "converted", *said)


@pytest.fixture(scope="session")
def single(small_model, tmp_path_factory):
    """The small model as one file."""
    sd, params, _ = small_model
    path = tmp_path_factory.mktemp("single") / "model.safetensors"
    single_file.write(path, sd, params, dtype=np.float16)
    return path


@pytest.fixture(scope="session")
def adapters(small_model, tmp_path_factory):
    """A LoRA for it."""
    _, params, _ = small_model
    path = tmp_path_factory.mktemp("lora") / "lora.safetensors"
    lora.write_kohya(path, lora.uniform(lora.init({"unet": params["unet"]}, 2, seed=0), 2.0), dtype=np.float16)
    return path


@pytest.fixture
def copied(small_model, tmp_path):
    """A copy of its folder to spoil."""
    return shutil.copytree(small_model[2], tmp_path / "model")


def edit(path: Path, **changes):
    """Changes keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("kind", FILES)
def test_no_model_at_all(command, tmp_path, kind):
    content, said = FILES[kind]
    (tmp_path / "x.safetensors").write_bytes(content)
    both(command, tmp_path, tmp_path / "x.safetensors", f"{tmp_path / 'x.safetensors'}: {said}")


@pytest.mark.parametrize("kind", FILES)
def test_no_network_in_a_folder(command, copied, tmp_path, kind):
    content, said = FILES[kind]
    path = copied / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(content)
    both(command, tmp_path, copied, f"{path}: {said}")


@pytest.mark.parametrize("kept, said", [(1000, "ends early, within its header"), (-100, "bytes where its header")])
def test_a_truncated_file(command, single, tmp_path, kept, said):
    (tmp_path / "x.safetensors").write_bytes(single.read_bytes()[:kept])
    both(command, tmp_path, tmp_path / "x.safetensors", said)


def test_a_pickle_that_runs_a_command_is_not_run(command, tmp_path):
    pickled = pickle.dumps({"state_dict": {"a": Payload(tmp_path / "ran")}}, 2)
    with zipfile.ZipFile(tmp_path / "x.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
    both(command, tmp_path, tmp_path / "x.ckpt", "system, which no file of weights needs; nothing of it was run")
    refused(command("inspect", tmp_path / "x.ckpt"), tmp_path / "run", "which no file of weights needs")
    assert not (tmp_path / "ran").exists()


def test_a_lora_given_as_a_model(command, adapters, tmp_path):
    said = "is a LoRA, not a single-file model; give a model, and a LoRA beside it"
    refused(generate(command, tmp_path / "run", model=adapters), tmp_path / "run", said)


def test_networks_of_two_families(command, copied, tmp_path):
    edit(copied / "text_encoder" / "config.json", hidden_size=1024)
    edit(copied / "unet" / "config.json", cross_attention_dim=768)
    both(command, tmp_path, copied, "hidden_size = 1024 (SD 2.x), but the UNet takes a context of 768 (SD 1.x)")


def test_sdxl(command, copied, tmp_path):
    edit(copied / "model_index.json", _class_name="StableDiffusionXLPipeline")
    both(command, tmp_path, copied, "a StableDiffusionXLPipeline is not supported")
    names = ("conditioner.embedders.0.transformer.x", "model.diffusion_model.label_emb.0.0.weight")
    save_file({name: np.zeros(3, np.float16) for name in names}, tmp_path / "xl.safetensors")
    both(command, tmp_path, tmp_path / "xl.safetensors", "is SDXL, which is not supported")


def test_misfits_of_all_networks_come_in_one_line(command, copied, tmp_path):
    def change(network, file, changed):
        path = copied / network / file
        tensors = load_file(path)
        changed(tensors)
        save_file(tensors, path)

    change("unet", "diffusion_pytorch_model.safetensors", lambda t: t.pop("conv_in.bias"))
    change("vae", "diffusion_pytorch_model.safetensors", lambda t: t.update(extra=np.zeros(3)))
    last = "text_model.final_layer_norm.bias"
    change("text_encoder", "model.safetensors", lambda t: t.update({last: np.zeros(7, np.float32)}))
    both(
        command,
        tmp_path,
        copied,
        f"{copied}: 3 of ",
        "unet/conv_in.bias is missing (8,)",
        f"text_encoder/{last} is (7,), the config asks for (16,)",
        "vae/extra is not expected (3,)",
    )


@pytest.mark.parametrize("value, said", [(np.nan, "NaN or infinity"), (np.inf, "NaN or infinity"), (0, "zeros")])
@pytest.mark.parametrize("form", ["folder", "single"])
def test_weights_that_no_training_leaves(command, copied, single, tmp_path, form, value, said):
    """One number that is none, or a kernel of zeros, as a download leaves whose space was reserved beforehand."""
    model, path, prefix, key = copied, copied / "vae" / "diffusion_pytorch_model.safetensors", "", "decoder.conv_out"
    if form == "single":
        model = path = Path(shutil.copy(single, tmp_path / "x.safetensors"))
        prefix = "first_stage_model."
    tensors = load_file(path)
    kernel = tensors[f"{prefix}{key}.weight"]
    kernel.reshape(-1)[slice(None) if value == 0 else slice(1, 2)] = value
    with safe_open(path, "np") as file:
        texts = file.metadata()
    save_file(tensors, path, texts)
    refused(
        command("convert", f"--from={model}", f"--to={tmp_path / 'to'}"), tmp_path / "to", f"vae/{key}.weight ", said
    )
    # read when it is placed, after the folder of the images was found to be writable
    code, _, error = generate(command, tmp_path / "run", model=model)
    assert code == 2 and f"{model}: vae/{key}.weight " in error and said in error and error.count("\n") == 1, error
    left = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert left == {"config.json", "versions.json"}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_zeros_and_extremes_that_trained_weights_have(dtype):
    """A bias, fresh positions, a fresh head, a new branch; and numbers whose squares are beyond the type."""
    most = np.finfo(dtype).max
    values = {
        "norm": {"bias": np.zeros(3)},
        "position_embedding": {"embedding": np.zeros((3, 2))},
        "classifier": {"kernel": np.zeros((3, 2))},
        "resnets": {"conv2": {"kernel": np.zeros((3, 3, 2, 2))}},
        "large": {"kernel": np.full((3, 2), most)},
        "small": {"kernel": np.full((3, 2), np.finfo(dtype).tiny)},
        "empty": {"kernel": np.zeros((0, 2))},
    }
    file = torch_layout.to_file(values, dtype)
    read = torch_layout.from_torch(torch_layout.unflatten(
        {path: np.empty(array.shape, dtype) for path, array in torch_layout.flatten(values).items()}
    ), file, "x", dtype=dtype)  # fmt: skip
    assert read["large"]["kernel"].min() == most


def test_a_name_that_nothing_can_have(command, small_model, tmp_path):
    (tmp_path / "file").write_text("")
    for name, said in (
        ("file/model", f"cannot be written, as {tmp_path / 'file'} is no folder; give another name"),
        ("file/a/model.safetensors", f"cannot be written, as {tmp_path / 'file'} is no folder"),
        ("x" * 256, "File name too long"),
        ("x" * 252, "File name too long"),
        ("x" * 256 + "/model", "File name too long"),
    ):
        code, _, error = command("convert", f"--from={small_model[2]}", f"--to={tmp_path / name}")
        assert code == 2 and said in error and error.count("\n") == 1, error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("place", ["", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"])
def test_a_named_pipe_does_not_hang(command, copied, tmp_path, place):
    pipe = copied / place if place else tmp_path / "pipe"
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    model = copied if place else pipe
    refused(command("convert", f"--from={model}", f"--to={tmp_path / 'to'}"), tmp_path / "to", str(model))
    assert command("inspect", model)[0] == (0 if place == "unet/config.json" else 2)  # it says that it is missing


def test_no_lora(command, small_model, single, adapters, tmp_path):
    xl = {"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": np.zeros((4, 1280), np.float16)}
    save_file(xl, tmp_path / "xl.safetensors")
    wide = {name: np.zeros((9, 9), np.float16) if "down" in name else t for name, t in load_file(adapters).items()}
    save_file(wide, tmp_path / "wide.safetensors")
    (tmp_path / "page.safetensors").write_bytes(b"<html>")
    for path, said in (
        (tmp_path / "nowhere.safetensors", "nowhere.safetensors: cannot be read (No such file"),
        (tmp_path / "page.safetensors", "is a web page"),
        (tmp_path / "xl.safetensors", "is SDXL, which is not supported"),
        (tmp_path / "wide.safetensors", "72 of 96 tensors do not fit the model: unet."),
        (single, "is a single-file model, not a LoRA"),
    ):
        refused(generate(command, tmp_path / "run", model=small_model[2], lora=path), tmp_path / "run", said)
    answer = command("convert", f"--from={small_model[2]}", f"--to={tmp_path / 'merged'}", f"--lora={path}")
    refused(answer, tmp_path / "merged", said)


def test_no_embedding(command, small_model, adapters, tmp_path):
    textual_inversion.write(tmp_path / "wide.safetensors", Embedding("<mole>", np.zeros((1, 768), np.float32)))
    textual_inversion.write(tmp_path / "taken.safetensors", Embedding("mole</w>", np.zeros((1, 16), np.float32)))
    for path, said in (
        (tmp_path / "nowhere.pt", "nowhere.pt: cannot be read (No such file"),
        (tmp_path / "wide.safetensors", "embedding <mole>: 768 wide, the text encoder 16"),
        (tmp_path / "taken.safetensors", "embedding mole</w>: the tokenizer has 'mole</w>' already"),
        (adapters, "is a LoRA, not an embedding"),
    ):
        answer = generate(command, tmp_path / "run", model=small_model[2], embeddings=f"('{path}',)")
        refused(answer, tmp_path / "run", said)


def test_long_prompts_are_refused_unless_asked_for(command, small_model, tmp_path):
    words = {"model": small_model[2], "plan.negative_prompt": "hair " * 80}
    refused(generate(command, tmp_path / "run", **words), tmp_path / "run", "82 tokens with start and end, the text")
    answer = generate(command, tmp_path / "run", long_prompts="cut", **words)
    refused(answer, tmp_path / "run", "config.long_prompts = 'cut': give refuse or chunk")
