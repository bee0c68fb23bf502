"""What `dermjax generate` cannot make is one line on the error output and exit code 2, and leaves nothing behind."""

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from dermjax import machine

GENERATE = Path(__file__).parents[2] / "configs" / "generate.py"


@pytest.fixture
def pictures(tmp_path):
    """A picture, a mask of its size and one of another, in a folder."""
    for name, size in (("mole", (48, 32)), ("mask", (48, 32)), ("small", (40, 32))):
        Image.new("RGB", size, "white").save(tmp_path / f"{name}.png")
    return tmp_path


def generate(command, model, workdir, **config):
    """Runs `generate` with these keys of its config, __ for a dot."""
    flags = [f"--config.{key.replace('__', '.')}={value}" for key, value in config.items()]
    return command("generate", f"--config={GENERATE}", f"--workdir={workdir}", f"--config.model={model}", *flags)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"plan__samplers": "('Eular',)"}, "sampler 'Eular' is not known; did you mean one of: Euler"),
        ({"plan__samplers": "('Heun eta 1',)"}, "Heun has no eta"),
        ({"plan__samplers": "('DDIM',)", "plan__spacing": "karras"}, "spacing 'karras' is not for this sampler"),
        ({"plan__images_per_class": 0}, "plan asks for nothing: give prompts, samplers and images_per_class"),
        ({"plan__match": "nowhere"}, "manifest nowhere: no such file"),
        ({"plan__negative_prompt": "{size}"}, "nothing fills {size}; there are {label}; plan.match knows more"),
        ({"plan__steps": 0}, "config.plan.steps = 0: give 1 or more"),
        ({"init__images": "mole.png", "init__strength": 0.0}, "config.init.strength = 0.0: give more than 0"),
        ({"init__images": "mole.png", "init__strength": 1.01}, "strength 1.01: give more than 0 and at most 1"),
        ({"init__images": "mole.png", "init__strength": 0.01}, "strength 0.01 of 20 steps leaves none"),
        ({"init__images": "mole.png", "init__mask": "small.png"}, "mask small.png: 40x32 px, but mole.png is 48x32 px"),
        ({"init__images": "nowhere.png"}, "image nowhere.png: cannot be decoded (No such file or directory)"),
        ({"init__mask": "mask.png"}, "config.init.mask needs config.init.images"),
        ({"precision": "half"}, "config.precision = 'half' is unknown; give float32, bfloat16, float16"),
        ({"preview_every": -5}, "config.preview_every = -5: give 0 or more"),
        *(
            pytest.param(*each, marks=pytest.mark.slow)  # known once the model has been read
            for each in (
                ({"plan__steps": 1001}, "steps 1001: this sampler takes 1 to 1000 steps"),
                ({"size": 30}, "size = 30: this model makes multiples of 8 px; give 32"),
                ({"credentials__certificate": "gone.pem"}, "config.credentials.certificate gone.pem: cannot be read"),
                ({"plan__negative_prompt": "mole " * 80}, "82 tokens with start and end, the text encoder takes 77"),
            )
        ),
    ],
)
def test_refused_in_one_line(config, told, command, small_model, pictures, monkeypatch):
    monkeypatch.chdir(pictures)
    code, _, error = generate(command, small_model[2], pictures / "run", **config)
    assert code == 2 and told in error and error.count("\n") == 1, error
    assert not (pictures / "run").exists()


@pytest.mark.slow
def test_what_cannot_be_stored_is_told_before_the_first_image(command, small_model, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "images").write_text("")
    code, _, error = generate(command, small_model[2], tmp_path / "run", plan__images_per_class=2)
    assert code == 2 and "run/images/benign: cannot be written (Not a directory); give another" in error
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: mock.Mock(free=10**9))
    code, _, error = generate(command, small_model[2], tmp_path / "full", size=1024, plan__images_per_class=200)
    assert code == 2 and "400 images of 1024 px need up to 1.26 GB, 1 GB are free; make room" in error
    assert error.count("\n") == 1 and not (tmp_path / "full").exists()


@pytest.mark.slow
def test_a_dry_run_needs_no_folder(command, small_model):
    code, said, error = command("generate", f"--config={GENERATE}", f"--config.model={small_model[2]}", "--dry_run")
    assert code == 0, error
    assert ["images", "3000", "3000", "6000"] in [line.split() for line in said.splitlines()]
    assert "warning: nothing beside" in said and "batches of 16" in said


@pytest.mark.slow
def test_accepted(command, small_model, pictures, monkeypatch):
    """Painted under a mask, from one picture for all, with a preview."""
    monkeypatch.chdir(pictures)
    asked = {"init__images": "mole.png", "init__mask": "mask.png", "preview_every": 3, "plan__images_per_class": 2}
    code, said, error = generate(command, small_model[2], pictures / "run", **asked, plan__batch=2)
    assert code == 0, error
    assert "4 images in" in said and len(list((pictures / "run").rglob("images/*/*.png"))) == 4
    with Image.open(pictures / "run" / "preview.png") as image:
        assert np.asarray(image).shape == (16, 32, 3)
