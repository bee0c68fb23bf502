"""`publish`: what was kept, in every form, with a card that counts what was not; refused where it would mislead."""

import io
import json
import os
import runpy
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dermjax.data import digests, export, images, records
from dermjax.data.leaks import training_images
from dermjax.data.phantoms.appearance import ARTEFACTS
from dermjax.data.phantoms.painting import phantom
from dermjax.data.records import Manifest, Record
from dermjax.evaluation.images import table
from dermjax.publication.card import _table as describe
from dermjax.publication.card import size_category
from dermjax.sampling import provenance
from dermjax.transformation import run as transform

PUBLISH = Path(__file__).parents[2] / "configs" / "publish.py"
LABELS = ("benign", "malignant")
TONES = ("dark", "pale", "tan")


@pytest.fixture
def curated(tmp_path):
    """Twelve curated synthetic images, three of them rejected, and the manifest of what they were learnt from."""
    found = []
    for n in range(12):
        pixels = np.random.default_rng(n).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        words = {"tone": TONES[n % 3]} | ({"size": "large"} if n == 7 else {})
        generation = {"synthetic": True, "prompt": f"a {LABELS[n % 2]} mole | {TONES[n % 3]}", "seed": n}
        generation |= {"sampler": ("Euler", "PLMS")[n % 4 // 2], "words": words}
        images.write_if_changed(tmp_path / "images" / f"{n}.png", said(pixels, generation))
        found.append(
            Record(
                image=f"images/{n}.png", sha256=digests.sha256(tmp_path / "images" / f"{n}.png"),
                label=LABELS[n % 2], split="train", source="dermjax", image_manipulation="synthetic",
                licence="research use only", generation=generation,
                scores={"training_copy": 60 + n, "sharpness": 0.1 * n},
                rejected={3: ("training_copy", "blur"), 4: ("blur",), 5: ("blur",)}.get(n, ()),
            )
        )  # fmt: skip
    put(tmp_path / "curate", tmp_path, found)
    real = [
        Record(image=f"{n}.png", sha256=photograph(tmp_path, n), label=LABELS[n % 2],
               split=("train", "test")[n > 7], source="isic", image_manipulation="none",
               licence=("CC-0", "CC-BY-NC")[n % 2] if n else "")
        for n in range(10)
    ]  # fmt: skip
    put(tmp_path / "prepare", tmp_path, real)
    return found


def digest_of(found):
    """As `evaluate` and evaluate.py:images say of which images their figures are."""
    return table.digest(record for record in found if record.kept)


def evaluate(folder, found):
    """The results of `evaluate` about some images, as far as they go on the card."""
    figure = {"value": 0.91234, "n": 9, "low": 0.8, "high": 0.97, "note": ""}
    other = {"value": 1.0, "n": 9, "low": None, "high": None, "note": "all agree"}
    own = {"value": 0.85, "n": 20, "low": 0.7, "high": 0.9, "note": ""}
    runs = {name: {"figures": {"balanced_accuracy": own, "accuracy": other}} for name in ("vit", "mob", "hybrid")}
    results = {"label_fidelity": {"vit": figure, "mob": other}, "runs": runs, "synthetic": digest_of(found)}
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))


def said(pixels, generation):
    """The PNG of an image that says of itself how it was made."""
    texts, file = PngInfo(), io.BytesIO()
    texts.add_itxt("dermjax", json.dumps(generation))
    Image.fromarray(pixels).save(file, "PNG", pnginfo=texts)
    return file.getvalue()


def pixels(n):
    """An image of blotches that no other number gives, nor a near one."""
    return np.random.default_rng(1000 + n).integers(0, 256, (8, 8, 3), np.uint8).repeat(16, 0).repeat(16, 1)


def photograph(folder, n):
    images.write_if_changed(folder / f"{n}.png", images.encode_png(pixels(n)))
    return digests.sha256(folder / f"{n}.png")


def put(folder, root, found):
    folder.mkdir(exist_ok=True)
    records.write(folder / records.FILE, Manifest(labels=LABELS, root=root, records=tuple(found)))
    if folder.name == "curate":
        evaluate(folder.parent / "evaluate", found)


@pytest.fixture
def publish(command, tmp_path, monkeypatch, curated):
    """A function that publishes `curate` into `out` with these keys of the config."""
    monkeypatch.chdir(tmp_path)

    def run(workdir="out", **config):
        asked = {"manifest": "curate", "training": "prepare", "evaluation": "evaluate", "name": "lesions: of nobody"}
        return command("publish", f"--config={PUBLISH}", f"--workdir={workdir}",
                       *(f"--config.{key}={value}" for key, value in (asked | config).items()))  # fmt: skip

    return run


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_markup_in_a_card_s_table_is_text():
    assert "| a \\| &lt;img src=x> | 3 |" in describe("prompt", ["n"], [("a |\n<img src=x>", 3)])
    assert describe("prompt", ["in situ | <b>\ninvasive"], []).startswith("| prompt | in situ \\| &lt;b> invasive |\n")


def test_no_patient_and_no_path_of_this_machine_is_published(publish, tmp_path, curated):
    """Images that `transform` made of photographs carry whose they are, until they are published."""
    own = {"lesion_id": "LESION-77", "patient_id": "PATIENT-88"}
    transformed = {"image": "images/PHOTOGRAPH-99.png", "of": "PHOTOGRAPH-99.jpg", "asked": "larger"}
    attributes = {"transformation": transformed, "masks": {"lesions": "masks/PHOTOGRAPH-99.png", "count": 1}}
    found = [replace(record, **own, attributes=attributes) for record in curated]
    put(tmp_path / "curate", tmp_path, found)
    code, _, error = publish(workdir=tmp_path / "deep" / "er" / "out")
    assert code == 0, error
    out = tmp_path / "deep" / "er" / "out"
    published = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != "config.json"}
    for path, content in published.items():
        for word in ("LESION-77", "PATIENT-88", "PHOTOGRAPH-99", str(tmp_path)):
            assert word.encode() not in content, (path, word)
    assert b"larger" in published[out / "manifest.jsonl"]
    again = records.read(out)
    assert again.path(again.records[0]).is_file() and not again.records[0].patient_id


def test_images_that_transform_made_name_no_photograph(publish, tmp_path):
    """Neither in the manifest nor in a table, nor in the name or the text of a file, whose bytes are published."""
    made = phantom(2, 128, **dict.fromkeys(ARTEFACTS, False), number=1, size_name="medium")
    images.write_if_changed(tmp_path / "archive/benign/SMITH_1961.png", images.encode_png(made.image))
    digest = digests.sha256(tmp_path / "archive/benign/SMITH_1961.png")
    photograph = Record(image="benign/SMITH_1961.png", sha256=digest, label="benign", split="train", source="archive",
                        image_manipulation="none", lesion_id="LESION-77", patient_id="PATIENT-88")  # fmt: skip
    put(tmp_path / "photographs", tmp_path / "archive", [photograph])
    settings = runpy.run_path(str(PUBLISH.with_name("transform.py")))["get_config"]("demo")
    settings.images, settings.steps, settings.size, settings.guidance = str(tmp_path / "photographs"), 2, 64, 1.0
    settings.transformations, settings.ways, settings.strengths = ("larger",), ("image_to_image",), (1.0,)
    transform.run(settings, tmp_path / "transform")
    found = [replace(each, scores={"training_copy": 60.0}) for each in records.read(tmp_path / "transform").records]
    assert found[0].patient_id == "PATIENT-88" and found[0].attributes["transformation"]["of"] == photograph.image
    put(tmp_path / "curate", tmp_path / "transform", found)
    code, _, error = publish()
    assert code == 0, error
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.name != "config.json"]
    for path in files:
        for word in ("SMITH", "LESION-77", "PATIENT-88", str(tmp_path)):
            assert word.encode() not in path.read_bytes() and word not in path.name, (path, word)
    (record,) = records.read(tmp_path / "out").records
    assert record.generation["transformation"]["of_sha256"] == digest, "an audit knows the photograph by its bytes"
    assert any(path.suffix == ".png" and provenance.origin(path) == record.generation for path in files)


OLD = {"transformation": {"asked": "larger", "way": "inpaint", "of": "benign/SMITH_1961.jpg", "of_sha256": "0" * 64}}


@pytest.mark.parametrize("kept", [True, False])
def test_images_that_name_their_photograph_are_not_published(publish, tmp_path, curated, kept):
    """As older versions wrote them: files of kept images are given out, and records of rejected ones as well."""
    with_image(curated, tmp_path, said(pixels(50), {"synthetic": True} | (OLD if kept else {})))
    if not kept:
        put(tmp_path / "curate", tmp_path, [*curated[1:5], replace(curated[5], generation=OLD)])
    code, _, error = publish()
    number = 0 if kept else 5
    assert code == 2 and f"images/{number}.png names the photograph that it was transformed from" in error, error
    assert error.count("\n") == 1 and "transform again in another --workdir" in error
    assert not (tmp_path / "out").exists()


def test_every_form_has_what_was_kept_and_the_card(publish, tmp_path, curated):
    code, said, error = publish()
    assert code == 0, error
    assert "9 images as imagefolder, webdataset, array_record" in said
    kept = [record for record in curated if record.kept]
    table = (tmp_path / "out/imagefolder/train/metadata.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in table]
    assert [row["sha256"] for row in rows] == [record.sha256 for record in kept]
    assert all(row["image_manipulation"] == "synthetic" for row in rows)
    card = (tmp_path / "out/README.md").read_text()
    samples = np.asarray(Image.open(tmp_path / "out/samples.png"))
    assert "synthetic](samples.png)\n\n## Composition" in card and samples.shape == (2 * 176, 5 * 176, 3)
    for form in export.FORMS:  # where a loader would take the picture for one of the set
        within = (tmp_path / "out" / form / "README.md").read_text()
        assert within == card.replace(card[card.index("![") : card.index("## Composition")], "")
        assert not (tmp_path / "out" / form / "samples.png").exists()
        assert json.loads((tmp_path / "out" / form / "croissant.json").read_text())["name"] == "lesions: of nobody"
    again = records.read(tmp_path / "out")
    licence = runpy.run_path(str(PUBLISH))["get_config"]().licence
    assert again.records == tuple(replace(record, licence=licence) for record in curated)
    assert again.path(again.records[0]).is_file()


def test_every_form_has_the_licence_of_the_card(publish, tmp_path, curated):
    """Beside that of the photograph which an image was transformed from."""
    curated[0] = replace(curated[0], licence="CC-BY-NC")
    put(tmp_path / "curate", tmp_path, curated)
    assert publish(licence="CC0-1.0")[0] == 0
    both = "CC0-1.0; of its photograph: CC-BY-NC"
    assert "Licence of this data set: CC0-1.0." in (tmp_path / "out/README.md").read_text()
    rows = (tmp_path / "out/imagefolder/train/metadata.jsonl").read_text().splitlines()
    assert [json.loads(row)["licence"] for row in rows] == [both] + ["CC0-1.0"] * 8
    for form in export.FORMS:
        assert json.loads((tmp_path / "out" / form / "croissant.json").read_text())["license"] == ["CC0-1.0", both]
    told = json.loads((tmp_path / "out/array_record/dataset_info.json").read_text())
    assert told["redistributionInfo"]["license"] == f"CC0-1.0; {both}"


def test_the_card_counts(publish, tmp_path):
    assert publish(contact="someone")[0] == 0
    card = (tmp_path / "out/README.md").read_text()
    for told in (
        "**SYNTHETIC: 9 of 9 images were made by a model.",
        "| images | benign | malignant | all |\n|---|---:|---:|---:|\n| published | 5 | 4 | 9 |",
        "| tone: pale | 1 | 2 | 3 |",
        "| size: large | 0 | 1 | 1 |\n| tone: dark",
        "| a benign mole \\| dark | 2 | 0 | 2 |",
        "3 of 12 images were rejected",
        "| reason | benign | malignant | all |\n|---|---:|---:|---:|\n| blur | 1 | 2 | 3 |\n",
        "| training_copy | 0 | 1 | 1 |",
        "| vit | 0.912 | 9 | 0.800 to 0.970 | 0.850 | 20 | 0.700 to 0.900 |",
        "| mob | 1.000 | 9 | all agree | 0.850 | 20 | 0.700 to 0.900 |",
        "1 of 12 images were rejected as copies of one of the 8 training images.",
        "the nearest is 60 from a training image, the median 67 ",
        "| sharpness | 9 | 0 | 0.04 | 0.7 | 1.06 | 1.1 |",
        "| isic: CC-BY-NC | 0 | 4 | 4 |\n| isic: CC-0 | 3 | 0 | 3 |\n| isic: licence not stated | 1 | 0 | 1 |",
        "Contact: someone",
    ):
        assert told in card, f"{told}\n{card}"
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["pretty_name"] == "lesions: of nobody" and head["size_categories"] == ["n<1K"]
    assert "synthetic" in head["tags"] and head["license"] == "other"
    assert head["license_name"] == "research-use-only-the-licences-of-the-sources-below-hold-as-well"


def test_the_size_is_one_that_hubs_know():
    below = {1: "n<1K", 1_000: "1K<n<10K", 99_999: "10K<n<100K", 100_000: "100K<n<1M", 10**7: "10M<n<100M"}
    assert {count: size_category(count) for count in below} == below


def test_without_an_evaluation_the_card_says_so(publish, tmp_path):
    assert publish(evaluation="")[0] == 0
    assert "Whether images show their label has not been measured" in (tmp_path / "out/README.md").read_text()


def test_an_evaluation_of_other_images_does_not_stand_on_the_card(publish, tmp_path, curated):
    evaluate(tmp_path / "evaluate", curated[:-1])
    code, _, error = publish()
    assert code == 2 and "config.evaluation evaluate: not of the images that are published" in error
    assert not (tmp_path / "out").exists()


def test_nobody_who_reviewed_an_image_is_published(publish, tmp_path, curated):
    verdict = {"keep": True, "by": "Dr. REVIEWER", "why": "as in SMITH's case", "overrules": ["blur"]}
    attributes = {"verdict": verdict, "linked_as": "SMITH/1.png"}
    put(tmp_path / "curate", tmp_path, [replace(record, attributes=attributes) for record in curated])
    assert publish()[0] == 0
    for path in (path for path in (tmp_path / "out").rglob("*") if path.is_file()):
        assert b"REVIEWER" not in path.read_bytes() and b"SMITH" not in path.read_bytes(), path
    known = records.read(tmp_path / "out").records[0].attributes
    assert known == {"verdict": {"keep": True, "by": "", "why": "", "overrules": ["blur"]}}


def test_an_inpainted_image_is_not_said_to_show_nobody(publish, tmp_path, curated):
    generation = curated[0].generation | {"init_image": "a" * 64, "init_mask": "b" * 64}
    put(tmp_path / "curate", tmp_path, [replace(curated[0], generation=generation), *curated[1:]])
    assert publish()[0] == 0
    card = (tmp_path / "out/README.md").read_text()
    assert "\n1 of them were inpainted: outside of what was painted they show the image" in card
    for form in export.FORMS:
        assert b"show no patient" not in (tmp_path / "out" / form / "croissant.json").read_bytes()
    assert "show no patient" not in card


def test_the_card_is_utf_8_whatever_the_names_are(publish, tmp_path):
    """Of a file system of before: the same command goes on with what it has written."""
    assert publish(contact="Jos\udce9")[0] == 0
    for path in ("README.md", "imagefolder/README.md"):
        assert b"Contact: Jos" + b"\xe9" in (tmp_path / "out" / path).read_bytes()
    code, _, error = publish(contact="Jos\udce9")
    assert code == 0, error


def evidence(curated, **changes):
    """The results of evaluate.py:images, as far as they go on the card."""
    figure = {"value": 0.25, "n": 9, "low": 0.2, "high": 0.3, "note": ""}
    names = ("frechet", "kid", "precision", "recall", "coverage")
    own = {"name": "mine", "synthetic": digest_of(curated), "version": table.NUMERIC_VERSION}
    return {
        "line": own | changes,
        "fidelity": {"all classes": {"reference": 20, **dict.fromkeys(("synthetic", "ceiling"), dict.fromkeys(
            names, figure))}},
        "ms_ssim": {"benign": {"synthetic": figure, "training": None}},
        "copies": {"share": figure, "beyond": figure, "limit": {"found": 8, "known": 9}},
        "use": {
            "label_fidelity": figure, "accuracy_on_real": figure | {"value": 0.75},
            "auroc_on_test": dict.fromkeys(("training", "synthetic", "training + synthetic"), figure),
            "auroc_masked": dict.fromkeys(("hidden", "alone"), dict.fromkeys(("training", "synthetic"), figure)),
        },
        "shortcuts": {"synthetic": {"auroc": figure | {"low": 0.9}}},
        "membership": {"all classes": {"auroc": figure, "found": {"0.01": figure}}},
    }  # fmt: skip


def test_the_evidence_of_these_images_stands_on_the_card(publish, tmp_path, curated):
    (tmp_path / "evidence").mkdir()
    path = tmp_path / "evidence" / "results.json"
    path.write_text(json.dumps(evidence(curated[:4])))
    code, _, error = publish(evidence="evidence")
    assert code == 2 and "config.evidence evidence: not of the images that are published" in error
    path.write_text(json.dumps(evidence(curated, version=1)))
    code, _, error = publish(evidence="evidence")
    assert code == 2 and "not of the images that are published, or of an older version" in error
    path.write_text(json.dumps(evidence(curated)))
    code, _, error = publish(evaluation="evidence")
    assert code == 2 and "config.evaluation evidence: of evaluate.py:images; give it as config.evidence" in error
    assert publish(evidence="evidence")[0] == 0
    card = (tmp_path / "out/README.md").read_text()
    for told in (
        "## Evidence\n\n- Fréchet distance 0.250 (0.200 to 0.300) to 20 held-out real images",
        "\n- Shortcut: hairs, rulers, corners, ink and gel alone tell the label of synthetic images",
        "| figure | these images | real images in their place |",
        "| label fidelity | 0.250 (0.200 to 0.300) | 0.750 (0.200 to 0.300) |",
        "| copies of training images | 0.250 (0.200 to 0.300) | – |",
        '    {"name": "mine", "synthetic": "',
    ):
        assert told in card, f"{told}\n{card}"


def test_killed_and_run_twice_it_ends_the_same(publish, tmp_path):
    class Killed(BaseException):
        """What stops a process at once."""

    def write(manifest, folder, form, *more, real=export.write):
        if form == "webdataset":
            raise Killed
        real(manifest, folder, form, *more)

    with mock.patch.object(export, "write", write), pytest.raises(Killed):
        publish(forms="('imagefolder','webdataset')")
    assert (tmp_path / "out/imagefolder").exists() and not (tmp_path / "out/README.md").exists()
    assert publish(forms="('imagefolder','webdataset')")[0] == 0
    first = contents(tmp_path / "out")
    assert publish(forms="('imagefolder','webdataset')")[0] == 0
    assert contents(tmp_path / "out") == first
    os.rename(tmp_path / "out", tmp_path / "before")
    assert publish(forms="('imagefolder','webdataset')")[0] == 0
    assert contents(tmp_path / "out") == first


@pytest.mark.filterwarnings("ignore::DeprecationWarning:rdflib", "ignore::DeprecationWarning:mlcroissant")
@pytest.mark.parametrize("form", export.FORMS)
def test_croissant_is_valid(publish, tmp_path, curated, form):
    mlcroissant = pytest.importorskip("mlcroissant")
    assert publish(forms=f"('{form}',)")[0] == 0
    data = mlcroissant.Dataset(jsonld=tmp_path / "out" / form / "croissant.json")
    assert not data.metadata.ctx.issues.errors
    assert "SYNTHETIC: 9 of 9" in data.metadata.description
    read = [row["train/sha256"].decode() for row in data.records("train")]
    assert read == [record.sha256 for record in curated if record.kept]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"manifest": ""}, "config.manifest: no manifest; give one"),
        ({"training": ""}, "config.training: no manifest; give one"),
        ({"manifest": "prepare"}, "manifest prepare: 10 photographs in it; `publish` is for images that a model made"),
        (
            {"training": "curate"},
            "config.training curate: holds synthetic images; give the manifest of the photographs",
        ),
        ({"training": "tested"}, "config.training tested: has no training image; give the manifest of the photographs"),
        ({"manifest": "raw"}, "manifest raw: not compared with the training images; publish what `curate` left"),
        ({"manifest": "none"}, "manifest none: curation kept no image"),
        ({"evaluation": "curate"}, "config.evaluation curate: no results.json; give the workdir of `evaluate`"),
        ({"evidence": "curate"}, "config.evidence curate: no results.json; give the workdir of evaluate.py:images"),
        ({"forms": "('zip',)"}, "config.forms: ['zip']; give some of imagefolder, webdataset, array_record"),
        ({"forms": "()"}, "config.forms: none; give some of imagefolder"),
    ],
)
def test_refused(publish, tmp_path, curated, config, told):
    put(tmp_path / "raw", tmp_path, [replace(record, scores={}) for record in curated])
    put(tmp_path / "none", tmp_path, [replace(record, rejected=("blur",)) for record in curated])
    put(tmp_path / "tested", tmp_path, records.read(tmp_path / "prepare").split("test"))
    code, _, error = publish(**config)
    assert code == 2 and told in error and error.count("\n") == 1, error
    assert not (tmp_path / "out").exists()


def test_another_data_set_is_not_mixed_in(publish, tmp_path, curated):
    assert publish(forms="('imagefolder',)")[0] == 0
    put(tmp_path / "curate", tmp_path, curated[:8])
    code, _, error = publish(forms="('imagefolder',)")
    assert code == 2 and "another data set was published here" in error


def test_no_room_is_told_before_anything_is_written(publish, tmp_path):
    from dermjax import machine

    with mock.patch.object(machine.shutil, "disk_usage", lambda folder: mock.Mock(free=1000)):
        code, _, error = publish()
    assert code == 2 and "9 images in 3 forms need up to" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_changed_image_is_not_published(publish, tmp_path, curated):
    (tmp_path / curated[0].image).write_bytes(b"changed")
    code, _, error = publish(forms="('imagefolder',)")
    assert code == 2 and "not the bytes that the manifest names" in error
    assert not (tmp_path / "out").exists()


def with_image(curated, tmp_path, content):
    """The curated records, the first with another file of its own digest."""
    (tmp_path / curated[0].image).write_bytes(content)
    changed = [replace(curated[0], sha256=digests.sha256(tmp_path / curated[0].image)), *curated[1:]]
    put(tmp_path / "curate", tmp_path, changed)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (lambda: images.encode_png(pixels(50)), "images/0.png does not say of itself that a model made it"),
        (lambda: said(pixels(50), {"synthetic": False}), "images/0.png does not say of itself"),
        (lambda: said(pixels(50), ["synthetic"]), "images/0.png does not say of itself"),
        (lambda: said(pixels(1), {"synthetic": True}), "nearly equal to the training photograph 1.png"),
        (lambda: said(np.rot90(pixels(9))[:, ::-1], {"synthetic": True}), "nearly equal to the training photograph 9"),
        (lambda: said(pixels(1)[4:124, 4:124], {"synthetic": True}), "nearly equal to the training photograph 1.png"),
    ],
    ids=["silent", "says no", "says nonsense", "training photograph", "test photograph, mirrored", "cropped"],
)
def test_a_photograph_whose_manifest_says_synthetic_is_not_published(publish, tmp_path, curated, content, told):
    with_image(curated, tmp_path, content())
    code, _, error = publish()
    assert code == 2 and told in error and error.count("\n") == 1, error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("copied", "code"), [(60, 2), (61, 0)])
def test_a_photograph_that_the_generator_saw_is_found_whatever_manifest_is_given(
    publish, tmp_path, curated, copied, code
):
    """What `curate` left beside its manifest says what the generator was tuned on."""
    photograph(tmp_path, 60)
    (first, *_) = records.read(tmp_path / "prepare").records
    seen = replace(first, image="60.png", sha256=digests.sha256(tmp_path / "60.png"))
    manifest = Manifest(labels=LABELS, root=tmp_path, records=(seen, first))
    training_images.write(tmp_path / "curate", [(manifest, record) for record in manifest.records], [])
    with_image(curated, tmp_path, said(np.rot90(pixels(copied)), {"synthetic": True}))
    found, _, error = publish(forms="('imagefolder',)")
    assert found == code, error
    assert ("nearly equal to the training photograph 60.png (one of 1 such pairs)" in error) == (code == 2)


def test_another_image_that_says_so_is_published(publish, tmp_path, curated):
    with_image(curated, tmp_path, said(pixels(50), {"synthetic": True}))
    assert publish(forms="('imagefolder',)")[0] == 0


@pytest.mark.parametrize("content", ["{", "[]", 100_000 * "[", "{}", '{"runs": 3, "label_fidelity": {"vit real": {}}}',
                                     '{"line": 5, "runs": []}'])  # fmt: skip
def test_results_of_another_kind_are_one_line(publish, tmp_path, content):
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "results.json").write_text(content)
    for key in ("evaluation", "evidence"):
        code, _, error = publish(**{key: "odd"})
        assert code == 2 and "odd" in error and error.count("\n") == 1, error
    assert not (tmp_path / "out").exists()
