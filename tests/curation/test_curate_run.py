"""The stage on a set with planted faults: each found, nothing else rejected, and the same again."""

import json
import pickle
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from dermjax import merge, parts, run_folder
from dermjax.curation import judging, label_score, measurements, rules, run, scoring
from dermjax.curation.reviews import Verdict
from dermjax.data import digests, images, records
from dermjax.data.imaging import artefacts
from dermjax.data.leaks import training_images
from dermjax.data.phantoms.appearance import ARTEFACTS
from dermjax.data.phantoms.painting import phantom
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.evaluation.features import nearest
from dermjax.models import classifier
from dermjax.parts import Part
from dermjax.weights import classifiers

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "curate.py"
LABELS = ("benign", "malignant")
CLEAN = dict.fromkeys(ARTEFACTS, False)


def lesion(seed):
    return phantom(seed, 128, label=LABELS[seed % 2], **CLEAN).image


def write(folder, pictures, manipulation, split):
    """A manifest of named pictures, labels in turn."""
    kept = []
    for index, (name, picture) in enumerate(pictures.items()):
        path = folder / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(images.encode_png(np.ascontiguousarray(picture)))
        kept.append(
            Record(
                image=f"images/{name}.png",
                sha256=digests.sha256(path),
                label=LABELS[index % 2],
                split=split,
                source="test",
                image_manipulation=manipulation,
            )
        )
    records.write(folder / "manifest.jsonl", Manifest(labels=LABELS, root=folder, records=tuple(kept)))


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Forty training phantoms, and thirty others among which one of each fault is planted."""
    folder = tmp_path_factory.mktemp("sets")
    training = {f"t{seed:02d}": lesion(seed) for seed in range(40)}
    write(folder / "training", training, "none", "train")
    rng = np.random.default_rng(0)
    sound = {f"s{seed}": lesion(seed) for seed in range(100, 130)}
    y, x = np.mgrid[:128, :128, :1][:2] / 128
    uneven = 20 * x - 15 * y**2 + 150 * gaussian_filter(rng.normal(size=(128, 128, 1)), (9, 9, 0))
    faults = {
        "black": np.zeros((128, 128, 3)),
        "empty": np.full((128, 128, 3), (200, 160, 140)) + rng.normal(0, 2, (128, 128, 3)),
        "bare_skin": np.array((200, 160, 140)) + uneven + rng.normal(0, 2, (128, 128, 3)),
        "noise": rng.integers(0, 256, (128, 128, 3)),
        "blurred": gaussian_filter(lesion(200), (6, 6, 0)),
        "magenta": lesion(201) * np.array([1.0, 0.55, 1.0]),
        "copy": training["t07"],
        "flipped_copy": training["t08"][:, ::-1] + rng.normal(0, 3, (128, 128, 3)),
        "again": np.rot90(sound["s100"]) + rng.normal(0, 3, (128, 128, 3)),
    }
    planted = {name: np.clip(np.rint(picture), 0, 255).astype(np.uint8) for name, picture in faults.items()}
    write(folder / "made", sound | planted, "synthetic", "train")
    return folder


def config(sets):
    settings = runpy.run_path(str(CONFIG))["get_config"]("demo")
    settings.manifest, settings.training = str(sets / "made"), str(sets / "training")
    return settings


def curated(settings, workdir):
    workdir.mkdir(exist_ok=True)
    run.run(settings, workdir)
    return records.read(workdir)


@pytest.fixture(scope="module")
def finished(sets):
    """The folder of a finished run on the sets."""
    curated(config(sets), sets / "curate")
    return sets / "curate"


def test_what_the_generator_saw_lies_beside_the_verdicts(finished, sets):
    training = records.read(sets / "training").records
    assert [each.record.sha256 for each in training_images.read(finished)] == [record.sha256 for record in training]


def test_planted_faults_are_found_and_nothing_else(finished):
    judged = records.read(finished)
    reasons = {Path(record.image).stem: set(record.rejected) for record in judged.records}
    expected = {
        "black": "blank",
        "empty": "blank",
        "bare_skin": "blank",
        "noise": "noise",
        "blurred": "blur",
        "magenta": "colour_cast",
        "copy": "training_copy",
        "flipped_copy": "training_copy",
        "again": "near_duplicate",
    }
    for name, reason in expected.items():
        assert reason in reasons[name], name
    for name in ("magenta", "copy", "flipped_copy", "again"):
        assert len(reasons[name]) == 1, name
    assert not [name for name, found in reasons.items() if found and name not in expected]


def test_every_score_stands_on_every_record_and_images_stay(sets, finished):
    judged = records.read(finished)
    names = {"contrast", "structure", "sharpness", "chroma_a", "chroma_b", *artefacts.SCORES}
    names |= {"lesions", "area", "certainty", "colour_cast", "near_duplicate", "training_copy"}
    assert all(record.scores.keys() - {"ita"} == names for record in judged.records)  # a black image has no skin
    assert sum("ita" in record.scores for record in judged.records) > 30
    before = records.read(sets / "made")
    assert judged.root == before.root
    assert [replace(record, scores={}, rejected=()) for record in judged.records] == list(before.records)


def test_a_finished_folder_is_left_alone(sets, finished, capsys):
    curated(config(sets), finished)
    assert "nothing to do" in capsys.readouterr().out


def test_the_same_again(sets, finished, tmp_path):
    judged = curated(config(sets), tmp_path)
    assert judged == records.read(finished)
    assert (tmp_path / "report.html").read_text() == (finished / "report.html").read_text()


def test_parts_are_judged_as_one_set(sets, finished):
    """A part does not see the image that `again` is a turned copy of; merged, the files are those of the whole."""
    workdir = sets / "curate_in_parts"
    for index in range(3):
        settings, part = config(sets), Part(3, index)
        settings.part = str(part)
        run_folder.claim(workdir / part.folder, settings.to_dict())
        curated(settings, workdir / part.folder)
    last = records.read(workdir / Part(3, 2).folder).records[-1]
    assert last.image == "images/again.png" and last.kept
    merge.merge(str(workdir), any_versions=False)
    for name in (records.FILE, "report.html", training_images.FILE):
        assert (workdir / name).read_bytes() == (finished / name).read_bytes()


def test_a_part_that_lost_a_file_is_made_whole_by_what_merge_says(sets, tmp_path):
    write(tmp_path / "made", {f"s{seed}": lesion(seed) for seed in (100, 101)}, "synthetic", "train")
    workdir = tmp_path / "curate"

    def curate(index):
        settings, part = config(sets), Part(2, index)
        settings.manifest, settings.part = str(tmp_path / "made"), str(part)
        run_folder.claim(workdir / part.folder, settings.to_dict())
        curated(settings, workdir / part.folder)
        return workdir / part.folder

    said = [(folder := curate(index), (folder / parts.FILE).read_bytes()) for index in range(2)]
    (said[0][0] / parts.FILE).write_text("{")
    for refused in (lambda: merge.merge(str(workdir), any_versions=False), lambda: curate(0)):
        with pytest.raises(UserError, match=r"part\.json: damaged .*; delete it and run the part again"):
            refused()
    (said[0][0] / parts.FILE).unlink()
    (said[1][0] / measurements.FILE).unlink()
    curate(0), curate(1)
    with pytest.raises(
        UserError, match=r"no hashes of images/s101\.png; delete the part's part\.json and run it again"
    ):
        merge.merge(str(workdir), any_versions=False)
    (said[1][0] / parts.FILE).unlink()
    curate(1)
    merge.merge(str(workdir), any_versions=False)
    assert [(folder / parts.FILE).read_bytes() for folder, _ in said] == [content for _, content in said]
    assert len(records.read(workdir).records) == 2


def test_a_verdict_keeps_what_it_overrules_when_parts_are_judged_again():
    """Also reasons that are not curation's, which a kept record no longer has among its own."""
    limits = (rules.Rule(reason="near_duplicate", score="near_duplicate", limit=40.0, high=False, rejects=True),)
    given = Record(
        image="a.png", sha256="0" * 64, label="benign", split="train", source="test", image_manipulation="synthetic",
        rejected=("looked wrong",),
    )  # fmt: skip
    hashes, verdicts = np.zeros((1, 8, 4), np.uint64), {given.sha256: Verdict(keep=True, by="me", why="")}
    (once,) = judging.judge(lambda: [given], hashes, limits, verdicts)
    (twice,) = judging.judge(lambda: [once], hashes, limits, {})
    assert once == twice and once.kept and once.attributes["verdict"]["overrules"] == ["looked wrong"]


def test_an_image_that_others_reject_makes_no_near_duplicate():
    """Of two that are alike none was kept: the second was near the first, and the first was rejected before."""
    limits = (rules.Rule(reason="near_duplicate", score="near_duplicate", limit=40.0, high=False, rejects=True),)
    known = {"label": "benign", "split": "train", "source": "test", "image_manipulation": "synthetic"}
    first = Record(image="a.png", sha256="0" * 64, rejected=("looked wrong",), **known)
    second = Record(image="b.png", sha256="1" * 64, **known)
    judged = judging.judge(lambda: [first, second], np.zeros((2, 8, 4), np.uint64), limits, {})
    assert [record.rejected for record in judged] == [("looked wrong",), ()]


def test_verdicts_of_others_stay_and_its_own_are_judged_anew(sets, tmp_path):
    made = records.read(sets / "made")
    first = replace(made.records[0], rejected=("looked wrong", "blur"))
    records.write(tmp_path / "manifest.jsonl", replace(made, records=(first, *made.records[1:4])))
    settings = config(sets)
    settings.manifest = str(tmp_path)
    assert curated(settings, tmp_path / "curate").records[0].rejected == ("looked wrong",)


def test_people_override_rules_duplicates_follow_and_nothing_is_looked_at_again(sets, finished, tmp_path, monkeypatch):
    before = {Path(record.image).stem: record for record in records.read(finished).records}
    said = [("magenta", True), ("s100", False)]  # "again" is a near-duplicate of s100
    lines = [{"sha256": before[name].sha256, "keep": keep, "by": "Ada", "why": ""} for name, keep in said]
    (tmp_path / "verdicts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "curate").mkdir()
    shutil.copy(finished / measurements.FILE, tmp_path / "curate")
    monkeypatch.setattr(measurements, "measure", None)  # every look is known
    settings = config(sets)
    settings.verdicts = str(tmp_path / "verdicts.jsonl")
    after = {Path(record.image).stem: record for record in curated(settings, tmp_path / "curate").records}
    assert after["magenta"].kept and after["magenta"].attributes["verdict"]["overrules"] == ["colour_cast"]
    assert after["s100"].rejected == ("person",)
    assert after["again"].kept
    changed = {name for name in before if before[name].rejected != after[name].rejected}
    assert changed == {"magenta", "s100", "again"}
    assert "kept by Ada, against colour cast" in (tmp_path / "curate" / "report.html").read_text()


class Reached(Exception):
    """That a run went on to judge."""


def test_a_folder_of_other_code_or_real_images_is_made_again(sets, finished, tmp_path, capsys, monkeypatch):
    def reached(*_):
        raise Reached

    monkeypatch.setattr(scoring, "measure_reference", reached)
    now = rules.NUMERIC_VERSION
    monkeypatch.setattr(rules, "NUMERIC_VERSION", now + 1)
    with pytest.raises(Reached):
        curated(config(sets), finished)
    line = f"{finished / records.FILE} is made again (numeric_versions.rules: {now} -> {now + 1})"
    assert capsys.readouterr().out.startswith(line)
    monkeypatch.setattr(rules, "NUMERIC_VERSION", now)
    real = records.read(sets / "training")
    records.write(tmp_path / records.FILE, replace(real, records=real.records[1:]))
    fewer = config(sets)
    fewer.training = str(tmp_path)
    with pytest.raises(Reached):
        curated(fewer, finished)
    assert "is made again (training: " in capsys.readouterr().out


def test_looks_of_another_size_or_version_are_taken_again(sets, finished, tmp_path, capsys, monkeypatch):
    shutil.copy(finished / measurements.FILE, tmp_path)
    manifest, path = records.read(sets / "made"), tmp_path / measurements.FILE
    chosen = manifest.records[:4]
    before = path.read_bytes().splitlines()
    unsaid, other, *rest = (json.loads(line) for line in before)
    del unsaid["causes"]  # as the first versions wrote it
    other["causes"]["size"] = 96
    path.write_text("".join(json.dumps(each) + "\n" for each in (unsaid, other, *rest)))
    real, looked = measurements.measure, []
    monkeypatch.setattr(measurements, "measure", lambda image: looked.append(1) or real(image))
    found = measurements.measure_all(manifest, chosen, 128, tmp_path, lambda: None)
    assert len(looked) == 2
    assert f"looks in {path} are taken again: 2 (made by an older version" in capsys.readouterr().out
    assert sorted(line for line in path.read_bytes().splitlines() if line) == sorted(before), "no line stays behind"
    again = measurements.measure_all(manifest, chosen, 128, tmp_path, lambda: None)
    assert len(looked) == 2 and [look.scores for look in again] == [look.scores for look in found]
    now, later = measurements.NUMERIC_VERSION, measurements.NUMERIC_VERSION + 1
    monkeypatch.setattr(measurements, "NUMERIC_VERSION", later)
    measurements.measure_all(manifest, chosen[:1], 128, tmp_path, lambda: None)
    assert f"(numeric_versions.looks: {now} -> {later})" in capsys.readouterr().out


def test_images_may_be_measured_elsewhere_and_in_any_order(sets, finished, tmp_path):
    """As by an engine of clusters: the function goes to other processes, what was known before stays and is checked."""
    before = (finished / measurements.FILE).read_bytes().splitlines(keepends=True)
    (tmp_path / measurements.FILE).write_bytes(b"".join(before[:5]))
    manifest, asked, ticks = records.read(sets / "made"), [], []

    def backwards(function, items, tick):
        function = pickle.loads(pickle.dumps(function))
        for item in reversed([*items]):
            asked.append(item.image)
            yield function(item)
            tick()

    twice = (*manifest.records, replace(manifest.records[-1], image=manifest.records[6].image))
    with pytest.raises(UserError, match="not the bytes that the manifest names"):
        measurements.measure_all(manifest, twice, 128, tmp_path, lambda: None, backwards)
    found = measurements.measure_all(manifest, manifest.records, 128, tmp_path, lambda: ticks.append(1), backwards)
    assert asked == [record.image for record in reversed(manifest.records[5:])] and len(ticks) == len(found)
    assert (tmp_path / measurements.FILE).read_bytes().splitlines(keepends=True) == before[:5] + before[:4:-1]
    whole = measurements.measure_all(manifest, manifest.records, 128, finished, lambda: None)
    assert [(each.scores, each.hashes.tolist()) for each in found] == [(e.scores, e.hashes.tolist()) for e in whole]


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("ray"), reason='needs Ray Data: pip install "ray[data]"')
@pytest.mark.parametrize("count", [1, 3])
def test_ray_measures_what_curate_judges(sets, finished, tmp_path, count):
    """Its looks are those of `curate`, which then takes none: the manifest is the same, of parts once merged."""

    def call(*command):
        flags = ("--config=configs/curate.py:demo", f"--workdir={workdir}")
        done = subprocess.run([sys.executable, *command, *flags], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    workdir = sets / f"curate_by_ray_{count}"
    call("launch/ray_curate.py", f"--manifest={sets / 'made'}", f"--parts={count}")
    folders = [workdir / Part(count, index).folder if count > 1 else workdir for index in range(count)]
    looks = [(folder / measurements.FILE).read_bytes() for folder in folders]
    assert sorted(b"".join(looks).splitlines()) == sorted((finished / measurements.FILE).read_bytes().splitlines())
    for index in range(count):
        call("-m", "dermjax", "curate", f"--config.manifest={sets / 'made'}", f"--config.training={sets / 'training'}",
             f"--config.part={index}/{count}")  # fmt: skip
    assert [(folder / measurements.FILE).read_bytes() for folder in folders] == looks
    if count > 1:
        merge.merge(str(workdir), any_versions=False)
    for name in (records.FILE, "report.html"):
        assert (workdir / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--manifest=nowhere"], "manifest nowhere: no such file; give a manifest.jsonl or the folder of the stage"),
        (["--manifest=nowhere", "--size=100"], "config.size = 100: images, whatever their own size"),
        (["--manifest=nowhere", "--parts=0"], "--parts=0: give 1 or more"),
    ],
)
def test_what_ray_is_not_given_rightly_is_one_line(tmp_path, flags, message):
    command = [sys.executable, "launch/ray_curate.py", "--config=configs/curate.py", f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith(f"launch/ray_curate.py: {message}")
    assert done.stderr.count("\n") == 1 and not (tmp_path / "run").exists()


def test_without_ray_its_script_says_so_and_shows_its_help(sets, tmp_path):
    script = "runpy.run_path('launch/ray_curate.py', run_name='__main__')"
    program = f"import runpy, sys; sys.modules['ray'] = None; {script}"

    def call(*flags):
        return subprocess.run([sys.executable, "-c", program, *flags], cwd=ROOT, capture_output=True, text=True)

    shown = call("--help")
    assert shown.returncode == 0 and "--parts" in shown.stdout
    done = call("--config=configs/curate.py", f"--workdir={tmp_path / 'run'}", f"--manifest={sets / 'made'}")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not (tmp_path / "run").exists()
    assert done.stderr == 'launch/ray_curate.py: Ray is not installed; pip install "ray[data]"\n'


def test_what_a_prompt_asks_for_is_held_against_the_image_or_excused(sets, tmp_path):
    made = records.read(sets / "made")
    hairy = phantom(3, 128, **{**CLEAN, "hairs": True, "number": 2, "tone": "pale"}).image
    (tmp_path / "hairy.png").write_bytes(images.encode_png(hairy))
    prompts = {
        "two moles, pale skin, with hairs": set(),
        "two moles, pale skin": {"hairs"},
        "three moles, with hairs": {"wrong_number"},
        "dark skin, with hairs": {"wrong_tone"},
    }
    found = []
    for number, prompt in enumerate(prompts):
        (tmp_path / f"{number}.png").write_bytes(images.encode_png(np.roll(hairy, number, axis=1)))
        digest = digests.sha256(tmp_path / f"{number}.png")
        known = {"sha256": digest, "generation": {"prompt": prompt}, "image": f"{number}.png"}
        found.append(replace(made.records[0], **known))
    records.write(tmp_path / "manifest.jsonl", replace(made, root=tmp_path, records=tuple(found)))
    settings = config(sets)
    settings.manifest, settings.noted = str(tmp_path), ("near_duplicate", "colour_cast", "training_copy")
    judged = curated(settings, tmp_path / "curate")
    assert [set(record.rejected) for record in judged.records] == list(prompts.values())
    page = (tmp_path / "curate" / "report.html").read_text()
    row = page.partition('<th scope="row">hairs<')[2].partition("</tr>")[0]
    assert re.findall(r"<td>(\d+)</td>", row)[-2:] == ["4", "1"], "hits, three of them requested, and rejections"


def test_a_classifier_speaks_of_classes(sets, tmp_path, capsys):
    """By held-out images; without any it has no limit, as it is sure of the images that it has learnt."""
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    kind = classifier.fresh(classifier.describe("vit", small, LABELS, 32), np.float32)
    params, variables = kind.init(0)
    params["classifier"]["bias"] = np.array([4.0, -4.0], np.float32)  # benign, whatever it sees
    classifiers.write(tmp_path / "classifier", kind, params, variables)
    real = records.read(sets / "training")
    held_out = [replace(each, split="validation") for each in real.records[30:]]
    (tmp_path / "training").mkdir(), (tmp_path / "made").mkdir()
    records.write(tmp_path / "training" / records.FILE, replace(real, records=(*real.records[:30], *held_out)))
    made = records.read(sets / "made")
    records.write(tmp_path / "made" / records.FILE, replace(made, records=made.records[:6]))
    settings = config(sets)
    settings.manifest, settings.training = str(tmp_path / "made"), str(tmp_path / "training")
    settings.classifier, settings.thresholds.label = str(tmp_path), 0.5
    judged = curated(settings, tmp_path / "curate")
    assert "no limit of the label" not in capsys.readouterr().out
    settings.training = str(sets / "training")
    without = curated(settings, tmp_path / "without")
    assert "curate: no validation images, so that no limit of the label is known" in capsys.readouterr().out
    assert not any("other_class" in r.rejected for r in without.records)
    assert [r.scores["label"] for r in without.records] == [r.scores["label"] for r in judged.records]
    assert all(("other_class" in r.rejected) == (r.label == "malignant") for r in judged.records)
    assert all((r.scores["label"] > 0.5) == (r.label == "benign") for r in judged.records)
    # of training images of a class that the generator was not asked for, and the classifier does not know
    stranger = replace(real.records[-1], label="other", split="validation")
    others = replace(real, labels=(*LABELS, "other"), records=(*real.records[:30], *held_out[:-1], stranger))
    records.write(tmp_path / "training" / records.FILE, others)
    settings.training = str(tmp_path / "training")
    assert all("label" in r.scores for r in curated(settings, tmp_path / "others").records)


def test_a_judge_has_seen_photographs_alone_and_may_know_more_classes(tmp_path):
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    kind = classifier.fresh(classifier.describe("vit", small, LABELS, 32), np.float32)
    classifiers.write(tmp_path / "classifier", kind, *kind.init(0))
    (tmp_path / "config.json").write_text(json.dumps({"recipe": "full", "synthetic": ""}))
    assert label_score.read(str(tmp_path), LABELS[1:]).classifier.labels == LABELS
    with pytest.raises(UserError, match="it knows benign, malignant, not cat"):
        label_score.read(str(tmp_path), ("cat",))
    (tmp_path / "config.json").write_text(json.dumps({"recipe": "full", "synthetic": "runs/curate"}))
    for path in (tmp_path, tmp_path / "classifier"):
        with pytest.raises(UserError, match="was trained on synthetic images as well, runs/curate"):
            label_score.read(str(path), LABELS)


def test_a_network_sees_copies_that_are_cut_and_lit_anew(sets, tmp_path):
    """Even one that has learnt nothing: near in pixels is near in its features."""
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    kind = classifier.fresh(classifier.describe("vit", small | {"patch_size": 32}, LABELS, 224), np.float32)
    classifiers.write(tmp_path / "network", kind, *kind.init(0))
    copied = lesion(7)[:, ::-1] + np.random.default_rng(0).normal(0, 6, (128, 128, 3))
    made = {f"s{seed}": lesion(seed) for seed in range(100, 106)} | {"copy": np.clip(copied, 0, 255).astype(np.uint8)}
    write(tmp_path / "made", made, "synthetic", "train")
    settings = config(sets)
    settings.manifest, settings.features = str(tmp_path / "made"), str(tmp_path / "network")
    judged = {Path(record.image).stem: record for record in curated(settings, tmp_path / "curate").records}
    assert "training_likeness" in judged["copy"].rejected
    assert all("training_likeness" not in record.rejected for name, record in judged.items() if name != "copy")
    alike = {name: record.scores["training_likeness"] for name, record in judged.items()}
    assert max(alike, key=alike.get) == "copy" and all(-1 <= each <= 1.0001 for each in alike.values())
    run.run(settings, tmp_path / "curate")  # finished: nothing to do

    features = np.eye(4, dtype=np.float32)
    np.testing.assert_array_equal(scoring.nearest_other(features), [0, 0])  # an image and its mirror image are no pair
    np.testing.assert_array_equal(nearest(features[:1], features[1:])[0], [0])


def test_the_page_loads_nothing_from_outside_and_marks_what_is_synthetic(finished):
    page = (finished / "report.html").read_text()
    assert "http://" not in page and "https://" not in page
    assert "<script" not in page
    assert "carries the word <strong>SYNTHETIC</strong>" in page
    assert "training copy" in page and "near duplicate" in page


def test_real_photographs_pass_by_the_measure_of_others(tmp_path):
    shared = Path(__file__).parents[3] / "shared" / "data" / "dermoscopy"
    if not shared.is_dir():
        pytest.skip("needs ../shared/data/dermoscopy")
    settings = runpy.run_path(str(CONFIG))["get_config"]("demo")
    for key, split in (("training", "train"), ("manifest", "test")):
        taken = [path for label in LABELS for path in sorted((shared / split / label).iterdir())[:50]]
        known = {"split": "train", "source": "HAM10000", "image_manipulation": "none"}
        held = [
            Record(
                image=path.relative_to(shared).as_posix(), sha256=digests.sha256(path), label=path.parent.name, **known
            )
            for path in taken
        ]
        settings[key] = str(tmp_path / f"{key}.jsonl")
        records.write(tmp_path / f"{key}.jsonl", Manifest(labels=LABELS, root=shared, records=tuple(held)))
    judged = curated(settings, tmp_path / "curate")
    assert sum(not record.kept for record in judged.records) <= 2  # of 100; of all 488 test images none


def test_what_is_missing_is_named(sets, tmp_path):
    settings = config(sets)
    settings.noted = ("freckles",)
    with pytest.raises(UserError, match="'freckles' is no reason"):
        run.run(settings, tmp_path)
    settings.noted = ()
    settings.training = ""
    with pytest.raises(UserError, match=r"config\.training"):
        run.run(settings, tmp_path)
    settings.training = str(sets / "nowhere")
    with pytest.raises(UserError, match="no such file"):
        run.run(settings, tmp_path)
    settings.training = str(sets / "made")
    with pytest.raises(
        UserError, match=r"config\.training .*made: holds synthetic images; give the manifest of the real"
    ):
        run.run(settings, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("size", "give"), [(224, "192 or 256"), (96, "64 or 128"), (288, "256 or 320"), (32, "64 or 128")]
)
def test_a_size_that_cannot_be_measured_is_one_line_with_those_that_can(size, give):
    settings = runpy.run_path(str(CONFIG))["get_config"]()
    settings.size = size
    with pytest.raises(UserError, match=rf"config\.size = {size}: .* are measured at a multiple of 64; give {give}$"):
        run.check(settings)


def test_an_unknown_variant_is_named():
    with pytest.raises(ValueError, match="no variant 'big'"):
        runpy.run_path(str(CONFIG))["get_config"]("big")


@pytest.mark.parametrize("which", ["training", "made"])
def test_a_file_replaced_after_its_manifest_was_written_is_refused(sets, tmp_path, which):
    shutil.copytree(sets / "training", tmp_path / "training"), shutil.copytree(sets / "made", tmp_path / "made")
    first = records.read(tmp_path / which).records[0]
    (tmp_path / which / first.image).write_bytes(images.encode_png(np.zeros((128, 128, 3), np.uint8)))
    with pytest.raises(UserError, match=re.escape(f"{first.image}: not the bytes that the manifest names")):
        curated(config(tmp_path), tmp_path / "curate")
    assert not (tmp_path / "curate" / records.FILE).exists()


@pytest.mark.parametrize("field", [{"generation": {"prompt": ["a"]}}, {"attributes": {"verdict": {"keep": True}}}])
def test_a_manifest_of_another_form_is_a_line_with_its_number(sets, tmp_path, field):
    shutil.copytree(sets / "training", tmp_path / "training"), shutil.copytree(sets / "made", tmp_path / "made")
    path = tmp_path / "made" / records.FILE
    text = path.read_text().splitlines()
    text[2] = json.dumps(json.loads(text[2]) | field)
    path.write_text("\n".join(text) + "\n")
    with pytest.raises(UserError, match=r"line 3: .*misshapen (generation\.prompt|attributes\.verdict)$"):
        curated(config(tmp_path), tmp_path / "curate")
    assert not list((tmp_path / "curate").iterdir())
