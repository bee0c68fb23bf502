"""Folders of small images, and `prepare` on them."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from dermjax.data import images, records
from dermjax.errors import UserError
from dermjax.preparation.run import run

CONFIG = Path(__file__).parents[2] / "configs" / "prepare.py"
CLASSES = ("benign", "malignant")
SPLIT = ("train/benign", "train/malignant", "test/benign", "test/malignant")


def _settings(variant=None, **changes):
    config = runpy.run_path(str(CONFIG))["get_config"](variant)
    config.lock().update_from_flattened_dict({"attributes": False} | changes)
    return config


def _picture(number):
    coarse = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return images.encode_png(coarse.repeat(4, axis=0).repeat(4, axis=1))


def _fill(root, folders, count):
    for place, folder in enumerate(folders):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            (root / folder / f"{number}.png").write_bytes(_picture(10_000 * place + number))
    return root


@pytest.fixture
def settings():
    """The config of `prepare` without attributes, with changes."""
    return _settings


@pytest.fixture
def picture():
    """PNG bytes of an image that no other number gives, nor a near one."""
    return _picture


@pytest.fixture
def fill():
    """(root, folders, count) -> the root with `count` different images in each folder."""
    return _fill


@pytest.fixture
def folder(tmp_path):
    return _fill(tmp_path / "moles", CLASSES, 20)


@pytest.fixture
def divided(tmp_path):
    return _fill(tmp_path / "moles", SPLIT, 12)


@pytest.fixture
def prepare():
    """The manifest that a fresh run writes."""

    def prepared(images, workdir, **changes):
        workdir.mkdir(parents=True, exist_ok=True)
        run(_settings(images=str(images), **changes), workdir)
        return records.read(workdir)

    return prepared


@pytest.fixture
def refused(tmp_path):
    """A run that must be refused in one line and leave nothing in its folder."""

    def tried(images, told, **changes):
        workdir = tmp_path / "refused"
        workdir.mkdir(exist_ok=True)
        with pytest.raises(UserError, match=told) as caught:
            run(_settings(images=str(images), **changes), workdir)
        assert "\n" not in str(caught.value)
        assert not list(workdir.iterdir())

    return tried
