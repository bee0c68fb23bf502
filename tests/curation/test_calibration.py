"""The shipped calibration is of the shipped thresholds, good enough, and what measuring again gives."""

import json
import runpy
from pathlib import Path

import pytest

from dermjax.curation import calibration, report, rules, run
from dermjax.curation.rules import Thresholds

CONFIG = runpy.run_path(str(Path(__file__).parents[2] / "configs" / "curate.py"))["get_config"]
THRESHOLDS = Thresholds(**CONFIG().thresholds.to_dict())
SHIPPED = json.loads(calibration.SHIPPED.read_text())
ARTEFACTS = ("hairs", "ruler", "ink", "dark_corners", "gel", "blur")


@pytest.mark.parametrize("reason", ARTEFACTS)
def test_shipped_limits_find_artefacts_of_2000_phantoms(reason):
    found = SHIPPED["phantoms"][reason]
    assert found["n"] == 2000 and found["f1"] >= 0.9
    limits = {rule.reason: rule.limit for rule in rules.fixed(THRESHOLDS, ())}
    assert found["limit"] == SHIPPED["photographs"][reason]["limit"] == limits[reason]


@pytest.mark.parametrize("reason", ARTEFACTS)
def test_the_first_hits_on_photographs_were_looked_at(reason):
    found = SHIPPED["photographs"][reason]
    assert len(found["right"]) + len(found["wrong"]) == min(40, found["hits"])
    assert not set(found["right"]) & set(found["wrong"])


def test_the_variant_measures_and_keeps_what_people_saw(tmp_path, capsys):
    settings = CONFIG("calibration")
    settings.phantoms = 24
    run.run(settings, tmp_path)
    made = json.loads((tmp_path / calibration.FILE).read_text())
    assert (made["photographs"], made["thresholds"]) == (SHIPPED["photographs"], SHIPPED["thresholds"])
    assert made["phantoms"].keys() == SHIPPED["phantoms"].keys()
    planted = {"blank", "noise", "colour_cast", "training_copy"}
    assert all(each["n"] == (12 if reason in planted else 24) for reason, each in made["phantoms"].items())
    assert all(made["phantoms"][reason]["recall"] == 1.0 for reason in planted)
    assert made["phantoms"]["wrong_number"]["true"] == 12
    assert "precision" in capsys.readouterr().out


def test_the_page_tells_what_is_known_of_a_rule_with_this_limit_only():
    rule = next(rule for rule in rules.fixed(THRESHOLDS, ()) if rule.reason == "hairs")
    known = CONFIG().to_dict()
    phantoms, photographs = report.known_accuracy(rule, known)
    assert phantoms.startswith("2000 phantoms: precision 0.") and "38 of 40 looked at are right" in photographs
    assert report.known_accuracy(rules.Rule(**(vars(rule) | {"limit": 0.5})), known) == []
    assert report.known_accuracy(rule, known | {"size": 256}) == []


@pytest.mark.parametrize("reason", ["blank", "noise", "colour_cast", "training_copy"])
def test_nothing_is_known_of_limits_that_follow_from_real_images_by_other_thresholds(reason):
    rule, known = rules.Rule(reason=reason, score=reason, limit=7.0, high=True, rejects=True), CONFIG().to_dict()
    assert SHIPPED["thresholds"] == {name: known["thresholds"][name] for name in rules.FROM_REAL}
    assert len(report.known_accuracy(rule, known)) == 1
    for name in rules.FROM_REAL:
        other = known | {"thresholds": known["thresholds"] | {name: 0.02}}
        assert report.known_accuracy(rule, other) == [], name


@pytest.mark.slow
def test_measuring_again_gives_what_is_shipped(capsys):
    seeds = range(calibration.FIRST_SEED, calibration.FIRST_SEED + 2000)
    found = calibration.measure(seeds, SHIPPED["size"], THRESHOLDS, lambda: None)
    with capsys.disabled():
        print("\n" + "\n".join(f"{reason}: {each}" for reason, each in found.items()))
    assert found == SHIPPED["phantoms"]
