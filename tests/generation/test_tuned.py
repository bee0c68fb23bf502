"""The classes that a model was tuned for are read from the card that `tune` writes, and others are warned of."""

import pytest
from ml_collections import ConfigDict

from dermjax import config_file
from dermjax.generation import run
from dermjax.page import fill
from dermjax.sampling import init_images
from dermjax.tuning import outputs

PROMPTS = {"benign": "a benign mole", "malignant": "a malignant mole"}


@pytest.fixture
def folder(tmp_path):
    """A model folder with a card as `tune` fills it in."""
    words = ("model", "title", "origin", "digest", "licences", "verdict", "curves", "use")
    config = ConfigDict({"prompts": PROMPTS, "rate": 1e-4}).to_json(indent=2)
    lists = {"counts": {}, "grids": [], "prompts": [], "class_images": 0}
    (tmp_path / run.CARD).write_text(fill(outputs.TEMPLATE, {}, **dict.fromkeys(words, "…"), **lists, config=config))
    return tmp_path


def test_the_card_tells_the_classes(folder):
    assert run.tuned_prompts(folder) == PROMPTS
    assert run.tuned_prompts(folder / "lora.safetensors") == PROMPTS, "beside a file"
    assert run.tuned_warnings(folder, PROMPTS) == []


def test_a_class_that_it_was_not_tuned_for_is_warned_of(folder):
    [warning] = run.tuned_warnings(folder / "lora.safetensors", ("benign", "nevus"))
    assert "was not tuned for the class 'nevus', only for benign, malignant" in warning and "\n" not in warning


def test_classes_of_the_same_prompts_are_warned_of_unless_photographs_tell_them(tmp_path, monkeypatch, capsys):
    config = config_file.preset("generate", "tiny")
    config.plan.prompts = {"benign": ("a mole",), "malignant": ("a mole",)}
    config.plan.words, config.plan.images_per_class = {}, 2
    run.load(config)
    told = "generate: warning: benign and malignant have the same prompts"
    assert told in capsys.readouterr().out
    monkeypatch.setattr(init_images.InitImages, "image", lambda self, request: tmp_path / request.label)
    run.load(config)
    assert told not in capsys.readouterr().out


@pytest.mark.parametrize(
    "text", [None, "# A model", "## Config\n\n```json\n{\n```\n", '## Config\n\n```json\n{"a": 1}\n```\n']
)
def test_a_model_whose_card_does_not_tell_is_warned_of(tmp_path, text):
    if text is not None:
        (tmp_path / run.CARD).write_text(text)
    [warning] = run.tuned_warnings(tmp_path, PROMPTS)
    assert "nothing beside" in warning and "images of benign and malignant may not show their class" in warning
