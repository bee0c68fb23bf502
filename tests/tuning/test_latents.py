"""Moments and contexts: taken where all that they follow from is the same, else computed again and said in a line."""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from dermjax import sharding
from dermjax.data import records, tokens
from dermjax.models import clip_text, vae
from dermjax.tuning import latents
from dermjax.tuning.trainable import token_table
from dermjax.weights import diffusers


@pytest.fixture
def moments(base, manifest, tmp_path, monkeypatch, capsys):
    """moments(dtype, change) -> (the array, how often it was computed, what was said); change: of an image record."""
    real, computed = latents.Encoder._encode_images, []
    monkeypatch.setattr(latents.Encoder, "_encode_images", lambda *given: computed.append(1) or real(*given))
    listed, grid = records.read(manifest), sharding.mesh(1, 1)

    def made(dtype=jnp.float32, change=lambda record: record, split="train"):
        computed.clear()
        sd, params = diffusers.read(base, dtype=dtype)
        first, *others = listed.split(split)
        sources = [(listed, record) for record in (change(first), *others)]
        found = np.array(latents.Encoder(sd, params, 8, tmp_path, grid).moments(sources, 32))
        return found, len(computed), capsys.readouterr().out

    return made


@pytest.fixture
def contexts(base, tmp_path, monkeypatch, capsys):
    """contexts(dtype, tokenizer) -> (the array, how often it was computed, what was said)."""
    real, computed = latents.Encoder._encode_tokens, []
    monkeypatch.setattr(latents.Encoder, "_encode_tokens", lambda *given: computed.append(1) or real(*given))

    def made(dtype=jnp.float32, tokenizer=None):
        computed.clear()
        sd, params = diffusers.read(base, dtype=dtype)
        sd = replace(sd, tokenizer=tokenizer or sd.tokenizer)
        said = latents.tokenize_prompts(sd, ["a benign mole"], [])
        found = np.array(latents.Encoder(sd, params, 8, tmp_path, sharding.mesh(1, 1)).contexts(said))
        return found, len(computed), capsys.readouterr().out

    return made


def names(folder, kind):
    return {path.name for path in folder.glob(f"{kind}_*.npy")}


def test_the_same_is_taken_from_the_folder(moments, contexts):
    for made in (moments, contexts):
        first, computed, said = made()
        assert computed == 1 and "again" not in said
        again, computed, said = made()
        assert computed == 0 and "again" not in said
        np.testing.assert_array_equal(again, first)


def test_what_bfloat16_made_never_reaches_a_float32_run(moments, contexts, tmp_path):
    for kind, made in (("moments", moments), ("contexts", contexts)):
        coarse, _, _ = made(jnp.bfloat16)
        fine, computed, said = made()
        assert computed == 1 and np.abs(fine.astype(np.float32) - coarse).max() > 0
        line = f'{kind} in {tmp_path} are computed again (arithmetic: "bfloat16" -> "float32")'
        assert said.splitlines()[0] == line
        assert len(names(tmp_path, kind)) == 2, "a run in bfloat16 may still use them"


@pytest.mark.parametrize("kind", ["moments", "contexts"])
def test_what_an_older_version_made_is_made_again_and_removed(kind, request, tmp_path, monkeypatch):
    made, code = request.getfixturevalue(kind), {"moments": "vae", "contexts": "text_encoder"}[kind]
    module = {"moments": vae, "contexts": clip_text}[kind]
    first, _, _ = made()
    (old,) = names(tmp_path, kind)
    version = module.NUMERIC_VERSION
    monkeypatch.setattr(module, "NUMERIC_VERSION", version + 1)
    again, computed, said = made()
    assert computed == 1
    assert f"({'numeric_versions.' + code}: {version} -> {version + 1}); 1 of an older version removed" in said
    assert len(names(tmp_path, kind)) == 1 and old not in names(tmp_path, kind)
    assert len(list(tmp_path.glob(f"{kind}_*.json"))) == 1
    np.testing.assert_array_equal(again, first)


@pytest.mark.parametrize("kind", ["moments", "contexts"])
def test_what_does_not_say_its_causes_is_an_older_version_s(kind, request, tmp_path):
    made = request.getfixturevalue(kind)
    (tmp_path / f"{kind}_0123456789abcdef.npy").write_bytes(b"of the first versions")
    _, computed, said = made()
    assert computed == 1 and "made by an older version" in said and "1 of an older version removed" in said
    assert f"{kind}_0123456789abcdef.npy" not in names(tmp_path, kind)


def test_changed_images_are_encoded_again(moments, manifest):
    moments()
    other = records.read(manifest).split("validation")[0]
    _, computed, said = moments(change=lambda record: replace(record, image=other.image, sha256=other.sha256))
    assert computed == 1 and "moments in" in said and "(images: " in said and said.count(" -> ") == 1


def test_held_out_images_are_no_other_state_of_those_that_are_trained_on(moments):
    moments()
    _, computed, said = moments(split="validation")
    assert computed == 1 and "again" not in said


def test_another_tokenizer_gives_other_contexts(contexts, tmp_path):
    contexts()
    words = ["mole", "a", "of", "benign", "dermoscopy", "malignant"]  # as many, in another order
    tokens.write_word_tokenizer(tmp_path / "words", words, 16)
    _, computed, said = contexts(tokenizer=tmp_path / "words")
    assert computed == 1 and "contexts in" in said and "(tokens: " in said


def test_another_config_of_the_same_weights_is_another_network(moments, monkeypatch):
    moments()
    real = diffusers.read

    def changed(folder, *, dtype):
        sd, params = real(folder, dtype=dtype)
        return replace(sd, configs=sd.configs | {"vae": sd.configs["vae"] | {"scaling_factor": 0.2}}), params

    monkeypatch.setattr(diffusers, "read", changed)
    _, computed, said = moments()
    assert computed == 1 and "(vae: " in said


def test_two_new_words_are_the_last_rows_and_known_to_the_tokenizer(base, tmp_path):
    words = {"<one>": "mole", "<other>": "benign"}
    sd, params, embeddings = latents.read_model(
        str(base), dtype=jnp.float32, remat="none", words=words, vectors=2, folder=tmp_path / "tokenizer"
    )
    table, known = np.asarray(token_table(params)), tokens.load_tokenizer(base / "tokenizer").get_vocab()
    for place, (word, like) in enumerate(words.items()):
        assert embeddings[place].tokens == [word, f"{word}_1"]
        rows = table[[tokens.load_tokenizer(sd.tokenizer).get_vocab()[each] for each in embeddings[place].tokens]]
        np.testing.assert_array_equal(rows, table[len(known) + 2 * place :][:2])
        np.testing.assert_array_equal(rows, table[[known[f"{like}</w>"]] * 2])
    said = latents.tokenize_prompts(sd, ["a <one> mole", "a <other> mole"], embeddings)
    assert said.tokens.max() == len(table) - 1 == sd.configs["text_encoder"]["vocab_size"] - 1
    again = latents.tokenize_prompts(sd, ["a <one> mole", "a <other> mole"], [])  # tuned once more
    np.testing.assert_array_equal(again.tokens, said.tokens)
    np.testing.assert_array_equal(again.rows(["a <other> mole", "a <one> mole"]), [1, 0])


def test_causes_lie_beside_what_was_made(moments, tmp_path):
    moments()
    (name,) = names(tmp_path, "moments")
    causes = json.loads((tmp_path / name).with_suffix(".json").read_text())
    assert causes.keys() == {"of", "numeric_versions", "arithmetic", "vae", "size", "images"}
