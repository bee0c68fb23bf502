"""Each fold tunes a generator of its own on its own training split, once, and one host at a time."""

import hashlib
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from dermjax import demo
from dermjax.data import records
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.sampling import model
from dermjax.study import generator
from dermjax.study.cells import claimed

CONFIG = Path(__file__).parents[2] / "configs" / "study.py"
LABELS = ("benign", "malignant")
MADE = {"numeric_versions": model.NUMERIC_VERSIONS}


def write(folder, manipulation, generation):
    """A manifest with an image a class and split."""
    splits = ("train", "validation", "test") if manipulation == "none" else ("train",)
    found = tuple(
        Record(image=f"{label}-{split}.png", sha256=hashlib.sha256(f"{label}{split}".encode()).hexdigest(), label=label,
               split=split, source="x", image_manipulation=manipulation, generation=generation)
        for label in LABELS for split in splits
    )  # fmt: skip
    records.write(folder / records.FILE, Manifest(labels=LABELS, root=folder, records=found))


@pytest.fixture
def stages(monkeypatch):
    """Every stage replaced by one that notes what it was asked and leaves the smallest thing of its kind."""
    asked = []

    def fake(name, leaves):
        def run(config, folder):
            asked.append((name, config))
            leaves(folder)

        return run

    leaves = {
        "preparation": lambda folder: write(folder, "none", {}),
        "tuning": lambda folder: None,
        "generation": lambda folder: write(folder, "synthetic", MADE),
        "curation": lambda folder: write(folder, "synthetic", MADE),
    }
    for name, leave in leaves.items():
        monkeypatch.setattr(getattr(demo, name), "run", fake(name, leave))
    return asked


def settings(**changed):
    config = runpy.run_path(str(CONFIG))["get_config"]("folds")
    config.prepare.images = "photographs"
    config.update(changed)
    return config.lock()


def test_every_fold_is_prepared_tuned_and_curated_on_its_own(stages, tmp_path):
    config = settings()
    for fold in range(2):
        real = generator.prepare(config, tmp_path, fold)
        synthetic = generator.synthesise(config, tmp_path / f"fold{fold}", real)
        assert len(records.read(real).records) == 6 and all(record.synthetic for record in synthetic.records)
        assert [name for name, _ in stages[4 * fold :]] == ["preparation", "tuning", "generation", "curation"]
        prepare, tune, generate, curate = (asked for _, asked in stages[4 * fold :])
        assert (prepare.folds, prepare.fold) == (5, fold)
        prepared = str(tmp_path / f"fold{fold}" / "prepare" / records.FILE)
        assert tune.manifest == curate.training == prepared
        assert tune.prompts.malignant == "dermoscopy of a malignant mole"
        assert generate.model == str(tmp_path / f"fold{fold}" / "tune" / "model")
    generator.synthesise(config, tmp_path / "fold1", generator.prepare(config, tmp_path, 1))
    assert [name for name, _ in stages[8:]] == ["preparation"]  # it says itself that it is done


def test_a_fold_of_images_of_other_code_is_asked_of_its_stages_again(stages, tmp_path):
    config = settings()
    real = generator.prepare(config, tmp_path, 0)
    generator.synthesise(config, tmp_path / "fold0", real)
    asked = len(stages)
    write(tmp_path / "fold0" / "curate", "synthetic", {"prompt": "before images said their code"})
    generator.synthesise(config, tmp_path / "fold0", real)
    assert [name for name, _ in stages[asked:]] == ["tuning", "generation", "curation"]
    generator.synthesise(config, tmp_path / "fold0", real)
    assert len(stages) == asked + 3


@pytest.mark.parametrize(
    ("option", "value", "ran", "told"),
    [
        ("tune.steps", 7, [], r"tune is of another config \(steps: 400 -> 7\)"),
        ("generate.plan.steps", 7, ["tuning"], r"generate is of another config \(plan.steps: \d+ -> 7\)"),
        ("curate.sample", 7, ["tuning", "generation"], r"curate is of another config \(sample: \d+ -> 7\)"),
        ("prompt", "photo of a {label} mole", [], r"tune is of another config \(prompts.benign: "),
    ],
)
def test_other_options_of_a_finished_generator_are_refused(stages, tmp_path, option, value, ran, told):
    """They were taken into the study's config, and its images stayed those of the options before."""
    real = generator.prepare(settings(), tmp_path, 0)
    generator.synthesise(settings(), tmp_path / "fold0", real)
    asked = len(stages)
    changed = ConfigDict(settings().to_dict())
    changed.update_from_flattened_dict({option: value})
    with pytest.raises(UserError, match=told) as error:
        generator.synthesise(changed.lock(), tmp_path / "fold0", real)
    assert "\n" not in str(error.value) and [name for name, _ in stages[asked:]] == ran
    asked = len(stages)
    generator.synthesise(settings(), tmp_path / "fold0", real)
    assert len(stages) == asked, "as it was, it is done"


def test_a_generator_that_saw_other_images_is_not_taken_for_that_of_these(stages, tmp_path):
    config, prepared = settings(), records.read(generator.prepare(settings(), tmp_path, 0))
    folder = tmp_path / "fold0" / "2_seed0"
    path = generator.few_shot(folder, prepared)
    path = generator.few_shot(folder, prepared)  # nothing has been tuned on them yet, or on the same
    generator.synthesise(config, folder, path)
    before = path.read_bytes()
    fewer = replace(prepared, records=prepared.records[1:])
    with pytest.raises(UserError, match="its generator saw other real images than the study has now"):
        generator.few_shot(folder, fewer)
    assert path.read_bytes() == before
    assert generator.few_shot(folder, prepared) == path
    records.write(path, fewer)
    with pytest.raises(UserError, match="saw other real images"):
        generator.synthesise(config, folder, path)


def test_a_finished_folder_of_an_older_version_is_asked_once(stages, tmp_path):
    """Its stages say whether they are of these options; and a folder may be moved."""
    config, folder = settings(), tmp_path / "fold0"
    real = generator.prepare(config, tmp_path, 0)
    generator.synthesise(config, folder, real)
    for name in ("made_of.json", "causes.json"):
        (folder / name).unlink()
    asked = len(stages)
    for _ in range(2):
        generator.synthesise(config, folder, real)
    assert [name for name, _ in stages[asked:]] == ["tuning", "generation", "curation"]
    (tmp_path / "moved").mkdir()
    folder = folder.rename(tmp_path / "moved" / "fold0")
    generator.synthesise(config, folder, folder / "prepare" / records.FILE)
    assert len(stages) == asked + 3


def test_another_host_that_makes_a_fold_is_not_disturbed(stages, tmp_path):
    config = settings()
    prepared = tmp_path / "fold0" / "prepare"
    prepared.mkdir(parents=True)
    write(prepared, "none", {})
    with claimed(tmp_path / "fold0"), pytest.raises(UserError, match="is being made by another host"):
        generator.synthesise(config, tmp_path / "fold0", prepared / records.FILE)


@pytest.mark.parametrize("begins", ["noise", "photographs"])
def test_images_begin_at_noise_or_at_what_the_generator_saw(stages, tmp_path, begins):
    config = settings(generator_begins=begins)
    real = generator.prepare(config, tmp_path, 0)
    generator.synthesise(config, tmp_path / "fold0", real)
    asked = dict(stages)
    assert asked["generation"].init.images == (str(real) if begins == "photographs" else "")
    assert asked["tuning"].manifest == str(real)


def test_what_is_missing_is_said(stages, tmp_path):
    with pytest.raises(UserError, match="no real images"):
        generator.prepare(settings(prepare={"images": ""}), tmp_path, 0)
    with pytest.raises(UserError, match="has one split"):
        generator.prepare(settings(manifest="somewhere"), tmp_path, 0)
