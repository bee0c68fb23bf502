"""Tokens: equal to CLIP's genuine vocabulary, and a word tokenizer that round-trips."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dermjax.data import tokens
from dermjax.errors import UserError

GENUINE = Path(__file__).parents[2] / ".." / "shared" / "reference" / "sd15_config" / "tokenizer"
WORDS = ["a", "and", "banana", "dadadoo", "an", "ana", "mole", "moles", "malignant", "naïve", "of", "photo", "to"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokens.write_word_tokenizer(folder, WORDS, 24)
    return folder


@pytest.fixture(scope="module")
def genuine():
    if not GENUINE.is_dir():
        pytest.skip("the genuine vocabulary is not here")
    return tokens.load_tokenizer(GENUINE)


@pytest.mark.parametrize("cut", [lambda text: text[: text.index("\n", 60)], lambda text: "", lambda text: text[:-9]])
def test_merges_that_are_cut_short_are_one_line(small, tmp_path, cut):
    """They would give other tokens: in the end, each letter by itself."""
    folder = shutil.copytree(small, tmp_path / "cut")
    file = folder / "merges.txt"
    whole = file.read_text(encoding="utf-8")
    file.write_text(whole, encoding="utf-8", newline="\r\n")  # as editors on Windows save it
    assert tokens.load_tokenizer(folder).get_vocab() == tokens.load_tokenizer(small).get_vocab()
    file.write_text(cut(whole), encoding="utf-8")
    with pytest.raises(UserError, match=r"merges\.txt: no merge makes \d+ pieces of vocab\.json \(.*fetch it") as error:
        tokens.load_tokenizer(folder)
    assert str(error.value).isprintable()


def test_genuine_clip_numbers(genuine):
    """The numbers are those that every Stable Diffusion 1.x pipeline feeds: start, words, end, padding with the end."""
    rows = tokens.tokenize(genuine, ["a photo of a Mole", ""])
    assert rows.dtype == np.int32 and rows.shape == (2, 77)
    assert rows[0, :8].tolist() == [49406, 320, 1125, 539, 320, 23529, 49407, 49407]
    assert rows[1].tolist() == [49406] + 76 * [49407]


def test_our_merging_is_clips(genuine):
    """Our merge loop, given CLIP's merges, takes words apart as the reference tokenizer does."""
    lines = (GENUINE / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    merges = {tuple(line.split()): rank for rank, line in enumerate(lines)}
    for word in ["melanoma", "dermoscopy", "banana", "seborrheic", "naïve", "x"]:
        assert tokens._merge(word, merges) == genuine.tokenize(word)


def test_each_word_is_one_token(small):
    read = tokens.load_tokenizer(small)
    rows = tokens.tokenize(read, WORDS)
    assert rows.shape == (len(WORDS), 24)
    assert (rows[:, 2] == read.eos_token_id).all(), "start, one word, end"
    assert [read.decode(row, skip_special_tokens=True) for row in rows] == WORDS
    assert len(np.unique(rows[:, 1])) == len(WORDS)


def test_unknown_words_and_signs_still_have_tokens(small):
    read = tokens.load_tokenizer(small)
    for text in ["zebra", "a mole, 3 moles!", "黒子", "Banana"]:
        row = tokens.tokenize(read, [text])[0]
        assert read.decode(row, skip_special_tokens=True).replace(" ", "") == text.lower().replace(" ", "")
        assert (row[1:] != read.eos_token_id).sum() >= 1


def test_file_form_is_clips(small, genuine):
    """Byte symbols first, their word ends next, start and end last, as in the genuine vocab.json."""
    ours = json.loads((small / "vocab.json").read_text(encoding="utf-8"))
    theirs = json.loads((GENUINE / "vocab.json").read_text(encoding="utf-8"))
    assert sorted(ours.values()) == list(range(len(ours)))
    assert {name for name, number in theirs.items() if number < 512} == set(list(ours)[:512])
    assert all(ours[name] == theirs[name] for name in list(ours)[:512])
    assert list(ours)[-2:] == [tokens.START, tokens.END]
    read = tokens.load_tokenizer(small)
    assert (read.bos_token, read.eos_token, read.pad_token) == (tokens.START, tokens.END, tokens.END)
    assert read.model_max_length == 24


def test_too_long_prompt_is_named(small):
    read = tokens.load_tokenizer(small)
    tokens.tokenize(read, ["mole " * 22])
    with pytest.raises(UserError, match=r"'mole mole.*25 tokens.*takes 24"):
        tokens.tokenize(read, ["a mole", "mole " * 23])


def chunks_of(read, rows):
    """The words of each chunk, as text, after checking the chunk's frame."""
    found = []
    for row in rows.reshape(-1, read.model_max_length).tolist():
        assert row[0] == read.bos_token_id
        end = row.index(read.eos_token_id)
        assert set(row[end + 1 :]) <= {read.pad_token_id}
        found.append(read.decode(row[1:end]))
    return found


def test_a_long_prompt_goes_on_in_the_next_chunk(small):
    read = tokens.load_tokenizer(small)
    rows = tokens.tokenize(read, ["mole " * 50, "a mole"], long="chunk")
    assert rows.shape == (2, 3 * 24)
    assert [len(text.split()) for text in chunks_of(read, rows)] == [22, 22, 6, 2, 0, 0]


def test_what_fits_is_the_same_in_one_chunk(small):
    read = tokens.load_tokenizer(small)
    texts = ["a malignant mole, photo", "", "mole " * 22]
    np.testing.assert_array_equal(tokens.tokenize(read, texts, long="chunk"), tokens.tokenize(read, texts))


def test_chunks_end_at_commas_and_breaks(small):
    """AUTOMATIC1111's rule: back to the last comma of a full chunk where at most 20 tokens lie behind its place."""
    read = tokens.load_tokenizer(small)

    def divided(prompt):
        texts = chunks_of(read, tokens.tokenize(read, [prompt], long="chunk"))
        return [len(read.tokenize(text)) for text in texts]

    assert divided("a " * 15 + "," + "mole " * 10) == [16, 10]
    assert divided("a " + "," + "mole " * 25) == [22, 5]  # that comma is too far back
    assert divided("a " * 2 + "," + "mole " * 25) == [3, 22, 3]
    assert divided("a " * 22 + ", mole") == [22, 2]  # a comma at the border begins the next chunk
    assert divided("a mole BREAK photo") == [2, 1]
    assert divided("a BREAKFAST") != [1, 1]


def test_words_that_clip_would_split_are_refused():
    for word in ["blue-white", "Mole", "", "two words"]:
        with pytest.raises(ValueError, match="lower-case runs of letters"):
            tokens.word_merges([word])


def test_what_transformers_saves_is_read(small, tmp_path):
    """transformers 5 saves a tokenizer.json in place of the two files."""
    read = tokens.load_tokenizer(small)
    read.save_pretrained(tmp_path)
    assert not (tmp_path / "merges.txt").exists()
    texts = ["a banana mole", "zebra"]
    np.testing.assert_array_equal(tokens.tokenize(tokens.load_tokenizer(tmp_path), texts), tokens.tokenize(read, texts))


def test_missing_files_are_named(tmp_path, small):
    with pytest.raises(UserError, match=r"neither vocab\.json with merges\.txt nor tokenizer\.json is there"):
        tokens.load_tokenizer(tmp_path)
    for name in ["vocab.json", "merges.txt"]:
        (tmp_path / name).write_bytes((small / name).read_bytes())
    for _ in range(2):
        with pytest.raises(UserError, match=r"no model_max_length in tokenizer_config\.json"):
            tokens.load_tokenizer(tmp_path)
        (tmp_path / "tokenizer_config.json").write_text("{}")


WITHOUT_TORCH = """
import importlib.abc, importlib.machinery, importlib.metadata, importlib.util, sys
# PyTorch neither imports nor has a distribution nor is found, as where it was never installed
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "tensorflow", "flax"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *package: None if name.partition(".")[0] == "torch" else found(name, *package)
from pathlib import Path
from dermjax.data import tokens
print(tokens.tokenize(tokens.load_tokenizer(Path(sys.argv[1])), ["a mole"]).shape)
"""


def test_nobody_is_told_that_pytorch_is_absent(small):
    ran = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, small], capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("(1, 24)\n", "")


@pytest.fixture
def copied(small, tmp_path):
    """A copy of the small tokenizer to spoil."""
    return shutil.copytree(small, tmp_path / "tokenizer")


def configured(copied, **changes):
    path = copied / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("said, length, told", [
    (10**30, 9, False), (1e30, 9, False), (1000000000000000019884624838656, 9, False), (512, 9, True), (9, 9, False),
    (5, 5, False), (9.0, 9, False), (None, 9, False),
])  # fmt: skip
def test_the_text_encoder_s_length_holds_where_the_tokenizer_says_more(copied, said, length, told, capsys):
    configured(copied, model_max_length=said)
    read = tokens.load_tokenizer(copied, 9, 10**6)
    assert tokens.tokenize(read, ["mole"]).shape == (1, length)
    assert ("model_max_length = 512, the text encoder takes 9; 9 it is" in capsys.readouterr().out) == told


def test_a_length_that_is_missing_is_the_text_encoder_s(copied):
    (copied / "tokenizer_config.json").write_text("{}")
    assert tokens.load_tokenizer(copied, 9, 10**6).model_max_length == 9
    (copied / "tokenizer_config.json").unlink()
    assert tokens.load_tokenizer(copied, 9, 10**6).model_max_length == 9


@pytest.mark.parametrize("said", [0, -1, 2, 7.5, "77", True, [77], float("nan"), float("inf")])
def test_a_length_that_cannot_be_is_one_line(copied, said):
    configured(copied, model_max_length=said)
    with pytest.raises(UserError, match=r"tokenizer_config\.json: model_max_length = .* should be a whole number"):
        tokens.load_tokenizer(copied, 9, 10**6)


def test_a_token_without_a_row_is_named(copied):
    rows = len(tokens.load_tokenizer(copied))
    assert tokens.load_tokenizer(copied, 9, rows).model_max_length == 9
    (copied / "added_tokens.json").write_text(json.dumps({"<mole>": rows}))
    with pytest.raises(
        UserError, match=rf"tokenizer {copied}: '<mole>' would be row {rows} of the text encoder, which has"
    ):
        tokens.load_tokenizer(copied, 9, rows)
    assert len(tokens.load_tokenizer(copied, 9, rows + 1)) == rows + 1


@pytest.mark.parametrize("name, content", [
    ("vocab.json", "{"), ("vocab.json", "[]"), ("merges.txt", "\x00\x01 a b c"), ("tokenizer_config.json", "{"),
    ("tokenizer_config.json", "[]"), ("added_tokens.json", "["),
])  # fmt: skip
def test_a_broken_file_of_a_tokenizer_is_one_line(copied, name, content):
    (copied / name).write_text(content)
    with pytest.raises(UserError) as error:
        tokens.load_tokenizer(copied, 9, 10**6)
    assert str(copied) in str(error.value) and "\n" not in str(error.value)
