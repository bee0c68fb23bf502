"""A prepared config is started and stopped by its name, and nothing else is."""

import time

import pytest

SLEEPING = "import time\n\n\ndef get_config():\n    print('asleep', flush=True)\n    time.sleep(100)\n"
BROKEN = "x = 1  # no get_config"


def state(client, name):
    return next(each for each in client.get("/api/prepared").json()["configs"] if each["config"] == name)


def until(client, name, **wanted):
    for _ in range(600):
        now = state(client, name)
        if wanted.items() <= now.items():
            return now
        time.sleep(0.1)
    raise AssertionError(f"{now} is not {wanted}")


def test_one_is_started_and_stopped_by_name(client, runs):
    (runs / "configs").mkdir()
    (runs / "configs" / "prepare_slow.py").write_text(SLEEPING)
    (runs / "tune.py").write_text(BROKEN)
    (runs / "notes.py").write_text("raise SystemExit")
    slow, broken = {"config": "configs/prepare_slow.py"}, {"config": "tune.py"}
    assert [each["config"] for each in client.get("/api/prepared").json()["configs"]] == [
        broken["config"],
        *slow.values(),
    ]
    assert client.post("/api/prepared/stop", json=slow).status_code == 409
    assert client.post("/api/prepared/start", json=slow).json()["state"] == "starting"
    until(client, slow["config"], said="asleep")
    refused = client.post("/api/prepared/start", json=broken)
    assert refused.status_code == 409 and "prepare_slow.py is at work" in refused.json()["error"]
    client.post("/api/prepared/stop", json=slow)
    assert until(client, slow["config"], ours=False)["run"] == "prepare_slow"
    client.post("/api/prepared/start", json=broken)
    ended = until(client, broken["config"], ours=False)
    assert ended["said"].startswith("dermjax tune: ") and str(runs) not in ended["said"]


@pytest.mark.parametrize("name", ["../tune.py", "notes.py", "out/tune.py", "/tune.py", "tune.py --config.steps=1", ""])
def test_nothing_else_is_started(client, runs, tmp_path, name):
    (runs / "notes.py").write_text("raise SystemExit")
    (tmp_path / "tune.py").write_text(BROKEN)
    (runs / "out").symlink_to(tmp_path)
    (runs / "tune_link.py").symlink_to(tmp_path / "tune.py")
    for path in ("/api/prepared/start", "/api/prepared/stop"):
        assert client.post(path, json={"config": name}).status_code == 404
        assert client.post(path, json={"config": "tune_link.py"}).status_code == 404
    assert client.post("/api/prepared/start", json={"config": name, "flags": "x"}).status_code == 400
    assert not list(tmp_path.rglob("*.log"))
