"""The stage on the shipped model: what it leaves, what stays as it was, the same again, and what it refuses."""

import json
import runpy
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dermjax import merge, run_folder
from dermjax.data import digests, images, records
from dermjax.data.leaks import training_images
from dermjax.data.phantoms.appearance import ARTEFACTS
from dermjax.data.phantoms.painting import phantom
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.parts import Part
from dermjax.sampling import provenance
from dermjax.transformation import run

CONFIG = Path(__file__).parents[2] / "configs" / "transform.py"
CLEAN = dict.fromkeys(ARTEFACTS, False)
DRAWN = SimpleNamespace(  # what makes the images of jobs that are only planned
    model=SimpleNamespace(tokens=lambda request: None, digests={"model": "0"}), size=128, bare=lambda job: job
)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A manifest of two phantoms to train on and one held out."""
    folder = tmp_path_factory.mktemp("photographs")
    found = []
    for seed, split in ((2, "train"), (5, "train"), (9, "test")):
        made = phantom(seed, 128, **CLEAN, number=1, size_name="medium")
        path = folder / f"{seed}.png"
        path.write_bytes(images.encode_png(made.image))
        found.append(
            Record(
                image=path.name,
                sha256=digests.sha256(path),
                label=made.label,
                split=split,
                source="test",
                image_manipulation="none",
                lesion_id=f"lesion{seed}",
                patient_id="p",
            )
        )
    records.write(folder / records.FILE, Manifest(labels=("benign", "malignant"), root=folder, records=tuple(found)))
    return folder


def config(photographs, **changed):
    settings = runpy.run_path(str(CONFIG))["get_config"]("demo")
    settings.images, settings.steps, settings.batch, settings.strengths = str(photographs), 4, 2, (0.5, 0.3)
    settings.transformations = ("larger", "dark skin")
    settings.update(changed)
    return settings


@pytest.fixture(scope="module")
def finished(photographs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("transform")
    (photographs / training_images.FILE).write_bytes(b"a line\n")
    run.run(config(photographs), folder)
    (photographs / training_images.FILE).unlink()
    return folder


def sources(photographs):
    """The training photographs by their digest."""
    return {record.sha256: record for record in records.read(photographs).split("train")}


def test_every_image_is_synthetic_for_training_and_tied_to_its_lesion(finished, photographs):
    made, known = records.read(finished).records, sources(photographs)
    ordered = sorted(known.values(), key=lambda record: (record.label, record.image))
    names = [f"{asked}/{each.label}/{each.sha256[:16]}" for each in ordered for asked in ("larger", "dark_skin")]
    assert [record.image for record in made] == [f"images/inpaint/{name}.png" for name in names]
    for record in made:
        assert record.synthetic and record.split == "train" and record.patient_id == "p"
        source = known[record.generation["transformation"]["of_sha256"]]
        assert record.lesion_id == source.lesion_id and Path(record.image).stem == source.sha256[:16]
        told = record.attributes["transformation"]
        assert {"before", "after", "met", "area_ratio", "attempts"} < told.keys()
        assert told["of"] == source.image, "the folder of the run knows whose it is"
        assert provenance.origin(finished / record.image) == record.generation
        assert source.image not in json.dumps(record.generation), "a file that gets around does not"
        mask = images.decode(finished / record.attributes["masks"]["lesions"])[..., 0] > 0
        assert mask.mean() == pytest.approx(told["after"]["area"], abs=1e-5)
    assert json.loads((finished / "transformations.json").read_text()) == [
        record.attributes["transformation"] for record in made
    ]


def test_outside_of_its_region_an_inpainted_image_is_the_source(finished, photographs):
    for record in records.read(finished).records:
        source = images.decode(photographs / record.attributes["transformation"]["of"])
        made = images.decode(finished / record.image)
        region = images.decode(finished / record.image.replace("images/", "regions/", 1))[..., 0] > 0
        assert (made[~region] == source[~region]).all() and (made[region] != source[region]).any()
        assert record.attributes["transformation"]["decibels_outside"] == 99.0


def test_what_the_generator_and_its_photographs_saw_is_handed_on(finished):
    assert (finished / training_images.FILE).read_bytes() == b"a line\n"


def test_most_is_reached_and_the_page_shows_it(finished):
    told = json.loads((finished / "transformations.json").read_text())
    assert sum(each["met"] for each in told) >= 3  # of 4, with four steps only
    page = (finished / "report.html").read_text()
    assert "larger, by inpaint" in page and "https://" not in page and "http://" not in page and "<script" not in page


def test_a_finished_folder_is_left_alone_and_a_killed_one_goes_on(finished, photographs, tmp_path, capsys, monkeypatch):
    run.run(config(photographs), finished)
    assert "nothing to do" in capsys.readouterr().out
    before = {path.name: path.read_bytes() for path in finished.glob("*.json*")}
    (finished / records.FILE).unlink()
    run.run(config(photographs), finished)
    assert {path.name: path.read_bytes() for path in finished.glob("*.json*")} == before


class Reached(Exception):
    """That a run went on to make images."""


def test_a_folder_that_another_model_was_killed_in_is_made_again(finished, photographs, tmp_path, monkeypatch, capsys):
    """It is finished by its manifest, while some images are the other model's."""
    shutil.copytree(finished, tmp_path / "run")

    def reached(*_):
        raise Reached

    monkeypatch.setattr(run.JobRenderer, "bare", reached)
    with monkeypatch.context() as other, pytest.raises(Reached):
        other.setattr(run, "NUMERIC_VERSION", run.NUMERIC_VERSION + 1)
        run.run(config(photographs), tmp_path / "run")
    with pytest.raises(Reached):
        run.run(config(photographs), tmp_path / "run")
    assert "manifest.jsonl is made again (begun again and not finished" in capsys.readouterr().out


@pytest.mark.parametrize(("large", "batch", "most"), [(False, 16, 4), (False, 3, 3), (True, 16, 1)])
def test_few_images_take_no_more_memory_than_they_need(photographs, tmp_path, monkeypatch, large, batch, most):
    """Two photographs and two changes; a CPU makes few images of a large model at a time."""
    asked = []

    def reached(model, size, batch, *_):
        asked.append((batch, model.grid.size))
        raise Reached

    monkeypatch.setattr(run, "JobRenderer", reached)
    monkeypatch.setattr("dermjax.sampling.model.sharding.is_large", lambda parameters: large)
    with pytest.raises(Reached):
        run.run(config(photographs, batch=batch, size=512), tmp_path)
    ((taken, devices),) = asked
    assert taken == min(most, -(-4 // devices))


def test_jobs_of_an_archive_hold_no_pixels_and_images_without_a_lesion_are_said(
    photographs, tmp_path, monkeypatch, capsys
):
    """Of 7,000 photographs and five changes at 512 px they would be 60 GB."""
    shutil.copytree(photographs, tmp_path / "photographs")
    manifest = records.read(tmp_path / "photographs")
    (tmp_path / "photographs" / "bare.png").write_bytes(images.encode_png(np.full((128, 128, 3), 200, np.uint8)))
    bare = replace(manifest.records[0], image="bare.png", lesion_id="b",
                   sha256=digests.sha256(tmp_path / "photographs" / "bare.png"))  # fmt: skip
    records.write(tmp_path / "photographs" / records.FILE, replace(manifest, records=(*manifest.records, bare)))
    asked = []

    def reached(self, jobs):
        asked.extend(jobs)
        raise Reached

    monkeypatch.setattr(run.JobRenderer, "make", reached)
    with pytest.raises(Reached):
        run.run(config(tmp_path / "photographs"), tmp_path / "run")
    assert len(asked) == 4 and "2 left out, such as bare.png: no lesion is seen" in capsys.readouterr().out
    for job in asked:
        held = (job.subject.pixels, job.subject.lesions.mask, job.subject.lesions.labels, job.sketch.image)
        assert not sum(each.size for each in (*held, job.sketch.region))


def test_a_folder_of_other_code_or_sources_is_made_again(finished, photographs, capsys, monkeypatch):
    def reached(*_):
        raise Reached

    monkeypatch.setattr(run, "JobRenderer", reached)
    now = run.NUMERIC_VERSION
    monkeypatch.setattr(run, "NUMERIC_VERSION", now + 1)
    with pytest.raises(Reached):
        run.run(config(photographs), finished)
    said = f"{finished / records.FILE} is made again (numeric_versions.transformations: {now} -> {now + 1})\n"
    assert capsys.readouterr().out == said
    monkeypatch.setattr(run, "NUMERIC_VERSION", now)
    with pytest.raises(Reached):
        run.run(config(photographs, images=str(photographs / "2.png"), label="benign"), finished)
    assert "; images: " in capsys.readouterr().out


def test_a_single_picture_needs_its_class(photographs, tmp_path):
    alone = config(photographs, images=str(photographs / "2.png"))
    with pytest.raises(UserError, match=r"config\.label: which class"):
        run.run(alone, tmp_path)


def test_a_picture_may_be_a_link(photographs, tmp_path):
    link = tmp_path / "link.png"
    link.symlink_to(photographs / "2.png")
    manifest = run._sources(str(link), "benign")
    (record,) = manifest.records
    assert manifest.path(record) == link.parent.resolve() / "link.png"


@pytest.mark.parametrize(
    "changed, told",
    [
        ({"transformations": ("bluer",)}, "config.transformations: 'bluer'; there are: larger, smaller, more"),
        ({"ways": ()}, "config.ways: empty"),
        ({"factor": 1.0}, "config.factor more than 1"),
        ({"strengths": (0.5, 0.0)}, "strength"),
        ({"images": ""}, "config.images is empty"),
        ({"guidance": 1.0, "negative_prompt": "hair"}, "config.negative_prompt does nothing at config.guidance = 1"),
        ({"ways": ("prompt",)}, "nothing can be done"),
    ],
)
def test_bad_input_is_one_line(photographs, tmp_path, changed, told):
    with pytest.raises(UserError) as raised:
        run.run(config(photographs, **changed), tmp_path)
    assert told in str(raised.value) and "\n" not in str(raised.value)


def test_a_skin_without_a_lesion_is_nothing_to_transform(tmp_path):
    plain = tmp_path / "plain.png"
    plain.write_bytes(images.encode_png(np.full((128, 128, 3), (205, 165, 145), np.uint8)))
    with pytest.raises(UserError, match="no lesion is seen"):
        run.run(config(plain, label="benign"), tmp_path / "out")


@pytest.mark.slow
def test_parts_are_the_undivided_run(finished, photographs, tmp_path):
    """A source each; seeds go by an image's place, so that one that is left out changes no other."""
    for index in range(2):
        settings, part = config(photographs), Part(2, index)
        settings.part = str(part)
        run_folder.claim(tmp_path / part.folder, settings.to_dict())
        run.run(settings, tmp_path / part.folder)
    merge.merge(str(tmp_path), any_versions=False)
    for name in (records.FILE, merge.CHANGES):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()
    images = sorted(path.relative_to(finished) for path in (finished / "images").rglob("*.png"))
    assert images and all((tmp_path / path).read_bytes() == (finished / path).read_bytes() for path in images)
    assert (tmp_path / Part(2, 0).folder / "report.html").is_file()


def test_images_of_one_name_in_two_folders_are_two(photographs, tmp_path):
    """Archives number their images anew in each folder; one would take the other's place."""
    manifest = records.read(photographs)
    (first,) = [each for each in manifest.records if each.image == "2.png"]
    alike = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "2.png").write_bytes((photographs / "2.png").read_bytes())
        alike.append(replace(first, image=f"{folder}/2.png"))
    (tmp_path / "b" / "2_1.png").write_bytes((photographs / "5.png").read_bytes())
    (other,) = [each for each in manifest.records if each.image == "5.png"]
    alike.append(replace(other, image="b/2_1.png", label=first.label))  # as the second of two named 2 may be called
    manifest = Manifest(labels=manifest.labels, root=tmp_path, records=tuple(alike))
    placed = run._jobs(config(tmp_path, ways=("inpaint",)), manifest, manifest.records, range(3), DRAWN)
    names = [job.request.image for job in placed.values()]
    assert len(names) == len(set(names)) == 6, names
    records.write(tmp_path / records.FILE, manifest)
    with pytest.raises(UserError, match=r"config.masks: 2 images are named 2, and masks go by name"):
        run.run(config(tmp_path, masks=str(tmp_path)), tmp_path / "run")


@pytest.mark.parametrize("label", ["../../../../out", "..", "in situ/invasive", "/tmp/x", ".hidden", ""])
def test_a_class_names_no_folder_outside(photographs, tmp_path, label):
    """A manifest may come from anyone."""
    (found,) = [each for each in records.read(photographs).records if each.image == "2.png"]
    manifest = Manifest(labels=(label, "other"), root=photographs, records=(replace(found, label=label),))
    placed = run._jobs(config(photographs, ways=("inpaint",)), manifest, manifest.records, range(1), DRAWN)
    for job in placed.values():
        assert ".." not in job.request.image.split("/") and len(job.request.image.split("/")) == 5
        assert not any(part.startswith(".") for part in job.request.image.split("/"))


@pytest.mark.parametrize("made", [{"seed": 2**32}, {"seed": -1}, {"steps": 0}, {"sampler": "Eular"}, {"guidance": 0.5}])
def test_a_record_that_no_sampler_could_have_made_is_left_out(photographs, made, capsys):
    manifest = records.read(photographs)
    known = {
        "prompt": "one medium mole",
        "negative_prompt": "",
        "seed": 1,
        "sampler": "Euler",
        "steps": 2,
        "guidance": 1,
        "model": "0",
        "size": 128,
    }
    chosen = [replace(manifest.records[0], generation=known | made), replace(manifest.records[1], generation=known)]
    placed = run._jobs(config(photographs, ways=("prompt",)), manifest, chosen, range(2), DRAWN)
    assert {job.subject.record.image for job in placed.values()} == {chosen[1].image}
    assert "2 left out, such as" in capsys.readouterr().out
