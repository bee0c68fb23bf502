"""Every attack that the issue lists is refused in one plain sentence, and the studio still answers afterwards."""

import asyncio
import io
import json
import os
import socket
import struct
import zipfile
import zlib
from types import SimpleNamespace
from unittest import mock

import pytest
from PIL import Image
from starlette.testclient import TestClient

from dermjax.data import records
from dermjax.errors import UserError
from dermjax.studio import guard, server, uploads
from dermjax.studio.app import app

TRAVERSALS = ("../secret.txt", "..", "prepare/../../secret.txt", "/etc/passwd", "..\\secret.txt", "....//", ".", "a\0b",
              "prepare/../../report.html", "%2e%2e/report.html", "out/report.html", "prepare/.hidden")  # fmt: skip


def refused(response, *statuses):
    """The sentence of a refusal: JSON with one key, one line, no path and no traceback."""
    assert response.status_code in (statuses or range(400, 500)), response.text
    told = response.json()
    assert list(told) == ["error"] and "\n" not in told["error"] and "Traceback" not in told["error"]
    assert "/tmp" not in told["error"] and "secret" not in told["error"].replace("secret.txt", "")
    return told["error"]


@pytest.fixture
def served(runs, monkeypatch):
    """A function that starts the studio at a host and returns its app, what it printed, and its environment."""
    uvicorn, given = pytest.importorskip("uvicorn"), []
    environment, listener = dict(os.environ), mock.Mock()
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(server, "_listen", lambda host, port: listener)
    monkeypatch.setattr(server.machine, "compile_once", lambda environment: None)
    monkeypatch.setattr(server, "say", given.append)
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: given.append(self.config.app))
    monkeypatch.setattr(os, "_exit", lambda code: None)

    def serve(host, token="a-token-of-some-length"):
        server.serve(str(runs), host, 7860, token, "none", False)
        return given[-1], given[-2], environment

    return serve


@pytest.fixture
def linked(runs, tmp_path):
    """The folder with a link out of it."""
    (runs / "out").symlink_to(tmp_path)
    return runs


@pytest.mark.parametrize("name", TRAVERSALS)
def test_no_parameter_opens_a_file_outside_of_the_folder(linked, client, name):
    sha = records.read(linked / "prepare").records[0].sha256
    for path, query in (
        ("/api/review/images", {"manifest": name, "by": "Ada"}),
        ("/api/review/picture", {"manifest": name, "sha256": "a" * 64}),
        ("/api/review/picture", {"manifest": "prepare", "sha256": name.ljust(64, "x")}),
        ("/api/review/agreement", {"manifest": name}),
        ("/api/review/nearest", {"manifest": name, "sha256": "a" * 64, "training": "prepare"}),
        ("/api/review/nearest", {"manifest": "prepare", "sha256": sha, "training": name}),
        ("/api/review/label_studio", {"manifest": name}),
        ("/api/review/labelling", {"manifest": name}),
        ("/api/review/fiftyone", {"manifest": name}),
        ("/api/runs/progress", {"run": name}),
        ("/api/runs/samples", {"run": name}),
        (f"/api/sources/{name}/mask".replace("\0", "%00"), {}),
        ("/api/zip", {"images": name}),
        (f"/api/images/{name}".replace("\0", "%00"), {}),
        (f"/api/jobs/{name}/preview".replace("\0", "%00"), {}),
        (f"/api/studies/{name}/table".replace("\0", "%00"), {}),
        (f"/runs/{name}".replace("\0", "%00"), {}),
        (f"/{name}".replace("\0", "%00"), {}),
    ):
        response = client.get(path, params=query)
        assert "secret" not in response.text.replace("secret.txt", "")
        assert response.status_code in (400, 404) or "<title>dermjax studio</title>" in response.text  # for /..
    for path, body in (
        ("/api/review/verdicts", {"manifest": name, "by": "Ada", "sha256": "a" * 64, "verdict": "keep"}),
        ("/api/studies", {"real": name, "synthetic": name, "reader": "Ada"}),
        ("/api/generate", {"model": name, "prompt": "mole"}),
        ("/api/classify", {"classifier": name}),
        ("/api/generate", {"lora": name, "prompt": "mole", "model": "derm-tiny"}),
        ("/api/sources/listed", {"manifest": name, "sha256": sha}),
        ("/api/sources/made", {"image": name}),
        ("/api/transform", {"source": name, "transformation": "larger"}),
        ("/api/prepared/start", {"config": name}),
        ("/api/generate", {"sampler": name, "prompt": "mole"}),
    ):
        refused(client.post(path, json=body))
    assert client.get("/api/runs").status_code == 200


@pytest.mark.parametrize(
    "path", ["/runs/%2e%2e/report.html", "/runs/..%2freport.html", "/runs/prepare/%2e%2e/%2e%2e/report.html"]
)
def test_encoded_dots_are_dots(client, path):
    refused(client.get(path), 404)


def test_links_out_of_the_folder_are_refused_wherever_they_lie(linked, client, tmp_path):
    refused(client.get("/runs/out/report.html"), 404)
    (linked / "prepare" / "report.html").unlink()
    (linked / "prepare" / "report.html").symlink_to(tmp_path / "report.html")
    refused(client.get("/runs/prepare/report.html"), 404)
    (linked / "prepare" / "verdicts.jsonl").symlink_to(tmp_path / "secret.txt")
    sha = client.get("/api/review/images", params={"manifest": "generate", "by": "Ada"}).json()["images"][0]["sha256"]
    refused(client.get("/api/review/images", params={"manifest": "prepare", "by": "Ada"}), 403)
    refused(
        client.post("/api/review/verdicts", json={"manifest": "out", "by": "A", "sha256": sha, "verdict": "keep"}), 404
    )
    image = next((linked / "generate" / "images").iterdir())
    image.unlink()
    image.symlink_to(tmp_path / "secret.txt")
    shown = client.get("/api/review/images", params={"manifest": "generate", "by": "Ada"}).json()["images"]
    sha = next(each["sha256"] for each in shown if each["image"].endswith(image.name))
    refused(client.get("/api/review/picture", params={"manifest": "generate", "sha256": sha}), 403)
    assert (tmp_path / "secret.txt").read_text() == "secret"
    (linked / "reader_studies").symlink_to(tmp_path)
    refused(
        client.post("/api/studies", json={"real": "prepare", "synthetic": "hostile", "reader": "A", "count": 2}), 403
    )


def test_a_manifest_of_images_elsewhere_needs_the_word_of_whoever_started_it(runs, client, tmp_path):
    os.rename(runs / "prepare" / "images", tmp_path / "images")
    manifest = runs / "prepare" / "manifest.jsonl"
    first, rest = manifest.read_text().split("\n", 1)
    manifest.write_text(first.replace('"root": "."', f'"root": "{tmp_path}"') + "\n" + rest)
    asked = {"manifest": "prepare", "by": "Ada"}
    assert "--images" in refused(client.get("/api/review/images", params=asked), 403)
    told = TestClient(app(str(runs), str(tmp_path), "", False), base_url="http://localhost")
    assert len(told.get("/api/review/images", params=asked).json()["images"]) == 8
    tasks = told.get("/api/review/label_studio", params={"manifest": "prepare"}).json()
    assert f"/data/local-files/?d={tmp_path.name}/images/000.png" in [task["data"]["image"] for task in tasks]


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:7860",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "",
        "[evil]",
        "user@localhost",
    ],
)
def test_a_host_that_a_page_elsewhere_could_bear_is_refused(client, host):
    refused(client.get("/api/runs", headers={"host": host}), 421)


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost", "LOCALHOST:1", "[::1]:7860", "192.168.1.7:7860"])
def test_addresses_and_localhost_are_answered(client, host):
    assert client.get("/api/runs", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"}, {"origin": "null"}, {"origin": "http://127.0.0.1:7861"},
        {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"},
    ],
)  # fmt: skip
def test_posts_of_other_pages_are_refused(client, headers):
    refused(client.post("/api/prompt", json={}, headers=headers), 403)
    if "sec-fetch-site" in headers:
        refused(client.get("/api/runs", headers=headers), 403)


def test_posts_of_our_own_page_are_taken(client):
    ours = {"origin": "http://127.0.0.1:7860", "sec-fetch-site": "same-origin"}
    asked = dict(number="one", size="small", colour="brown", second_colour="none", borders="smooth", texture="any",
                 tone="light", artefact="none")  # fmt: skip
    response = client.post("/api/prompt", json=asked, headers=ours)
    assert response.json() == {"prompt": "dermoscopy photo of one small brown mole with smooth borders, light skin"}


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/zip", "image/svg+xml", ""],
)
def test_what_a_form_can_send_is_refused(client, kind):
    refused(client.post("/api/prompt", content=b"{}", headers={"content-type": kind}), 415)


def test_a_token_opens_everything_and_nothing_opens_without(runs):
    token = "a-token-of-some-length"
    told = TestClient(app(str(runs), "none", token, False), base_url="http://192.168.1.7", follow_redirects=False)
    for path in ("/", "/studio.js", "/api/runs", "/runs/prepare/report.html", "/api/openapi.json", "/?token=wrong"):
        refused(told.get(path), 401)
    refused(told.get("/api/runs", headers={"authorization": "Bearer wrong"}), 401)
    refused(told.get("/api/runs", headers={"cookie": "dermjax_studio=wrong"}), 401)
    refused(told.post("/api/prompt", json={}), 401)
    assert told.get("/api/runs", headers={"authorization": f"Bearer {token}"}).status_code == 200
    entered = told.get(f"/?token={token}")
    assert entered.status_code == 303 and entered.headers["location"] == "/"
    cookie = entered.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    assert told.get("/api/runs").status_code == 200


def test_a_network_needs_a_token():
    with pytest.raises(UserError, match="--token=new"):
        server.check("0.0.0.0", 7860, "none")
    with pytest.raises(UserError, match="16 or more"):
        server.check("0.0.0.0", 7860, "short")
    assert len(server.check("0.0.0.0", 7860, "new")) >= 32
    assert server.check("127.0.0.1", 7860, "none") == ""


@pytest.mark.parametrize("host", ["0.0.0.0", "gpu01.clinic.example", "127.0.0.1"])
def test_every_address_that_is_printed_is_answered(served, host, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "Gpu01")
    monkeypatch.setattr(socket, "getfqdn", lambda: "1.0.0.127.in-addr.arpa")
    opened, said, _ = served(host)
    links = [word for word in said.split() if word.startswith("http://")]
    assert links and all("0.0.0.0" not in link for link in links)
    assert host != "0.0.0.0" or links[0] == "http://Gpu01:7860/?token=a-token-of-some-length"
    for link in links:
        entered = TestClient(opened, base_url=link.partition("/?")[0]).get(link)
        assert entered.status_code == 200 and "<title>" in entered.text


def test_a_gpu_is_not_taken_from_what_the_studio_starts(served, monkeypatch):
    assert served("127.0.0.1")[2]["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "true"  # whoever starts it may say otherwise
    assert served("127.0.0.1")[2]["XLA_PYTHON_CLIENT_PREALLOCATE"] == "true"


def test_what_cannot_be_served_is_one_line(command, runs):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, told = command("serve", runs, f"--port={port}")
    assert code == 2 and "give another address or port" in told and len(told.splitlines()) == 1
    assert command("serve", runs / "nowhere")[0] == 2
    assert command("serve", runs, "--host=0.0.0.0")[0] == 2


def test_a_body_that_does_not_arrive_is_not_waited_for(runs, monkeypatch):
    monkeypatch.setattr(guard, "SECONDS", 0.05)
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/api/prompt", "headers": headers, "query_string": b""}
    sent = []

    async def receive():
        await asyncio.sleep(10)

    async def send(message):
        sent.append(message)

    asyncio.run(app(str(runs), "none", "", False)(scope, receive, send))
    assert sent[0]["status"] == 408 and b"too slow" in sent[1]["body"]


def test_a_body_is_no_larger_than_it_may_be(client):
    refused(
        client.post("/api/prompt", content=b" " * (guard.JSON_BYTES + 1), headers={"content-type": "application/json"}),
        413,
    )
    refused(
        client.post("/api/settings", content=b" " * (guard.UPLOAD_BYTES + 1), headers={"content-type": "image/png"}),
        413,
    )

    def pieces():
        for _ in range(100):
            yield b" " * 1024

    refused(client.post("/api/prompt", content=pieces(), headers={"content-type": "application/json"}), 413)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{",
        "[" * 30000,
        '{"a":' * 5000,
        '{"seed": 1' + "0" * 9000 + "}",
        '"\\ud800"',
        "\xff",
        '{"prompt": NaN}',
    ],
)
def test_what_is_no_request_is_refused(client, text):
    refused(
        client.post("/api/generate", content=text.encode("latin-1"), headers={"content-type": "application/json"}), 400
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0}, {"steps": 10**9}, {"steps": "4"}, {"steps": True}, {"steps": 4.5}, {"count": 17}, {"guidance": 0},
        {"seed": -1}, {"seed": 2**32}, {"size": 5000}, {"size": -64}, {"prompt": "x" * 2001},
        {"prompt": "\x00"}, {"prompt": "\ud800"}, {"prompt": "\u202eevil"}, {"unknown": 1}, {"<b>": 1}, {"prompt": []},
        {"client": "x"}, {"model": "derm-huge"}, {"sampler": "no such"},
    ],
)  # fmt: skip
def test_values_that_cannot_be_meant_are_refused_before_they_wait(client, wrong):
    content = json.dumps({"prompt": "mole", "model": "derm-tiny", **wrong})
    told = client.post("/api/generate", content=content, headers={"content-type": "application/json"})
    assert refused(told)


def test_blanks_of_web_pages_are_blanks_and_what_is_hidden_is_named(client):
    def said(prompt):
        return client.post("/api/generate", json={"prompt": prompt, "model": "none"}).json()["error"]

    assert "no such model" in said("one\u00a0brown\u202fmole\u3000")
    assert said("one\u200bmole") == "prompt: has a character that cannot be shown, U+200B; leave it out"


def test_a_name_that_is_no_utf8_hides_itself_alone(client, runs):
    """As archives have them that were packed elsewhere: no JSON can say them."""
    folder = os.fsencode(runs) + b"/L\xe4sion"
    os.mkdir(folder)
    for path in (folder + b"/report.html", os.fsencode(runs) + b"/prepare/L\xe4.safetensors"):
        with open(path, "w") as file:
            file.write("<title>report</title>")
    assert {each["name"] for each in client.get("/api/runs").json()["runs"]} == {"prepare", "generate", "hostile"}
    assert client.get("/api/models").status_code == 200


def test_a_folder_of_many_folders_hides_no_run(client, runs, monkeypatch):
    for number in range(20):
        (runs / "archive" / f"{number}").mkdir(parents=True)
    monkeypatch.setattr("dermjax.studio.folder.MANY", 10)
    assert {each["name"] for each in client.get("/api/runs").json()["runs"]} == {"prepare", "generate", "hostile"}


def test_images_are_decoded_one_at_a_time(client, monkeypatch):
    """A small file may take a hundred megabytes then, and a client may send many at once."""
    seen = []
    monkeypatch.setattr(uploads, "load_any", lambda *given: seen.append(uploads.DECODING.locked()))
    client.post("/api/sources", content=plain_png(), headers={"content-type": "image/png"})
    assert seen == [True]


def png_of(width, height):
    """A small PNG file that claims to be as large."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def zip_of():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.png", "x")
    return buffer.getvalue()


def plain_png():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content, status",
    [
        (png_of(20000, 20000), (413, 415)), (png_of(8000, 8000), (413,)), (png_of(10, 10), (400,)),
        (zip_of(), (415,)), (b"<svg xmlns='http://www.w3.org/2000/svg'/>", (415,)), (b"GIF89a", (415,)), (b"", (415,)),
        (plain_png(), (400,)), (plain_png()[:-20], (400,)), (b"\xff\xd8\xff", (415,)),
    ],
    ids=["400 MP", "64 MP", "short", "zip", "svg", "gif", "empty", "no settings", "cut", "no JPEG"],
)  # fmt: skip
def test_uploads_are_judged_by_their_content(client, content, status):
    (client.runs / "vit" / "classifier").mkdir(parents=True)
    (client.runs / "vit" / "classifier" / "model.safetensors").touch()
    for kind in ("image/png", "image/jpeg"):
        refused(client.post("/api/classify?classifier=vit", content=content, headers={"content-type": kind}))
        refused(client.post("/api/settings", content=content, headers={"content-type": kind}), *status)


def test_a_flood_is_refused_and_over_soon(client, monkeypatch):
    now = 100.0
    monkeypatch.setattr(guard, "time", SimpleNamespace(monotonic=lambda: now))
    answers = [client.post("/api/prompt", json={}).status_code for _ in range(guard.BURST + 5)]
    assert answers == [400] * guard.BURST + [429] * 5
    assert client.get("/api/runs").status_code == 200
    now += 1.0
    assert client.post("/api/prompt", json={}).status_code == 400


def test_our_own_faults_are_told_in_the_terminal_alone(client, monkeypatch, capsys):
    def broken(folder):
        raise RuntimeError("a secret of ours")

    monkeypatch.setattr("dermjax.studio.folder.Folder.folders", broken)
    response = client.get("/api/runs")
    assert response.status_code == 500 and list(response.json()) == ["error"] and "secret" not in response.text
    assert "a secret of ours" in capsys.readouterr().err


def test_every_answer_has_the_policy_and_the_page_nothing_from_elsewhere(client):
    for path in ("/", "/studio.js", "/api/runs", "/nothing", "/api/openapi.json"):
        headers = client.get(path).headers
        assert headers["content-security-policy"] == guard.PAGE_POLICY
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
    report = client.get("/runs/prepare/report.html").headers["content-security-policy"]
    assert report.startswith("sandbox") and "default-src 'none'" in report and "connect-src" not in report
    refused(client.get("/nothing"), 404)
    refused(client.get("/api/generate"), 405)
    refused(client.get("/index.html"), 404)


def test_the_page_never_writes_html():
    from dermjax.studio.app import STATIC

    for path in STATIC.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")  # a name that nothing fetches
        html = ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "style=")
        found = [word for word in (*html, "http://", "https://") if word in text]
        assert not found, f"{path.name}: {found}"


def test_html_in_names_and_labels_is_text_of_json(client):
    asked = {"manifest": "hostile", "by": "<script>alert(1)</script>"}
    response = client.get("/api/review/images", params=asked)
    assert response.headers["content-type"] == "application/json"
    image = response.json()["images"][0]
    assert image["label"] == "<img src=x onerror=alert(1)>"
    judged = asked | {"sha256": image["sha256"], "verdict": "keep", "why": "<b>"}
    assert client.post("/api/review/verdicts", json=judged).json() == {"saved": True}
    assert client.get("/api/review/agreement", params={"manifest": "hostile"}).json()["reviewers"] == {asked["by"]: 1}
