"""Images are made through the same calls as the page's: the same seed the same bytes, settings restored, a zip home."""

import io
import json
import time
import zipfile
from dataclasses import replace

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


def made(studio, **changed):
    """The state that a job ends in."""
    job = studio.post("/api/generate", json=ASKED | changed).json()["job"]
    return studio.ended(job)


def test_menus_write_words_that_the_models_know(studio):
    told = studio.post("/api/prompt", json=MENUS).json()["prompt"]
    assert told == "dermoscopy photo of two large moles with jagged borders, a pigment network, tan skin, with a ruler"
    offered = studio.get("/api/models").json()["menus"]
    for name, words in offered.items():
        for word in words:
            assert studio.post("/api/prompt", json=MENUS | {name: word}).status_code == 200


def test_a_prompt_of_blanks_is_refused(studio):
    answer = studio.post("/api/generate", json=ASKED | {"prompt": "  "})
    assert answer.status_code == 400 and answer.json()["error"] == "prompt: has blanks alone; give words"


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
    first = made(studio, negative_prompt="hairs <b >", guidance=3.5, count=1)["images"][0]
    png = studio.get(f"/api/images/{first['image']}").content
    told = studio.post("/api/settings", content=png, headers={"content-type": "image/png"}).json()
    assert told["synthetic"] is True and told["model"] == "derm-tiny" and told["negative_prompt"] == "hairs <b >"
    assert told["notes"] == ""
    asked = {name: value for name, value in told.items() if name not in ("synthetic", "notes")}
    again = studio.post("/api/generate", json=asked).json()["job"]
    assert studio.get(f"/api/images/{studio.ended(again)['images'][0]['image']}").content == png


def with_text(name, text):
    """A PNG file that says this of how it was made."""
    from PIL.PngImagePlugin import PngInfo

    info, file = PngInfo(), io.BytesIO()
    info.add_itxt(name, text)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def restored(studio, name, text):
    headers = {"content-type": "image/png"}
    return studio.post("/api/settings", content=with_text(name, text), headers=headers)


def test_what_cannot_be_asked_for_here_is_said_to_be_left_out(studio):
    first = made(studio, count=1)["images"][0]
    image = Image.open(io.BytesIO(studio.get(f"/api/images/{first['image']}").content))
    own = json.loads(image.text[provenance.KEY])
    more = {
        "spacing": "karras", "guidance_rescale": 0.7, "guidance_interval": [0.3, 5.0], "deep_cache": 2,
        "embeddings": {"<mole>": "0123"}, "init_image": "0" * 64, "init_mask": "1" * 64, "strength": 0.6,
        "transformation": {"asked": "larger", "way": "inpaint", "of_sha256": "0" * 64},
    }  # fmt: skip
    for name, value in more.items():
        told = restored(studio, provenance.KEY, json.dumps(own | {name: value})).json()
        assert told["notes"] == f"its {name.replace('_', ' ')} is left out" and told["seed"] == own["seed"]
    told = restored(studio, provenance.KEY, json.dumps(own | {"words": {"tone": "dark"}, "deep_cache": None})).json()
    assert told["notes"] == "", "the prompt has the words"


def test_a_seed_beyond_all_numbers_is_refused(studio):
    """One of 400 digits is none that a float holds."""
    for seed in (10**400, -(10**400), 2**32):
        answer = studio.post("/api/generate", json=ASKED | {"seed": seed})
        assert answer.status_code == 400 and answer.json()["error"] == "seed: give 0 to 4294967295", answer.text
        answer = restored(
            studio, provenance.KEY, json.dumps(ASKED | {"guidance": 3.5, "sampler": "PLMS", "seed": seed})
        )
        assert answer.status_code == 400 and "asked for here: seed: give 0 to" in answer.json()["error"], answer.text
    asked = {"across": "guidance", "across_values": "nan, 1", "down": "seed", "down_values": "7"}
    answer = studio.post("/api/compare", json={n: v for n, v in (ASKED | asked).items() if n != "count"})
    assert answer.status_code == 400, "nor is what is no number"


@pytest.mark.parametrize(
    "model", ["próba_č/tune/model", "日本/model", 'a "b"; c/model', "two\nlines", "runs/tune/model"]
)
def test_an_image_of_a_model_of_any_name_can_be_fetched(studio, model):
    """Headers of HTTP have no more than Latin-1, and quotation marks end their values."""
    from dermjax.studio.folder import Folder
    from dermjax.studio.jobs import Queue

    own = generation.Studio(Folder(str(studio.runs)), Queue())
    own.gallery["key"] = generation.Made(b"png", {"seed": 7}, model, "", 0, {})
    header = own.image("key").headers["content-disposition"]
    name = header.removeprefix('inline; filename="').removesuffix('"')
    assert header.isascii() and not set(name) & set('"; \n/') and name.endswith("_7.png")
    assert model != "runs/tune/model" or name == "synthetic_runs-tune-model_7.png"


def test_a_lora_changes_images_by_its_weight_and_is_restored(studio, monkeypatch):
    """A weight of 0 makes the image of the model alone; nothing is compiled again for another weight."""
    from dermjax.models.cpu import eigen
    from dermjax.sampling.model import load_model
    from dermjax.weights import lora

    shapes = load_model("derm-tiny", "", 1.0, (), "refuse", "").sd.shapes
    fresh = lora.init({"unet": shapes["unet"]}, 2, 0)
    fresh = lora.flatten(fresh)
    fresh = lora.unflatten(
        {n: np.full(a.shape, 0.05, np.float32) if n.endswith(".up") else a for n, a in fresh.items()}
    )
    (studio.runs / "tune").mkdir()
    lora.write_peft(studio.runs / "tune" / "lora.safetensors", lora.uniform(fresh, 2.0), dtype=np.float32)
    (studio.runs / "tune" / "broken.safetensors").write_bytes(b"no tensors")
    assert studio.get("/api/models").json()["loras"] == ["tune/lora.safetensors"]
    bare = made(studio, count=1)["images"][0]
    asked = ASKED | {"lora": "tune/lora.safetensors", "across": "lora_weight", "across_values": "0, 1"}
    asked |= {"down": "seed", "down_values": "7, 8"}
    compiled, options = [], eigen.options
    monkeypatch.setattr(eigen, "options", lambda: compiled.append(None) or options())
    job = studio.post("/api/compare", json={name: v for name, v in asked.items() if name != "count"}).json()["job"]
    cells = {each["place"]: each for each in studio.ended(job)["images"]}
    assert len(cells) == 4 and not compiled
    files = {n: studio.get(f"/api/images/{each['image']}").content for n, each in cells.items()}
    pixels = [np.asarray(Image.open(io.BytesIO(png))) for png in (files[0], files[1])]
    alone = np.asarray(Image.open(io.BytesIO(studio.get(f"/api/images/{bare['image']}").content)))
    assert np.array_equal(pixels[0], alone) and not np.array_equal(pixels[1], alone)
    told = studio.post("/api/settings", content=files[1], headers={"content-type": "image/png"}).json()
    assert (told["lora"], told["lora_weight"], told["notes"]) == ("tune/lora.safetensors", 1.0, "")
    assert studio.post("/api/generate", json=ASKED | {"lora": "../x"}).status_code == 404


def test_a_png_of_automatic1111_gives_its_settings(studio):
    from PIL.PngImagePlugin import PngInfo

    def told(text):
        info, file = PngInfo(), io.BytesIO()
        info.add_text("parameters", text)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, "PNG", pnginfo=info)
        return studio.post("/api/settings", content=file.getvalue(), headers={"content-type": "image/png"}).json()

    usual = told(
        "mole <lora:skin:0.7>, macro\nNegative prompt: hair, ruler\n"
        "Steps: 30, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 123, Size: 512x512, "
        'Model hash: abcdef0123, Lora hashes: "skin: 12, other: 3", Version: 1'
    )
    assert usual["prompt"] == "mole , macro" and usual["negative_prompt"] == "hair, ruler" and usual["synthetic"]
    assert [usual[n] for n in ("steps", "guidance", "seed", "size")] == [30, 6.5, 123, 512]
    assert usual["sampler"] == "DPM++ 2M Karras" and usual["lora_weight"] == 0.7
    assert "its model is none of those here" in usual["notes"] and "its LoRA is none" in usual["notes"]
    odd = told("mole\nSteps: 900, Sampler: <b>Restart</b>, CFG scale: x, Seed: -1, Size: 512x768")
    assert (odd["steps"], odd["guidance"], odd["seed"], odd["size"]) == (20, 3.5, 0, 0)
    assert "its steps is left out" in odd["notes"] and "its sampler is left out" in odd["notes"]
    assert "its size is left out" in odd["notes"] and "its guidance is left out" in odd["notes"]
    bare = told("only a prompt, no more")
    assert bare["prompt"] == "only a prompt, no more" and "its seed is left out" in bare["notes"]
    assert " size " not in usual["notes"] and " seed " not in usual["notes"]


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
    gone = studio.get("/api/zip", params={"images": f"{keys[0]},a,b"})
    assert gone.status_code == 404 and "2 of 3 images are no longer kept; load the page" in gone.json()["error"]


@pytest.mark.slow
def test_what_is_warmed_is_what_an_untouched_page_asks_for(studio, monkeypatch):
    """The second image compiles nothing: it is there in a part of the time."""
    monkeypatch.setitem(generation.FIELDS, "model", replace(generation.FIELDS["model"], default="derm-tiny"))
    from dermjax.studio.folder import Folder
    from dermjax.studio.jobs import Queue

    warmed = generation.Studio(Folder(str(studio.runs)), Queue())
    warmed.warm()
    while warmed.queue.waiting or any(each.state == "working" for each in warmed.queue.jobs.values()):
        time.sleep(0.05)
    compiled = dict(warmed.held.renderer.compiled)
    asked = {name: each.default for name, each in generation.FIELDS.items()} | {"count": 1}
    state = warmed.submit(client="", **asked)
    while state["state"] in ("waiting", "working"):
        time.sleep(0.05)
        state = warmed.state(state["job"])
    assert state["state"] == "done" and len(compiled) == 1 and warmed.held.renderer.compiled.keys() == compiled.keys()


def test_a_stop_leaves_out_the_images_that_are_left(studio):
    made(studio)  # compiled
    job = studio.post("/api/generate", json=ASKED | {"count": 16}).json()["job"]
    while studio.get(f"/api/jobs/{job}").json()["step"] < 2:
        time.sleep(0.002)
    studio.post(f"/api/jobs/{job}/stop", json={})
    state = studio.ended(job)
    assert state["state"] == "stopped" and len(state["images"]) < 16
    assert made(studio)["state"] == "done"


@pytest.mark.slow
def test_a_stop_ends_the_computation_in_its_middle(studio):
    made(studio, count=1, steps=150)  # compiled
    job = studio.post("/api/generate", json=ASKED | {"count": 16, "steps": 150}).json()["job"]
    while studio.get(f"/api/jobs/{job}").json()["step"] < 3:
        time.sleep(0.002)
    studio.post(f"/api/jobs/{job}/stop", json={})
    state = studio.ended(job)
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
