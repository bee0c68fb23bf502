"""Claims: one at a time, taken over from the dead, never from the living."""

import hashlib
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.evaluation import wording
from dermjax.study import arms, cells
from dermjax.study.cells import claimed

STUDY = Path(__file__).parents[2] / "configs" / "study.py"


def test_a_cell_is_claimed_once(tmp_path):
    with claimed(tmp_path / "cell") as first, claimed(tmp_path / "cell") as second:
        assert first and not second
    with claimed(tmp_path / "cell") as again:
        assert again
    assert [path.name for path in (tmp_path / "cell").iterdir()] == []


def test_a_claim_of_a_dead_process_is_taken_over(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    ended.wait()
    (tmp_path / "claim").write_text(f"{cells._here()} {ended.pid}\n")
    with claimed(tmp_path) as ours:
        assert ours
    (tmp_path / "claim").write_text(f"{cells._here()} {os.getpid()}\n")
    with claimed(tmp_path) as ours:
        assert not ours


def test_a_silent_claim_whose_number_another_process_has_is_taken_over(tmp_path):
    """After a start of the machine, or in a container where every study has the number 1."""
    (tmp_path / "claim").write_text(f"{cells._here()} {os.getpid()}\n")
    long_ago = time.time() - 2 * cells.STALE
    os.utime(tmp_path / "claim", (long_ago, long_ago))
    with claimed(tmp_path) as ours, claimed(tmp_path) as twice:
        assert ours and not twice, "it gives signs of life again"


def test_a_number_of_another_container_or_start_says_nothing(tmp_path, monkeypatch):
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    ended.wait()
    (tmp_path / "claim").write_text(f"{cells._here()} {ended.pid}\n")
    monkeypatch.setattr(cells, "_here", lambda: "the same name, another container")
    with claimed(tmp_path) as ours:
        assert not ours


def test_another_host_keeps_its_claim_until_it_falls_silent(tmp_path):
    (tmp_path / "claim").write_text("another-host 1\n")
    with claimed(tmp_path) as ours:
        assert not ours
    long_ago = time.time() - 2 * cells.STALE
    os.utime(tmp_path / "claim", (long_ago, long_ago))
    with claimed(tmp_path) as ours:
        assert ours
    assert not list(tmp_path.iterdir())


def test_processes_that_race_for_cells_never_share_one(tmp_path):
    program = (
        "import sys, time, pathlib\n"
        "from dermjax.study.cells import claimed\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "for number in range(20):\n"
        "    folder = root / str(number)\n"
        "    with claimed(folder) as ours:\n"
        "        if ours and not (folder / 'metrics.json').exists():\n"
        "            with (folder / 'log').open('a') as log: log.write('x')\n"
        "            time.sleep(0.01)\n"
        "            (folder / 'metrics.json').write_text('{}')\n"
    )
    racers = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) for _ in range(2)]
    assert [racer.wait(timeout=120) for racer in racers] == [0, 0]
    assert [(tmp_path / str(number) / "log").read_text() for number in range(20)] == ["x"] * 20


def images(count, manipulation):
    """A manifest of so many training images a class; the first half is of quotas, all of one tone."""
    found = tuple(
        Record(image=f"{label}{number:03d}.png", sha256=hashlib.sha256(f"{label}{number}".encode()).hexdigest(),
               label=label, split="train", source="x", image_manipulation=manipulation,
               attributes={"parameters": {"tone": "dark" if number < count // 2 else "light"}})
        for label in ("benign", "malignant") for number in range(count)
    )  # fmt: skip
    return Manifest(labels=("benign", "malignant"), root=Path(), records=found)


def test_every_seed_draws_its_own_synthetic_images():
    """Not the first of the manifest, which are of one kind; the smaller dose is part of the larger one."""
    synthetic = images(200, "synthetic")

    def drawn(shots, ratio, seed):
        return arms.take_ratio(synthetic, images(shots, "none"), ratio, cells.ranks(synthetic, seed)).records

    some, other = drawn(20, 3, 0), drawn(20, 3, 1)
    assert [record.label for record in some] == ["benign"] * 60 + ["malignant"] * 60
    for chosen in (some, other):
        dark = sum(each.attributes["parameters"]["tone"] == "dark" for each in chosen)
        assert 40 < dark < 80
    assert some == drawn(20, 3, 0) and some != other
    assert {r.image for r in drawn(20, 1, 0)} < {r.image for r in some} < {r.image for r in drawn(40, 3, 0)}
    assert len(drawn(20, 10, 0)) == 400, "as many as there are"


@pytest.mark.parametrize("recipe", ["full", "last", "frozen"])
def test_every_arm_has_options_that_its_recipe_does_something_with(monkeypatch, tmp_path, recipe):
    """`classify` refuses features without frozen blocks, and augmentation of frozen ones without further views."""
    given = []
    monkeypatch.setattr(cells.classification, "train", lambda settings, *_: given.append(settings))
    config = runpy.run_path(str(STUDY))["get_config"]("frozen").classifiers.vit
    config.recipe = recipe
    material = cells.Material(real=images(4, "none"), synthetic=images(8, "synthetic"), tests={})
    for arm in ("real_equal_steps", "real_augmented", "synthetic_then_real"):
        cells.train(cells.Cell(0, "vit", 0, arm, 0), config, material, {}, tmp_path / "features", tmp_path)
    for settings in given:
        cells.classification.check(settings)
    shared, views = ("", 1) if recipe == "full" else (str(tmp_path / "features"), cells.AUGMENTED_VIEWS)
    assert [settings.features for settings in given] == 4 * [shared]
    assert [(settings.augment, settings.views) for settings in given] == [
        ("mild", 1), ("strong", views), ("mild", 1), ("mild", 1)
    ]  # fmt: skip


def test_every_class_has_a_synthetic_image_however_few_real_ones_there_are():
    """A quarter of two was none, and training divided by it."""

    def manifest(manipulation, count):
        found = tuple(
            Record(image=f"{label}{number}", sha256="", label=label, split="train", source="x",
                   image_manipulation=manipulation)
            for label in ("a", "b") for number in range(count)
        )  # fmt: skip
        return Manifest(labels=("a", "b"), root=Path(), records=found)

    drawn = manifest("synthetic", 5)
    for few, most in ((1, 1), (2, 1), (8, 2)):
        chosen = arms.take_ratio(drawn, manifest("none", few), 0.25, dict.fromkeys((r.image for r in drawn.records), 0))
        assert [len(chosen.split("train", label)) for label in ("a", "b")] == [most, most]


def test_what_draws_images_is_known_by_its_arm():
    for arm, draws in {"real": [False], "hybrid_1": [True], "hybrid_3_light": [True], "all_3": [False],
                       "synthetic": [False], "synthetic_then_real": [False, False]}.items():  # fmt: skip
        assert [phase.draws for phase in arms.phases(arm)] == draws


def test_arms_by_name():
    (hybrid,) = arms.phases("hybrid_3")
    assert (hybrid.fraction, hybrid.steps) == (0.75, 1.0)
    assert [phase.fraction for phase in arms.phases("synthetic_then_real")] == [1.0, 0.0]
    assert arms.phases("real")[0].steps == 0.25 and arms.phases("real_tested_on_synthetic") == ()
    (judged,) = arms.phases("all_3_judged")
    assert judged.changes == {"synthetic_targets": "judge"} and not judged.limited and judged.fraction == 0.75
    assert arms.phases("hybrid_1_light")[0].changes == {"synthetic_weight": 0.25}
    assert arms.hybrid_ratio("hybrid_3") == 3 and arms.hybrid_ratio("hybrid_3_light") is None
    assert wording.arm("all_3_judged") == "all synthetic 3 : 1, judged" and wording.arm("hybrid_3") == "hybrid 3 : 1"
    assert arms.phases("all_3_judged@gentle") == (judged,) and arms.synthetic_set("all_3_judged@gentle") == "gentle"
    assert arms.hybrid_ratio("hybrid_3@gentle") is None and arms.synthetic_set("hybrid_3") == ""
    assert wording.arm("hybrid_3_light@gentle") == "hybrid 3 : 1, light, of “gentle”"
    for wrong in ("real@gentle", "hybrid", "hybrid_0.1", "hybrid_11", "hybrid_nan", "hybrid_3_heavy", "all", "reel"):
        with pytest.raises(UserError, match="is none of real"):
            arms.phases(wrong)
