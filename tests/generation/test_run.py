"""The generate stage with a model of a few operations: files, records, resume, errors before any work."""

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from dermjax import merge, parts, run_folder
from dermjax.data import records, tokens
from dermjax.data.archives import layouts
from dermjax.data.leaks import training_images
from dermjax.errors import UserError
from dermjax.generation import run
from dermjax.models.stable_diffusion import SCHEDULER
from dermjax.sampling import credentials, model, provenance
from dermjax.sampling.render import WRITERS

PLAN = {
    "prompts": {"benign": ("a benign mole",), "malignant": ("a malignant mole",)},
    "words": {},
    "quotas": {},
    "match": "",
    "images_of": {},
    "negative_prompt": "",
    "contrast": False,
    "samplers": ("Euler a",),
    "images_per_class": 5,
    "steps": 4,
    "spacing": "",
    "guidance": 2.0,
    "guidance_rescale": 0.0,
    "guidance_interval": (),
    "deep_cache": 1,
    "seed": 3,
    "batch": 4,
}
INIT = {"images": "", "mask": "", "strength": 0.6}


def model_folder(folder):
    """A folder with a tokenizer and nothing else that a model needs."""
    tokens.write_word_tokenizer(folder / "tokenizer", ["a", "benign", "malignant", "mole"], 8)
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return folder


def fake(folder, dtype, lazy):
    """What weights.model_files.read gives, of a few operations."""

    def network(params):
        def full(x, t, context):
            level = context.mean((1, 2))[:, None, None, None] - t[:, None, None, None] / 1000
            return jnp.tanh(params["unet"] * x + level), x

        def shallow(x, t, context, depths):
            return full(depths, t, context)[0]

        return SimpleNamespace(words=lambda context: context, full=full, shallow=shallow)

    model = SimpleNamespace(
        configs={
            "scheduler": SCHEDULER,
            "vae": {"latent_channels": 4, "block_out_channels": [8, 8]},
            "unet": {"in_channels": 4, "block_out_channels": [8, 8], "attention_head_dim": 1},
        },
        tokenizer=folder / "tokenizer",
        dtype=np.float32,
        factor=8,
        size=32,
        text_limits=(8, None),
        prediction="epsilon",
        encode_text=lambda params, tokens: tokens[..., None] / 500,
        network=network,
        encode=lambda params, image: jnp.repeat(image[:, ::8, ::8], 3, -1)[..., :8],
        sample_latents=lambda moments, noise: moments[..., :4],
        decode=lambda params, latents: jnp.repeat(jnp.repeat(jnp.tanh(latents[..., :3]), 8, 1), 8, 2),
    )
    return model, {"unet": np.float32(0.5)}


def config(folder, **changes):
    plan = {key: changes.pop(key, value) for key, value in PLAN.items()}
    added = {"lora": "", "lora_weight": 0.8, "embeddings": (), "long_prompts": "refuse", "preview_every": 0}
    added |= {"part": "", "shard": 0}
    added["precision"] = "float32"
    added["credentials"] = {key: changes.pop(key, "") for key in ("certificate", "key")}
    added["init"] = {key: changes.pop(key, value) for key, value in INIT.items()}
    return ConfigDict({"model": str(folder), "size": 0, "plan": plan} | added | changes).lock()


def generate(folder, workdir, **changes):
    """Runs the stage with the fake model; returns how many images it computed."""
    workdir.mkdir(exist_ok=True)
    written, digest = [], changes.pop("digest", "0123456789abcdef")

    def write(path, content):
        run_folder.write_atomically(path, content)
        written.append(path)  # by several threads, so a list rather than a mock's count

    with (
        mock.patch.multiple(model.model_files, read=fake, digest=lambda folder: digest),
        mock.patch.object(run, "write_atomically", write),
    ):
        run.run(config(folder, **changes), workdir)
    return len(written)


def killed(folder, workdir, survivors):
    """Runs the stage and kills this process with SIGKILL while it writes an image; called in a process of its own."""
    whole = iter(range(survivors))

    def replace(part, path, real=os.replace):
        if next(whole, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        real(part, path)

    with mock.patch.object(run_folder.os, "replace", replace):
        generate(Path(folder), Path(workdir))


def part_of(folder, workdir, part, **changes):
    """Runs a part, "i/n", as `dermjax generate` would, in its folder; returns how many image files it computed."""
    home = workdir / parts.read(part).folder
    run_folder.claim(home, config(folder, part=part, **changes).to_dict())
    return generate(folder, home, part=part, **changes)


def alone(folder, workdir):
    """Runs the stage; called in a process of its own."""
    generate(Path(folder), Path(workdir))


def joined(folder, workdir, index, port):
    """Runs the stage as one of two processes that `jax.distributed` has joined; called in a process of its own."""
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, index)
    print(generate(Path(folder), Path(workdir)))


def elsewhere(function, *arguments, **environment):
    """Starts a function of this file in a process of its own."""
    call = f"import runpy; runpy.run_path({__file__!r})[{function!r}]{arguments!r}"
    return subprocess.Popen(
        [sys.executable, "-c", call],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    assert generate(folder, workdir) == 10
    return workdir


def contents(workdir):
    return {path.relative_to(workdir): path.read_bytes() for path in workdir.rglob("*.*") if path.is_file()}


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image, np.int32)


def test_images_and_records(whole):
    manifest = records.read(whole)
    assert manifest.labels == ("benign", "malignant") and len(manifest.records) == 10
    for record in manifest.records:
        assert record.synthetic and record.split == "train" and record.licence == "research use only"
        path = manifest.path(record)
        assert pixels(path).shape == (32, 32, 3)
        assert provenance.origin(path) == record.generation
        assert record.generation["model"] == "0123456789abcdef" and record.generation["size"] == 32
    assert len({record.sha256 for record in manifest.records}) == 10


def test_classes_are_in_the_order_of_prepare(folder, tmp_path):
    """Malignant ones last, and so not by the alphabet: `classify` takes no other order than the photographs'."""
    generate(folder, tmp_path, prompts={name: ("a mole",) for name in ("melanoma", "nevus")}, images_per_class=1)
    manifest = records.read(tmp_path)
    assert manifest.labels == layouts.ordered({"melanoma", "nevus"}) == ("nevus", "melanoma")


def test_what_the_model_saw_is_handed_on(folder, tmp_path):
    (folder / training_images.FILE).write_bytes(b"a line\n")
    generate(folder, tmp_path / "run")
    (folder / training_images.FILE).unlink()
    assert (tmp_path / "run" / training_images.FILE).read_bytes() == b"a line\n"


def test_a_second_run_does_nothing(folder, whole):
    before = contents(whole)
    assert generate(folder, whole) == 0
    assert contents(whole) == before


def test_a_killed_run_goes_on_to_the_same_files(folder, whole, tmp_path):
    """Killed by SIGKILL in the middle of the second batch."""
    process = elsewhere("killed", str(folder), str(tmp_path), 6)
    _, error = process.communicate()
    assert process.returncode == -signal.SIGKILL, error
    left = len(list(tmp_path.rglob("*.png")))
    assert not (tmp_path / "manifest.jsonl").exists() and 6 - WRITERS < left <= 6
    assert generate(folder, tmp_path) == 10 - left
    left = {path: data for path, data in contents(tmp_path).items() if path.suffix != ".part"}
    assert left == contents(whole)


def test_images_are_the_same_on_more_devices(folder, whole, tmp_path):
    """The same bytes, in a model of so few operations. Two of the devices have no batch of their own in the end."""
    process = elsewhere("alone", str(folder), str(tmp_path), JAX_NUM_CPU_DEVICES="3")
    _, error = process.communicate()
    assert process.returncode == 0, error
    assert contents(tmp_path) == contents(whole)


@pytest.mark.slow
def test_two_processes_share_the_work(folder, whole, tmp_path):
    """Three batches of 4, 4 and 2 images: the first process makes the first and the last."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [elsewhere("joined", str(folder), str(tmp_path), index, port, JAX_PLATFORMS="cpu") for index in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert [out.splitlines()[-1] for out, _ in said] == ["6", "4"]
    assert contents(tmp_path) == contents(whole)


def test_parts_are_the_undivided_run(folder, whole, tmp_path):
    """Three batches of 4, 4 and 2 images in two parts, the second of them first; each again does nothing."""
    assert [part_of(folder, tmp_path, part) for part in ("1/2", "0/2", "0/2")] == [4, 6, 0]
    assert not (tmp_path / records.FILE).exists()
    merge.merge(str(tmp_path), any_versions=False)
    made = contents(tmp_path)
    assert {path: made[path] for path in contents(whole)} == contents(whole)
    assert records.read(tmp_path).records == records.read(whole).records
    one = records.read(tmp_path / "part-00001-of-00002")
    assert len(one.records) == 4 and all(one.path(record).is_file() for record in one.records)


def test_shards_hold_the_images_of_an_undivided_run(folder, whole, tmp_path, capsys):
    """Ten images in shards of two batches and of one, whole and in parts; a shard that is lost is made again."""
    alone, divided = tmp_path / "alone", tmp_path / "divided"
    generate(folder, alone, shard=9)
    assert [path.name for path in sorted((alone / "shards").iterdir())] == ["000000.tar", "000001.tar"]
    assert not list(alone.rglob("*.png"))
    ours, theirs = records.read(alone), records.read(whole)
    for record, expected in zip(ours.records, theirs.records, strict=True):
        assert record.image.endswith(expected.image.removeprefix("images"))
        assert replace(record, image="") == replace(expected, image="")
        assert ours.path(record).read_bytes() == theirs.path(expected).read_bytes()
    provenance.show(str(alone / ours.records[0].image))
    assert "the bytes are those of the record, and it says the same" in capsys.readouterr().out
    for part in ("0/2", "1/2"):
        part_of(folder, divided, part, shard=9)
    merge.merge(str(divided), any_versions=False)
    made = contents(divided)
    assert {path: made[path] for path in contents(alone)} == contents(alone)
    (divided / "shards/000000.tar").unlink()
    (divided / "shards/000001.tar").write_bytes(made[Path("shards/000001.tar")][:1500])
    for part in ("0/2", "1/2"):
        part_of(folder, divided, part, shard=9)
    assert contents(divided) == made
    merge.merge(str(divided), any_versions=False)
    assert "nothing to do" in capsys.readouterr().out and contents(divided) == made


def test_parts_of_other_photographs_are_not_joined(folder, tmp_path):
    """Prepared again between two parts, with one more: some would begin two images too many, another none."""
    prepared, workdir, noise = tmp_path / "prepare", tmp_path / "run", np.random.default_rng(0)
    prepared.mkdir()

    def prepare(count):
        found = []
        for label, number in ((label, number) for label in PLAN["prompts"] for number in range(count)):
            path = prepared / f"{label}{number}.png"
            if not path.exists():
                Image.fromarray(noise.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
            known = {"label": label, "split": "train", "source": "test", "image_manipulation": "none"}
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found.append(records.Record(image=path.name, sha256=digest, **known))
        labels = tuple(PLAN["prompts"])
        records.write(prepared / records.FILE, records.Manifest(labels=labels, root=prepared, records=tuple(found)))

    prepare(2)
    part_of(folder, workdir, "0/2", images=str(prepared))
    prepare(3)
    part_of(folder, workdir, "1/2", images=str(prepared))
    with pytest.raises(UserError, match=r"part-00001-of-00002 has other inputs than part-00000-of-00002 \(plan: "):
        merge.merge(str(workdir), any_versions=False)
    part_of(folder, workdir, "0/2", images=str(prepared))
    merge.merge(str(workdir), any_versions=False)
    begun = {record.generation["init_image"] for record in records.read(workdir).records}
    assert begun == {record.sha256 for record in records.read(prepared).records}


def test_more_parts_than_batches_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"config.part = 0/4: there are 3 batches to divide"):
        generate(folder, tmp_path, part="0/4")
    with pytest.raises(UserError, match=r"config.part = 0/2: there are 1 shards to divide"):
        generate(folder, tmp_path, part="0/2", shard=12)


def test_damaged_and_foreign_images_are_made_again(folder, whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    (tmp_path / "images/benign/00001.png").write_bytes(b"not a picture")
    (tmp_path / "images/malignant/00002.png").unlink()
    os.replace(tmp_path / "images/benign/00003.png", tmp_path / "images/benign/00000.png")
    assert generate(folder, tmp_path) == 4
    assert contents(tmp_path) == contents(whole)


@pytest.mark.parametrize("cause", ["model", "precision", "numeric_versions.text_encoder"])
def test_images_of_another_model_arithmetic_or_code_are_made_again(cause, folder, whole, tmp_path, capsys, monkeypatch):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    changes = {"model": {"digest": "fedcba9876543210"}, "precision": {"precision": "bfloat16"}}.get(cause, {})
    if not changes:
        later = model.NUMERIC_VERSIONS | {"text_encoder": model.NUMERIC_VERSIONS["text_encoder"] + 1}
        monkeypatch.setattr(model, "NUMERIC_VERSIONS", later)
    assert generate(folder, tmp_path, **changes) == 10
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "made again" in line]
    assert (
        line.startswith("generate: images that are there and made again: 10, such as images/") and f"({cause}: " in line
    )
    assert generate(folder, tmp_path, **changes) == 0
    assert "made again" not in capsys.readouterr().out


def test_images_from_before_they_said_their_code_are_read_and_made_again(folder, whole, tmp_path, capsys):
    """Their records and files said nothing of versions, and of the precision only where it was not float32."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    manifest, old = records.read(tmp_path), []
    for record in manifest.records:
        said = {
            name: value for name, value in record.generation.items() if name not in ("precision", "numeric_versions")
        }
        content = provenance.png(pixels(manifest.path(record)).astype(np.uint8), said)
        manifest.unchecked_path(record).write_bytes(content)
        old.append(replace(record, generation=said, sha256=hashlib.sha256(content).hexdigest()))
    records.write(tmp_path / records.FILE, replace(manifest, records=tuple(old)))
    assert (
        list(records.read(tmp_path).records) == old
        and provenance.origin(manifest.unchecked_path(old[0])) == old[0].generation
    )
    assert generate(folder, tmp_path) == 10
    assert "numeric_versions.text_encoder: (absent) -> 2" in capsys.readouterr().out
    assert contents(tmp_path) == contents(whole)


def test_images_do_not_depend_on_the_batch(folder, whole, tmp_path):
    generate(folder, tmp_path, batch=8)
    for record in records.read(whole).records:
        ours, theirs = (pixels(root / record.image) for root in (tmp_path, whole))
        assert np.abs(ours - theirs).max() <= 1


def test_the_options_of_a_plan_reach_the_images(folder, whole, tmp_path):
    """Each of them changes the image, and the image's record names it."""
    usual = pixels(whole / "images/benign/00000.png")
    options = {"spacing": "karras", "guidance_rescale": 0.9, "guidance_interval": (0.5, 3.0), "deep_cache": 2}
    for name, value in options.items():
        assert generate(folder, tmp_path / name, images_per_class=1, **{name: value}) == 2
        assert (pixels(tmp_path / name / "images/benign/00000.png") != usual).any(), name
        assert name in records.read(tmp_path / name).records[0].generation


def test_images_from_a_picture_under_a_mask(folder, whole, tmp_path):
    """What is not painted stays; the record says where the image began; a run from another picture is another run."""
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "mole.png")
    Image.fromarray(np.uint8(255) * (np.arange(32) < 16)[None].repeat(32, 0)).save(tmp_path / "mask.png")
    init = {"images": str(tmp_path / "mole.png"), "mask": str(tmp_path / "mask.png"), "images_per_class": 2}
    assert generate(folder, tmp_path / "painted", strength=0.5, **init) == 4
    assert generate(folder, tmp_path / "painted", strength=0.5, **init) == 0
    made = [pixels(tmp_path / "painted" / record.image) for record in records.read(tmp_path / "painted").records]
    for record, image in zip(records.read(tmp_path / "painted").records, made, strict=True):
        assert record.generation["strength"] == 0.5 and len(record.generation["init_mask"]) == 64
        assert (image[:, 16:] == made[0][:, 16:]).all() and (
            image[:, :16] != pixels(whole / record.image)[:, :16]
        ).any()
    assert (made[0][:, :16] != made[1][:, :16]).any()
    assert generate(folder, tmp_path / "varied", **(init | {"mask": ""})) == 4
    assert "init_mask" not in records.read(tmp_path / "varied").records[0].generation


def test_previews_are_written_and_change_nothing(folder, whole, tmp_path):
    assert generate(folder, tmp_path, preview_every=2) == 10
    assert pixels(tmp_path / "preview.png").shape == (2 * 4 * 4, 2 * 4 * 4, 3)
    made = contents(tmp_path)
    assert {path: data for path, data in made.items() if path.name != "preview.png"} == contents(whole)


def test_a_dry_run_makes_nothing(folder, capsys):
    words = {"tone": {"a": 1, "mole": 1}}
    prompts = {label: (f"a {label} mole[ {{tone}}]",) for label in PLAN["prompts"]}
    with mock.patch.multiple(model.model_files, read=fake, digest=lambda folder: ""):
        run.dry_run(config(folder, prompts=prompts, words=words, images_per_class=6, samplers=("Euler", "PLMS")))
    said = capsys.readouterr().out
    rows = [line.split() for line in said.splitlines()]
    assert ["benign", "malignant", "all"] in rows and ["images", "6", "6", "12"] in rows
    assert ["PLMS", "3", "3", "6"] in rows and ["tone", "mole", "3", "3", "6"] in rows
    assert "benign: a benign mole a" in said and "12 images, 4 steps, about" in said
    assert "MB of memory, up to 86 kB of disk, about" in said


def test_signed_images_have_the_same_pixels_and_are_not_made_again(folder, whole, signer, tmp_path):
    files = dict(zip(("certificate", "key"), signer, strict=True))
    assert generate(folder, tmp_path, images_per_class=1, **files) == 2
    assert generate(folder, tmp_path, images_per_class=1, **files) == 0
    path = tmp_path / "images/benign/00000.png"
    assert credentials.read(path)["generation"] == provenance.origin(path)
    assert (pixels(path) == pixels(whole / "images/benign/00000.png")).all()


def test_images_that_are_there_without_credentials_are_made_again_with_them(folder, whole, signer, tmp_path, capsys):
    """Finished, and then the same command with credentials: config.json would say that all are signed."""
    files = dict(zip(("certificate", "key"), signer, strict=True))
    assert generate(folder, tmp_path, images_per_class=1) == 2
    with pytest.raises(UserError, match=r"certificate gone\.pem: cannot be read"):
        generate(folder, tmp_path, images_per_class=1, certificate="gone.pem", key="gone.pem")
    assert generate(folder, tmp_path, images_per_class=1, **files) == 2
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "made again" in line]
    assert line.startswith("generate: images that are there and made again: 2, such as images/")
    assert line.endswith("/00000.png (not signed)")
    path = tmp_path / "images/benign/00000.png"
    assert credentials.read(path)["generation"] == provenance.origin(path)
    assert (pixels(path) == pixels(whole / "images/benign/00000.png")).all()
    assert records.read(tmp_path).path(records.read(tmp_path).records[0]) == path
    assert generate(folder, tmp_path, images_per_class=1, **files) == 0
    assert generate(folder, tmp_path, images_per_class=1) == 0, "what is signed may stay so"


def test_what_the_run_says(folder, tmp_path, capsys):
    generate(folder, tmp_path)
    said = capsys.readouterr().out
    assert "warning: nothing beside" in said and "images a second since the first batch began" in said
    assert "10/10 images" in said and "10 images in" in said


def test_without_guidance(folder, tmp_path):
    assert generate(folder, tmp_path, guidance=1.0, images_per_class=1, size=16) == 2
    assert pixels(tmp_path / "images/benign/00000.png").shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images_per_class": 0}, "plan asks for nothing"),
        ({"samplers": ("Eular",)}, "sampler 'Eular' is not known; did you mean one of: Euler"),
        ({"steps": 0}, r"plan\.steps = 0"),
        ({"steps": 1001}, "steps 1001: this sampler takes 1 to 1000"),
        ({"samplers": ("Euler", "LCM"), "steps": 51}, "steps 51: this sampler takes 1 to 50"),
        ({"spacing": "9 3 0"}, "steps 4: the spacing's 3 sigmas make 2 steps"),
        ({"spacing": "3 9 2 1 0"}, "sigmas 3, 9, 2, 1, 0: give two or more, decreasing"),
        ({"prompts": {"benign": ("a mole " * 9,)}}, "'a mole a mole.*tokens"),
        ({"size": 30}, "size = 30: this model makes multiples of 8 px; give 32"),
        ({"batch": 0}, r"plan\.batch = 0"),
        ({"images": "none.png"}, r"none\.png: cannot be decoded \(No such file"),
        ({"images": "none.png", "strength": 1.5}, r"strength 1\.5: give more than 0 and at most 1"),
        ({"mask": "none.png"}, r"config\.init\.mask needs config\.init\.images"),
        ({"preview_every": -1}, "preview_every = -1: give 0 or more"),
        ({"words": {"size": {"large": 1}}}, r"plan\.words\.size: no prompt has \{size\}"),
        ({"certificate": "gone.pem", "key": "gone.pem"}, r"certificate gone\.pem: cannot be read"),
    ],
)
def test_refused_before_any_work(folder, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        generate(folder, tmp_path, **changes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "message"),
    [("", r"config\.model is empty; give"), ("nowhere", r"model nowhere: no model_index\.json; give")],
)
def test_a_missing_model_is_named(tmp_path, model, message):
    with pytest.raises(UserError, match=message):
        generate(model, tmp_path)


def test_the_largest_seeds_are_drawn_recorded_and_resumed(tmp_path):
    folder, first = model_folder(tmp_path / "model"), 2**32 - 10
    assert generate(folder, tmp_path / "run", seed=first) == 10
    made = records.read(tmp_path / "run").records
    assert sorted(each.generation["seed"] for each in made) == list(range(first, 2**32))
    assert len({each.sha256 for each in made}) == 10
    assert generate(folder, tmp_path / "run", seed=first) == 0
