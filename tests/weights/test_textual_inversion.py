"""Textual-inversion embeddings: the three forms of file, and the words that they become."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from dermjax.data import tokens
from dermjax.errors import UserError
from dermjax.weights import textual_inversion
from dermjax.weights.textual_inversion import Embedding

VECTORS = np.arange(8, dtype=np.float32).reshape(2, 4)


def test_the_three_forms(tmp_path):
    save_file({"<mole>": VECTORS}, tmp_path / "a.safetensors")
    save_file({"emb_params": VECTORS.astype(np.float16)}, tmp_path / "mole.safetensors")
    for path, token in ((tmp_path / "a.safetensors", "<mole>"), (tmp_path / "mole.safetensors", "mole")):
        embedding = textual_inversion.read(path)
        assert embedding.token == token
        np.testing.assert_array_equal(embedding.vectors, VECTORS)


@pytest.mark.parametrize("holder", [dict, "ParameterDict"])
def test_what_automatic1111_saves(tmp_path, holder):
    torch = pytest.importorskip("torch")
    kind = torch.nn.ParameterDict if holder == "ParameterDict" else dict
    content = {"string_to_token": {"*": 265}, "string_to_param": kind({"*": torch.nn.Parameter(torch.tensor(VECTORS))}),
               "name": "mole", "step": 500, "sd_checkpoint": None}  # fmt: skip
    torch.save(content, tmp_path / "x.pt")
    embedding = textual_inversion.read(tmp_path / "x.pt")
    assert embedding.token == "mole"
    np.testing.assert_array_equal(embedding.vectors, VECTORS)


def test_one_vector_without_its_axis_is_one(tmp_path):
    save_file({"<mole>": VECTORS[0]}, tmp_path / "a.safetensors")
    assert textual_inversion.read(tmp_path / "a.safetensors").vectors.shape == (1, 4)


@pytest.mark.parametrize("content, said", [
    ({"clip_l": np.zeros((1, 768)), "clip_g": np.zeros((1, 1280))}, "is SDXL, which is not supported"),
    ({"unet.x.lora_A.weight": np.zeros((2, 2))}, "is a LoRA, not an embedding"),
    ({"conv_in.weight": np.zeros((2, 2, 3, 3))}, "is one network of a model, not an embedding"),
])  # fmt: skip
def test_other_files_are_refused(tmp_path, content, said):
    save_file(content, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=said):
        textual_inversion.read(tmp_path / "x.safetensors")


@pytest.fixture
def model(tmp_path):
    """Configs, a token table four wide, and a tokenizer."""
    tokens.write_word_tokenizer(tmp_path / "words", ["a", "photo"], 8)
    size = len(tokens.tokenizer(tmp_path / "words"))
    table = {"token_embedding": {"embedding": np.ones((size, 4), np.float32)}}
    params = {"text_encoder": {"text_model": {"embeddings": table}}, "unet": {}}
    return {"text_encoder": {"vocab_size": size}}, params, tmp_path / "words"


def test_its_words_are_tokens_with_its_vectors(model, tmp_path):
    configs, params, words = model
    embedding = Embedding("<mole>", VECTORS)
    configs, params = textual_inversion.add(configs, params, embedding, words, tmp_path / "more")
    table = params["text_encoder"]["text_model"]["embeddings"]["token_embedding"]["embedding"]
    prompt = textual_inversion.spelt_out("a photo, <mole>", [embedding])
    assert prompt == "a photo, <mole> <mole>_1"
    row = tokens.tokens(tokens.tokenizer(tmp_path / "more"), [prompt])[0]
    assert configs["text_encoder"]["vocab_size"] == len(table) == row.max() + 1
    np.testing.assert_array_equal(table[row[row >= len(table) - 2]], VECTORS)
    with pytest.raises(UserError, match="has '<mole>' already"):
        textual_inversion.add(configs, params, embedding, tmp_path / "more", tmp_path / "again")
    assert json.loads((tmp_path / "more" / "added_tokens.json").read_text()).keys() == {"<mole>", "<mole>_1"}


def test_words_come_into_what_transformers_saves(model, tmp_path):
    """transformers 5 saves a tokenizer.json in place of the files that CLIP came with."""
    configs, params, words = model
    tokens.tokenizer(words).save_pretrained(tmp_path / "whole")
    embedding = Embedding("<mole>", VECTORS)
    configs, params = textual_inversion.add(configs, params, embedding, tmp_path / "whole", tmp_path / "more")
    row = tokens.tokens(tokens.tokenizer(tmp_path / "more"), ["a <mole> <mole>_1"])[0]
    assert row[2:4].tolist() == [configs["text_encoder"]["vocab_size"] - 2, configs["text_encoder"]["vocab_size"] - 1]
    with pytest.raises(UserError, match="has '<mole>' already"):
        textual_inversion.add(configs, params, embedding, tmp_path / "more", tmp_path / "again")


def test_read_of_write_is_the_same(tmp_path):
    textual_inversion.write(tmp_path / "x.safetensors", Embedding("<mole>", VECTORS))
    again = textual_inversion.read(tmp_path / "x.safetensors")
    assert again.token == "<mole>"
    np.testing.assert_array_equal(again.vectors, VECTORS)


def test_diffusers_loads_what_we_write(twin, tmp_path):
    pipeline, _ = twin
    vectors = np.arange(96, dtype=np.float32).reshape(2, 48)
    textual_inversion.write(tmp_path / "x.safetensors", Embedding("<mole>", vectors))
    theirs = pipeline.from_pretrained(twin[1], safety_checker=None)
    theirs.load_textual_inversion(tmp_path / "x.safetensors")
    ids = theirs.tokenizer.convert_tokens_to_ids(["<mole>", "<mole>_1"])
    table = theirs.text_encoder.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(table[ids], vectors)


def test_an_embedding_of_another_family_is_refused(model, tmp_path):
    with pytest.raises(UserError, match="7 wide, the text encoder 4; it was made for another family"):
        textual_inversion.add(*model[:2], Embedding("x", np.zeros((1, 7))), model[2], tmp_path / "more")
