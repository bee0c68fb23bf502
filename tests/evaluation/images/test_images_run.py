"""`evaluate`, variant images, from two manifests to a page; planted faults are named, bad input is one line."""

import json
import re
import runpy
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dermjax.curation import run as curation
from dermjax.data import digests, images, records
from dermjax.data.imaging import artefacts, skin_tone
from dermjax.data.phantoms.painting import PAINTERS, phantom
from dermjax.data.records import Manifest, Record
from dermjax.errors import UserError
from dermjax.evaluation import run as stage
from dermjax.evaluation.images import adherence, memorisation, report
from dermjax.evaluation.intervals import CONSTANT
from dermjax.models import classifier, clip_text
from dermjax.preparation import run as preparation
from dermjax.weights import classifiers

CONFIG = Path(__file__).parents[3] / "configs" / "evaluate.py"
LABELS = ("benign", "malignant")
SPLITS = ("train",) * 6 + ("validation", "test", "test", "test")
NONE = dict.fromkeys((*PAINTERS, "blur"), False)


def write(folder, pictures, *, synthetic=False):
    """A manifest of (name, label, split, image), with scores as `curate` leaves them: they are measured once.

    Synthetic ones were asked for as one mole each.
    """
    found = []
    (folder / "images").mkdir(parents=True)
    for name, label, split, pixels in pictures:
        path = folder / "images" / f"{name}.png"
        path.write_bytes(images.encode_png(pixels))
        scores = artefacts.measure(images.load(path, skin_tone.SIDE))
        found.append(
            Record(image=f"images/{name}.png", sha256=digests.sha256(path), label=label, split=split, source="test",
                   image_manipulation="synthetic" if synthetic else "none",
                   scores=scores, generation={"prompt": "dermoscopy of one mole, tan skin"} if synthetic else {})
        )  # fmt: skip
    manifest = Manifest(labels=LABELS, root=folder, records=tuple(found))
    if synthetic:
        found = [replace(record, scores=record.scores | seen)
                 for record, seen in zip(found, adherence.measure(manifest, found), strict=True)]  # fmt: skip
    records.write(folder / "manifest.jsonl", replace(manifest, records=tuple(found)))
    return folder


def drawn(count, first, splits, *, size=96, **of_malignant):
    """Phantoms in turns of both classes, malignant ones with artefacts of their own."""
    for number in range(count):
        label = LABELS[number % 2]
        given = NONE | (of_malignant if label == "malignant" else {})
        pixels = phantom(first + number, size, **given, colour=("golden", "black")[number % 2]).image
        yield f"{first + number}", label, splits[number // 2 % len(splits)], pixels


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Real phantoms, synthetic ones with ink around malignant ones alone and ten copies, and a small network."""
    root = tmp_path_factory.mktemp("evidence")
    real = list(drawn(160, 70_000_000, SPLITS))
    made = list(drawn(56, 71_000_000, ("train",), pen_ring=True))
    made += drawn(4, 71_500_000, ("train",), size=128, pen_ring=True)  # sizes may differ
    train = [each for each in real if each[2] == "train"]
    # of another size too
    copies = [
        (f"copy{i}", label, "train", pixels[:, ::-1].repeat(2, 0).repeat(2, 1))
        for i, (_, label, _, pixels) in enumerate(train[:10])
    ]
    write(root / "real", real)
    write(root / "synthetic", made + copies, synthetic=True)
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    kind = classifier.fresh(classifier.describe("vit", small | {"patch_size": 32}, LABELS, 224), np.float32)
    classifiers.write(root / "network", kind, *kind.init(0))
    return root


def config(root):
    found = runpy.run_path(str(CONFIG))["get_config"]("images")
    found.update(real=str(root / "real"), synthetic=str(root / "synthetic"), features=str(root / "network"))
    found.bootstrap.resamples = 200
    return found


@pytest.fixture(scope="module")
def results(folders):
    stage.run(config(folders), folders / "run")
    return json.loads((folders / "run" / "results.json").read_text())


def test_every_part_has_its_figures_and_real_images_beside_them(results):
    assert set(results["fidelity"]) == {"all classes", *LABELS}
    every = results["fidelity"]["all classes"]
    assert every["reference"] == 64 and every["synthetic"]["recall"]["n"] == 64
    assert every["synthetic"]["precision"]["n"] == every["ceiling"]["precision"]["n"] == 70
    assert every["synthetic"]["vendi"]["value"] > 1
    assert results["use"]["label_fidelity"]["n"] == 70 and 0 <= results["use"]["label_fidelity"]["value"] <= 1
    assert results["use"]["auroc_on_test"]["training"]["value"] > 0.7  # golden from black
    assert results["line"]["n"] == 70 and len(results["line"]["extractor"]) == 16
    assert results["line"]["features"] == 32  # a ViT's are those of its class token
    assert set(results["use"]["auroc_masked"]) == {"with the lesion hidden", "with the lesion alone"}
    assert results["ms_ssim"]["benign"]["synthetic"]["n"] == 17 and results["ms_ssim"]["benign"]["training"]["n"] == 24
    number, tone = (results["adherence"][key] for key in ("number", "tone"))
    assert number["words"]["one"]["n"] == tone["words"]["tan"]["n"] == number["right"]["n"] == 70
    assert number["right"]["value"] > tone["right"]["value"]  # tones were drawn by chance
    assert not results["adherence"]["size"]["words"]


@pytest.mark.slow
def test_a_folder_that_another_program_made_is_judged(folders, tmp_path, capsys):
    """Class folders of files without a word in them, by way of `prepare` and of `curate`."""
    for record in records.read(folders / "synthetic").records[:40]:
        path = tmp_path / "made" / record.label / Path(record.image).name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folders / "synthetic" / record.image, path)
    for name, run, changed in (
        ("prepare", preparation.run, {"images": str(tmp_path / "made"), "synthetic": True, "attributes": False}),
        ("curate", curation.run, {"manifest": str(tmp_path / "prepare"), "training": str(folders / "real")}),
    ):
        settings = runpy.run_path(str(CONFIG.with_name(f"{name}.py")))["get_config"]()
        settings.update(changed)
        (tmp_path / name).mkdir()
        run(settings, tmp_path / name)
    curated = records.read(tmp_path / "curate")
    assert len(curated.records) == 40 and all(
        each.synthetic and "training_copy" in each.scores for each in curated.records
    )
    settings = config(folders)
    settings.synthetic = str(tmp_path / "prepare")
    stage.run(settings, tmp_path / "evidence")
    assert json.loads((tmp_path / "evidence" / "results.json").read_text())["line"]["n"] == 40


def test_two_sets_stand_side_by_side_and_in_one_table(folders, results):
    """60 of the images beside all of them, as a manifest, and all beside the workdir of these 60, each at 60."""
    table = folders / "tables" / "table.jsonl"
    made = records.read(folders / "synthetic")
    (folders / "fewer").mkdir()
    records.write(folders / "fewer" / "manifest.jsonl", replace(made, records=made.records[:60]))
    settings = config(folders)
    settings.update(synthetic=str(folders / "fewer"), table=str(table), name="fewer", compare=str(folders / "run"))
    with pytest.raises(UserError, match="its figures are of 70 images, of which this set has 60 in the shares"):
        stage.run(settings, folders / "fewer_run")
    settings.compare = str(folders / "synthetic/manifest.jsonl")
    whole = config(folders)
    whole.update(table=str(table), name="run", compare=str(folders / "fewer_run"))
    for each, workdir, of, beside in ((settings, "fewer_run", 60, "synthetic"), (whole, "whole_run", 70, "fewer")):
        stage.run(each, folders / workdir)
        page = (folders / workdir / "report.html").read_text()
        assert f"<h2>Beside {beside}</h2>" in page and "60 images" in page and "70 images" in page
        assert ("<h3>DermGenBench</h3>" in page) == (beside == "fewer")
        row = page.partition("<h2>Beside")[2].partition("<th>Vendi score</th>")[2].partition("</tr>")[0]
        assert row.count("(of 60 images)") == 2
        lines = [json.loads(line) for line in table.read_text().splitlines()]
        own = json.loads((folders / workdir / "results.json").read_text())["line"]
        assert lines[-1] == own and (own["name"], own["n"], own["n_compared"]) == (each.name, of, 60)
        if beside == "synthetic":
            assert lines == [own]
            rows = (own, results["line"] | {"name": "of 70"}, results["line"])
            table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [line["name"] for line in lines] == ["fewer", "of 70", "run"]  # its older line is gone
    rows = [row for row in page.partition("<h3>DermGenBench</h3>")[2].split("<tr>") if row.startswith("<th>")]
    assert ["another n" in row for row in rows[1:]] == [False, True, False]
    row = page.partition("<th>copies of training images</th>")[2].partition("</tr>")[0]
    assert row.count("<td>") == 2

    other = folders / "other"
    other.mkdir()
    for content, message in (
        (results | {"line": results["line"] | {"extractor": "0"}}, "measured by another network or version, or on"),
        (results | {"line": results["line"] | {"real": "0"}}, "measured by another network or version, or on other"),
        (results | {"line": results["line"] | {"version": 1}}, "measured by another network or version, or on other"),
        (results | {"line": {key: each for key, each in results["line"].items() if key != "version"}}, "as it is now"),
        ({"runs": {}}, "not of evaluate.py:images as it is now"),
    ):
        (other / "results.json").write_text(json.dumps(content))
        settings.compare = str(other)
        with pytest.raises(UserError, match=message):
            stage.run(settings, folders / "fewer_run")


def test_what_the_probe_remembers_is_said_where_images_begin_at_its_own(results):
    assert results["use"]["begun_at_training_images"] == 0
    assert "begin at a training image" not in str(report.sentences(results))
    begun = results | {"use": results["use"] | {"begun_at_training_images": 7}}
    assert "7 synthetic images begin at a training image that this probe has learnt" in str(report.sentences(begun))
    older = {name: value for name, value in results["use"].items() if name != "begun_at_training_images"}
    assert report.sentences(results | {"use": older}) == report.sentences(results)


def test_planted_copies_are_the_nearest_pairs(results):
    nearest = [pair["synthetic"] for pair in results["copies"]["pairs"][:10]]
    assert (
        sum("copy" in name for name in nearest) >= 9
    )  # to a network that has learnt nothing two rings of ink are alike
    # a network that has learnt nothing does not know an altered image again, and says so
    assert results["copies"]["share"]["low"] is None and "it cannot tell" in results["copies"]["share"]["note"]


def test_a_planted_shortcut_is_named(folders, results, capsys):
    found = results["shortcuts"]
    assert found["synthetic"]["auroc"]["value"] > 0.9 and report.tells(found["synthetic"]["auroc"])
    assert not report.tells(found["training"]["auroc"])
    assert found["synthetic"]["rates"]["ink"]["malignant"][0] > 20
    stage.run(config(folders), folders / "run")
    said = capsys.readouterr().out
    assert "Shortcut: hairs, rulers, corners, ink and gel alone tell the label of synthetic images" in said
    assert said.count("features: 0/") == 1  # of altered images; the others are kept


@pytest.mark.parametrize(
    ("value", "low", "note", "named"),
    [(1.0, None, CONSTANT, True), (0.8, 0.7, "", True), (0.6, 0.45, "", False), (0.9, None, "too few lesions", False)],
)
def test_a_perfect_shortcut_is_one_without_an_interval_too(value, low, note, named):
    assert report.tells({"value": value, "n": 60, "low": low, "high": None, "note": note}) == named


def test_the_page_loads_nothing_and_marks_what_is_synthetic(folders, results):
    page = (folders / "run" / "report.html").read_text()
    assert "default-src 'none'" in page and "research only" in page.lower()
    assert "http" not in page.replace("http-equiv", "") and "prefers-color-scheme: dark" in page
    assert page.count('class="pair"') == 12


def test_the_page_says_what_its_intervals_drew_and_what_authentic_is_measured_against(folders, results):
    page = (folders / "run" / "report.html").read_text()
    drawn = "over what their own images are of, images of the synthetic ones and images of the training images"
    assert f"bootstrap over images of the real test images; label fidelity and the AUROC of artefacts {drawn}" in page
    row = page.partition("<th>authentic<")[2].partition("</tr>")[0]
    assert "<small>of held-out images</small>" in row and page.count("<small>of held-out images</small>") == 3


def test_tones_are_by_measured_angles_and_sets_without_any_have_no_row(results):
    assert results["tones"].keys() == {"synthetic"} and sum(results["tones"]["synthetic"].values()) == 70
    given = {"training": [{"ita": 50.0}, {}], "validation": [{}], "synthetic": [{"ita": 20.0}, {"ita": 80.0}, {}]}
    chosen = {
        name: [
            replace(record, attributes={"skin_tone": angle} if name == "training" else {},
                    scores=angle if name == "synthetic" else {})
            for record, angle in zip(named("train", len(angles)), angles, strict=True)
        ]
        for name, angles in given.items()
    }  # fmt: skip
    found = stage.images.tones(SimpleNamespace(records=chosen))
    assert found == {"training": {"light": 1, "unknown": 1}, "synthetic": {"tan": 1, "unknown": 2}}


def test_the_same_classes_in_another_order_are_those_of_the_real_images(folders, tmp_path, monkeypatch):
    made = records.read(folders / "synthetic")
    records.write(tmp_path / "manifest.jsonl", replace(made, labels=LABELS[::-1]))
    monkeypatch.setattr(stage.images, "select", lambda real, synthetic, key: pytest.fail(str(synthetic.labels)))
    settings = config(folders)
    settings.synthetic = str(tmp_path)
    with pytest.raises(pytest.fail.Exception, match=re.escape(str(LABELS))):
        stage.run(settings, tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: {"features": ""}, "config.features: no network"),
        (lambda root: {"synthetic": ""}, "config.synthetic: no manifest"),
        (lambda root: {"synthetic": str(root / "real")}, "no kept synthetic image"),
        (lambda root: {"features": str(root / "nowhere")}, "nowhere/config.json"),
        (lambda root: {"tokens": "patches"}, "config.tokens = 'patches': give one of class, all"),
        (lambda root: {"compare": str(root / "nowhere")}, "nowhere"),
        (lambda root: {"compare": str(root / "names")}, "config.compare: classes .* are not the real ones"),
        (lambda root: {"table": str(root / "one" / "manifest.jsonl")}, "config.table .*: line 1 is not one of"),
        (lambda root: {"synthetic": str(root / "few")}, "2 real training and synthetic images: figures of whole sets"),
        (lambda root: {"real": str(root / "novalidation")}, "the validation images have none of the class benign"),
        (lambda root: {"synthetic": str(root / "names")}, "classes .* are not the real ones"),
        (lambda root: {"synthetic": str(root / "one")}, "the synthetic images have none of the class malignant"),
        (lambda root: {"synthetic": str(root / "same")}, "is the real image images/70000000.png, and 0 others"),
    ],
)
def test_bad_input_is_one_line(folders, tmp_path, change, message):
    made = records.read(folders / "synthetic")
    for name, few in {"one": made.records[:1], "few": made.records[:2], "names": made.records}.items():
        labels = ("mole", *LABELS) if name == "names" else LABELS
        (tmp_path / name).mkdir()
        records.write(tmp_path / name / "manifest.jsonl", replace(made, labels=labels, records=few))
    real = records.read(folders / "real")
    (tmp_path / "novalidation").mkdir()
    few = tuple(record for record in real.records if record.split != "validation")
    records.write(tmp_path / "novalidation" / "manifest.jsonl", replace(real, records=few))
    same = [replace(real.records[0], image_manipulation="synthetic")]
    others = [replace(each, image_manipulation="synthetic", split="train", sha256=f"{at:064x}")
              for at, each in enumerate(real.records[1:4])]  # fmt: skip
    (tmp_path / "same").mkdir()
    records.write(tmp_path / "same" / "manifest.jsonl", replace(real, records=(*same, *others)))
    settings = config(folders)
    asked = change(tmp_path)
    if asked.get("synthetic", "").endswith("real"):
        asked = change(folders)
    settings.update(asked)
    with pytest.raises(UserError, match=message):
        stage.run(settings, tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_model_is_asked_what_it_gives_away(folders, tmp_path, capsys):
    settings = config(folders)
    settings.update(model="derm-tiny", size=64, draws=2, prompt="dermoscopy of a {label} mole")
    stage.run(settings, tmp_path / "run")
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    # it has seen none of them: chance
    assert (
        found["membership"]["all classes"]["auroc"]["low"] < 0.5 < found["membership"]["all classes"]["auroc"]["high"]
    )
    assert found["line"]["membership_auroc"] == round(found["membership"]["all classes"]["auroc"]["value"], 4)
    assert "Whoever has the model" in capsys.readouterr().out
    settings.size = 65
    with pytest.raises(UserError, match=r"config\.size = 65 is not a multiple of \d+"):
        stage.run(settings, tmp_path / "other")
    assert not (tmp_path / "other").exists(), "it is said before a feature is computed"
    with pytest.raises(UserError, match=r"config\.prompt: '' is no prompt of benign"):
        stage.images.prompts_of("", tmp_path / "model", LABELS)
    (tmp_path / "config.json").write_text(json.dumps({"prompts": dict.fromkeys(LABELS, "a {label} mole")}))
    assert stage.images.prompts_of("", tmp_path / "model", LABELS)["malignant"] == "a malignant mole"


@pytest.fixture
def attacked(monkeypatch, tmp_path):
    """A function that attacks a model of records, and returns of how many images a loss was computed."""
    asked = []
    model = SimpleNamespace(size=64, factor=8, dtype=np.float32)
    monkeypatch.setattr(stage.images.model_files, "read", lambda path: (model, {}))
    monkeypatch.setattr(stage.images.model_files, "digest", lambda path: "0")
    monkeypatch.setattr(memorisation, "RESAMPLES", 10)
    monkeypatch.setattr(
        memorisation, "losses", lambda *given: asked.extend(given[3]) or np.arange(len(given[3]), dtype=float)
    )

    def attack(chosen):
        asked.clear()
        manifest = Manifest(labels=LABELS, root=tmp_path, records=())
        sets = stage.images.Sets(manifest, manifest, chosen, {}, None)
        settings = SimpleNamespace(size=0, draws=2, seed=0)
        stage.images.membership_of(sets, tmp_path / "model", {label: f"a {label} mole" for label in LABELS}, settings,
                                   tmp_path / "kept")  # fmt: skip
        return len(asked)

    return attack


def named(split, count):
    return [Record(image=f"{split}{at}", sha256=digests.of_text(f"{split}{at}") * 4, label=LABELS[at % 2], split=split,
                   source="test", image_manipulation="none") for at in range(count)]  # fmt: skip


def test_losses_are_kept_by_the_prompt_of_each_image_and_the_code_of_every_network(attacked, monkeypatch, capsys):
    chosen = {"training": named("train", 6), "test": named("test", 4)}
    assert attacked(chosen) == 10 and attacked(chosen) == 0
    other = [replace(record, label=LABELS[1 - LABELS.index(record.label)]) for record in chosen["test"]]
    assert attacked(chosen | {"test": other}) == 4, "the same images with another prompt each"
    for module in (images, clip_text):
        monkeypatch.setattr(module, "NUMERIC_VERSION", module.NUMERIC_VERSION + 1)
        assert attacked(chosen) == 10


def test_a_model_that_cannot_be_attacked_is_refused(monkeypatch):
    chosen = {"training": named("train", 6), "test": named("test", 4)}
    seen = [SimpleNamespace(record=record) for record in (*chosen["training"], *chosen["test"][2:])]
    configs = {"unet": {"in_channels": 4}, "vae": {"latent_channels": 4}}
    monkeypatch.setattr(stage.images.training_images, "read", lambda folder: seen)
    monkeypatch.setattr(stage.images.model_files, "describe", lambda path: SimpleNamespace(configs=configs, factor=8))
    with pytest.raises(UserError, match=r"config\.model m: it has seen 2 test images of config\.real, test2 first"):
        stage.images.check_model(Path("m"), 0, chosen)
    del seen[6:]
    stage.images.check_model(Path("m"), 64, chosen)
    configs["unet"]["in_channels"] = 9
    with pytest.raises(UserError, match=r"config\.model m: paints into pictures"):
        stage.images.check_model(Path("m"), 0, chosen)


@pytest.mark.parametrize(
    ("low", "note", "plain"),
    [(0.9, "", 1.0), (None, CONSTANT, 1.0), (None, "no interval: benign has 9 images, fewer than 10", None)],
)
def test_a_perfect_figure_stands_in_the_line(low, note, plain):
    assert stage.images._plain({"value": 1.0, "n": 60, "low": low, "high": low and 1.0, "note": note}) == plain


def test_features_that_are_no_numbers_are_one_line(folders, tmp_path):
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    kind = classifier.fresh(classifier.describe("vit", small | {"patch_size": 32}, LABELS, 224), np.float32)
    params, variables = kind.init(0)
    params["vit"]["layernorm"]["scale"] = np.full_like(params["vit"]["layernorm"]["scale"], 3e38)
    classifiers.write(tmp_path / "network", kind, params, variables)
    settings = config(folders)
    settings.features = str(tmp_path / "network")
    with pytest.raises(UserError, match="features are not finite"):
        stage.run(settings, tmp_path / "run")
