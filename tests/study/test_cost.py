"""What a study is going to take: steps of every arm, nothing for what is done."""

import runpy
from pathlib import Path

import pytest

from dermjax.classification import recipes
from dermjax.data.records import Manifest, Record
from dermjax.study import run
from dermjax.study.cells import Cell

CONFIG = Path(__file__).parents[2] / "configs" / "study.py"
LABELS = ("benign", "malignant")


def settings():
    return runpy.run_path(str(CONFIG))["get_config"]()


def manifest(counts):
    found = tuple(
        Record(image=f"{split}{number}.png", sha256="", label=LABELS[number % 2], split=split, source="x",
               image_manipulation="none")
        for split, count in counts.items() for number in range(count)
    )  # fmt: skip
    return Manifest(labels=LABELS, root=Path(), records=found)


def test_steps_of_an_arm_are_those_of_its_phases():
    config = settings()
    steps = {arm: run.count_steps(config, Cell(0, "vit", 50, arm, 0))
             for arm in ("real", "real_equal_steps", "synthetic_then_real")}  # fmt: skip
    assert steps == {"real": 75, "real_equal_steps": 300, "synthetic_then_real": 300}


def test_what_is_done_costs_nothing_and_the_line_counts_the_grid(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(recipes, "operations", lambda *_: (10e9, 1e5))
    config, real = settings(), manifest({"train": 100, "validation": 20, "test": 40})
    cells = [Cell(0, "vit", 50, arm, seed) for arm in ("real_equal_steps", "hybrid_3") for seed in (0, 1)]
    folders = {cell: tmp_path / cell.name for cell in cells}
    run.announce(config, folders, [real], 1200)
    told = capsys.readouterr().out
    assert "4 cells, 0 done, 1200 steps to do, 1 generators, 1200 synthetic images, about " in told
    assert run.real_images(real, config) == 160
    config.shots = (3,)
    assert run.real_images(real, config) == 3 * 2 * 3 + 60
    whole = run.processor_seconds(config, cells, [real], 1200)
    assert run.processor_seconds(config, [], [real], 1200) == 0
    assert whole - run.processor_seconds(config, cells[:2], [real], 1200) == pytest.approx(
        2 * run.SECONDS_OF_A_CELL, rel=0.1
    )
    config.classifiers.vit.update(recipe="full", evaluate_every=0)  # never on the way
    assert 0 < run.processor_seconds(config, cells, [real], 1200) < float("inf")
    for folder in folders.values():
        folder.mkdir()
        (folder / "metrics.json").write_text("{}")
    run.announce(config, folders, [real], 1200)
    assert "4 cells, 4 done, 0 steps to do" in capsys.readouterr().out
