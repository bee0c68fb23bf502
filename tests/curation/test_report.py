"""What prompts asked for against what was measured, by sampler."""

import pytest

from dermjax.config_file import preset
from dermjax.curation import report
from dermjax.data.records import Manifest, Record

LABELS = ("benign", "malignant")


def record(number, prompt, sampler, **scores):
    measured = {"lesions": 1, "area": 0.05, "ita": 40.0} | scores
    return Record(
        image=f"{number}.png", sha256="", label="benign", split="train", source="t", image_manipulation="synthetic",
        generation={"prompt": prompt, "sampler": sampler}, scores=measured,
    )  # fmt: skip


def test_every_sampler_has_a_row_and_all_of_them_one():
    made = [
        record(0, "one tiny mole, pale skin", "Euler", number_off=0, area=0.01, ita=66, label=0.9),
        record(1, "two large moles, dark skin", "Euler", number_off=0, area=0.2, lesions=2, ita=-20, label=0.2),
        record(2, "two large moles, tan skin", "Euler", number_off=1, area=0.2, lesions=3, ita=15, label=0.7),
        record(3, "one large mole, pale skin", "Heun", number_off=0, area=0.01, ita=10, label=0.6),
        record(4, "one small mole, dark skin", "Heun", number_off=0, area=0.03, ita=30, label=0.6),
    ]
    euler, heun, every = report.steering(made, LABELS)
    assert (euler.sampler, heun.sampler, every.sampler) == ("Euler", "Heun", report.ALL)
    assert (euler.number, heun.number, every.number) == ((2, 3), (2, 2), (4, 5))
    assert euler.sizes == {"benign": True} and heun.sizes == {"benign": False}
    assert euler.tone == pytest.approx(1.0) and heun.tone == pytest.approx(-1.0)
    assert euler.label == (2, 3) and every.n == 5


def test_what_nothing_asks_for_has_no_figure():
    alone = [record(0, "a mole", "Euler"), record(1, "a mole, dark skin", "Euler")]
    assert report.steering(alone, LABELS) == []
    assert report.steering([], LABELS) == []


def test_the_page_says_how_many_training_images_limits_were_learnt_from(tmp_path):
    """A sample of them; copies alone are looked for among all."""
    curated = Manifest(labels=LABELS, root=tmp_path, records=())
    config = preset("curate", "demo").to_dict() | {"sample": 500}
    assert "learnt from 500 of 2400 real training images" in report.page(curated, (), 2400, config)
    assert "learnt from 40 of 40 real training images" in report.page(curated, (), 40, config)
