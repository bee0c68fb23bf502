"""Folders of small images, and `prepare` on them."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dermjax.data import images, records
from dermjax.data.archives.table_records import TableOptions
from dermjax.data.leaks import fingerprints
from dermjax.errors import UserError
from dermjax.preparation.listing import list_folder
from dermjax.preparation.run import run

CONFIG = Path(__file__).parents[2] / "configs" / "prepare.py"
CLASSES = ("benign", "malignant")
COLUMNS = dict.fromkeys(("image", "label", "diagnosis", "split", "lesion_id", "patient_id", "licence", "age"), "")
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


def _read(folder, layout="detect", classes="binary", kind="dermoscopic", own=False, skip=False, **columns):
    into = folder.parent / "run"
    options = TableOptions(classes=classes, skip=skip, kind=kind, own_splits=own, into=into)
    return list_folder(folder, layout=layout, columns=COLUMNS | columns, options=options)


def _mask(put, name, levels=(0, 255), mode="L"):
    pixels = np.full((64, 64), levels[0], np.uint8)
    pixels[16:40, 20:50] = levels[-1]
    pixels[:4, : 16 * len(levels)] = np.repeat(np.array(levels, np.uint8), 16)
    image = Image.fromarray(pixels)
    path = put(name, b"") / name
    (image if mode == "L" else image.convert(mode)).save(path)
    return path


@pytest.fixture
def put(tmp_path):
    """(name, content or the number of an image) writes a file below tmp_path/data, which it returns."""

    def write(name, content):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_picture(content) if isinstance(content, int) else
                         content if isinstance(content, bytes) else content.encode())  # fmt: skip
        return tmp_path / "data"

    return write


@pytest.fixture
def read():
    """(folder, settings) -> the name of the layout and the listing."""
    return _read


@pytest.fixture
def told():
    """A listing -> {image: label}."""
    return lambda listing: {record.image: record.label for record in listing.records}


@pytest.fixture
def mask():
    """(put, name, levels, mode) writes a mask and returns its path."""
    return _mask


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
    """A run that must be refused in one line and leave nothing in its folder but what it has found out."""

    def tried(images, told, **changes):
        workdir = tmp_path / "refused"
        workdir.mkdir(exist_ok=True)
        with pytest.raises(UserError, match=told) as caught:
            run(_settings(images=str(images), **changes), workdir)
        assert "\n" not in str(caught.value)
        assert {path.name for path in workdir.iterdir()} <= {fingerprints.FILE}

    return tried
