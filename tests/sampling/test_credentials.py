"""A C2PA manifest is read back as it was signed, names the synthetic source, and breaks when the image is changed."""

import io
import json
import sys
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from dermjax.errors import UserError
from dermjax.sampling import credentials, provenance

GENERATION = {
    "synthetic": True, "use": "research use only", "prompt": "a naïve mole, 黒子", "negative_prompt": "", "seed": 11,
    "sampler": "Euler a", "steps": 20, "guidance": 7.0, "size": 32, "model": "0123456789abcdef",
    "guidance_interval": [0.3, 5.0], "words": {"tone": "dark"},
}  # fmt: skip
PICTURE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def test_round_trip(signer, tmp_path):
    plain = provenance.png(PICTURE, GENERATION)
    signed = credentials.signer(*signer)(plain, GENERATION)
    (tmp_path / "x.png").write_bytes(signed)
    assert credentials.read(tmp_path / "x.png") == {
        "state": "Valid",
        "issuer": "nobody",
        "faults": ["signing certificate untrusted"],
        "generation": GENERATION,
    }
    assert provenance.origin(tmp_path / "x.png") == GENERATION, "the texts stay"
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "x.png")), PICTURE)
    assert len(signed) < len(plain) + 6000, "no thumbnail"


def test_other_tools_read_that_a_model_made_it(signer):
    import c2pa

    signed = credentials.signer(*signer)(provenance.png(PICTURE, GENERATION), GENERATION)
    with c2pa.Reader("image/png", io.BytesIO(signed)) as reader:
        [actions] = [each for each in reader.get_active_manifest()["assertions"] if "actions" in each["label"]]
    assert actions["data"]["actions"][0]["digitalSourceType"].endswith("/trainedAlgorithmicMedia")


def test_a_changed_image_is_found_out(signer, tmp_path):
    signed = credentials.signer(*signer)(provenance.png(PICTURE, GENERATION), GENERATION)
    before = json.dumps(GENERATION, ensure_ascii=False).encode()
    assert before in signed
    (tmp_path / "x.png").write_bytes(signed.replace(before, before.replace(b"true", b"fals"), 1))
    assert credentials.read(tmp_path / "x.png")["state"] == "Invalid"


def test_without_a_manifest_or_an_image_there_is_none(tmp_path, signer):
    (tmp_path / "x.png").write_bytes(provenance.png(PICTURE, GENERATION))
    (tmp_path / "x.txt").write_text("text")
    assert credentials.read(tmp_path / "x.png") is None and credentials.read(tmp_path / "x.txt") is None


def test_a_signed_file_is_known_without_the_library(signer):
    plain = provenance.png(PICTURE, GENERATION | {"prompt": "caBX"})
    signed = credentials.signer(*signer)(plain, GENERATION)
    with mock.patch.dict(sys.modules, {"c2pa": None}):
        assert credentials.is_signed(signed) and not credentials.is_signed(plain)
        for other in (b"", b"caBX", plain[:20], plain[:-5], b"\xff\xd8\xff caBX"):
            assert not credentials.is_signed(other)


def test_without_certificates_files_stay_as_they_are():
    assert credentials.signer("", "")(b"file", {}) == b"file"


def test_what_cannot_sign_is_refused(signer, tmp_path):
    certificate, key = signer
    (tmp_path / "other.pem").write_text("a text")
    refused = [
        ((certificate, ""), r"config\.credentials\.key is missing; give certificate and key, or none"),
        (("nowhere.pem", key), r"certificate nowhere\.pem: cannot be read \(No such file"),
        ((certificate, str(tmp_path / "other.pem")), "not a PEM private key without a password"),
        ((str(tmp_path / "other.pem"), key), r"certificate .*other\.pem: cannot sign with it"),
    ]
    for files, message in refused:
        with pytest.raises(UserError, match=message):
            credentials.signer(*files)


def test_the_missing_library_is_named(signer):
    with mock.patch.dict(sys.modules, {"c2pa": None}), pytest.raises(UserError, match=r"install 'dermjax\[c2pa\]'"):
        credentials.signer(*signer)
