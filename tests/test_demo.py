"""The demo on its real config, with stages that only write down what they are given."""

import json
from pathlib import Path

import pytest

from dermjax import demo
from dermjax.__main__ import DEMO_CONFIG
from dermjax.config_file import load
from dermjax.data import records
from dermjax.errors import UserError

CLASSIFIERS = ["vit_real", "vit_hybrid", "mobilenetv2_real", "mobilenetv2_hybrid"]
ORDER = ["prepare", "tune", "generate", "curate", *CLASSIFIERS, "evaluate"]
MODULES = ("preparation", "tuning", "generation", "curation", "classification", "evaluation")


class Stages:
    """Stands for every stage: remembers the config of each folder, leaves what the demo reads, fails where told to."""

    def __init__(self, labels):
        self.labels, self.seen, self.failure = labels, {}, {}

    def run(self, config, workdir):
        self.seen[workdir.name] = config
        if workdir.name in self.failure:
            raise self.failure[workdir.name]
        if workdir.name == "prepare":
            records.write(workdir / "manifest.jsonl", records.Manifest(labels=self.labels, root=workdir, records=()))
        (workdir / "report.html").write_text(f"<html>{workdir.name}</html>")


@pytest.fixture
def stages(monkeypatch):
    fake = Stages(("benign", "malignant"))
    for module in MODULES:
        monkeypatch.setattr(getattr(demo, module), "run", fake.run)
    return fake


def test_the_stages_run_in_order_each_on_what_the_ones_before_left(stages, tmp_path, capsys):
    demo.run(load(str(DEMO_CONFIG)), tmp_path)
    assert list(stages.seen) == ORDER
    seen = {name: config.to_dict() for name, config in stages.seen.items()}
    prepared, generated, curated = (
        str(tmp_path / name / "manifest.jsonl") for name in ("prepare", "generate", "curate")
    )

    assert seen["prepare"]["images"] == "phantoms"
    assert seen["tune"]["manifest"] == prepared
    assert seen["generate"]["model"] == str(tmp_path / "tune" / "model")
    assert (seen["curate"]["manifest"], seen["curate"]["training"]) == (generated, prepared)
    for name in CLASSIFIERS:
        assert seen[name]["classifier"] == name.split("_")[0]
        assert seen[name]["manifest"] == prepared
        of_curated = {"real": ("judged", "synthetic"), "hybrid": ("synthetic", "judged")}[name.split("_")[1]]
        assert [seen[name][key] for key in of_curated] == [curated, ""]
    judged = seen["evaluate"]
    assert (judged["prepared"], judged["generated"], judged["curated"]) == (prepared, generated, curated)
    assert judged["tuning"] == str(tmp_path / "tune")
    assert judged["runs"] == {name: str(tmp_path / name) for name in CLASSIFIERS}

    assert (tmp_path / "report.html").read_text() == "<html>evaluate</html>"
    said = capsys.readouterr().out
    assert f"The report: {tmp_path / 'report.html'}" in said
    assert "not the medicine. For research use only." in said


def test_every_stage_has_a_claimed_folder_and_a_locked_config(stages, tmp_path):
    demo.run(load(str(DEMO_CONFIG)), tmp_path)
    for name, config in stages.seen.items():
        assert config.is_locked
        assert json.loads((tmp_path / name / "config.json").read_text()) == json.loads(json.dumps(config.to_dict()))
    assert stages.seen["tune"].prompts.is_locked


def test_what_is_asked_for_is_what_was_taught(stages, tmp_path):
    stages.labels = ("melanoma", "seborrheic_keratosis")
    config = load(str(DEMO_CONFIG))
    config.prompt = "photo of a {label}"
    demo.run(config, tmp_path)
    taught, asked = stages.seen["tune"].prompts, stages.seen["generate"].plan.prompts
    assert taught.to_dict() == {
        "melanoma": "photo of a melanoma",
        "seborrheic_keratosis": "photo of a seborrheic keratosis",
    }
    assert asked.to_dict() == {label: (prompt,) for label, prompt in taught.items()}


def test_a_stage_that_refuses_is_named_and_leaves_nothing(stages, tmp_path):
    stages.failure = {"prepare": UserError("folder pictures: no images")}
    with pytest.raises(UserError, match="prepare: folder pictures: no images"):
        demo.run(load(str(DEMO_CONFIG)), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_demo_goes_on_in_the_folders_that_it_made(stages, tmp_path):
    stages.failure = {"generate": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        demo.run(load(str(DEMO_CONFIG)), tmp_path)
    before = {path: path.read_text() for path in tmp_path.rglob("config.json")}
    assert {path.parent.name for path in before} == {"prepare", "tune", "generate"}
    stages.failure = {}
    demo.run(load(str(DEMO_CONFIG)), tmp_path)
    assert {path: path.read_text() for path in before} == before
    assert (tmp_path / "report.html").exists()


def test_a_demo_that_was_moved_goes_on(stages, tmp_path):
    demo.run(load(str(DEMO_CONFIG)), tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    demo.run(load(str(DEMO_CONFIG)), tmp_path / "there")
    assert stages.seen["tune"].manifest == str(tmp_path / "there" / "prepare" / "manifest.jsonl")
    assert json.loads((tmp_path / "there/tune/config.json").read_text())["manifest"] == stages.seen["tune"].manifest


def test_a_changed_demo_is_told_what_helps(stages, tmp_path):
    """A flag that allows it is for the folder of the demo, not for those of its stages."""
    config = load(str(DEMO_CONFIG))
    demo.run(config, tmp_path)
    config.prepare.limit = 40
    with pytest.raises(UserError, match=r"prepare is of another config \(limit: \d+ -> 40\); give another --workdir$"):
        demo.run(config, tmp_path)


@pytest.mark.parametrize(("prompt", "labels"), [("a mole", ("benign", "malignant")), ("a {label}", ("st.1", "st.2"))])
def test_classes_that_no_prompt_can_tell_apart_are_refused(stages, tmp_path, prompt, labels):
    stages.labels = labels
    config = load(str(DEMO_CONFIG))
    config.prompt = prompt
    with pytest.raises(UserError, match=r"put \{label\} in it|rename its folder"):
        demo.run(config, tmp_path)


def test_a_prompt_that_cannot_be_asked_for_is_said_before_anything_is_made(stages, tmp_path):
    config = load(str(DEMO_CONFIG))
    config.prompt = "photo of a {label} mole of {source}"
    with pytest.raises(UserError, match=r"config\.prompt = .*nothing fills \{source\}; there are \{label\}"):
        demo.run(config, tmp_path)
    assert not stages.seen


def test_photographs_have_a_variant_that_paints_no_phantoms():
    config = load(f"{DEMO_CONFIG}:photographs")
    assert config.prepare.images == ""
    assert "photographs" in config.evaluate.title
    with pytest.raises(UserError, match="has no variant 'paper'"):
        load(f"{DEMO_CONFIG}:paper")


def test_the_config_is_beside_the_package():
    assert Path(__file__).parents[1] / "configs" / "demo.py" == DEMO_CONFIG
