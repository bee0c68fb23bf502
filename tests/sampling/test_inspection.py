"""`dermjax provenance FILE` tells what each place says, and whether they agree."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dermjax.data import digests, records
from dermjax.data.records import Manifest, Record
from dermjax.sampling import credentials, provenance

GENERATION = {
    "synthetic": True, "use": "research use only", "prompt": "a mole", "negative_prompt": "", "seed": 11,
    "sampler": "Euler a", "steps": 20, "guidance": 7.0, "size": 32, "model": "0123456789abcdef",
    "words": {"tone": "tan"},
}  # fmt: skip
PICTURE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.fixture
def made(tmp_path):
    """An image of ours under a folder with its manifest, and its record."""
    path = tmp_path / "images" / "benign" / "00000.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(provenance.png(PICTURE, GENERATION))
    record = Record(
        image="images/benign/00000.png", sha256=digests.sha256(path), label="benign", split="train",
        source="dermjax", image_manipulation="synthetic", licence=provenance.USE, generation=GENERATION,
    )  # fmt: skip
    listed(tmp_path, record)
    return path, record


def listed(folder, record):
    records.write(folder / records.FILE, Manifest(labels=("benign",), root=folder, records=(record,)))


def test_an_image_of_ours(command, made):
    code, said, error = command("provenance", made[0])
    assert (code, error) == (0, "")
    for line in ("dermjax: synthetic", "  seed: 11", '  words: {"tone": "tan"}', "  Steps: 20, Sampler: Euler a, "):
        assert line in said
    assert "image_manipulation=synthetic, label benign" in said
    assert "the bytes are those of the record, and it says the same" in said and "C2PA" not in said


def test_a_transformed_image_is_found_in_its_manifest(command, made, tmp_path):
    """It lies two folders deeper: images/<way>/<transformation>/<label>."""
    deeper = tmp_path / "images" / "inpaint" / "larger" / "benign" / "0123.png"
    deeper.parent.mkdir(parents=True)
    made[0].rename(deeper)
    listed(tmp_path, replace(made[1], image=deeper.relative_to(tmp_path).as_posix()))
    assert "the bytes are those of the record" in command("provenance", deeper)[1]


def test_disagreement_is_told(command, made, tmp_path):
    path, record = made
    listed(tmp_path, replace(record, generation=GENERATION | {"seed": 12}, rejected=("blur",)))
    said = command("provenance", path)[1]
    assert "the record says something else of seed" in said and "rejected: blur" in said
    path.write_bytes(provenance.png(PICTURE[::-1], GENERATION))
    assert "its bytes are others" in command("provenance", path)[1]


def test_a_signed_image(command, made, signer):
    path, _ = made
    path.write_bytes(credentials.signer(*signer)(path.read_bytes(), GENERATION))
    assert "C2PA: valid, signed by nobody; signing certificate untrusted" in command("provenance", path)[1]


def test_an_image_of_another_program(command, tmp_path):
    texts = PngInfo()
    texts.add_text("parameters", "benign mole\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512")
    Image.fromarray(PICTURE).save(tmp_path / "x.png", pnginfo=texts)
    said = command("provenance", tmp_path / "x.png")[1]
    assert "parameters, as A1111 writes them:\n  benign mole\n  Steps: 20" in said and "dermjax:" not in said


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_an_image_that_says_nothing(command, tmp_path, suffix):
    Image.fromarray(PICTURE).save(tmp_path / f"x.{suffix}")
    code, _, error = command("provenance", tmp_path / f"x.{suffix}")
    assert code == 2 and "says nothing of how it was made" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "told"), [(None, "No such file"), (b"<html>", "not a whole image"), (b"cut", "not a whole image")]
)
def test_what_is_no_image(command, tmp_path, content, told):
    path = tmp_path / "x.png"
    if content is not None:
        path.write_bytes(provenance.png(PICTURE, GENERATION)[:-80] if content == b"cut" else content)
    code, _, error = command("provenance", path)
    assert code == 2 and told in error and error.count("\n") == 1, error
