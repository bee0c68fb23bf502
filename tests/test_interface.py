"""The Python interface: what `import dermjax` costs, and that its functions do what the commands do."""

import inspect
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dermjax
from dermjax import config_file
from dermjax.data import records
from dermjax.data.leaks import training_images
from dermjax.sampling import provenance
from dermjax.sampling.pipeline import Pipeline
from dermjax.sampling.requests import Request

CONFIGS = Path(__file__).parents[1] / "configs"
PROMPT = "dermoscopy of a malignant mole"
FEW = {"sampler": "Euler a", "steps": 2, "guidance": 4.0, "batch": 2}


@pytest.fixture(scope="module")
def pipe():
    return dermjax.load("derm-tiny", precision="float32")


@pytest.fixture(scope="module")
def images(pipe):
    return pipe(PROMPT, negative_prompt="hair", seeds=(5, 6), **FEW)


def test_importing_is_quick_and_without_jax():
    timed = (
        "import sys, time; began = time.perf_counter(); import dermjax; "
        "print(min(time.perf_counter() - began, 9), *sorted({'jax', 'numpy', 'absl'} & set(sys.modules)))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", timed], check=True, capture_output=True, text=True).stdout.split()
        for _ in range(3)
    ]
    assert min(float(seconds) for seconds, *_ in runs) < 0.2 and all(not heavy for _, *heavy in runs)


def test_every_name_is_documented():
    assert set(dermjax.__all__) == {"UserError", "load", "load_classifier", "read_manifest", "samplers", "tune"}
    assert all(inspect.getdoc(getattr(dermjax, name)) for name in dermjax.__all__)
    assert "Euler a" in dermjax.samplers()


def test_images_are_those_of_the_command(images, command, tmp_path):
    plan = {"samplers": "('Euler a',)", "steps": 2, "guidance": 4.0, "batch": 2, "images_per_class": 2, "seed": 5}
    config = tmp_path / "generate.py"
    config.write_text(f"""import runpy
def get_config():
    config = runpy.run_path({str(CONFIGS / "generate.py")!r})["get_config"]()
    with config.unlocked():
        config.plan.prompts = {{"lesion": ({PROMPT!r},)}}
    config.model, config.precision, config.plan.negative_prompt = "derm-tiny", "float32", "hair"
    return config
""")
    flags = [f"--config.plan.{key}={value}" for key, value in plan.items()]
    code, _, error = command("generate", f"--config={config}", f"--workdir={tmp_path / 'run'}", *flags)
    assert code == 0, error
    made = records.read(tmp_path / "run").records
    assert len(made) == len(images) == 2
    for record, image in zip(made, images, strict=True):
        with Image.open(tmp_path / "run" / record.image) as theirs:
            np.testing.assert_array_equal(np.asarray(image), np.asarray(theirs))
            assert image.info == theirs.text and "Synthetic: true (research use only)" in image.info["parameters"]
    dermjax.load("derm-tiny").save(images, tmp_path / "saved")
    for record, other in zip(records.read(tmp_path / "saved").records, made, strict=True):
        assert (record.sha256, record.generation, record.label) == (other.sha256, other.generation, other.label)


def test_images_are_saved_behind_those_that_are_there(images, pipe, tmp_path):
    first, second = pipe.save(images, tmp_path), pipe.save(images[:1], tmp_path, label="nevus")
    third = pipe.save(images[1:], tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in (*first, *second, *third)] == [
        "images/lesion/00000.png", "images/lesion/00001.png", "images/nevus/00000.png", "images/lesion/00002.png",
    ]  # fmt: skip
    manifest = dermjax.read_manifest(tmp_path)
    assert manifest.labels == ("lesion", "nevus") and all(record.synthetic for record in manifest.records)
    assert provenance.origin(third[0])["seed"] == 6
    for label in ("melanoma", "nevus"):
        pipe.save(images[:1], tmp_path / "classes", label=label)
    assert dermjax.read_manifest(tmp_path / "classes").labels == ("nevus", "melanoma"), "malignant ones last"
    with pytest.raises(dermjax.UserError, match="image 0: does not say how it was made"):
        pipe.save([Image.new("RGB", (8, 8))], tmp_path)


def test_images_of_another_mode_are_saved_in_their_colours(images, pipe, tmp_path):
    (path,) = pipe.save(images[0].quantize(256), tmp_path)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), np.asarray(images[0].quantize(256).convert("RGB")))


def test_what_the_model_and_its_lora_saw_is_saved_with_images(images, pipe, tmp_path):
    for name in ("tune", "lora"):
        (tmp_path / name).mkdir()
        (tmp_path / name / training_images.FILE).write_bytes(f"seen by {name}\n".encode())
    for sources in ((tmp_path / "tune" / "model",), (tmp_path / "lora" / "lora.safetensors",), ()):
        Pipeline(replace(pipe.model, sources=sources)).save(images[0], tmp_path / "saved")
    assert (tmp_path / "saved" / training_images.FILE).read_bytes() == b"seen by tune\nseen by lora\n"


def test_a_saved_image_is_never_written_over(images, pipe, tmp_path):
    """Lines of a manifest may be removed, and images may lie in a folder that has none."""
    first = pipe.save([*images, images[0]], tmp_path)
    manifest = tmp_path / records.FILE
    header, *lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join([header, *lines[1:]]))
    kept = [path.read_bytes() for path in first]
    (fourth,) = pipe.save(images[1], tmp_path)
    assert fourth.name == "00003.png" and [path.read_bytes() for path in first] == kept
    manifest.unlink()
    (fifth,) = pipe.save(images[1], tmp_path)
    assert fifth.name == "00004.png" and [path.read_bytes() for path in first] == kept


@pytest.mark.parametrize(
    ("folder", "made", "told"),
    [
        ("saved", (), "no image to save; give at least one"),
        ("saved", None, "image 0: does not say how it was made"),
        ("saved", (0, None), "image 1: does not say how it was made"),
        ("file", (0,), "is a file; give a folder"),
        ("", (0,), "folder None: is no path; give one"),
        ("s3://bucket/saved", (0,), "folder s3://bucket/saved: lies in a bucket; give a path of this machine"),
    ],
)
def test_what_cannot_be_saved_is_one_line_and_leaves_nothing(images, pipe, tmp_path, folder, made, told, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    made = made and [images[each] if each is not None else Image.new("RGB", (8, 8)) for each in made]
    with pytest.raises(dermjax.UserError, match=told) as raised:
        pipe.save(made, folder if "://" in folder else tmp_path / folder if folder else None)
    assert "\n" not in str(raised.value) and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_every_prompt_meets_every_seed_and_images_are_taken_further(pipe, images, tmp_path):
    images[0].save(tmp_path / "start.png")
    by_file = pipe([PROMPT, "a mole"], image=tmp_path / "start.png", strength=0.5, seeds=range(2), **FEW)
    in_memory = pipe([PROMPT, "a mole"], image=np.asarray(images[0]), strength=0.5, seeds=range(2), **FEW)
    origins = [provenance.json.loads(image.info["dermjax"]) for image in by_file]
    assert [(each["prompt"], each["seed"]) for each in origins] == [
        (PROMPT, 0),
        (PROMPT, 1),
        ("a mole", 0),
        ("a mole", 1),
    ]
    assert all(each["strength"] == 0.5 and each["init_image"] for each in origins)
    for ours, theirs in zip(by_file, in_memory, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    mask = Image.new("L", images[0].size)
    mask.paste(255, (0, 0, 64, 128))
    (painted,) = pipe(PROMPT, image=images[0], mask=mask, **FEW)
    assert painted.size == images[0].size and "Mask hash" in painted.info["parameters"]


def test_a_manifest_is_a_table(images, pipe, tmp_path, monkeypatch):
    pipe.save(images, tmp_path)
    manifest = dermjax.read_manifest(tmp_path)
    table = manifest.to_pandas()
    assert list(table["generation.seed"]) == [5, 6] and all(Path(path).is_file() for path in table["path"])
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(dermjax.UserError, match=r"needs pandas; pip install pandas$"):
        manifest.to_pandas()


def test_a_classifier_says_the_same_of_files_and_of_what_is_in_memory(tmp_path):
    from dermjax.classification.predictions import predict
    from dermjax.models.classifier import describe, fresh
    from dermjax.weights import classifiers

    settings = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    classifier = fresh(describe("vit", settings | {"patch_size": 8}, ("benign", "malignant"), 32), np.float32)
    classifiers.write(tmp_path / "vit", classifier, *classifier.init(0))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 48, 3), np.uint8)
    (tmp_path / "images").mkdir()
    paths = [tmp_path / "images" / f"{n}.png" for n in range(3)]
    for path, each in zip(paths, pixels, strict=True):
        Image.fromarray(each).save(path)
    clf = dermjax.load_classifier(tmp_path / "vit")
    labels, probabilities = clf.predict(paths, batch=2)
    assert clf.labels == ("benign", "malignant") and probabilities.shape == (3, 2)
    assert probabilities.sum(-1) == pytest.approx(1) and labels == [clf.labels[n] for n in probabilities.argmax(-1)]
    for others in (pixels, list(pixels), [Image.fromarray(each) for each in pixels], [str(path) for path in paths]):
        np.testing.assert_array_equal(clf.predict(others, batch=2).probabilities, probabilities)
    listed = sorted((tmp_path / "images").glob("*.png"))
    for others in (iter(listed), np.array([str(path) for path in paths]), {path: 1 for path in paths}):
        np.testing.assert_array_equal(clf.predict(others, batch=2).probabilities, probabilities)
    for nothing, batch in (((), 2), (iter(()), 2), (paths, 0)):
        with pytest.raises(dermjax.UserError, match="no image to classify; give at least one, and a batch of 1"):
            clf.predict(nothing, batch=batch)
    with pytest.raises(dermjax.UserError, match=r"^image: floating-point pixels of unknown range; save as 8 or 16"):
        clf.predict(np.zeros((8, 8), np.float32))
    for empty in (np.zeros((0, 0, 3), np.uint8), Image.new("L", (0, 8))):
        with pytest.raises(dermjax.UserError, match=r"^image: an image without a pixel; give another"):
            clf.predict(empty)
    with pytest.raises(dermjax.UserError, match=r"^image: an array of float64 \(\); give a path"):
        clf.predict(np.zeros(()))
    np.testing.assert_allclose(clf.predict(pixels[1]).probabilities, probabilities[1:2], atol=1e-6)
    predict(str(tmp_path / "images"), str(tmp_path / "vit"), str(tmp_path / "said.csv"), 2)
    rows = [line.split(",") for line in (tmp_path / "said.csv").read_text().splitlines()[1:]]
    np.testing.assert_allclose([[float(p) for p in row[2:]] for row in rows], probabilities, atol=1e-6)


def test_tuning_is_the_stage_with_its_config(tmp_path, monkeypatch):
    from dermjax.tuning import run

    configs = []
    monkeypatch.setattr(run, "run", lambda config, workdir: configs.append(config))
    made = dermjax.tune("runs/prepare", "derm-tiny", tmp_path / "run", preset="tiny", steps=7,
                        lora={"rank": 2}, prompts={"nevus": "a nevus"})  # fmt: skip
    expected = runpy.run_path(str(CONFIGS / "tune.py"))["get_config"]("tiny").to_dict()
    expected |= {"manifest": "runs/prepare", "model": "derm-tiny", "steps": 7, "prompts": {"nevus": "a nevus"}}
    expected["lora"] |= {"rank": 2}
    assert configs[0].to_dict() == expected and made == tmp_path / "run" / "model"
    assert (tmp_path / "run" / "config.json").is_file() and config_file.PRESETS == CONFIGS


@pytest.mark.parametrize(("call", "message"), [
    (lambda: dermjax.load("nowhere"), "model nowhere: no model_index.json"),
    (lambda: dermjax.load("derm-tiny", precision="half"), "precision = 'half' is unknown"),
    (lambda: dermjax.load("derm-tiny", lora_weight=float("nan")), "lora_weight = nan: give a finite number"),
    (lambda: dermjax.load("derm-tiny", lora_weight="much"), "lora_weight = 'much': give a number"),
    (lambda: dermjax.load("derm-tiny", long_prompts="cut"), "long_prompts = 'cut': give refuse or chunk"),
    (lambda: dermjax.load_classifier("nowhere"), "classifier nowhere: no model.safetensors"),
    (lambda: dermjax.read_manifest("nowhere"), "manifest nowhere: no such file"),
    (lambda: dermjax.tune("a", "b", "c", preset="huge"), "no variant 'huge'"),
    (lambda: dermjax.tune("a", "b", "c", stepps=3), "unknown config key config.stepps; there are: accumulate, batch"),
    (lambda: dermjax.tune("a", "b", "c", lora={"rank": "x"}), "config.lora.rank = 'x': give a value like"),
    (lambda: dermjax.tune("a", "b", "c", lora={"rank": None}), "config.lora.rank = None: give a value like"),
    (lambda: dermjax.tune("a", "b", "c", steps=None), "config.steps = None: give a value like"),
    (lambda: dermjax.tune("a", "b", "c", steps=True), "config.steps = True: give a value like"),
    (lambda: dermjax.tune("a", "b", "c", lora=None), "config.lora = None: give keys and values like {"),
    (lambda: dermjax.tune("a", "b", "c", lora=5), "config.lora = 5: give keys and values like {"),
    (lambda: dermjax.tune("a", "b", "c", prompts=None), "config.prompts = None: give keys and values like {"),
    (lambda: dermjax.tune("a", "b", ""), "workdir '': is no path; give one"),
    (lambda: dermjax.tune("a", "b", None), "workdir None: is no path; give one"),
    (lambda: dermjax.load_classifier(None), "classifier None: is no path; give one"),
    (lambda: dermjax.read_manifest(None), "manifest None: is no path; give one"),
    (lambda: dermjax.tune("a", "b", "s3://bucket/run"), "workdir s3://bucket/run: lies in a bucket; give a path"),
])  # fmt: skip
def test_what_cannot_be_is_one_line(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(dermjax.UserError) as raised:
        call()
    assert message in str(raised.value) and "\n" not in str(raised.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("options", "message"), [
    ({"sampler": "Eular"}, "sampler 'Eular' is not known; did you mean one of: Euler"),
    ({"steps": 0}, "steps = 0: a sampler takes at least 1 step"),
    ({"size": 30}, "size = 30: this model makes multiples of"),
    ({"seeds": -1}, "seed -1: give 0 to"),
    ({"seeds": ()}, "nothing to make"),
    ({"seeds": 1.5}, "seed = 1.5: give a whole number"),
    ({"seeds": ["7"]}, "seed = '7': give a whole number"),
    ({"seeds": None}, "seed = None: give a whole number"),
    ({"seeds": np.array([3, -2])}, "seed -2: give 0 to"),
    ({"steps": "20"}, "steps = '20': give a whole number"),
    ({"size": 128.0}, "size = 128.0: give a whole number"),
    ({"batch": 0}, "nothing to make"),
    ({"guidance": 1, "negative_prompt": "hair"}, "negative_prompt does nothing at guidance = 1; give more, or leave"),
    ({"sampler": "DDIM eta -0.4"}, "give an eta from 0, no fresh noise, to 1"),
    ({"guidance": "high"}, "guidance = 'high': give a number"),
    ({"guidance": float("nan")}, "guidance = nan: give a finite number"),
    ({"strength": float("nan")}, "strength = nan: give a finite number"),
    ({"negative_prompt": None}, "prompt None: give text"),
    ({"sampler": None}, "sampler 'None' is not known"),
    ({"image": Image.new("F", (8, 8))}, "floating-point pixels of unknown range"),
    ({"image": np.zeros((8, 8), np.complex64)}, "an array of complex64 (8, 8); give a path, a PIL image, or an array"),
    ({"mask": Image.new("L", (8, 8))}, "mask: needs an image to paint into"),
])  # fmt: skip
def test_options_of_a_call_that_cannot_be(pipe, options, message):
    with pytest.raises(dermjax.UserError) as raised:
        pipe(PROMPT, **options)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_the_example_of_readme(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    exec(readme.split("```python\n")[1].split("```")[0], {})
    assert "2 synthetic images" in capsys.readouterr().out
    assert len(list((tmp_path / "synthetic").rglob("*.png"))) == 2


def test_seeds_and_steps_of_numpy_are_those_of_python(pipe):
    (one,) = pipe(np.str_(PROMPT), **FEW | {"steps": np.int64(2), "guidance": np.float32(4)}, seeds=np.uint32(5))
    (other,) = pipe([PROMPT], **FEW, seeds=np.arange(5, 6))
    assert one.info == other.info
    np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("prompt", [float("nan"), None, ["a mole", 3]])
def test_a_prompt_that_is_no_text(pipe, prompt):
    with pytest.raises(dermjax.UserError, match=r"^prompt .*: give text$"):
        pipe(prompt, **FEW)


@pytest.mark.parametrize(("prompt", "message"), [
    ("a mole <lora:moles:0.8>", "<lora:moles:0.8> would load nothing; give the file as config.lora"),
    ("a photo of <mole>", "the model has no word <mole>; give its file as config.embeddings"),
    ("a mole BREAK brown", "with config.long_prompts = chunk alone; give that (long_prompts= in Python)"),
    ("mole " * 10_000, "10002 tokens with start and end, the text encoder takes 40; shorten it"),
    ("a \udce9 mole", "is no text in UTF-8"),
])  # fmt: skip
def test_what_other_programs_read_in_prompts_is_not_read_as_words(pipe, prompt, message):
    with pytest.raises(dermjax.UserError) as raised:
        pipe(prompt, **FEW)
    assert message in str(raised.value) and "\n" not in str(raised.value) and len(str(raised.value)) < 600


def test_long_prompts_are_divided_as_asked():
    chunked = dermjax.load("derm-tiny", lora_weight="0.8", long_prompts="chunk").model
    asked = Request(image="", label="", prompt="a mole BREAK brown", negative="", seed=0, sampler="Euler", steps=1,
                    guidance=1)  # fmt: skip
    assert chunked.tokens(asked).shape == (1, 80)


def test_weights_in_a_prompt_are_said_to_be_words(pipe, capsys):
    pipe("a (brown:1.3) mole, (tan), macro (1:1) photo \N{MICROSCOPE}", **FEW)
    said = capsys.readouterr().out
    assert "weights such as (brown:1.3) are not known here and are read as words" in said


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "RGBA", "P", "L", "1", "I;16"])
def test_init_images_of_every_mode_are_what_their_files_are(pipe, tmp_path, mode):
    source = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    source = source.convert("I").convert("I;16") if mode == "I;16" else source.convert(mode)
    path = tmp_path / ("start.jpg" if mode in ("CMYK", "YCbCr") else "start.png")
    (source.convert("RGB") if mode == "HSV" else source).save(path, quality=100)
    opened = source if mode == "HSV" else Image.open(path)
    by_file, in_memory = (pipe(PROMPT, image=image, strength=0.5, **FEW)[0] for image in (path, opened))
    np.testing.assert_array_equal(np.asarray(by_file), np.asarray(in_memory))


def test_an_image_of_a_phone_is_upright_in_memory_as_in_its_file(pipe, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((40, 24, 3), np.uint8)
    pixels[:20] = 200
    Image.fromarray(pixels).save(tmp_path / "phone.jpg", exif=exif)
    mask = Image.new("L", (40, 24))
    mask.paste(255, (0, 0, 20, 24))
    images = [tmp_path / "phone.jpg", Image.open(tmp_path / "phone.jpg")]
    by_file, in_memory = (pipe(PROMPT, image=each, mask=mask, strength=0.5, **FEW)[0] for each in images)
    np.testing.assert_array_equal(np.asarray(by_file), np.asarray(in_memory))


@pytest.mark.parametrize("label", ["../../out", "a/b", "", ".hidden", "a\nb", "a\0b", "x" * 300, "\ud800", 3])
def test_images_are_not_saved_outside_of_their_folder(pipe, images, tmp_path, label):
    with pytest.raises(dermjax.UserError, match="cannot name a folder; give another") as raised:
        pipe.save(images, tmp_path / "saved", label=label)
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


def test_images_are_not_saved_into_a_manifest_of_photographs(pipe, images, tmp_path):
    """Its records would name files that are not there, or mix photographs with what a model made."""
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    Image.new("RGB", (8, 8)).save(photographs / "a.png")
    known = {"sha256": records.digests.sha256(photographs / "a.png"), "label": "benign", "split": "train"}
    record = records.Record(image="a.png", source="x", image_manipulation="none", **known)
    for root in (photographs, tmp_path / "run"):
        file = root / records.FILE
        file.parent.mkdir(exist_ok=True)
        records.write(file, records.Manifest(labels=("benign",), root=photographs, records=(record,)))
        before = file.read_bytes()
        with pytest.raises(dermjax.UserError, match=r"is of other images, in .*photographs; give another folder"):
            pipe.save(images[0], root)
        assert file.read_bytes() == before and not (root / "images").exists()


def test_threads_that_share_a_pipe_get_their_own_images(pipe):
    alone = [pipe(PROMPT, seeds=seed, **FEW)[0] for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: pipe(PROMPT, seeds=seed, **FEW)[0], range(4)))
    for one, other in zip(alone, together, strict=True):
        assert one.info == other.info
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_paths_may_begin_at_the_user_s_folder(tmp_path, monkeypatch):
    """A shell leaves ~ as it is behind `--config.model=`, and so does a notebook."""
    from dermjax.weights import textual_inversion

    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(dermjax.UserError, match=f"model {tmp_path}/nowhere: no model_index.json"):
        dermjax.load("~/nowhere")
    word = textual_inversion.Embedding("<mole>", np.zeros((1, 128), np.float32))
    textual_inversion.write(tmp_path / "mole.safetensors", word)
    assert "<mole>" in dermjax.load("derm-tiny", embeddings="~/mole.safetensors").model.digests["embeddings"]
