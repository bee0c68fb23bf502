"""`tune` on a small random model: what it leaves, that it resumes exactly, and what it refuses."""

import json
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dermjax.data import records, tokens
from dermjax.data.duplicates import sha256
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.models.stable_diffusion import TINY, StableDiffusion
from dermjax.training import writers
from dermjax.tuning import run as tuning
from dermjax.weights import diffusers, lora, torch_layout

CONFIG = Path(__file__).parents[2] / "configs" / "tune.py"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A random model folder of 32 px images: the architecture of derm-tiny with narrow layers."""
    folder = tmp_path_factory.mktemp("base")
    tokens.write_word_tokenizer(folder / "words", ["dermoscopy", "of", "a", "benign", "malignant", "mole"], 16)
    configs = json.loads(json.dumps(TINY))
    words = tokens.tokenizer(folder / "words")
    configs["text_encoder"] |= {"vocab_size": len(words), "max_position_embeddings": 16, "num_hidden_layers": 1,
                                "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}  # fmt: skip
    configs["unet"] |= {"block_out_channels": [32, 32], "sample_size": 4, "attention_head_dim": 2,
                        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
                        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}  # fmt: skip
    configs["vae"] |= {"block_out_channels": [8, 8, 8, 8], "sample_size": 32}
    sd = StableDiffusion(configs, folder / "words", jnp.float32)
    diffusers.write(folder / "model", sd, sd.init(0), dtype=np.float32)
    return folder / "model"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Eight coloured squares, four a class."""
    folder = tmp_path_factory.mktemp("data")
    entries = []
    for i in range(8):
        label = ("benign", "malignant")[i % 2]
        path = folder / f"{label}{i}.png"
        Image.fromarray(np.full((32, 32, 3), (200, 30 * i, 20), np.uint8)).save(path)
        entries.append(Record(image=path.name, sha256=sha256(path), label=label, split="train", source="squares",
                              image_manipulation="none"))  # fmt: skip
    records.write(folder / "manifest.jsonl", Manifest(labels=("benign", "malignant"), root=folder,
                                                      records=tuple(entries)))  # fmt: skip
    return folder / "manifest.jsonl"


def config(base, manifest, **changes):
    asked = runpy.run_path(str(CONFIG))["get_config"]("demo")
    asked.model, asked.manifest, asked.size = str(base), str(manifest), 32
    asked.steps, asked.batch, asked.save_every, asked.log_every, asked.encode_batch = 6, 8, 2, 2, 8
    asked.save_dtype = "float32"
    asked.update(changes)
    return asked.lock()


def test_full_tuning_leaves_a_model_that_loads_and_only_the_unet_has_moved(base, manifest, tmp_path):
    tuning.run(config(base, manifest), tmp_path)
    sd, tuned = diffusers.read(tmp_path / "model")
    _, before = diffusers.read(base)
    moved = {name: any((a != b).any() for a, b in zip(jax.tree.leaves(tuned[name]), jax.tree.leaves(before[name]),
                                                      strict=True)) for name in before}  # fmt: skip
    assert moved == {"unet": True, "vae": False, "text_encoder": False}
    assert sd.prediction == "v_prediction"
    assert [r["step"] for r in writers.read(tmp_path / "metrics.jsonl")] == [1, 2, 4, 6]
    tuning.run(config(base, manifest), tmp_path)  # again: nothing to do


def test_stopped_and_started_again_it_ends_the_same(base, manifest, tmp_path, monkeypatch):
    tuning.run(config(base, manifest), tmp_path / "whole")
    calls = []
    write = writers.Writer.write

    def dies_at_step_4(self, step, scalars):
        calls.append(step)
        if step == 4 and len(calls) < 4:
            raise KeyboardInterrupt
        write(self, step, scalars)

    monkeypatch.setattr(writers.Writer, "write", dies_at_step_4)
    with pytest.raises(KeyboardInterrupt):
        tuning.run(config(base, manifest), tmp_path / "halves")
    tuning.run(config(base, manifest), tmp_path / "halves")
    for file in diffusers.FILES.items():
        whole, halves = (tmp_path / name / "model" / Path(*file) for name in ("whole", "halves"))
        assert whole.read_bytes() == halves.read_bytes(), file
    final = [writers.read(tmp_path / name / "metrics.jsonl")[-1] for name in ("whole", "halves")]
    assert final[0] == final[1]


def test_lora_leaves_a_file_whose_merge_is_the_model(base, manifest, tmp_path):
    tuning.run(config(base, manifest, method="lora"), tmp_path)
    from safetensors.numpy import load_file

    file = load_file(tmp_path / "lora.safetensors")
    _, before = diffusers.read(base)
    _, after = diffusers.read(tmp_path / "model")
    old, new = torch_layout.flatten(before["unet"]), torch_layout.flatten(after["unet"])
    adapted = {path for path in old if (old[path] != new[path]).any()}
    assert adapted and all("attn" in path for path in adapted)
    for path in adapted:
        name = f"unet.{path.removesuffix('.kernel')}"
        change = file[f"{name}.lora_B.weight"] @ file[f"{name}.lora_A.weight"]  # alpha = rank: scale 1
        np.testing.assert_allclose(new[path] - old[path], change.T, atol=1e-6)


def test_diffusers_reads_the_lora_file(base, manifest, tmp_path):
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("diffusers")
    tuning.run(config(base, manifest, method="lora"), tmp_path)
    state, alphas = theirs.StableDiffusionPipeline.lora_state_dict(tmp_path / "lora.safetensors")[:2]
    unet = theirs.UNet2DConditionModel.from_pretrained(base / "unet")
    names = {name.removeprefix("unet.").rsplit(".lora_", 1)[0] for name in state}
    assert names and names <= {name for name, _ in unet.named_modules()}
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values()) and not alphas


def test_prior_images_share_the_batch_with_their_own_prompt_and_weight(base, manifest):
    asked = config(base, manifest, prior={"manifest": "", "weight": 0.5})
    sources, prompts, weights = tuning.examples(records.read(manifest), asked)
    assert len(sources) == 8 and set(prompts) == set(asked.prompts.values()) and (weights == 1).all()


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"method": "dora"}, "method 'dora' is unknown; did you mean lora"),
        ({"prompts": {"benign": "a", "malignant": "b"}, "model": "nowhere"}, "model nowhere: no model_index.json"),
        ({"manifest": "nowhere"}, "nowhere"),
        ({"size": 36}, "size = 36 is not a multiple of 8"),
        ({"optimizer": "adamx"}, "optimizer 'adamx' is unknown; did you mean adamw"),
    ],
)
def test_bad_input_is_one_line(base, manifest, tmp_path, changes, said):
    with pytest.raises(UserError) as error:
        tuning.run(config(base, manifest, **changes), tmp_path)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "model").exists()


def test_a_class_without_a_prompt_is_named(base, manifest, tmp_path):
    asked = config(base, manifest).copy_and_resolve_references()
    with asked.unlocked():
        del asked.prompts["benign"]
    with pytest.raises(UserError, match="no prompt for benign"):
        tuning.run(asked, tmp_path)


def test_merging_nothing_changes_nothing():
    params = {"attn1": {"to_q": {"kernel": jnp.ones((4, 4))}}, "norm": {"scale": jnp.ones(4)}}
    adapters = lora.init(params, rank=2, seed=0)
    merged = lora.merge(params, adapters, 1.0)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), merged, params))
