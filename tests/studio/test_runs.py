"""Runs are listed newest first with stage and state; their reports are served as they are."""

import fcntl
import json
import os

from PIL import Image

from dermjax import config_file
from dermjax.studio import runs as runs_of


def listed(client):
    return {run["name"]: run for run in client.get("/api/runs").json()["runs"]}


def test_the_runs_are_listed_newest_first(client, runs):
    for age, name in enumerate(("generate", "prepare", "hostile")):
        for path in (runs / name).glob("*.*"):
            os.utime(path, (1e9 - age, 1e9 - age))
    answer = client.get("/api/runs").json()["runs"]
    assert [run["name"] for run in answer] == ["generate", "prepare", "hostile"]
    assert [run["report"] for run in answer] == [False, True, False]
    assert all(run["manifest"] and run["state"] == "finished" for run in answer)


def test_the_stage_follows_from_the_config(client, runs):
    for stage, variant in (("tune", ":lora"), ("curate", ""), ("evaluate", ":images"), ("study", ":few")):
        (runs / "deep" / stage).mkdir(parents=True)
        config = config_file.load(f"{config_file.PRESETS / stage}.py{variant}")
        (runs / "deep" / stage / "config.json").write_text(json.dumps(config.to_dict()))
    (runs / "other").mkdir()
    (runs / "other" / "config.json").write_text('["no config"')
    found = listed(client)
    assert {name: found[f"deep/{name}"]["stage"] for name in ("tune", "curate", "evaluate", "study")} == {
        "tune": "tune", "curate": "curate", "evaluate": "evaluate", "study": "study"
    }  # fmt: skip
    assert found["other"]["stage"] == "" and found["other"]["state"] == "stopped"


def test_a_training_is_finished_by_its_model_and_not_by_its_report(client, runs):
    (runs / "tune").mkdir()
    for name in ("config.json", "metrics.jsonl", "report.html"):
        (runs / "tune" / name).write_text("{}\n")
    assert listed(client)["tune"]["state"] == "stopped"
    (runs / "tune" / "model").mkdir()
    assert listed(client)["tune"]["state"] == "finished"


def test_a_sweep_is_finished_by_its_last_trial(client, runs):
    (runs / "sweep").mkdir()
    config = config_file.load(f"{config_file.PRESETS / 'sweep'}.py:tiny")
    (runs / "sweep" / "config.json").write_text(json.dumps(config.to_dict()))
    (runs / "sweep" / "report.html").write_text("<!DOCTYPE html>")
    for count, state in ((0, "stopped"), (5, "stopped"), (6, "finished")):
        (runs / "sweep" / "results.json").write_text(json.dumps({"trials": [{}] * count}))
        assert listed(client)["sweep"]["state"] == state


def test_the_state_of_a_run_needs_no_results_of_megabytes(client, runs, monkeypatch):
    """The list is asked for every two seconds by every window; those of `sweep` alone say how far it is."""
    (runs / "prepare" / "results.json").write_text("{}")
    said = []
    monkeypatch.setattr(runs_of, "_read", lambda file: said.append(file.name) or {})
    assert listed(client)["prepare"]["state"] == "finished" and "results.json" not in said


def test_a_run_that_is_at_work_says_so(client, runs):
    folder = os.open(runs / "prepare" / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(folder, fcntl.LOCK_EX)
    assert listed(client)["prepare"]["state"] == "running"
    os.close(folder)
    assert listed(client)["prepare"]["state"] == "finished"


def test_a_run_at_work_shows_its_curve_and_how_long_it_takes(client, runs):
    run = runs / "prepare"
    (run / "config.json").write_text('{"steps": 100}')
    (run / "samples").mkdir()

    def written(step, at):
        lines = [{"step": n, "loss": 1 / (n + 1), "validation_loss": 0.5} for n in range(0, step + 1, 2)]
        text = "".join(json.dumps(line) + "\n" for line in [*lines, {"step": step, "loss": float("nan")}])
        (run / "metrics.jsonl").write_text(text + '{"step": 9')
        os.utime(run / "metrics.jsonl", (at, at))
        Image.new("RGB", (8, 8)).save(run / "samples" / f"{step:08d}.png")

    def looked():
        return client.get("/api/runs/progress", params={"run": "prepare"}).json()

    folder = os.open(run / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(folder, fcntl.LOCK_EX)
    written(20, 1000)
    first = looked()
    assert (first["state"], first["step"], first["steps"], first["seconds_left"]) == ("running", 20, 100, None)
    assert first["curves"]["loss"][-1] == [20, 1 / 21] and len(first["curves"]["validation_loss"]) == 11
    written(40, 1010)
    assert looked()["seconds_left"] == 30 and looked()["samples"] == 40
    assert client.get("/api/runs/samples", params={"run": "prepare"}).headers["content-type"] == "image/png"
    os.close(folder)
    assert looked()["state"] == "finished" and looked()["seconds_left"] is None
    (run / "metrics.jsonl").write_text('["step"]\n')
    refused = client.get("/api/runs/progress", params={"run": "prepare"})
    assert refused.status_code == 400 and "cannot be read" in refused.json()["error"]
    begun = client.get("/api/runs/progress", params={"run": "generate"}).json()
    assert begun["step"] == 0 and begun["curves"] == {"loss": [], "validation_loss": []} and begun["samples"] is None
    (run / "samples" / "00000099.png").symlink_to(runs.parent / "secret.txt")
    assert client.get("/api/runs/samples", params={"run": "prepare"}).status_code == 404


def test_the_time_that_a_run_stood_still_is_not_counted(client, runs):
    """A run that goes on writes its metrics into a new file; its first step, which was compiled, counts at first."""
    run = runs / "prepare"
    (run / "config.json").write_text('{"steps": 100}')
    folder = os.open(run / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(folder, fcntl.LOCK_EX)

    def left(step, at, new=False):
        lines = "".join(json.dumps({"step": n, "loss": 0.5}) + "\n" for n in range(0, step + 1, 10))
        file = run / ("part" if new else "metrics.jsonl")
        file.write_text(lines)
        os.utime(file, (at, at))
        file.replace(run / "metrics.jsonl")
        return client.get("/api/runs/progress", params={"run": "prepare"}).json()["seconds_left"]

    assert [left(0, 900, new=True), left(10, 1000), left(20, 1010)] == [None, 900, 80]
    assert [left(20, 4000, new=True), left(30, 4100), left(40, 4110), left(50, 4120)] == [None, 700, 60, 50]
    os.close(folder)


def test_the_last_line_that_a_run_printed_is_shown(client, runs, tmp_path):
    def said(run):
        return client.get("/api/runs/progress", params={"run": run}).json()["said"]

    (runs / "prepare.log").write_text(f"one\n{runs}/prepare: two\n")
    (tmp_path / "runs.log").write_text("secret")
    (runs / "generate.log").symlink_to(tmp_path / "secret.txt")
    assert [said("prepare"), said("generate"), said("hostile"), said("")] == ["prepare: two", "", "", ""]


def test_a_report_is_served_as_it_is(client, runs):
    response = client.get("/runs/prepare/report.html")
    assert response.content == (runs / "prepare" / "report.html").read_bytes()
    assert response.headers["content-type"].startswith("text/html")
    assert client.get("/runs/prepare/manifest.jsonl").status_code == 404


def test_api_describes_itself(client):
    described = client.get("/api/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    generate = described["paths"]["/api/generate"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert generate["properties"]["steps"]["maximum"] == 150 and generate["additionalProperties"] is False
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            named = {each["name"] for each in operation["parameters"] if each["in"] == "path"}
            assert named == {word.strip("{}") for word in path.split("/") if word.startswith("{")}
            assert operation["summary"][-1] in ".?" and (method == "get" or "requestBody" in operation)
