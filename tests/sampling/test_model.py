"""The model of `generate` with what is added to it, a LoRA, words and long prompts, and its pictures by the command."""

import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from dermjax.data import records
from dermjax.sampling import model
from dermjax.sampling.requests import Request
from dermjax.weights import diffusers, lora, model_files, single_file, textual_inversion
from dermjax.weights.textual_inversion import Embedding

CONFIG = Path(__file__).parents[2] / "configs" / "generate.py"
REQUEST = Request(
    image="images/benign/00000.png", label="benign", prompt="a photo of <mole>", negative="hair", seed=0,
    sampler="Euler", steps=2, spacing="", guidance=2.0, guidance_rescale=0.0, guidance_interval=(), deep_cache=1,
)  # fmt: skip
SAID = {"precision": "float32", "numeric_versions": model.NUMERIC_VERSIONS}


@pytest.fixture(scope="module")
def files(small_model, tmp_path_factory):
    """The small model as one file, a LoRA in each form, and a word of two vectors."""
    sd, params, _ = small_model
    folder = tmp_path_factory.mktemp("files")
    single_file.write(folder / "model.safetensors", sd, params, dtype=np.float32)
    made = lora.init({"unet": params["unet"], "text_encoder": params["text_encoder"]}, 2, seed=0)
    made = lora.uniform(jax.tree.map(lambda leaf: np.full(leaf.shape, 0.3, np.float32), made), 4.0)
    lora.write_peft(folder / "peft.safetensors", made, dtype=np.float32)
    lora.write_kohya(folder / "kohya.safetensors", made, dtype=np.float32)
    vectors = np.arange(32, dtype=np.float32).reshape(2, 16)
    textual_inversion.write(folder / "mole.safetensors", Embedding("<mole>", vectors))
    return folder, made, vectors


@pytest.mark.parametrize("form", ["peft", "kohya"])
def test_a_lora_is_merged_at_its_weight_and_named(small_model, files, form):
    _, params, path = small_model
    folder, made, _ = files
    adapter = folder / f"{form}.safetensors"
    read = model.load_model(str(path), str(adapter), 0.5, (), "refuse", "float32")
    jax.tree.map(np.testing.assert_array_equal, read.params, lora.merge(params, made, 0.5))
    digests = {"model": model_files.digest(path), "lora": model_files.digest(adapter), "lora_weight": 0.5}
    assert read.digests == digests | SAID


@pytest.mark.parametrize("name", ["model", "model.safetensors", "derm-tiny"])
def test_folders_single_files_and_shipped_models_are_read(small_model, files, name):
    path = {"model": small_model[2], "derm-tiny": "derm-tiny"}.get(name, files[0] / name)
    read = model.load_model(str(path), "", 0.8, (), "refuse", "float32")
    assert read.digests == {"model": model_files.digest(model_files.locate(str(path)))} | SAID
    assert len(read.digests["model"]) == 16
    if name != "derm-tiny":
        jax.tree.map(np.testing.assert_array_equal, read.params, small_model[1])


def test_words_are_tokens_with_their_vectors(small_model, files):
    folder, _, vectors = files
    word = folder / "mole.safetensors"
    read = model.load_model(str(small_model[2]), "", 0.8, (str(word),), "refuse", "float32")
    table = read.params["text_encoder"]["text_model"]["embeddings"]["token_embedding"]["embedding"]
    said = read.tokens(REQUEST)
    assert said.shape == (2, 77) and read.sd.configs["text_encoder"]["vocab_size"] == len(table) == 49410
    np.testing.assert_array_equal(table[said[0][said[0] >= 49408]], vectors)
    assert read.digests["embeddings"] == {"<mole>": model_files.digest(word)}


def test_all_vectors_of_a_tuned_model_s_own_words_are_read(small_model, files, tmp_path):
    """`tune` leaves them in model/; diffusers spells them out too, by what its tokenizer knows."""
    read = model.load_model(str(small_model[2]), "", 0.8, (str(files[0] / "mole.safetensors"),), "refuse", "float32")
    tokens, words = read.tokens(REQUEST), tmp_path / "words"
    shutil.copytree(small_model[0].tokenizer, words)
    textual_inversion.enlarge(words, {"<mole>": 49408, "<mole>_1": 49409})
    diffusers.write(tmp_path / "model", replace(read.sd, tokenizer=words), read.params, dtype=np.float32)
    again = model.load_model(str(tmp_path / "model"), "", 0.8, (), "refuse", "float32").tokens(REQUEST)
    np.testing.assert_array_equal(again, tokens)


def test_prompt_and_negative_prompt_have_equally_many_chunks(small_model):
    said = model.load_model(str(small_model[2]), "", 0.8, (), "chunk", "float32").tokens
    for prompt, negative, guidance, shape in (
        ("mole " * 100, "hair", 2.0, (2, 154)),
        ("mole", "hair " * 160, 2.0, (2, 231)),
        ("mole", "hair " * 160, 1.0, (1, 77)),  # without guidance nobody reads the negative prompt
    ):
        assert said(replace(REQUEST, prompt=prompt, negative=negative, guidance=guidance)).shape == shape


@pytest.fixture
def pictures(command, tmp_path):
    """A function that runs `generate` for an image of each class: (the images, the first one's generation)."""

    def run(name, **keys):
        usual = {"plan.images_per_class": 1, "plan.steps": 2, "plan.batch": 2, "plan.samplers": "('Euler',)"}
        keys = usual | {"precision": "float32"} | keys
        flags = [f"--config.{key}={value}" for key, value in keys.items()]
        code, _, error = command("generate", f"--config={CONFIG}", f"--workdir={tmp_path / name}", *flags)
        assert code == 0, error
        manifest = records.read(tmp_path / name)
        return [np.asarray(Image.open(manifest.path(r)), np.int32) for r in manifest.records], manifest.records[0]

    return run


def test_the_command_takes_a_single_file_with_a_lora_and_a_word(pictures, files):
    folder, _, _ = files
    images, record = pictures(
        "run",
        model=folder / "model.safetensors",
        lora=folder / "kohya.safetensors",
        embeddings=f"('{folder / 'mole.safetensors'}',)",
    )
    assert [image.shape for image in images] == 2 * [(32, 32, 3)]
    assert record.generation["model"] == model_files.digest(folder / "model.safetensors")
    assert record.generation["lora"] == model_files.digest(folder / "kohya.safetensors")
    assert record.generation["lora_weight"] == 0.8 and list(record.generation["embeddings"]) == ["<mole>"]


def test_half_precision_makes_nearly_the_same_and_is_named(pictures, small_model):
    whole, record = pictures("whole", model=small_model[2])
    assert record.generation["precision"] == "float32"
    half, record = pictures("half", model=small_model[2], precision="bfloat16")
    assert record.generation["precision"] == "bfloat16"
    difference = np.abs(np.subtract(half, whole))
    assert 0 < difference.mean() < 0.05 * np.std(whole)


@pytest.mark.slow
def test_pictures_follow_from_what_their_records_say(pictures, small_model, files):
    """File and folder make the same; a long prompt does not touch its neighbour's image; a LoRA changes both."""
    folder, _, _ = files
    added = {"lora": folder / "kohya.safetensors", "embeddings": f"('{folder / 'mole.safetensors'}',)"}
    long = {"long_prompts": "chunk", "plan.prompts.malignant": f"('a <mole>, {'mole ' * 90}',)"}
    one, _ = pictures("file", model=folder / "model.safetensors", **added, **long)
    other, _ = pictures("folder", model=small_model[2], **added, **long)
    np.testing.assert_array_equal(one, other)
    short, _ = pictures("short", model=small_model[2], **added)
    assert np.abs(short[0] - one[0]).max() <= 1 and (short[1] != one[1]).any()
    bare, record = pictures("bare", model=small_model[2])
    assert (bare[0] != short[0]).any() and "lora" not in record.generation
