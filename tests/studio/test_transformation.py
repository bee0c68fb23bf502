"""A lesion is changed through the same calls as the page's, and what is measured is what the stage would say."""

import io

import numpy as np
import pytest
from PIL import Image

from dermjax.data import records
from dermjax.sampling import provenance

ASKED = {"model": "derm-tiny", "steps": 4, "size": 64, "seed": 7, "transformation": "larger", "strength": 0.3}


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def lesion(radius=40, side=256):
    """A brown disc on light skin."""
    y, x = np.mgrid[:side, :side] - side / 2
    inside = np.clip(radius + 2 - np.hypot(x, y), 0, 4)[..., None] / 4
    skin, brown = np.array([226, 187, 165]), np.array([96, 58, 42])
    return np.uint8(inside * brown + (1 - inside) * skin)


def sent(studio, path, pixels):
    return studio.post(path, content=png(pixels), headers={"content-type": "image/png"})


def test_larger_is_larger_where_it_is_painted_and_nowhere_else(studio):
    source = sent(studio, "/api/sources", lesion()).json()
    assert source["count"] == 1 and not source["synthetic"]
    assert source["area"] == pytest.approx(np.pi * 42**2 / 256**2, rel=0.15)
    key = source["source"]
    y, x = np.mgrid[:512, :512] - 256
    disc = np.repeat((np.hypot(x, y) < 70)[..., None], 3, -1)
    painted = sent(studio, f"/api/sources/{key}/mask", np.uint8(disc * 255)).json()
    assert painted["area"] == pytest.approx(np.pi * 70**2 / 512**2, rel=0.05) and painted["certainty"] == 1
    shown = np.asarray(Image.open(io.BytesIO(studio.get(f"/api/sources/{key}/mask").content)))
    assert np.array_equal(shown > 127, disc)
    state = studio.ended(studio.post("/api/transform", json=ASKED | {"source": key, "count": 2}).json()["job"])
    assert state["state"] == "done" and state["step"] == state["steps"] == 8, state["error"]
    files = [studio.get(f"/api/images/{each['image']}").content for each in state["images"]]
    assert files[0] != files[1]
    for made, file in zip(state["images"], files, strict=True):
        told = made["transformation"]
        assert told["asked"] == "larger" and told["before"]["count"] == 1 and told["decibels_outside"] > 40
        assert made["synthetic"] is True
        image = Image.open(io.BytesIO(file))
        assert '"synthetic": true' in image.text[provenance.KEY] and '"of_sha256"' in image.text[provenance.KEY]
        assert '"of":' not in image.text[provenance.KEY]
        corner = np.asarray(image)[:4, :4].astype(int)
        assert np.abs(corner - lesion()[:4, :4]).max() <= 2
    again = studio.post("/api/sources/made", json={"image": state["images"][0]["image"]}).json()
    assert again["synthetic"] is True
    home = studio.get("/api/zip", params={"images": state["images"][0]["image"]})
    assert home.status_code == 200


def test_what_cannot_be_transformed_is_refused_in_one_sentence(studio):
    bare = sent(studio, "/api/sources", np.full((64, 64, 3), 200, np.uint8)).json()
    assert bare["count"] == 0
    response = studio.post("/api/transform", json=ASKED | {"source": bare["source"]})
    assert response.status_code == 400 and "paint the mask" in response.json()["error"]
    empty = sent(studio, f"/api/sources/{bare['source']}/mask", np.zeros((8, 8, 3), np.uint8))
    assert empty.status_code == 400 and "empty" in empty.json()["error"]
    for changed, status in (({"source": "none"}, 404), ({"transformation": "<b>"}, 400), ({"strength": 0.05}, 400)):
        response = studio.post("/api/transform", json=ASKED | {"source": bare["source"]} | changed)
        assert response.status_code == status and list(response.json()) == ["error"]
    assert studio.post("/api/sources", content=b"GIF89a", headers={"content-type": "image/png"}).status_code == 415


def test_lesions_that_vanish_at_the_side_that_is_asked_for_are_said_to(studio):
    """A stroke that was nearly erased; without lesions no change can be measured."""
    key = sent(studio, "/api/sources", lesion()).json()["source"]
    speck = np.zeros((512, 512, 3), np.uint8)
    speck[253, 253] = 255
    assert sent(studio, f"/api/sources/{key}/mask", speck).json()["count"] == 1
    state = studio.ended(studio.post("/api/transform", json=ASKED | {"source": key}).json()["job"])
    assert state["state"] == "failed" and "too small to be seen at 64 px" in state["error"]


def test_only_training_images_of_a_manifest_are_taken(runs, client):
    sha = [each.sha256 for each in records.read(runs / "prepare").records]
    taken = client.post("/api/sources/listed", json={"manifest": "prepare", "sha256": sha[0]})
    assert taken.status_code == 200 and taken.json()["synthetic"] is False
    path = runs / "prepare" / "manifest.jsonl"
    path.write_text(path.read_text().replace('"split": "train"', '"split": "test"'))
    refused = client.post("/api/sources/listed", json={"manifest": "prepare", "sha256": sha[0]})
    assert refused.status_code == 400 and "into training" in refused.json()["error"]
    assert client.post("/api/sources/listed", json={"manifest": "prepare", "sha256": "0" * 64}).status_code == 404
