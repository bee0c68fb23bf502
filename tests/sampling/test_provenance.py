"""An image file says that it is synthetic and how it was made, and is not believed when it is damaged."""

import io
from dataclasses import replace

import numpy as np
from PIL import Image

from dermjax.sampling import provenance
from dermjax.sampling.requests import Request

REQUEST = Request(
    image="images/benign/00000.png",
    label="benign",
    prompt="a naïve mole, 黒子",
    negative="hair",
    seed=11,
    sampler="Euler a",
    steps=20,
    spacing="",
    guidance=7.0,
    guidance_rescale=0.0,
    guidance_interval=(),
    deep_cache=1,
)
GENERATION = provenance.generation(REQUEST, 32, {"model": "0123456789abcdef"})
PICTURE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def test_round_trip(tmp_path):
    file = provenance.png(PICTURE, GENERATION)
    assert file == provenance.png(PICTURE, GENERATION), "the same bytes"
    (tmp_path / "x.png").write_bytes(file)
    assert provenance.origin(tmp_path / "x.png") == GENERATION
    assert GENERATION["synthetic"] is True and GENERATION["use"] == "research use only"
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "x.png")), PICTURE)


def test_parameters_in_the_form_of_a1111():
    text = Image.open(io.BytesIO(provenance.png(PICTURE, GENERATION))).text["parameters"]
    assert text.splitlines() == [
        "a naïve mole, 黒子",
        "Negative prompt: hair",
        "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 11, Size: 32x32, Model hash: 0123456789abcdef, "
        "Synthetic: true (research use only)",
    ]


def test_parameters_are_read_as_they_are_written():
    given = GENERATION | {"lora": "fedcba", "lora_weight": 0.8, "prompt": "a mole, 2: brown\nsecond line"}
    read = provenance.read_parameters(provenance.parameters(given))
    assert read == {name: given[name] for name in read}
    assert given.keys() - read.keys() == {"use"}


def test_what_is_unusual_is_named(tmp_path):
    """DeepCache is an approximation: an image that it made says so, and is not taken for one that it did not make."""
    unusual = replace(REQUEST, spacing="karras", guidance_rescale=0.7, guidance_interval=(0.3, 5.0), deep_cache=3)
    generation = provenance.generation(unusual, 32, {"model": "0123456789abcdef"})
    assert generation == GENERATION | {
        "spacing": "karras",
        "guidance_rescale": 0.7,
        "guidance_interval": [0.3, 5.0],
        "deep_cache": 3,
    }
    (tmp_path / "x.png").write_bytes(provenance.png(PICTURE, generation))
    assert provenance.origin(tmp_path / "x.png") == generation != GENERATION
    assert "Schedule type: karras" in provenance.parameters(generation)
    assert "DeepCache interval: 3" in provenance.parameters(generation)


def test_what_was_added_to_the_model_is_named():
    digests = {"model": "0123", "lora": "4567", "lora_weight": 0.8, "embeddings": {"<mole>": "89ab", "nevus": "cdef"}}
    generation = provenance.generation(REQUEST, 32, digests)
    assert generation == GENERATION | digests
    shown = 'Lora hash: 4567, Lora weight: 0.8, TI hashes: "<mole>: 89ab, nevus: cdef"'
    assert shown in provenance.parameters(generation)


def test_damage_and_strangers_are_not_believed(tmp_path):
    path = tmp_path / "x.png"
    whole = provenance.png(PICTURE, GENERATION)
    assert provenance.origin(path) is None
    for broken in (b"", whole[:-100], whole[:200], b"<html>", whole.replace(whole[-60:-50], bytes(10))):
        path.write_bytes(broken)
        assert provenance.origin(path) is None
    Image.fromarray(PICTURE).save(path)
    assert provenance.origin(path) is None
