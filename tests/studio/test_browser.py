"""The page in a real browser, headless Chromium: what a person does with it, by keyboard where that is promised."""

import contextlib
import io
import json
import os
import shutil
import signal
import time
import urllib.request
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image

import dermjax.studio
from dermjax import config_file
from dermjax.curation import reviews
from dermjax.data import records
from dermjax.data.digests import sha256
from dermjax.data.records import Manifest, Record

PAGES = ("generate", "compare", "transform", "classify", "review", "study", "runs")
LIVE = """
from pathlib import Path
from ml_collections import ConfigDict
from dermjax import config_file


def get_config():
    config = config_file.preset("tune", "tiny")
    config.manifest = str(Path(__file__).parent / "prepare")
    config.prompts = ConfigDict({"mole": "dermoscopy of a mole"})
    config.update_from_flattened_dict({
        "size": 64, "batch": 4, "steps": 400, "log_every": 5, "watch_every": 20, "save_every": 20, "samples.images": 1,
        "samples.steps": 2,
    })
    return config
"""
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra dev")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium found; on Debian: apt-get install chromium")
slow = pytest.mark.slow  # all but two, which show in every run of the tests that the page works at all


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        # the tests of a container run as root, where Chromium's own sandbox cannot
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser, server):
    """A page of the studio that must end without a word in its console, refusals by policy included."""
    context = browser.new_context(viewport={"width": 390, "height": 800}, accept_downloads=True)
    opened, said = context.new_page(), []
    opened.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("dialog", lambda dialog: said.append("a dialog: HTML was run"))
    opened.said = said
    opened.goto(server.url)
    opened.wait_for_selector("textarea")
    yield opened
    context.close()


def until(page, condition, seconds=120):
    """Waits for JavaScript to be true; Playwright's own way evaluates text in the page, which its policy forbids."""
    for _ in range(10 * seconds):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(100)
    raise AssertionError(condition)


def open_review(page, server, by):
    """Opens the review of what the fixture generated, by a reviewer of this name."""
    page.goto(f"{server.url}/#review/generate")
    page.fill("[name=by]", by)
    page.press("[name=by]", "Enter")
    page.wait_for_selector("img[data-ready]")


def press(page, keys):
    """Presses keys as a person does, with the image on the screen."""
    for key in keys:
        page.wait_for_selector("img[data-ready]")
        page.keyboard.press(key)


STATIC = Path(dermjax.studio.__file__).with_name("static")
SETTINGS = {
    "prompt": "one mole", "negative_prompt": "", "model": "derm-tiny", "lora": "", "lora_weight": 0.8,
    "sampler": "PLMS", "steps": 2, "guidance": 3.5, "seed": 0, "count": 1, "size": 0,
}  # fmt: skip
MODELS = {"models": ["derm-tiny"], "loras": ["a.safetensors"], "samplers": ["PLMS"], "menus": {}, "defaults": SETTINGS}
MADE = SETTINGS | {"image": "made", "name": "synthetic", "place": 0, "synthetic": True, "guidance": 7.25}
JOB = {"job": "job", "state": "working", "before_it": 0, "step": 1, "steps": 2, "seconds_left": None, "images": [],
       "error": ""}  # fmt: skip


@pytest.fixture
def alone(browser):
    """The page without a studio: `answers` has what "GET /api/runs" gets, a value or a function of the request; None
    leaves it waiting in `asked`, by its address, for `give`."""
    context = browser.new_context()
    opened = context.new_page()
    opened.answers = {"GET /api/models": MODELS, "GET /api/runs": {"runs": []}}
    opened.asked = []

    def give(route, value, status=200):
        body, kind = (value, "image/png") if isinstance(value, bytes) else (json.dumps(value), "application/json")
        route.fulfill(body=body, content_type=kind, status=status)

    def answer(route):
        where = urlsplit(route.request.url).path
        if not where.startswith("/api/"):
            return route.fulfill(path=STATIC / (where[1:] or "index.html"))
        opened.asked.append(route)
        value = opened.answers.get(f"{route.request.method} {where}", ({"error": "there is no such job"}, 404))
        value = value(route.request) if callable(value) else value
        if value is not None:
            give(route, *(value if isinstance(value, tuple) else (value,)))

    context.route("http://studio.test/**", answer)
    opened.give = give
    yield opened
    context.close()


def picture(colour="brown"):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return file.getvalue()


def drop(page, name="a.png"):
    page.set_input_files("[type=file]", {"name": name, "mimeType": "image/png", "buffer": picture()})


def test_answers_stand_below_the_image_that_they_are_about(alone):
    """Another image is dropped while a classifier still looks at the one before; a broken one hides no other."""
    told = {"probabilities": {"benign": 1.0}, "heat": "data:,", "called": "benign", "outside": None, "told": "like it",
            "synthetic": False, "use": "Research use only"}  # fmt: skip
    alone.answers |= {"GET /api/classifiers": {"classifiers": ["first", "second"], "use": "x"},
                      "POST /api/classify": None}  # fmt: skip
    alone.goto("http://studio.test/#classify")
    drop(alone)
    until(alone, "document.querySelector('.dropped')")
    (slow_one,) = (route for route in alone.asked if route.request.method == "POST")
    alone.answers["POST /api/classify"] = lambda request: (
        ({"error": "it is damaged"}, 400) if request.url.endswith("first") else told | {"told": "about the next"}
    )
    drop(alone, "b.png")
    alone.wait_for_selector("text=about the next")
    with contextlib.suppress(playwright.Error):  # nobody waits for it any more
        alone.give(slow_one, told | {"told": "about the one before"})
    alone.wait_for_timeout(200)
    shown = alone.locator("section").inner_text()
    assert "about the one before" not in shown and shown.count("about the next") == 1 and "it is damaged" in shown
    assert "not the risk of a patient" in alone.inner_text("main")


def test_a_change_waits_for_the_mask_and_masks_come_in_their_order(alone):
    source = {"source": "key", "count": 1, "area": 0.1, "ita": None, "certainty": 0.9, "synthetic": False}
    alone.answers |= {
        "POST /api/sources": source, "GET /api/sources/key/picture": picture(),
        "GET /api/sources/key/mask": picture("white"), "POST /api/sources/key/mask": None,
        "POST /api/transform": JOB, "GET /api/jobs/job": JOB | {"state": "done"},
    }  # fmt: skip
    alone.goto("http://studio.test/#transform")
    alone.wait_for_selector("[type=file]")
    drop(alone)
    alone.wait_for_selector("canvas:visible")
    alone.focus("canvas")
    for key in (" ", "ArrowUp", " "):
        alone.keyboard.press(key)
    alone.press("[name=steps]", "Enter")

    def posts():
        return [route for route in alone.asked if route.request.method == "POST"]

    while len(posts()) < 2:
        alone.wait_for_timeout(20)
    alone.wait_for_timeout(300)
    assert [urlsplit(route.request.url).path for route in posts()[1:]] == ["/api/sources/key/mask"]
    alone.give(posts()[1], source)
    until(alone, "true", 1)
    while len(posts()) < 3:
        alone.wait_for_timeout(20)
    alone.wait_for_timeout(100)
    assert len(posts()) == 3
    alone.give(posts()[2], source | {"area": 0.2})
    alone.wait_for_selector("text=done: 0 images")
    assert "20.0 % of the field" in alone.inner_text(".painter")
    assert posts()[3].request.post_data_json["source"] == "key"


@pytest.mark.parametrize("page", ["generate", "compare"])
def test_a_job_outlives_a_reload_and_an_answer_that_does_not_come(alone, page):
    """Else it could neither be seen nor stopped, and the next ones waited behind it."""
    alone.answers |= {"POST /api/generate": JOB, "GET /api/jobs/job": JOB, "POST /api/jobs/job/stop": JOB,
                      "POST /api/compare": JOB | {"across": [1], "down": [2]},
                      "GET /api/jobs/job/preview": picture(), "GET /api/images/made": picture()}  # fmt: skip
    alone.goto(f"http://studio.test/#{page}")
    alone.fill("[name=prompt]", "my own words")
    alone.press("[name=steps]", "Enter")
    alone.wait_for_selector("text=Step 1 of 2")
    alone.answers["GET /api/jobs/job"] = ({"error": "the studio is busy"}, 503)
    alone.wait_for_selector("text=the studio is busy")
    alone.answers["GET /api/jobs/job"] = JOB
    alone.wait_for_selector("text=Step 1 of 2")
    alone.reload()
    alone.wait_for_selector("text=Step 1 of 2")
    assert alone.input_value("[name=prompt]") == "my own words"
    alone.click("text=Stop")
    alone.answers["GET /api/jobs/job"] = JOB | {"state": "stopped", "images": [MADE]}
    alone.wait_for_selector("text=stopped: 1 images")
    assert alone.locator("figure img[src='/api/images/made']").count() == 1
    alone.answers["GET /api/jobs/job"] = JOB | {"state": "failed", "error": "no room", "images": [MADE]}
    alone.reload()
    alone.wait_for_selector("img[src='/api/images/made']")
    assert "no room" not in alone.inner_text("main")  # nobody asks for it now
    del alone.answers["GET /api/jobs/job"]  # the studio was started anew
    alone.reload()
    alone.wait_for_selector("button.main")
    until(alone, f"sessionStorage.getItem('jobs of {page}') === '[]'")
    assert alone.locator("[role=alert]").inner_text() == ""


def test_the_same_again_leaves_the_weight_of_the_next_lora_and_takes_any_guidance(alone):
    alone.answers |= {"POST /api/generate": JOB, "GET /api/jobs/job": JOB | {"state": "done", "images": [MADE]},
                      "GET /api/images/made": picture()}  # fmt: skip
    alone.goto("http://studio.test/")
    alone.press("[name=seed]", "Enter")
    alone.answers["GET /api/jobs/job"]["images"][0]["lora_weight"] = 0.0
    alone.click("text=Same again")
    assert (alone.input_value("[name=lora_weight]"), alone.input_value("[name=guidance]")) == ("0.8", "7.25")
    assert alone.evaluate("document.querySelector('form').checkValidity()")


def test_the_link_to_the_page_stays_on_it_and_a_file_beside_its_place_opens_nothing(alone):
    alone.goto("http://studio.test/#classify")
    alone.answers["GET /api/classifiers"] = {"classifiers": [], "use": "x"}
    alone.reload()
    alone.wait_for_selector("text=left a classifier")
    alone.keyboard.press("Tab")
    alone.keyboard.press("Enter")
    assert alone.evaluate("[location.hash, document.activeElement.id, document.title]") == [
        "#classify", "main", "Classify – dermjax studio"]  # fmt: skip
    assert not alone.evaluate("document.body.dispatchEvent(new Event('drop', {bubbles: true, cancelable: true}))")


def test_a_verdict_that_is_refused_holds_up_no_other(alone):
    """Its image may have left the manifest since; the page would try for ever, and save nothing after it."""
    images = [{"sha256": each, "image": f"{each}.png", "label": "mole", "split": "train", "synthetic": True,
               "rejected": ["blur"], "scores": {}, "verdict": "none", "why": ""} for each in "ab"]  # fmt: skip
    alone.answers |= {
        "GET /api/runs": {"runs": [{"name": "generate", "manifest": True}]},
        "GET /api/review/images": {"images": images, "reasons": ["blur", "hairs"], "training": "generate"},
        "GET /api/review/picture": picture(),
        "GET /api/review/nearest": {"sha256": "c", "label": "mole", "bits": 12},
        "POST /api/review/verdicts": lambda request: (
            ({"error": "there is no such image in this manifest"}, 404)
            if request.post_data_json["sha256"] == "a"
            else {"saved": True}
        ),
    }
    alone.goto("http://studio.test/#review/generate")
    alone.fill("[name=by]", "Ada")
    alone.press("[name=by]", "Enter")
    alone.wait_for_selector("text=12 of 256 bits differ; a copy")
    alone.keyboard.press("k")
    alone.wait_for_selector("text=not saved: there is no such image")
    alone.wait_for_selector("img[data-ready][alt*='b.png']")
    alone.keyboard.press("2")
    alone.wait_for_selector("text=1 judged, all saved")
    alone.keyboard.press("z")
    alone.wait_for_selector("text=0 judged, all saved")
    sent = [route.request.post_data_json for route in alone.asked if route.request.method == "POST"]
    assert [(each["sha256"], each["verdict"], each["why"]) for each in sent] == [
        ("a", "keep", ""), ("b", "reject", "hairs"), ("b", "none", "")]  # fmt: skip


def test_a_study_that_was_begun_is_found_again(alone):
    """Its address alone leads to its answers, and to the table of them."""
    begun = {"study": "key", "reader": "Ada <b>", "count": 4, "next": 0}
    alone.answers |= {"GET /api/runs": {"runs": [{"name": "all", "stage": "", "manifest": True}]},
                      "POST /api/studies": begun, "GET /api/studies/key": begun,
                      "GET /api/studies/key/pictures/0": picture()}  # fmt: skip
    alone.goto("http://studio.test/#study")
    alone.fill("[name=reader]", "Ada")
    alone.press("[name=reader]", "Enter")
    alone.wait_for_selector("text=Image 1 of 4")
    alone.goto("http://studio.test/#study")
    alone.click("text=Ada <b>, 4 images")
    alone.wait_for_selector("text=Image 1 of 4")


def test_a_reader_goes_on_where_no_word_of_an_answer_came_back(alone):
    state = {"study": "key", "reader": "Ada", "count": 4, "next": 0}
    alone.answers |= {"GET /api/studies/key": lambda request: state, "POST /api/studies/key/answers": ({}, 503)}
    alone.answers |= {f"GET /api/studies/key/pictures/{n}": picture() for n in range(2)}
    alone.answers["GET /api/studies/key/pictures/2"] = ({"error": "this image has left its manifest"}, 404)
    alone.goto("http://studio.test/#study/key")
    alone.wait_for_selector("text=Image 1 of 4")
    until(alone, "document.querySelector('.judge img').naturalWidth")
    state = state | {"next": 1}  # it was kept
    alone.keyboard.press("r")
    alone.wait_for_selector("text=Image 2 of 4")
    until(alone, "document.querySelector('.judge img').naturalWidth")
    state = state | {"next": 2}
    alone.keyboard.press("r")
    alone.wait_for_selector("text=this image has left its manifest")


@slow
def test_generate_stop_restore_and_take_home(page, tmp_path):
    page.click("summary:has-text('menus')")
    page.select_option("[name=menu_texture]", "network")
    until(page, "document.querySelector('[name=prompt]').value.includes('a pigment network')")
    for name, value in {"count": "2", "steps": "4", "size": "64", "seed": "5"}.items():
        page.fill(f"[name={name}]", value)
    page.select_option("[name=model]", "derm-tiny")
    page.press("[name=seed]", "Enter")
    page.wait_for_selector(".gallery li:nth-child(2)", timeout=120_000)
    assert page.locator(".gallery .mark").all_inner_texts() == ["SYNTHETIC"] * 2
    with page.expect_download() as got:
        page.click("text=Download all")
    got.value.save_as(tmp_path / "home.zip")
    with zipfile.ZipFile(tmp_path / "home.zip") as archive:
        names = archive.namelist()
        first = archive.read("dermjax_synthetic/images/synthetic_derm-tiny_5_001.png")
    assert "dermjax_synthetic/manifest.jsonl" in names and "dermjax_synthetic/README.txt" in names
    page.fill("[name=prompt]", "<img src=x onerror=alert(1)>")
    page.fill("[name=seed]", "9")
    page.set_input_files("[type=file]", {"name": "<b>.png", "mimeType": "image/png", "buffer": first})
    until(page, "document.querySelector('[name=seed]').value === '5'")
    assert "a pigment network" in page.input_value("[name=prompt]")
    page.fill("[name=count]", "16")
    page.fill("[name=steps]", "100")
    page.fill("[name=prompt]", "<img src=x onerror=alert(1)>")
    page.click("button.main")
    until(page, "document.querySelector('.stage progress')?.value > 0")
    page.click(".stage button")
    page.wait_for_selector(".stage button", state="detached")
    assert page.locator(".gallery li").count() < 18
    page.reload()
    page.wait_for_selector(".gallery li:nth-child(2)")
    assert page.said == []


@slow
def test_a_grid_and_a_change_of_one_of_its_images(page, server):
    """Compare, then Transform with a mask that is painted by keyboard, all at phone width."""
    page.goto(f"{server.url}/#compare")
    page.wait_for_selector("[name=across]")
    page.select_option("[name=model]", "derm-tiny")
    page.select_option("[name=down]", "prompt word")
    for name, value in {
        "across_values": "2, 5",
        "down_values": "brown, <b >red</b >",
        "steps": "4",
        "size": "64",
    }.items():
        page.fill(f"[name={name}]", value)
    page.press("[name=steps]", "Enter")
    page.wait_for_selector(".grid tbody tr:nth-child(2) td:nth-child(3) img", timeout=240_000)
    assert page.locator(".grid th").all_inner_texts() == ["2", "5", "brown", "<b >red</b >"]
    assert page.locator(".grid .mark").count() == 4
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    image = page.locator(".grid a").first.get_attribute("href").rpartition("/")[2]
    page.goto(f"{server.url}/#transform/{image}")
    page.wait_for_selector("canvas:visible", timeout=120_000)
    page.wait_for_selector("text=synthetic image")
    page.focus("canvas")
    page.keyboard.press("ArrowUp")
    page.keyboard.press(" ")
    page.wait_for_selector("text=the mask is painted")
    page.select_option("[name=model]", "derm-tiny")
    page.fill("[name=steps]", "4")
    page.fill("[name=size]", "64")
    page.press("[name=steps]", "Enter")
    page.wait_for_selector(".twice .mark", timeout=240_000)
    told = page.locator(".twice").inner_text()
    assert "larger:" in told and "before: " in told and "after: " in told and "% of the field" in told
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.said == []


@slow
def test_a_prepared_config_is_started_watched_and_stopped(page, server, runs):
    slow = "import time\n\n\ndef get_config():\n    print('<b>asleep</b>', flush=True)\n    time.sleep(100)\n"
    (runs / "tune_few.py").write_text(slow)
    (runs / "prepare" / "config.json").write_text('{"steps": 10}')
    lines = [{"step": n, "loss": 1 / (n + 1), "validation_loss": 0.4} for n in range(1, 11)]
    (runs / "prepare" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page.goto(f"{server.url}/#runs")
    page.press("[aria-label='Start tune_few.py']", "Enter")
    page.wait_for_selector("text=<b>asleep</b>", timeout=120_000)
    page.press("[aria-label='Stop tune_few.py']", "Enter")
    page.wait_for_selector("[aria-label='Start tune_few.py']", timeout=60_000)
    page.click("[aria-label='Curve of prepare']")
    page.wait_for_selector("svg polyline.validation_loss", state="attached")
    assert "step 10 of 10" in page.locator("[role=status]").first.inner_text()
    assert page.said == []


@slow
def test_the_curve_of_a_tune_grows_while_it_runs_and_goes_on_after_a_stop(page, server, runs):
    """A real `tune` of derm-tiny, started, watched, stopped and continued from the page."""
    (runs / "tune_live.py").write_text(LIVE)

    def curve():
        """How many points the curve of the loss has."""
        return len(page.evaluate("document.querySelector('polyline.loss')?.getAttribute('points') || ''").split())

    def watched(condition):
        page.goto(f"{server.url}/#runs/tune_live")
        until(page, f"document.querySelector('[role=status]')?.textContent.{condition}", seconds=600)

    def step():
        return int(page.locator("[role=status]").inner_text().partition(": step ")[2].split()[0])

    page.goto(f"{server.url}/#runs")
    page.press("[aria-label='Start tune_live.py']", "Enter")
    page.wait_for_selector("td >> text=running", timeout=120_000)
    watched("includes(' left')")
    first, points = step(), curve()
    until(page, f"document.querySelector('polyline.loss').getAttribute('points').split(' ').length > {points}", 600)
    assert step() > first >= 1
    page.wait_for_selector(".samples img", timeout=120_000)
    assert page.locator(".samples .mark").inner_text() == "SYNTHETIC"
    page.goto(f"{server.url}/#runs")
    page.press("[aria-label='Stop tune_live.py']", "Enter")
    page.wait_for_selector("[aria-label='Continue tune_live.py']", timeout=120_000)
    watched("startsWith('stopped')")
    stopped, points = step(), curve()
    assert 0 < stopped < 400
    page.goto(f"{server.url}/#runs")
    page.press("[aria-label='Continue tune_live.py']", "Enter")
    watched(f"match(/^running: step (\\d+)/)?.[1] > {stopped}")
    assert curve() > points
    page.goto(f"{server.url}/#runs")
    page.press("[aria-label='Stop tune_live.py']", "Enter")
    page.wait_for_selector("[aria-label='Continue tune_live.py']", timeout=120_000)
    assert page.said == []


@slow
def test_review_by_reason_beside_the_nearest_training_image(page, server, runs):
    open_review(page, server, by="Ada")
    page.select_option("[name=training]", "prepare")
    page.wait_for_selector("text=of 256 bits differ")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("1")
    page.wait_for_selector("text=1 judged, all saved")
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector("text=reject: blur")
    line = json.loads((runs / "generate" / "verdicts.jsonl").read_text())
    assert (line["keep"], line["why"]) == (False, "blur")
    page.click("summary:has-text('Label Studio')")
    page.wait_for_selector("pre:has-text('Choices')")
    tasks = json.loads(urllib.request.urlopen(f"{server.url}/api/review/label_studio?manifest=generate").read())
    choice = {"from_name": "verdict", "to_name": "image", "type": "choices", "value": {"choices": ["keep"]}}
    for task in tasks:
        said = {
            "completed_by": 1,
            "was_cancelled": False,
            "result": [choice],
            "updated_at": "2026-11-30T04:19:27.218800Z",
        }
        task["annotations"] = [said]
    file = {"name": "export.json", "mimeType": "application/json", "buffer": json.dumps(tasks).encode()}
    page.set_input_files("[type=file]", file)
    page.wait_for_selector("text=8 verdicts saved")
    assert page.said == []


@slow
def test_thousands_of_verdicts_by_key_presses(page, server, runs):
    """DERMJAX_REVIEW=6000 for as many as the issue asks for: five a second at least, and none is lost."""
    count = int(os.environ.get("DERMJAX_REVIEW", "200"))
    folder = runs / "many"
    (folder / "images").mkdir(parents=True)
    entries = []
    for n in range(count):
        colour = (n % 256, n // 256, 100)
        Image.new("RGB", (32, 32), colour).save(folder / f"images/{n:05d}.png")
        known = {"label": "mole", "split": "train", "source": "test", "image_manipulation": "synthetic"}
        entries.append(Record(image=f"images/{n:05d}.png", sha256=sha256(folder / f"images/{n:05d}.png"), **known))
    records.write(folder / records.FILE, Manifest(labels=("mole",), root=folder, records=tuple(entries)))
    page.goto(f"{server.url}/#review/many")
    page.fill("[name=by]", "Ada")
    page.press("[name=by]", "Enter")
    page.wait_for_selector("img[data-ready]")
    began = time.monotonic()
    for n in range(count):
        while not page.evaluate(f"document.querySelector('img[data-ready]')?.alt.includes('{n:05d}.png')"):
            page.wait_for_timeout(2)
        page.keyboard.press("kxu"[n % 3])
    page.wait_for_selector(f"text={count} judged, all saved", timeout=600_000)
    rate = count / (time.monotonic() - began)
    lines = [json.loads(line) for line in (folder / "verdicts.jsonl").read_text().splitlines()]
    assert [each["sha256"] for each in lines] == [each.sha256 for each in entries]
    assert [each["keep"] for each in lines] == [(True, False, None)[n % 3] for n in range(count)]
    print(f"{count} verdicts, {rate:.1f} a second")
    assert rate >= 5


@slow
def test_review_by_keyboard_with_the_server_killed_in_the_middle(page, server, runs):
    open_review(page, server, by="<b>Ada</b>")
    page.wait_for_selector(".judge img")
    press(page, "kxu")
    page.wait_for_selector("text=all saved")
    page.wait_for_timeout(500)  # the next ones are fetched
    server.kill()
    press(page, "xkz")  # nobody answers; the page keeps them
    page.wait_for_selector("text=not saved yet")
    server.start()
    page.wait_for_selector("text=all saved", timeout=30_000)
    press(page, ["k", "ArrowLeft"])
    page.wait_for_selector("text=all saved")
    path = runs / "generate" / "verdicts.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [each["keep"] for each in lines] == [True, False, None, False, True, None, True]
    assert {each["by"] for each in lines} == {"<b>Ada</b>"}
    assert sum(each.keep for each in reviews.read(str(path)).values() if each) == 2
    page.click("text=Agreement of reviewers")
    page.wait_for_selector("text=<b>Ada</b>: 5 images")
    assert not [each for each in page.said if "ERR_CONNECTION" not in each]


@slow
def test_verdicts_are_saved_after_one_has_left_and_a_held_key_judges_one(page, server, runs):
    open_review(page, server, by="Ada")
    page.keyboard.down("k")
    page.wait_for_selector("text=1 judged, all saved")
    page.wait_for_selector("img[data-ready]")
    page.keyboard.down("k")  # held: the browser repeats it
    page.keyboard.up("k")
    page.wait_for_timeout(500)  # the next ones are fetched
    server.kill()
    press(page, "xk")
    page.wait_for_selector("text=not saved yet")
    page.evaluate("location.hash = 'runs'")
    assert page.evaluate("!dispatchEvent(new Event('beforeunload', {cancelable: true}))")  # it asks before one leaves
    server.start()
    until(page, "dispatchEvent(new Event('beforeunload', {cancelable: true}))", seconds=30)
    lines = [json.loads(line) for line in (runs / "generate" / "verdicts.jsonl").read_text().splitlines()]
    assert [each["keep"] for each in lines] == [True, False, True]


def test_html_in_names_is_shown_as_text(page, server):
    page.goto(f"{server.url}/#review/hostile")
    page.fill("[name=by]", "Ada")
    page.press("[name=by]", "Enter")
    page.wait_for_selector("text=<img src=x onerror=alert(1)>")
    page.wait_for_selector("text=<b onclick=x>")
    page.goto(f"{server.url}/#runs")
    page.wait_for_selector("table")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.said == []


def test_reader_study_by_keyboard_to_its_csv(page, server, runs):
    """The menus offer a run of each kind by themselves."""
    for name in ("prepare", "generate"):
        config = config_file.load(str(config_file.PRESETS / f"{name}.py"))
        (runs / name / "config.json").write_text(config.to_json_best_effort())
    page.goto(f"{server.url}/#study")
    page.wait_for_selector("[name=reader]")
    assert (page.input_value("[name=real]"), page.input_value("[name=synthetic]")) == ("prepare", "generate")
    page.fill("[name=count]", "6")
    page.fill("[name=reader]", "Ada")
    page.press("[name=reader]", "Enter")
    for place in range(6):
        page.wait_for_selector(f"text=Image {place + 1} of 6")
        assert "ynthetic" not in page.locator(".judge img").get_attribute("alt")
        until(page, "document.querySelector('.judge img').complete")
        page.wait_for_timeout(50)
        if place == 0:  # held since before this image was there
            page.evaluate("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'r', repeat: true}))")
            page.wait_for_timeout(300)
            assert page.locator("text=Image 1 of 6").count() == 1
        page.keyboard.press("rs"[place % 2])
    page.wait_for_selector("text=Right answers")
    with page.expect_download() as got:
        page.click("text=Answers as CSV")
    assert len(got.value.path().read_text().splitlines()) == 7
    assert page.said == []


@slow
def test_every_control_has_a_name_and_can_be_reached_by_keyboard(page, server):
    for name in PAGES:
        page.goto(f"{server.url}/#{name}")
        page.wait_for_selector("h1")
        page.wait_for_timeout(300)
        assert page.locator(".notice").inner_text() == "Research use only. Not a medical device."
        nameless = page.evaluate(
            """[...document.querySelectorAll('input, select, textarea, button, a, img, progress')].filter((each) =>
            !(each.labels?.length || each.textContent.trim() || each.getAttribute('aria-label') || each.alt))
            .map((each) => each.outerHTML)"""
        )
        assert nameless == []
        wanted = page.evaluate(
            "document.querySelectorAll('main input, main select, main textarea, main button').length"
        )
        reached = set()
        for _ in range(80):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("[...document.querySelectorAll('*')].indexOf(document.activeElement)"))
        closed = page.evaluate("document.querySelectorAll('details:not([open]) :is(input, select)').length")
        assert len(reached) >= wanted - closed
    assert page.said == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@slow
def test_axe_finds_no_serious_fault(browser, server, scheme):
    """The rules of axe-core (WCAG 2 A and AA, best practices) on every page, at work too, at phone and desk width."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python").Axe()
    faults = []
    for width in (390, 1280):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        opened = context.new_page()
        for name in (*PAGES, "generate at work", "review/generate at work"):
            opened.goto(f"{server.url}/#{name.split()[0]}")
            opened.wait_for_selector("h1")
            opened.wait_for_timeout(300)
            if name.startswith("generate at"):
                for field, value in {"count": "1", "steps": "2", "size": "64"}.items():
                    opened.fill(f"[name={field}]", value)
                opened.press("[name=seed]", "Enter")
                opened.wait_for_selector(".gallery li", timeout=120_000)
            elif name.startswith("review/"):
                opened.fill("[name=by]", "Ada")
                opened.press("[name=by]", "Enter")
                opened.wait_for_selector("img[data-ready]")
            found = axe.run(opened).response
            assert len(found["passes"]) > 10
            faults += [
                (name, width, each["id"], node["html"])
                for each in found["violations"]
                if each["impact"] in ("serious", "critical")
                for node in each["nodes"]
            ]
        context.close()
    assert faults == []


@slow
def test_a_foreign_page_cannot_use_the_studio(page, browser, server):
    elsewhere = browser.new_page()
    elsewhere.goto("data:text/html,<title>elsewhere</title>")
    told = elsewhere.evaluate(
        """async (url) => {
            const send = (headers) => fetch(`${url}/api/prompt`, {method: 'POST', headers, body: '{}', mode: 'cors'})
                .then((r) => r.status, () => 'refused');
            const read = fetch(`${url}/api/runs`).then((r) => r.text(), () => 'refused');
            return [await send({'content-type': 'application/json'}), await send({}), await read];
        }""",
        server.url,
    )
    assert told == ["refused"] * 3
    elsewhere.close()


@slow
def test_it_ends_when_it_is_told_to_also_while_it_works(server):
    asked = json.dumps({"model": "derm-tiny", "count": 16, "steps": 150}).encode()
    headers = {"content-type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(f"{server.url}/api/generate", asked, headers)).read()
    time.sleep(2)  # it compiles by now
    assert server.kill(signal.SIGTERM) in (0, 143)
