"""Room and folders are looked at before anything is made."""

import shutil
from types import SimpleNamespace
from unittest import mock

import pytest

from dermjax import machine
from dermjax.errors import UserError
from dermjax.generation import run

ASKED = [SimpleNamespace(image=f"images/{label}/00000.png") for label in ("benign", "malignant")]


def free(size):
    return mock.patch.object(machine.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**12, 0, size))


def test_no_room_is_told_before_the_first_image(tmp_path):
    with free(100_000), pytest.raises(UserError, match=r"2 images of 128 px need up to 106 kB, 100 kB are free; make"):
        run.check_storage(tmp_path, ASKED, 128)
    assert not list(tmp_path.iterdir())
    with free(110_000):
        run.check_storage(tmp_path, ASKED, 128)
    assert sorted(path.name for path in tmp_path.glob("images/*")) == ["benign", "malignant"]
    assert not list(tmp_path.glob("images/*/*"))


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "images").write_text("")
    with pytest.raises(UserError, match=r"images/benign: cannot be written \(Not a directory\); give another"):
        run.check_storage(tmp_path, ASKED, 128)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    refused = mock.patch.object(run.tempfile, "mkstemp", side_effect=OSError(30, "Read-only file system"))
    with refused, pytest.raises(UserError, match=r"images/benign: cannot be written \(Read-only file system\)"):
        run.check_storage(tmp_path, ASKED, 128)


@pytest.mark.parametrize(("size", "told"), [(999, "0.999 kB"), (2.1e8, "210 MB"), (1.57e10, "15.7 GB")])
def test_bytes_for_people(size, told):
    assert machine.format_bytes(size) == told
