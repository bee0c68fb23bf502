"""`tune` on a small random model: what it leaves, that it resumes exactly, and what it refuses."""

import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from safetensors.numpy import load_file, save_file
from tensorboardX.proto.event_pb2 import Event

from dermjax import sharding
from dermjax.data import records
from dermjax.data.leaks import training_images
from dermjax.errors import UserError
from dermjax.training import writers
from dermjax.tuning import outputs, report, trainable
from dermjax.tuning import run as tuning
from dermjax.tuning.setup import read_concepts
from dermjax.weights import diffusers, lora, torch_layout
from dermjax.weights.tensor_files import open_file

pytestmark = pytest.mark.usefixtures("no_transfers")


@pytest.fixture(scope="module")
def whole(config, no_transfers, tmp_path_factory):
    """The run folder of a full tuning without interruption; each run compiles for ten seconds, so tests share it."""
    folder = tmp_path_factory.mktemp("whole")
    tuning.run(config(), folder)
    return folder


@pytest.fixture(scope="module")
def adapted(config, no_transfers, tmp_path_factory):
    """The run folder of a tuning with LoRA."""
    folder = tmp_path_factory.mktemp("adapted")
    tuning.run(config(**{"tuned.unet": "lora"}), folder)
    return folder


def test_what_the_model_saw_is_listed_for_audits(whole, manifest):
    shown = records.read(manifest).split("train")
    assert [each.record.sha256 for each in training_images.read(whole)] == [record.sha256 for record in shown]


def test_full_tuning_leaves_a_model_that_loads_and_only_the_unet_has_moved(base, config, whole):
    sd, tuned = diffusers.read(whole / "model")
    _, before = diffusers.read(base)
    moved = {name: any((a != b).any() for a, b in zip(jax.tree.leaves(tuned[name]), jax.tree.leaves(before[name]),
                                                      strict=True)) for name in before}  # fmt: skip
    assert moved == {"unet": True, "vae": False, "text_encoder": False}
    assert sd.prediction == "v_prediction"
    assert [r["step"] for r in writers.read(whole / "metrics.jsonl")] == [0, 1, 2, 4, 6]
    tuning.run(config(), whole)  # again: nothing to do


def killed(settings, workdir):
    """Tunes and kills this process with SIGKILL after the checkpoint of step 2; called in a process of its own."""
    write = writers.Writer.write

    def dies_at_step_4(self, step, scalars):
        if step == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, step, scalars)

    with mock.patch.object(writers.Writer, "write", dies_at_step_4):
        tuning.run(ConfigDict(json.loads(settings)), Path(workdir))


def test_a_dry_run_says_what_would_be_done_and_leaves_nothing(config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tuning.dry_run(config())
    said = capsys.readouterr().out
    assert "text_encoder frozen, unet full, vae frozen; 6 steps of 8 images of 32 px by adamw" in said
    assert "8 images shown, 2 held out" in said
    assert "a step on each of 1 devices, by shapes" in said and "collectives   none" in said
    assert re.search(r"6 steps, about [\d.]+ .B of memory, up to [\d.]+ .B of disk, about \d+ s", said)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_killed_and_started_again_it_ends_the_same(config, whole, tmp_path):
    asked = [json.dumps(config().to_dict()), str(tmp_path)]
    call = f"import runpy; runpy.run_path({__file__!r})['killed'](*{asked!r})"
    ended = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert not (tmp_path / "model").exists() and list((tmp_path / "checkpoints").iterdir())
    tuning.run(config(), tmp_path)
    for file in diffusers.FILES.items():
        assert (whole / "model" / Path(*file)).read_bytes() == (tmp_path / "model" / Path(*file)).read_bytes(), file
    final = [writers.read(folder / "metrics.jsonl")[-1] for folder in (whole, tmp_path)]
    assert final[0] == final[1]


def test_the_samples_are_among_tensorboards_images(whole):
    found = {}
    for path in (whole / "tensorboard").glob("events*"):
        content, at = path.read_bytes(), 0
        while at < len(content):  # TensorFlow's records: length, checksum, content, checksum
            (length,) = struct.unpack("<Q", content[at : at + 8])
            event = Event.FromString(content[at + 12 : at + 12 + length])
            found |= {(value.tag, event.step): value.image for value in event.summary.value if value.HasField("image")}
            at += length + 16
    assert sorted(found) == [("samples", 0), ("samples", 4), ("samples", 6)]
    for (_, step), image in found.items():
        shown = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
        np.testing.assert_array_equal(shown, np.asarray(Image.open(whole / "samples" / f"{step:08d}.png")))


def test_a_training_file_replaced_after_prepare_is_refused(config, manifest, tmp_path):
    shutil.copytree(manifest.parent, tmp_path / "data")
    shutil.copy(tmp_path / "data" / "benign8.png", tmp_path / "data" / "benign0.png")  # held out, now in training
    asked = config(manifest=str(tmp_path / "data" / "manifest.jsonl"))
    with pytest.raises(UserError, match=r"benign0\.png: not the bytes that the manifest names"):
        tuning.run(asked, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists() and not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_loss_on_held_out_images_is_written_from_the_start_at_the_same_noise(config, whole, tmp_path):
    records = [r for r in writers.read(whole / "metrics.jsonl") if "validation_loss" in r]
    assert [r["step"] for r in records] == [0, 4, 6]
    tuning.run(config(**{"steps": 1, "seed": 9, "rate": 0.0, "samples.images": 0}), tmp_path)
    still = [r["validation_loss"] for r in writers.read(tmp_path / "metrics.jsonl") if "validation_loss" in r]
    assert still == pytest.approx([records[0]["validation_loss"]] * 2, rel=1e-6)


def test_lora_leaves_a_file_whose_merge_is_the_model(base, adapted):
    file = load_file(adapted / "lora.safetensors")
    _, before = diffusers.read(base)
    _, after = diffusers.read(adapted / "model")
    old, new = torch_layout.flatten(before["unet"]), torch_layout.flatten(after["unet"])
    changed = {path for path in old if (old[path] != new[path]).any()}
    assert changed and all("attn" in path for path in changed)
    for path in changed:
        name = f"unet.{path.removesuffix('.kernel')}"
        change = file[f"{name}.lora_B.weight"] @ file[f"{name}.lora_A.weight"]  # alpha = rank: scale 1
        np.testing.assert_allclose(new[path] - old[path], change.T, atol=1e-6)


@pytest.mark.parametrize("dtype", outputs.DTYPES)
def test_the_lora_is_saved_in_the_type_that_is_asked_for(base, tmp_path, dtype):
    """As kohya's --save_precision; the model is made of what was trained, not of the file."""
    sd, params = diffusers.read(base)
    adapters = lora.init({"unet": params["unet"]}, 2, seed=0)
    setup = SimpleNamespace(
        grid=sharding.mesh(1, 1), sd=sd, params=params, prompts=SimpleNamespace(words=[]),
        assemble=partial(trainable.assemble, alpha=2.0),
    )  # fmt: skip
    outputs.write(tmp_path, setup, {"lora": adapters}, alpha=2.0, model=False, vae=False, dtype=outputs.DTYPES[dtype])
    for name in (outputs.LORA, outputs.KOHYA):
        tensors, _ = open_file(tmp_path / name)
        kinds = {each.dtype.name for path, each in tensors.items() if not path.endswith(".alpha")}
        assert kinds == {dtype}
        read = torch_layout.flatten(lora.read(tmp_path / name, sd.shapes).adapters)
        for path, array in torch_layout.flatten(adapters).items():
            np.testing.assert_array_equal(read[path], np.asarray(array.astype(dtype), np.float32))


def test_both_forms_of_the_lora_say_the_same(base, adapted):
    sd, _ = diffusers.read(base)
    forms = [lora.read(adapted / name, sd.shapes) for name in ("lora.safetensors", "lora_kohya.safetensors")]
    assert forms[0].alphas == forms[1].alphas
    ours, theirs = (torch_layout.flatten(each.adapters) for each in forms)
    assert ours.keys() == theirs.keys() and all((ours[path] == theirs[path]).all() for path in ours)


def test_diffusers_reads_the_lora_file(base, adapted):
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("diffusers")
    state, alphas = theirs.StableDiffusionPipeline.lora_state_dict(adapted / "lora.safetensors")[:2]
    unet = theirs.UNet2DConditionModel.from_pretrained(base / "unet")
    names = {name.removeprefix("unet.").rsplit(".lora_", 1)[0] for name in state}
    assert names and names <= {name for name, _ in unet.named_modules()}
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values()) and not alphas


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"tuned.unet": "dora"}, "config.tuned.unet = 'dora' is unknown; give full, lora"),
        ({"tuned.unet": "frozen"}, "nothing is tuned"),
        ({"tuned.vae": "lora"}, "config.tuned.vae 'lora' is unknown; did you mean frozen or decoder or full"),
        ({"vae.size": 20}, "config.vae.size = 20 is not a multiple of 8"),
        ({"tuned.vae": "full", "vae.batch": 0}, "config.vae.batch = 0: give 1 or more"),
        ({"tuned.vae": "full", "vae.steps": 0}, "config.vae.steps = 0: give 1 or more"),
        ({"tuned.unet": "lora", "lora.targets": ("atention",)}, "config.lora.targets: 'atention' is unknown"),
        ({"precision": "float8"}, "config.precision 'float8' is unknown"),
        ({"remat": "block"}, "config.remat 'block' is unknown; did you mean blocks"),
        ({"words.<new>": "dermoscopy of"}, "config.words.<new> = 'dermoscopy of' is 2 tokens"),
        ({"words.mole": "benign"}, "config.words.mole: the model knows this word already; give a new one, as <mole>"),
        ({"prompts": {"benign": "a", "malignant": "b"}, "model": "nowhere"}, "model nowhere: no model_index.json"),
        ({"manifest": "nowhere"}, "nowhere"),
        ({"size": 36}, "size = 36 is not a multiple of 8"),
        ({"optimizer": "adamx"}, "optimizer 'adamx' is unknown; did you mean adamw"),
        ({"patience": 4, "validation_draws": 0}, "config.patience needs a validation split"),
    ],
)
def test_bad_input_is_one_line(config, tmp_path, changes, said):
    with pytest.raises(UserError) as error:
        tuning.run(config(**changes), tmp_path)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "model").exists()


def test_a_class_without_a_prompt_is_named(config, tmp_path):
    asked = config().copy_and_resolve_references()
    with asked.unlocked():
        del asked.prompts["benign"]
    with pytest.raises(UserError, match="no prompt for benign"):
        tuning.run(asked, tmp_path)


def test_a_changed_config_goes_on_from_the_last_step_and_patience_takes_the_best(config, whole, tmp_path):
    """Ten steps more than the finished six, with a rate that spoils everything: patience gives back what was best."""
    shutil.copytree(whole, tmp_path / "run")
    before = [r["validation_loss"] for r in writers.read(whole / "metrics.jsonl") if "validation_loss" in r]
    assert before[-1] < before[0]
    asked = config(
        **{"steps": 16, "watch_every": 2, "patience": 6, "schedule": "constant", "rate": 0.3, "samples.images": 0}
    )
    tuning.run(asked, tmp_path / "run")
    records = writers.read(tmp_path / "run" / "metrics.jsonl")
    assert [r["step"] for r in records][:5] == [0, 1, 2, 4, 6] and records[-1]["step"] < 16
    assert records[-1]["validation_loss"] > before[-1]
    for file in diffusers.FILES.items():
        kept, best = (folder / "model" / Path(*file) for folder in (whole, tmp_path / "run"))
        assert kept.read_bytes() == best.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("period", [0, 2])
def test_with_the_largest_seed_and_periods_of_0_it_leaves_all_but_the_looks(config, tmp_path, period):
    changes = {"seed": 2**32 - 1, "watch_every": period, "save_every": 0, "steps": 2}
    tuning.run(config(**changes), tmp_path)
    assert [r["step"] for r in writers.read(tmp_path / "metrics.jsonl")] == ([0, 1, 2] if period else [1, 2])
    assert (tmp_path / "report.html").exists() and (tmp_path / "README.md").exists()
    assert (tmp_path / "samples").exists() == bool(period) and diffusers.read(tmp_path / "model")


def test_a_rate_that_spoils_everything_writes_no_model(config, tmp_path):
    with pytest.raises(UserError, match="was not finite"):
        tuning.run(config(rate=1e30, warmup=0, steps=4, watch_every=0), tmp_path)
    assert not (tmp_path / "model").exists() and not (tmp_path / "README.md").exists()


def test_patience_without_looks_is_refused(config, tmp_path):
    with pytest.raises(UserError, match=r"config\.patience needs evaluations on held-out images; give config\.watch"):
        tuning.run(config(patience=2, watch_every=0), tmp_path)


def lines(card):
    """The lines of Python that a card shows."""
    return card.read_text().split("```python\n")[1].split("\n```")[0]


def test_page_and_card_count_class_images_apart(config, preserving, tmp_path):
    asked = preserving()
    told = read_concepts(asked)
    report.write(tmp_path, asked, *told)
    outputs.finish(tmp_path, asked, *told, "0" * 16)
    page, card = ((tmp_path / name).read_text() for name in (report.FILE, outputs.CARD))
    assert "<td>benign</td><td>4</td><td>1</td>" in page and "| benign | 4 | 1 |\n| malignant | 4 | 1 |\n" in card
    assert all("And 2 class images, which a model drew" in each for each in (page, card))
    report.write(tmp_path, config(), *read_concepts(config()))
    assert "class images" not in (tmp_path / report.FILE).read_text().partition("<h2>Config")[0]


@pytest.mark.parametrize("card", ["README.md", "model/README.md"])
def test_the_three_lines_of_the_card_run(whole, card):
    """diffusers by its defaults: the weights' type is float16 in the files of most presets, see `test_diffusers`."""
    pytest.importorskip("diffusers")
    shown = lines(whole / card)
    assert shown.count("\n") == 3 and f'from_pretrained("{whole}/model")' in shown
    scope = {}
    exec(shown, scope)
    assert scope["image"].size == (32, 32) and np.ptp(np.asarray(scope["image"])) > 0


def test_the_lines_for_a_lora_and_words_run(config, no_transfers, base, tmp_path):
    """Where no whole model is written: the base, and each loader's defaults; of two words both."""
    pytest.importorskip("diffusers"), pytest.importorskip("peft")
    asked = config(**{"tuned.unet": "lora", "save_model": False, "words": {"<new>": "mole", "<old>": "benign"},
                      "prompts": {"benign": "benign <new>", "malignant": "malignant <old>"},
                      "vectors": 2, "steps": 2, "samples.images": 0})  # fmt: skip
    tuning.run(asked, tmp_path / "run")
    shown = lines(tmp_path / "run" / "README.md")
    for line in (f'from_pretrained("{base}")', "load_lora_weights(", '"benign <new>"'):
        assert line in shown
    assert shown.count("load_textual_inversion(") == 2 and not list((tmp_path / "run").glob("*tokenizer*"))
    scope = {}
    exec(shown, scope)
    assert scope["image"].size == (32, 32)


def test_samples_that_are_no_pictures_end_the_run(config, no_transfers, base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "model")
    (path,) = (folder / "vae").glob("*.safetensors")
    tensors = load_file(path)
    tensors["decoder.conv_out.bias"][...] = 1e9
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"sample of step \d+, .*: the model made one colour everywhere"):
        tuning.run(config(model=str(folder)), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.png"))
