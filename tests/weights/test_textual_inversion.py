"""Textual-inversion embeddings: the three forms of file, and the words that they become."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import dermjax.weights
from dermjax.data import tokens
from dermjax.errors import UserError
from dermjax.weights import tensor_files, textual_inversion
from dermjax.weights.textual_inversion import Embedding

CLIP = Path(dermjax.weights.__file__).parent / "clip_tokenizer"
VECTORS = np.arange(8, dtype=np.float32).reshape(2, 4)


def test_the_three_forms(tmp_path):
    save_file({"<mole>": VECTORS}, tmp_path / "a.safetensors")
    save_file({"emb_params": VECTORS.astype(np.float16)}, tmp_path / "mole.safetensors")
    for path, token in ((tmp_path / "a.safetensors", "<mole>"), (tmp_path / "mole.safetensors", "mole")):
        (embedding,) = textual_inversion.read(path)
        assert embedding.token == token
        np.testing.assert_array_equal(embedding.vectors, VECTORS)


@pytest.mark.parametrize("holder", [dict, "ParameterDict"])
def test_what_automatic1111_saves(tmp_path, holder, capsys):
    torch = pytest.importorskip("torch")
    kind = torch.nn.ParameterDict if holder == "ParameterDict" else dict
    content = {"string_to_token": {"*": 265}, "string_to_param": kind({"*": torch.nn.Parameter(torch.tensor(VECTORS))}),
               "name": "mole", "step": 500, "sd_checkpoint": None}  # fmt: skip
    torch.save(content, tmp_path / "x.pt")
    (embedding,) = textual_inversion.read(tmp_path / "x.pt")
    assert embedding.token == "mole"
    # AUTOMATIC1111's program itself goes by the name of the file
    assert "its word is mole, as the file says; a prompt that says x does not use it" in capsys.readouterr().out
    np.testing.assert_array_equal(embedding.vectors, VECTORS)


def test_what_compvis_own_program_saves(tmp_path):
    """The number of its word is a tensor there, which is no embedding."""
    torch = pytest.importorskip("torch")
    params = torch.nn.ParameterDict({"*": torch.nn.Parameter(torch.tensor(VECTORS))})
    torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": params}, tmp_path / "mole.pt")
    (embedding,) = textual_inversion.read(tmp_path / "mole.pt")
    assert embedding.token == "mole"
    np.testing.assert_array_equal(embedding.vectors, VECTORS)
    assert tensor_files.context_width(tensor_files.open_file(tmp_path / "mole.pt")[0]) == 4


def test_a_folder_of_the_cache_of_hugging_face(tmp_path):
    folder = tmp_path / "models--someone--mole"
    (folder / "snapshots" / "0123abc").mkdir(parents=True)
    with pytest.raises(
        UserError, match=r"0123abc: a folder without learned_embeds\.safetensors or learned_embeds\.bin"
    ):
        textual_inversion.locate(folder)
    file = folder / "snapshots" / "0123abc" / "learned_embeds.safetensors"
    save_file({"<mole>": VECTORS}, file)
    assert textual_inversion.locate(folder) == file


def test_one_vector_without_its_axis_is_one(tmp_path):
    save_file({"<mole>": VECTORS[0]}, tmp_path / "a.safetensors")
    assert textual_inversion.read(tmp_path / "a.safetensors")[0].vectors.shape == (1, 4)


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
    size = len(tokens.load_tokenizer(tmp_path / "words"))
    table = {"token_embedding": {"embedding": np.ones((size, 4), np.float32)}}
    params = {"text_encoder": {"text_model": {"embeddings": table}}, "unet": {}}
    return {"text_encoder": {"vocab_size": size}}, params, tmp_path / "words"


def test_its_words_are_tokens_with_its_vectors(model, tmp_path):
    configs, params, words = model
    embedding = Embedding("<mole>", VECTORS)
    configs, params = textual_inversion.add(configs, params, embedding, words, tmp_path / "more")
    table = params["text_encoder"]["text_model"]["embeddings"]["token_embedding"]["embedding"]
    prompt = textual_inversion.spell_out("a photo, <mole>", [embedding])
    assert prompt == "a photo, <mole> <mole>_1"
    row = tokens.tokenize(tokens.load_tokenizer(tmp_path / "more"), [prompt])[0]
    assert configs["text_encoder"]["vocab_size"] == len(table) == row.max() + 1
    np.testing.assert_array_equal(table[row[row >= len(table) - 2]], VECTORS)
    with pytest.raises(UserError, match="has '<mole>' already"):
        textual_inversion.add(configs, params, embedding, tmp_path / "more", tmp_path / "again")
    assert json.loads((tmp_path / "more" / "added_tokens.json").read_text()).keys() == {"<mole>", "<mole>_1"}


@pytest.mark.parametrize("form", ["CLIP's files", "transformers 4's", "transformers 5's"])
def test_a_word_is_not_cut_out_of_longer_ones(tmp_path, form):
    """Nor is it lost beside the list of special words that transformers 4 saves in a tokenizer's config."""
    folder = shutil.copytree(CLIP, tmp_path / "tokenizer")
    if form == "transformers 4's":
        config = json.loads((folder / "tokenizer_config.json").read_text())
        words = {"49406": tokens.START, "49407": tokens.END}
        special = {number: {"content": word, "special": True} for number, word in words.items()}
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"added_tokens_decoder": special}))
    elif form == "transformers 5's":
        tokens.load_tokenizer(CLIP).save_pretrained(folder := tmp_path / "saved")
    before = tokens.tokenize(tokens.load_tokenizer(folder), ["dermoscopy, <|startoftext|>", ""])
    textual_inversion.enlarge(folder, {"dermo": 49408})
    textual_inversion.enlarge(folder, {"<mole>": 49409})
    after = tokens.load_tokenizer(folder)
    np.testing.assert_array_equal(tokens.tokenize(after, ["dermoscopy, <|startoftext|>", ""]), before)
    assert after.tokenize("dermo, Dermo <mole>") == ["dermo", ",</w>", "dermo", "<mole>"]
    assert [after.convert_tokens_to_ids(word) for word in ("dermo", "<mole>")] == [49408, 49409]
    assert {"dermo", "<mole>", tokens.START, "a</w>"} <= textual_inversion.vocabulary(folder)


@pytest.mark.parametrize("form", ["CLIP's files", "transformers' file"])
def test_words_come_one_after_the_other_into_one_folder(model, tmp_path, form):
    """What an earlier attempt left in it is gone; the folder of the first word is the tokenizer of the second."""
    configs, params, words = model
    if form != "CLIP's files":
        tokens.load_tokenizer(words).save_pretrained(tmp_path / "whole")
        words = tmp_path / "whole"
    known, folder = len(tokens.load_tokenizer(words)), tmp_path / "more"
    textual_inversion.add(configs, params, Embedding("<lost>", np.zeros((3, 4), np.float32)), words, folder)
    for word, vectors in (("<mole>", VECTORS), ("<nevus>", VECTORS[:1] + 1)):
        configs, params = textual_inversion.add(configs, params, Embedding(word, vectors), words, folder)
        words = folder
    found = tokens.load_tokenizer(folder).get_vocab()
    assert [found[word] - known for word in ("<mole>", "<mole>_1", "<nevus>")] == [0, 1, 2] and len(found) == known + 3
    table = params["text_encoder"]["text_model"]["embeddings"]["token_embedding"]["embedding"]
    np.testing.assert_array_equal(table[known:], [*VECTORS, VECTORS[0] + 1])


def test_words_come_into_what_transformers_saves(model, tmp_path):
    """transformers 5 saves a tokenizer.json in place of the files that CLIP came with."""
    configs, params, words = model
    tokens.load_tokenizer(words).save_pretrained(tmp_path / "whole")
    embedding = Embedding("<mole>", VECTORS)
    configs, params = textual_inversion.add(configs, params, embedding, tmp_path / "whole", tmp_path / "more")
    row = tokens.tokenize(tokens.load_tokenizer(tmp_path / "more"), ["a <mole> <mole>_1"])[0]
    assert row[2:4].tolist() == [configs["text_encoder"]["vocab_size"] - 2, configs["text_encoder"]["vocab_size"] - 1]
    with pytest.raises(UserError, match="has '<mole>' already"):
        textual_inversion.add(configs, params, embedding, tmp_path / "more", tmp_path / "again")


def test_read_of_write_is_the_same(tmp_path):
    textual_inversion.write(tmp_path / "x.safetensors", Embedding("<mole>", VECTORS))
    (again,) = textual_inversion.read(tmp_path / "x.safetensors")
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


def test_a_file_with_two_words_is_two_embeddings(tmp_path):
    torch = pytest.importorskip("torch")
    save_file({"<mole>": VECTORS, "<nevus>": VECTORS[0] + 1}, tmp_path / "a.safetensors")
    params = {"*": torch.tensor(VECTORS), "<nevus>": torch.tensor(VECTORS[:1] + 1)}
    torch.save({"string_to_token": {"*": 265}, "string_to_param": params, "name": "<mole>"}, tmp_path / "b.pt")
    torch.save({"<mole>": params["*"], "<nevus>": params["<nevus>"]}, tmp_path / "c.bin")
    for name in ("a.safetensors", "b.pt", "c.bin"):
        one, other = sorted(textual_inversion.read(tmp_path / name), key=lambda each: each.token)
        assert (one.token, other.token) == ("<mole>", "<nevus>"), name
        np.testing.assert_array_equal(one.vectors, VECTORS)
        np.testing.assert_array_equal(other.vectors, VECTORS[:1] + 1)


@pytest.mark.parametrize("content, said", [
    ({"<mole>": np.full((1, 4), np.nan, np.float32)}, "'<mole>' has 1 vectors, of which some are none"),
    ({"<mole>": np.full((1, 4), np.inf, np.float32)}, "of which some are none"),
    ({"<mole>": np.zeros((0, 4), np.float32)}, "'<mole>' has 0 vectors, of which some are none"),
    ({"<mole>": np.zeros((76, 4), np.float32)}, "'<mole>' has 76 vectors"),
    ({"emb_params": np.zeros((1, 2, 4), np.float32)}, "of which some are none"),
    ({"<mole>": np.ones((2, 4), np.int8)}, "of which some are none"),
    ({" ": VECTORS}, "' ' is no word"),
    ({"a\nb": VECTORS}, "is no word"),
    ({"a": np.zeros((2, 4), np.float32), "b": np.zeros((2, 5), np.float32)}, "is nothing that dermjax knows"),
    ({"a.weight": VECTORS, "b.weight": VECTORS}, "is nothing that dermjax knows"),
])  # fmt: skip
def test_vectors_and_words_that_are_none_are_one_line(tmp_path, content, said):
    save_file(content, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=said) as error:
        textual_inversion.read(tmp_path / "x.safetensors")
    assert str(error.value).isprintable()


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("vectors", [1, 2])
def test_a_word_that_begins_with_another_is_a_word_of_its_own(model, tmp_path, order, vectors):
    """Pairs of names such as bad-artist and bad-artist-anime are published together."""
    configs, params, folder = model
    known = [Embedding("bad", VECTORS), Embedding("bad-a", VECTORS[:vectors]), Embedding("bad-a_v1.2", VECTORS)][
        ::order
    ]
    for number, each in enumerate(known):
        configs, params = textual_inversion.add(configs, params, each, folder, tmp_path / f"more{number}")
        folder = tmp_path / f"more{number}"
    prompt = textual_inversion.spell_out("a Bad-A, bad, bad-a_v1.2", known)
    words = [["bad-a", "bad-a_1"][:vectors], ["bad", "bad_1"], ["bad-a_v1.2", "bad-a_v1.2_1"]]
    assert prompt == "a " + ", ".join(" ".join(each) for each in words)
    found = [each for each in tokens.load_tokenizer(folder).tokenize(prompt) if each.startswith("bad")]
    assert found == [word for each in words for word in each]


@pytest.mark.parametrize("prompt, spelt", [
    ("three <mole>s", "three <mole> <mole>_1s"),
    ("benign<Mole>", "benign<mole> <mole>_1"),
    ("<mole>_1 alone", "<mole>_1 alone"),
    ("nevi, nevus, NEVUS", "nevi, nevus nevus_1, nevus nevus_1"),
    ("xnevus nevusses", "xnevus nevusses"),
])  # fmt: skip
def test_all_vectors_follow_wherever_the_tokenizer_finds_a_word(prompt, spelt):
    known = [Embedding("<mole>", VECTORS), Embedding("nevus", VECTORS)]
    assert textual_inversion.spell_out(prompt, known) == spelt


PROMPTS = ["A <MOLE> photo and a <Mole>", "<mole>, <Mole>", "NevusTwo and nevustwo", "a photo, NEVUSTWO", "x<Mole>y",
           "a <Mole>_1"]  # fmt: skip


@pytest.mark.parametrize("word", ["<Mole>", "<mole>", "NevusTwo"])
@pytest.mark.parametrize("form", ["CLIP's files", "transformers' file"])
def test_words_in_any_case_are_the_tokens_of_transformers(tmp_path, word, form):
    """As its tokenizer has them, to which diffusers adds the words; every further vector follows the first."""
    source = CLIP
    if form != "CLIP's files":
        source = tmp_path / "saved"
        tokens.load_tokenizer(CLIP).save_pretrained(source)
    theirs, rows = tokens.load_tokenizer(source), len(tokens.load_tokenizer(source))
    theirs.add_tokens([word])
    for count in (1, 2):
        embedding, folder = Embedding(word, np.zeros((count, 4), np.float32)), tmp_path / str(count)
        shutil.copytree(source, folder)
        textual_inversion.enlarge(folder, {token: rows + i for i, token in enumerate(embedding.tokens)})
        ours = tokens.load_tokenizer(folder)
        for prompt in PROMPTS[: None if count == 1 else 5]:
            given = theirs(prompt, add_special_tokens=False)["input_ids"]
            expected = [each for token in given for each in ([token, rows + 1][:count] if token == rows else [token])]
            found = tokens.tokenize(ours, [textual_inversion.spell_out(prompt, [embedding])])[0].tolist()
            assert found[1 : len(expected) + 1] == expected and found[len(expected) + 1] == ours.eos_token_id, prompt
            assert (rows in found) == (word.lower() in prompt.lower())
