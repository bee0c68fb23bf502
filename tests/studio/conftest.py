"""A folder of runs with images, real and synthetic, and a client of the studio over it."""

import signal
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from PIL import Image

from dermjax.data import records
from dermjax.data.digests import sha256
from dermjax.data.records import Manifest, Record

pytest.importorskip("starlette", reason="the studio needs the extra web")


@pytest.fixture
def runs(tmp_path):
    """A folder with three runs: `prepare` (8 real images), `generate` (8 synthetic ones), `hostile` (HTML in names)."""
    root = tmp_path / "runs"
    write(root / "prepare", "none", 8)
    write(root / "generate", "synthetic", 8)
    write(root / "hostile", "synthetic", 2, label="<img src=x onerror=alert(1)>", name="<b onclick=x>{n}.png")
    (root / "prepare" / "report.html").write_text("<!DOCTYPE html><title>prepared</title><p>report")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "report.html").write_text("secret")
    return root


def write(folder, manipulation, count, label="mole", name="{n:03d}.png"):
    """Writes a run of `count` images; the third to last has two reasons against it, and scores differ."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(sum(folder.name.encode()))
    entries = []
    for n in range(count):
        file = f"images/{name.format(n=n)}"
        Image.fromarray(rng.integers(0, 255, (96, 96, 3), np.uint8)).save(folder / file)
        entries.append(
            Record(
                image=file, sha256=sha256(folder / file), label=label, split="train", source="test",
                image_manipulation=manipulation, scores={"label": round(0.5 + n / (2 * count), 3)},
                rejected=("hairs", "blur") if n == count - 3 else (),
            )
        )  # fmt: skip
    records.write(folder / records.FILE, Manifest(labels=(label,), root=folder, records=tuple(entries)))


@pytest.fixture
def client(runs):
    """A client of the studio, as a script on this machine is."""
    from starlette.testclient import TestClient

    from dermjax.studio.app import app

    opened = TestClient(
        app(str(runs), "none", "", False), base_url="http://127.0.0.1:7860", raise_server_exceptions=False
    )
    opened.runs = runs
    return opened


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """A client of one studio for a whole file, so that a model is compiled once; `ended` waits for a job."""
    from starlette.testclient import TestClient

    from dermjax.studio.app import app

    runs = tmp_path_factory.mktemp("runs")
    opened = TestClient(
        app(str(runs), "none", "", False), base_url="http://127.0.0.1:7860", raise_server_exceptions=False
    )

    def ended(job):
        for _ in range(12000):
            state = opened.get(f"/api/jobs/{job}").json()
            if state["state"] not in ("waiting", "working"):
                return state
            time.sleep(0.01)
        raise AssertionError("the job did not end")

    opened.runs, opened.ended = runs, ended
    return opened


class Server:
    """`dermjax serve` in a process of its own, that can be killed and started again at the same port."""

    def __init__(self, runs):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.runs, self.url = runs, f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        command = [sys.executable, "-m", "dermjax", "serve", str(self.runs), f"--port={self.port}", "--nowarm"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(600):
            try:
                return urllib.request.urlopen(f"{self.url}/api/runs").read()
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the studio did not start")

    def kill(self, number=signal.SIGKILL):
        self.process.send_signal(number)
        return self.process.wait(30)


@pytest.fixture
def server(runs):
    started = Server(runs)
    yield started
    started.kill()
