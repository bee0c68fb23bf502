"""Images are made through the same calls as the page's: the same seed the same bytes, settings restored, a zip home."""

import io
import json
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from dermjax.data import records
from dermjax.sampling import provenance
from dermjax.studio import generation

ASKED = {
    "prompt": "dermoscopy of one small brown mole",
    "model": "derm-tiny",
    "steps": 4,
    "size": 64,
    "count": 2,
    "seed": 7,
}
MENUS = {
    "number": "two", "size": "large", "colour": "any", "second_colour": "none", "borders": "jagged",
    "texture": "network", "tone": "tan", "artefact": "ruler",
}  # fmt: skip


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """A client of one studio, so that the model is compiled once."""
    from starlette.testclient import TestClient

    from dermjax.studio.app import app

    runs = tmp_path_factory.mktemp("runs")
    return TestClient(app(str(runs), "none", ""), base_url="http://127.0.0.1:7860")


def made(studio, **changed):
    """The state that a job ends in."""
    job = studio.post("/api/generate", json=ASKED | changed).json()["job"]
    return ended(studio, job)


def ended(studio, job):
    for _ in range(6000):
        state = studio.get(f"/api/jobs/{job}").json()
        if state["state"] not in ("waiting", "working"):
            return state
        time.sleep(0.01)
    raise AssertionError("the job did not end")


def test_menus_write_words_that_the_models_know(studio):
    told = studio.post("/api/prompt", json=MENUS).json()["prompt"]
    assert told == "dermoscopy photo of two large moles with jagged borders, a pigment network, tan skin, with a ruler"
    offered = studio.get("/api/models").json()["menus"]
    for name, words in offered.items():
        for word in words:
            assert studio.post("/api/prompt", json=MENUS | {name: word}).status_code == 200


def test_the_same_seed_makes_the_same_bytes_alone_and_among_others(studio):
    two, alone = made(studio), made(studio, count=1, seed=8)
    assert two["state"] == alone["state"] == "done" and two["step"] == two["steps"] == 8
    files = [studio.get(f"/api/images/{each['image']}") for each in (*two["images"], *alone["images"])]
    assert files[1].content == files[2].content != files[0].content
    assert 'filename="synthetic_derm-tiny_8.png"' in files[1].headers["content-disposition"]
    image = Image.open(io.BytesIO(files[0].content))
    assert image.size == (64, 64) and json.loads(image.text[provenance.KEY])["synthetic"] is True
    assert two["images"][0]["synthetic"] is True and two["images"][0]["prompt"] == ASKED["prompt"]
    preview = Image.open(io.BytesIO(studio.get(f"/api/jobs/{two['job']}/preview").content))
    assert preview.size == (32, 32)


def test_an_image_gives_its_settings_back(studio):
    first = made(studio, negative_prompt="hairs <b>", guidance=3.5, count=1)["images"][0]
    png = studio.get(f"/api/images/{first['image']}").content
    told = studio.post("/api/settings", content=png, headers={"content-type": "image/png"}).json()
    assert told["synthetic"] is True and told["model"] == "derm-tiny" and told["negative_prompt"] == "hairs <b>"
    asked = {name: value for name, value in told.items() if name != "synthetic"}
    again = studio.post("/api/generate", json=asked).json()["job"]
    assert studio.get(f"/api/images/{ended(studio, again)['images'][0]['image']}").content == png


@pytest.mark.parametrize("text", ["[]", "{}", '{"prompt": 1}', '{"prompt": "x", "steps": 1e9}', "{"])
def test_settings_that_are_damaged_are_refused(studio, text):
    from PIL.PngImagePlugin import PngInfo

    info, file = PngInfo(), io.BytesIO()
    info.add_itxt(provenance.KEY, text)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, "PNG", pnginfo=info)
    response = studio.post("/api/settings", content=file.getvalue(), headers={"content-type": "image/png"})
    assert (response.status_code == 400) == (text != "{}") or response.json()["model"] == ""


def test_the_zip_says_that_all_in_it_is_synthetic(studio, tmp_path):
    keys = [each["image"] for each in made(studio)["images"]]
    response = studio.get("/api/zip", params={"images": ",".join(keys)})
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        archive.extractall(tmp_path)
    home = tmp_path / "dermjax_synthetic"
    manifest = records.read(home)
    assert len(manifest.records) == 2 and all(each.synthetic and each.split == "train" for each in manifest.records)
    for each in manifest.records:
        assert provenance.origin(manifest.path(each)) == each.generation and "synthetic" in each.image
    assert "SYNTHETIC" in (home / "README.txt").read_text()
    assert studio.get("/api/zip", params={"images": ""}).status_code == 400


def test_a_stop_leaves_out_the_images_that_are_left(studio):
    made(studio)  # compiled
    job = studio.post("/api/generate", json=ASKED | {"count": 16}).json()["job"]
    while studio.get(f"/api/jobs/{job}").json()["step"] < 2:
        time.sleep(0.002)
    studio.post(f"/api/jobs/{job}/stop", json={})
    state = ended(studio, job)
    assert state["state"] == "stopped" and len(state["images"]) < 16
    assert made(studio)["state"] == "done"


@pytest.mark.slow
def test_a_stop_ends_the_computation_in_its_middle(studio):
    made(studio, count=1, steps=150)  # compiled
    job = studio.post("/api/generate", json=ASKED | {"count": 16, "steps": 150}).json()["job"]
    while studio.get(f"/api/jobs/{job}").json()["step"] < 3:
        time.sleep(0.002)
    studio.post(f"/api/jobs/{job}/stop", json={})
    state = ended(studio, job)
    assert state["state"] == "stopped" and state["step"] < 150 * 16 and state["error"] == ""
    assert made(studio)["state"] == "done"


def test_what_a_model_cannot_make_fails_in_one_sentence(studio):
    state = made(studio, size=63)
    assert state["state"] == "failed" and "multiples of 8 px" in state["error"]
    long = made(studio, prompt="mole " * 300)
    assert long["state"] == "failed" and "\n" not in long["error"]


def test_a_size_that_does_not_fit_into_memory_is_refused_in_one_sentence(studio, monkeypatch):
    monkeypatch.setattr("dermjax.sharding.free_memory", lambda grid: 1_000_000)
    state = made(studio)
    assert state["state"] == "failed" and "give a smaller size" in state["error"]


def test_the_gallery_forgets_the_oldest(studio, monkeypatch):
    monkeypatch.setattr(generation, "GALLERY", 2)
    one, two = made(studio), made(studio, seed=9)
    assert all(studio.get(f"/api/images/{each['image']}").status_code == 200 for each in two["images"])
    assert studio.get(f"/api/jobs/{one['job']}").json()["images"] == []
