"""The reader study is balanced, follows from its seed, tells nothing before its end, and its figures are exact."""

import csv
import io
import json

from PIL import Image
from scipy.stats import binomtest


def begin(client, **changed):
    asked = {"real": "prepare", "synthetic": "generate", "reader": "=Ada", "count": 8, "seed": 3} | changed
    return client.post("/api/studies", json=asked)


def truth(runs, study):
    return json.loads((runs / "reader_studies" / f"{study}.jsonl").read_text().splitlines()[0])["items"]


def answer(client, study, place, word):
    return client.post(f"/api/studies/{study}/answers", json={"place": place, "answer": word, "seconds": 1.25})


def test_it_is_balanced_and_follows_from_its_seed(client, runs):
    one, again, other = (truth(runs, begin(client, seed=seed).json()["study"]) for seed in (3, 3, 4))
    assert one == again != other
    assert sorted(item["truth"] for item in one) == ["real"] * 4 + ["synthetic"] * 4
    assert len({item["sha256"] for item in one}) == 8


def test_nothing_tells_the_truth_before_the_end(client, runs):
    study = begin(client).json()["study"]
    sides, shapes = set(), set()
    for place in range(8):
        state = client.get(f"/api/studies/{study}")
        response = client.get(f"/api/studies/{study}/pictures/{place}")
        image = Image.open(io.BytesIO(response.content))
        shapes.add((image.format, image.size, tuple(image.info)))
        sides |= {name for name in response.headers if name not in ("content-length",)}
        for told in (state.text, str(response.headers)):
            assert not any(word in told for word in ("real", "synthetic", "generate", "prepare", "truth", "sha256"))
        for ending in ("result", "table"):
            assert client.get(f"/api/studies/{study}/{ending}").status_code == 403
        assert answer(client, study, place, "real").json()["next"] == place + 1
        assert answer(client, study, place, "synthetic").status_code == 400  # once each
    assert len(shapes) == 1
    assert client.get(f"/api/studies/{study}/result").status_code == 200


def test_pictures_come_in_their_order(client):
    study = begin(client).json()["study"]
    assert client.get(f"/api/studies/{study}/pictures/1").status_code == 200  # the next one, fetched ahead
    assert client.get(f"/api/studies/{study}/pictures/2").status_code == 404
    assert answer(client, study, 1, "real").status_code == 400


def test_the_result_is_exact_and_the_csv_whole(client, runs):
    study = begin(client).json()["study"]
    items = truth(runs, study)
    for place, item in enumerate(items):
        wrong = place == 0
        word = item["truth"] if not wrong else {"real": "synthetic", "synthetic": "real"}[item["truth"]]
        answer(client, study, place, word)
    result = client.get(f"/api/studies/{study}/result").json()
    exact = binomtest(7, 8).proportion_ci(0.95, method="exact")
    assert result["accuracy"] == {"value": 0.875, "low": round(exact.low, 4), "high": round(exact.high, 4), "n": 8}
    assert {result["real"]["value"], result["synthetic"]["value"]} == {1.0, 0.75}
    response = client.get(f"/api/studies/{study}/table")
    rows = list(csv.DictReader(io.StringIO(response.text)))
    assert [row["truth"] for row in rows] == [item["truth"] for item in items]
    assert [row["right"] for row in rows] == ["0"] + ["1"] * 7
    assert rows[0]["reader"] == "'=Ada"  # no formula
    assert rows[0]["seconds"] == "1.25" and rows[0]["seed"] == "3"


def test_a_study_goes_on_after_a_kill(client, runs):
    study = begin(client).json()["study"]
    answer(client, study, 0, "real")
    path = runs / "reader_studies" / f"{study}.jsonl"
    path.write_bytes(path.read_bytes() + b'{"answer": "re')
    assert client.get(f"/api/studies/{study}").json()["next"] == 1
    assert answer(client, study, 1, "synthetic").json()["next"] == 2
    assert len(path.read_text().splitlines()) == 3
    path.write_bytes(path.read_bytes().rstrip(b"\n"))  # killed before the end of the line: it counts
    assert client.get(f"/api/studies/{study}").json()["next"] == 2
    assert answer(client, study, 2, "real").json()["next"] == 3


def test_what_cannot_be_balanced_is_refused(client):
    assert "even" in begin(client, count=7).json()["error"]
    assert "7 real images are there" in begin(client, count=20).json()["error"]  # one is rejected
    assert "0 synthetic images are there" in begin(client, synthetic="prepare").json()["error"]
